"""`fuzzy_labels`: every pattern of votes of one to five blocks, in every setting, against the rules one by one."""

from collections import Counter
from itertools import permutations, product

import pytest
import torch

from bissl_fast.methods.fussl.fuzzy_labels import effective_classes, fuzzy_labels, soft_cross_entropy

CONFIDENCES = (0.31, 0.17, 0.83, 0.29, 0.41)
"""Of five blocks: no two sets of them have equal sums."""


def literal(votes: tuple[int, ...], confidences: tuple[float, ...], kind: str, ties: str, memberships: str) -> dict:
    """Class to membership, as sections 3.2 and 4.1.3 and docs/fussl.md say it."""
    counts = Counter(votes)
    confidence = {c: sum(w for vote, w in zip(votes, confidences, strict=True) if vote == c) for c in counts}
    most = max(counts.values())
    leading = {c for c in counts if counts[c] == most}
    surest = max(leading, key=lambda c: confidence[c])
    if kind == "soft":
        chosen = set(counts)
    elif kind == "hard" or len(leading) == 1 or (ties == "hard" and most > 1):
        chosen = {surest}
    else:
        chosen = set(counts) if ties == "all" else leading
    weight = confidence if memberships == "confidence" else counts
    total = sum(weight[c] for c in chosen)
    return {c: weight[c] / total for c in chosen}


@pytest.mark.parametrize("memberships", ["confidence", "uniform"])
@pytest.mark.parametrize("ties", ["tied", "all", "hard"])
@pytest.mark.parametrize("kind", ["fuzzy", "hard", "soft"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_all_patterns(blocks: int, kind: str, ties: str, memberships: str) -> None:
    patterns = list(product(range(blocks), repeat=blocks))
    votes = torch.tensor(patterns) * 7 + 3  # classes are no numbers of blocks
    confidences = torch.tensor(CONFIDENCES[:blocks], dtype=torch.float64).expand(len(patterns), blocks)
    found = fuzzy_labels(votes, confidences, kind, ties, memberships)
    for pattern, row in zip(patterns, found.tolist(), strict=True):
        members: dict[int, float] = {}
        for vote, membership in zip(pattern, row, strict=True):
            if membership:
                assert vote not in members, "a class has its membership once"
                members[vote] = membership
        expected = literal(pattern, CONFIDENCES[:blocks], kind, ties, memberships)
        assert members == pytest.approx(expected, rel=1e-14), pattern
        if len(expected) == 1:
            assert list(members.values()) == [1.0]  # exactly


def test_what_the_paper_says_of_three_blocks() -> None:
    """Two of three win, three different ones share; m = 1 is a hard label (sections 3.2, 4.1.3 and 5)."""
    votes = torch.tensor([[4, 9, 4], [4, 9, 2]])
    found = fuzzy_labels(votes, torch.tensor([[0.1, 0.9, 0.1], [0.1, 0.3, 0.4]], dtype=torch.float64))
    assert found[0].tolist() == [1, 0, 0]
    assert found[1].tolist() == pytest.approx([0.125, 0.375, 0.5])
    assert fuzzy_labels(torch.tensor([[5]]), torch.tensor([[0.2]])).tolist() == [[1]]


@pytest.mark.parametrize("kind", ["fuzzy", "hard", "soft"])
def test_labels_do_not_depend_on_the_order_of_blocks(kind: str) -> None:
    """Also where confidences are equal, of which the lowest class is taken."""
    votes, confidences = (6, 2, 6, 2), (0.25, 0.5, 0.5, 0.25)

    def members(order: tuple[int, ...]) -> dict[int, float]:
        row = torch.tensor([[votes[k] for k in order]])
        found = fuzzy_labels(row, torch.tensor([[confidences[k] for k in order]]), kind)
        return {vote: value for vote, value in zip(row[0].tolist(), found[0].tolist(), strict=True) if value}

    expected = {2: 1.0} if kind == "hard" else {2: 0.5, 6: 0.5}
    assert all(members(order) == expected for order in permutations(range(4)))


def test_sums_that_differ_by_the_order_of_their_terms_alone_are_equal() -> None:
    votes, confidences = torch.tensor([[6, 6, 6, 2, 2, 2]]), torch.tensor([[0.1, 0.1, 0.5, 0.1, 0.1, 0.5]])
    for order in permutations(range(6)):
        row = votes[:, order]
        assert row[fuzzy_labels(row, confidences[:, order], "hard") == 1].tolist() == [2]


def test_the_gradient_of_the_loss_is_softmax_less_label() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    votes = torch.tensor([[0, 0, 0], [1, 2, 3], [5, 5, 2], [4, 1, 4], [3, 2, 1]])
    given = fuzzy_labels(votes, torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.1, "soft")
    loss = soft_cross_entropy(scores, votes, given).mean()
    (gradient,) = torch.autograd.grad(loss, scores)
    dense = torch.zeros(5, 6, dtype=torch.float64).scatter_add(1, votes, given)
    torch.testing.assert_close(gradient, (scores.detach().softmax(1) - dense) / 5, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, dense), rtol=1e-13, atol=0)


def test_half_precision_scores_are_summed_in_float32() -> None:
    scores = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float16)
    found = soft_cross_entropy(scores, torch.tensor([[1]]), torch.ones(1, 1))
    assert found.dtype == torch.float32
    assert found.item() == 200


def test_pseudo_classes_are_counted_by_their_members() -> None:
    votes, given = torch.tensor([[0, 3], [0, 1], [2, 2]]), torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    in_use, effective = effective_classes(votes, given, 9)
    assert in_use == 3  # nobody is a member of 3
    shares = torch.tensor([1.5, 0.5, 1.0]) / 3
    assert effective == pytest.approx(float((-(shares * shares.log()).sum()).exp()))
