"""The raw kernel of views: what the compiled backends implement, and how the op is declared to PyTorch.

``render_views(images, samples, integers, numbers, channels, size, cubic, box_blur, threshold,
bfloat16) -> views``
    images ``(M, H, W, 3)`` uint8, contiguous; samples ``(N,)`` int64, the image of each view; integers ``(N, 11)``
    int32 and numbers ``(N, 5)`` float32, the table of view parameters as `csrc/views.h` names its columns; channels
    ``(2, 3)`` float32 on the host, by which a value in 0..1 becomes ``value * channels[0] - channels[1]``. Returns
    ``(N, 3, size, size)`` channels-last, float32 or bfloat16. Values above the threshold are the ones that solarise
    inverts.

    Samples, integers and numbers lie on the host and are checked there, and the views lie on the images' device. Or all
    three lie on a CUDA device, unchecked: a row that fits no image gives a view of NaN. Then the images lie on the same
    device or in pinned host memory, which the kernel reads in place.
"""

import torch
from torch import Tensor

from bissl_fast.ops import native

ADVICE = "Views are data: draw them outside of what is differentiated."


def fake_render_views(
    images: Tensor,
    samples: Tensor,
    integers: Tensor,
    numbers: Tensor,
    channels: Tensor,
    size: int,
    cubic: bool,
    box_blur: bool,
    threshold: float,
    bfloat16: bool,
) -> Tensor:
    """Shape, dtype and layout of the result."""
    shape = (samples.numel(), 3, size, size)  # which the op itself takes as (N,) alone
    device = samples.device if samples.is_cuda else images.device
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)


_LIBRARY = native.register_compiled({"render_views": fake_render_views}, ADVICE)
