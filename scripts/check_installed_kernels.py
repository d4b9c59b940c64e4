"""Check that the installed package runs its compiled kernels right, and say under which torch."""

import torch

from bissl_fast.ops import backend, cg_update, info_nce_loss, lars_step, native, nt_xent_loss
from bissl_fast.ops.lars import LarsSettings

SETTINGS = LarsSettings(lr=0.1, weight_decay=0.01, momentum=0.9, trust_coefficient=0.1, exclude_1d=True)


def derivatives(loss, z1, z2, v):
    """Gradient and Hessian-vector product, forward over reverse."""
    return torch.func.jvp(torch.func.grad(lambda z: loss(z, z2, 0.2)), (z1,), (v,))


def vector_work(x, r, d):
    """All that an iteration of conjugate gradients and a LARS step write."""
    x, r, d = (t.reshape(-1).clone() for t in (x, r, d))
    segments = [x.numel() - 5, 5]
    scalars = cg_update(x, r, d, 2 * d, torch.ones_like(r[:2]), segments, torch.ones_like(r))
    lars_step([x, r.view(2, -1)], [d, d.view(2, -1).clone()], [d.clone(), d.view(2, -1) + 1], SETTINGS)
    return x, r, d, *scalars


def main() -> None:
    """Compare losses and vector work with the reference; raise where they differ."""
    if native.IMPORT_ERROR is not None:
        raise SystemExit(f"The compiled kernels cannot be imported: {native.IMPORT_ERROR}")
    z1, z2, v = torch.randn(3, 300, 40, dtype=torch.float64)
    for loss in (nt_xent_loss, info_nce_loss):
        with backend("cpp"):
            found = derivatives(loss, z1, z2, v)
        with backend("reference"):
            expected = derivatives(loss, z1, z2, v)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with backend("cpp"):
        found = vector_work(z1, z2, v)
    with backend("reference"):
        expected = vector_work(z1, z2, v)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    built = native.build_info()
    built_for = f"{built['compiler']}, headers of torch {built['torch_headers']}"
    print(f"right under torch {torch.__version__} (built with {built_for})")


main()
