"""Pseudo-labels of a set by an ensemble: who votes for what, who agrees, and whose error on the labels is least."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn

from bissl_fast.data.pipelines.loader import Batch
from bissl_fast.methods.fussl.fuzzy_labels import effective_classes, soft_cross_entropy
from bissl_fast.ops.collectives import Ranks, gathered_unequal
from bissl_fast.training.precision import Forward

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Votes and confidences (B, m) to memberships (B, m), as those of `fuzzy_labels`."""

COLLAPSED = 1.5
"""Pseudo-classes below which, counted by their entropy, labels tell images apart no more."""


@dataclass(frozen=True)
class Labels:
    """Fuzzy pseudo-labels of a set, and what was found while they were given (section 3.2).

    Attributes:
        votes: (N, m) int64, the pseudo-class of each block.
        memberships: (N, m), how far an image belongs to each of them.
        errors: (m,) float64, mean soft cross-entropy of each block on the labels.
        classes: D, outputs of the projector.
    """

    votes: torch.Tensor
    memberships: torch.Tensor
    errors: torch.Tensor
    classes: int

    @property
    def chosen(self) -> int:
        """The block of the lowest error, of equal ones the first."""
        return min(range(len(self.errors)), key=self.errors.tolist().__getitem__)

    def report(self) -> dict[str, Any]:
        """As `labels.json` has it; docs/fussl.md says what each number means."""
        votes, count = self.votes, self.votes.shape[1]
        pairs = [(a, b) for a in range(count) for b in range(a)]
        agreeing = [float((votes[:, a] == votes[:, b]).double().mean()) for a, b in pairs]
        shares = [torch.bincount(votes[:, k], minlength=self.classes).double() / len(votes) for k in range(count)]
        by_chance = [float(shares[a] @ shares[b]) for a, b in pairs]
        in_use, effective = effective_classes(votes, self.memberships, self.classes)
        return {
            "images": len(votes),
            "blocks": count,
            "agreement": float((votes == votes[:, :1]).all(1).double().mean()),
            "pairwise_agreement": mean(agreeing) if pairs else 1.0,
            "pairwise_agreement_by_chance": mean(by_chance) if pairs else 1.0,
            "hard_share": float((self.memberships == 1).any(1).double().mean()),
            "pseudo_classes": self.classes,
            "pseudo_classes_in_use": in_use,
            "pseudo_classes_effective": effective,
            "errors": self.errors.tolist(),
            "chosen": self.chosen,
        }


@torch.no_grad()
def label(
    blocks: Sequence[nn.Module],
    batches: Iterable[Batch],
    rule: Rule,
    forward: Forward = nullcontext,
    ranks: Ranks | None = None,
) -> Labels:
    """Labels of all images by the blocks' votes, and every block's error on them (sections 3.2 and 3.3).

    Args:
        blocks: backbone and projector of each, (B, C, H, W) to scores (B, D); put into eval mode.
        batches: of the images as they are, in the order of the set; ``views[0]`` is used. With ``ranks`` each has whole
            batches of them, which follow those of the rank before, and some may have none.
        rule: how votes and confidences (B, m) become memberships (B, m).
        forward: precision context of a forward pass.
        ranks: that share the work, if there are several; the result is the same bits on each.
    """
    count, classes = len(blocks), 0
    like = next((parameter for block in blocks for parameter in block.parameters()), torch.empty(0))
    votes = [torch.empty(0, count, dtype=torch.int64)]
    memberships = [torch.empty(0, count, dtype=torch.promote_types(like.dtype, torch.float32))]
    errors = [torch.empty(0, count, dtype=torch.float64)]  # summed over each batch
    for block in blocks:
        block.eval()
    for batch in batches:
        with forward():
            scores = [block(batch.views[0]) for block in blocks]  # (B, D) each
        wide = [s if s.dtype == torch.float64 else s.float() for s in scores]
        confidences, found = torch.stack([s.softmax(1) for s in wide], 1).max(2)  # (B, m)
        given = rule(found, confidences)
        errors.append(torch.stack([soft_cross_entropy(s, found, given).double().sum() for s in wide]).cpu()[None])
        votes.append(found.cpu())
        memberships.append(given.cpu())
        classes = wide[0].shape[1]
    together, shares, summed = (torch.cat(parts) for parts in (votes, memberships, errors))
    if ranks is not None:
        classes = int(gathered_unequal(torch.tensor([classes]), ranks).amax())
        together, shares, summed = (gathered_unequal(part, ranks) for part in (together, shares, summed))
    error = sum(summed, torch.zeros(count, dtype=torch.float64))
    return Labels(together, shares, error / len(together), classes)


def summary(report: Mapping[str, Any]) -> str:
    """The report of labels as a line."""
    errors = ", ".join(f"{error:.4f}" for error in report["errors"])
    return (
        f"blocks agree on {report['agreement']:.1%} of {report['images']:,} images "
        f"(pairs on {report['pairwise_agreement']:.1%}, by chance {report['pairwise_agreement_by_chance']:.1%}), "
        f"{report['hard_share']:.1%} of the labels are hard; "
        f"{report['pseudo_classes_in_use']} of {report['pseudo_classes']} pseudo-classes are in use "
        f"(as many as {report['pseudo_classes_effective']:.1f} equal ones). "
        f"Block {report['chosen']} goes on, whose soft cross-entropy is the lowest of {errors}"
    )


def collapse(report: Mapping[str, Any]) -> str:
    """A sentence where labels tell images apart no more; else empty."""
    if report["pseudo_classes_effective"] >= COLLAPSED:
        return ""
    what = "the same" if report["pseudo_classes_in_use"] == 1 else "nearly all the same"
    return (
        f"labels have collapsed: they are {what} for all images, and phase 2 has nothing to learn from them. A longer "
        "phase 1, a lower rate (--fussl.recipe pretext) or another --pretext may help"
    )
