#!/usr/bin/env bash
# One would guess: SmoothAPLoss of pytorch-metric-learning takes embeddings and labels, m samples of each of C classes (it
# raises where classes have different sizes), and is zero where every class lies together and far from the others.
# What happens: the batch is cut into m groups of C neighbours instead of C groups of m. Unless C = m, members of other
# classes count as positives, and of its own class some do not: perfect clusters cost 0.2 to 0.4, and descending the loss
# takes them apart. (Labels are used for counting alone: a batch that is not sorted by class is wrong, too.) The test in its
# repository has as many classes as samples in each.
# Whom it costs: supervised contrastive pre-training and retrieval with MPerClassSampler, e.g. 4 images of 8 classes.
# Versions: pytorch-metric-learning 2.9.0, torch 2.14.1 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir pytorch-metric-learning==2.9.0 torch==2.14.1 numpy==2.4.6 scikit-learn==1.9.1
"$folder/env/bin/python" - <<'EOF'
import pytorch_metric_learning
import torch
from pytorch_metric_learning.losses import SmoothAPLoss

print("pytorch-metric-learning", pytorch_metric_learning.__version__, "torch", torch.__version__)


def by_hand(embeddings, labels, temperature=0.01):
    """1 - smoothed average precision (arXiv:2007.12163, Eq. 7), every sample a query, itself among its positives."""
    rows = torch.nn.functional.normalize(embeddings, dim=1)
    positive, similarity = labels[:, None] == labels, rows @ rows.T
    above = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / temperature)  # query, sample, another
    above = above * (1 - torch.eye(len(labels)))
    rank, among_positives = 1 + above.sum(2), 1 + (above * positive[:, None]).sum(2)
    return 1 - ((among_positives / rank * positive).sum(1) / positive.sum(1)).mean()


def margin(embeddings, labels):
    """The lowest cosine within a class less the highest between two."""
    rows = torch.nn.functional.normalize(embeddings.detach(), dim=1)
    cosines, same = rows @ rows.T, labels[:, None] == labels
    return (cosines[same].min() - cosines[~same].max()).item()


def descended(loss, embeddings, labels):
    x = embeddings.clone().requires_grad_()
    optimiser = torch.optim.SGD([x], lr=1.0)
    for _ in range(50):
        optimiser.zero_grad()
        loss(x, labels).backward()
        optimiser.step()
    return margin(x, labels)


for classes, samples in ((4, 4), (2, 4), (8, 4), (4, 8)):
    torch.manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(samples)
    clusters = torch.eye(8)[labels] + 0.05 * torch.randn(len(labels), 8)
    expected, seen = by_hand(clusters, labels).item(), SmoothAPLoss()(clusters, labels).item()
    before = margin(clusters, labels)
    right, wrong = (descended(loss, clusters, labels) for loss in (by_hand, SmoothAPLoss()))
    print(f"{samples} samples of {classes} classes: loss expected {expected:.3f}, seen {seen:.3f};", end=" ")
    print(f"margin between classes {before:.2f}, after 50 steps expected {right:.2f}, seen {wrong:.2f}")
    assert abs(expected) < 1e-5 and right > before - 0.01
    if classes == samples:
        assert abs(seen) < 1e-5
    else:
        assert seen > 0.2 and wrong < before - 0.2, "the behaviour has changed"
EOF
