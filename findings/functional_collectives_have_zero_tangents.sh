#!/usr/bin/env bash
# One would guess: forward mode through all_reduce of torch.distributed._functional_collectives is right, as reverse mode is to second
# order, or raises, as torch.distributed.nn.functional.all_reduce does, whose deprecation sends its users to this one.
# What happens: torch.func.jvp and linearize give tangents of zero behind it, and autograd's dual numbers none at all (of reduce_scatter and
# broadcast, too), without an error or a warning: of a loss the derivative lacks what passes through a collective, and keeps the rest.
# Only dual numbers of a tensor that requires gradients, too, raise.
# Whom it costs: forward-mode directional derivatives and Gauss-Newton products of losses with statistics of all ranks.
# Versions: torch 2.14.1 on a CPU, two ranks of gloo. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/seen.py" <<'EOF'
import sys
import warnings

import torch
import torch.autograd.forward_ad as forward
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.distributed.nn.functional as older
import torch.multiprocessing as mp
from torch.func import jvp, linearize


def reduced(x):
    return collectives.all_reduce(x, "sum", dist.group.WORLD)


def ratio(x):
    """Exponential of what a rank's row is above the mean over both ranks."""
    return (x - reduced(x) / 2).exp()


def reverse_over_reverse(w, v):
    w = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(ratio(w).sum(), w, create_graph=True)
    return g.detach(), torch.autograd.grad((g * v).sum(), w)[0]


def dual_tangent(x, v):
    with forward.dual_level():
        return forward.unpack_dual(reduced(forward.make_dual(x, v))).tangent


def raises(call, *arguments):
    try:
        call(*arguments)
    except (NotImplementedError, RuntimeError):
        return True
    return False


def rank_of(rank, store):
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    torch.manual_seed(0)
    X, V = torch.randn(2, 2, 4, dtype=torch.float64)  # one row a rank
    x, v, step = X[rank], V[rank], 1e-5
    expected = (ratio(x + step * v) - ratio(x - step * v)) / (2 * step)
    differences = (reverse_over_reverse(x + step * v, v)[0] - reverse_over_reverse(x - step * v, v)[0]) / (2 * step)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", FutureWarning)  # torch.func's own, of TorchScript
        sums = jvp(reduced, (x,), (v,))[1]
        found = jvp(ratio, (x,), (v,))[1]
        dual = dual_tangent(x, v)
    linearized = linearize(reduced, x)[1](v)
    right = reverse_over_reverse(x, v)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = raises(jvp, older.all_reduce, (x,), (v,)) and raises(dual_tangent, x.clone().requires_grad_(), v)
    if rank == 0:
        print("torch.func.jvp of a sum over ranks: expected", V.sum(0).tolist(), "seen", sums.tolist())
        print("torch.func.linearize of it: seen", linearized.tolist(), "; autograd's dual numbers:", dual)
        print("jvp of a ratio to the mean over ranks: expected", expected.tolist(), "seen", found.tolist())
        print("its Hessian-vector product: by differences", differences.tolist(), "reverse over reverse", right.tolist())
        print("warnings:", [str(one.message) for one in told])
        print("jvp of the older all_reduce, and dual numbers that require gradients, raise:", refused)
    assert torch.allclose(right, differences, rtol=1e-6) and refused
    changed = "the behaviour has changed"
    assert not sums.any() and not linearized.any() and dual is None and not told, changed
    assert (found - expected).norm() > 0.1 * expected.norm(), changed
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    mp.spawn(rank_of, (sys.argv[1],), nprocs=2)
EOF
"$folder/env/bin/python" "$folder/seen.py" "$folder/store"
