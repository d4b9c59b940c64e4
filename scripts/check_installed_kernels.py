"""Check that the installed package runs its compiled kernels right, and say under which torch.

    python scripts/check_installed_kernels.py [DEVICE]

On `cuda` each CUDA kernel runs once on small shapes, which a memory checker gets through in a minute.
"""

import sys

import numpy as np
import torch

from bissl_fast.data.pipelines import torch_pipeline
from bissl_fast.data.pipelines.rendering import render
from bissl_fast.data.views.parameters import draw_views
from bissl_fast.data.views.presets import vicreg_views
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


def check_vectors(name: str, device: torch.device) -> None:
    """Losses to second order, and vector work."""
    z1, z2, v = torch.randn(3, 300, 40, dtype=torch.float64, device=device)
    for work in (
        lambda: derivatives(nt_xent_loss, z1, z2, v),
        lambda: derivatives(info_nce_loss, z1, z2, v),
        lambda: vector_work(z1, z2, v),
    ):
        with backend(name):
            found = work()
        with backend("reference"):
            expected = work()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def check_views(device: torch.device) -> None:
    """Views in shared memory, and larger ones through the workspace."""
    images = torch.randint(256, (8, 56, 56, 3), dtype=torch.uint8)
    for size in (32, 160):
        for view, settings in enumerate(vicreg_views(size)):
            table = draw_views(settings, 0, 0, np.arange(8), view, (56, 56))
            found = render(images.to(device), table, settings).cpu()
            torch.testing.assert_close(found, torch_pipeline.render(images, table, settings), rtol=0, atol=1e-3)


def main() -> None:
    """Compare with plain PyTorch; raise where they differ."""
    if native.IMPORT_ERROR is not None:
        raise SystemExit(f"The compiled kernels cannot be imported: {native.IMPORT_ERROR}")
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    if not native.has_compiled_kernels(device.type):
        raise SystemExit(f"The compiled kernels were built without {device.type}: {native.build_info()}")
    check_vectors({"cpu": "cpp"}.get(device.type, device.type), device)
    check_views(device)
    built = native.build_info()
    built_for = f"{built['compiler']}, headers of torch {built['torch_headers']}"
    print(f"right on {device} under torch {torch.__version__} (built with {built_for})")


main()
