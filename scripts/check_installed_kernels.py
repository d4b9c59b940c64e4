"""Check that the installed package runs its compiled kernels right, and say under which torch."""

import torch

from bissl_fast.ops import backend, info_nce_loss, native, nt_xent_loss


def derivatives(loss, z1, z2, v):
    """Gradient and Hessian-vector product, forward over reverse."""
    return torch.func.jvp(torch.func.grad(lambda z: loss(z, z2, 0.2)), (z1,), (v,))


def main() -> None:
    """Compare both losses with the reference; raise where they differ."""
    if native.IMPORT_ERROR is not None:
        raise SystemExit(f"The compiled kernels cannot be imported: {native.IMPORT_ERROR}")
    z1, z2, v = torch.randn(3, 300, 40, dtype=torch.float64)
    for loss in (nt_xent_loss, info_nce_loss):
        with backend("cpp"):
            found = derivatives(loss, z1, z2, v)
        with backend("reference"):
            expected = derivatives(loss, z1, z2, v)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    built = native.build_info()
    built_for = f"{built['compiler']}, headers of torch {built['torch_headers']}"
    print(f"right under torch {torch.__version__} (built with {built_for})")


main()
