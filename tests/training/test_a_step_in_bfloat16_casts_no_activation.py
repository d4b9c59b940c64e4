"""Under ``--precision bf16`` activations stay bfloat16 from the images to the features, and batch norms are kernels."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bissl_fast.measuring.feeding import pretext_step
from bissl_fast.ops import native

needs_native = pytest.mark.skipif(native.IMPORT_ERROR is not None, reason="compiled kernels cannot be imported")

IMAGES = 6  # of both views: no filter has as many outputs


class Watch(TorchDispatchMode):
    """Names and dtypes of what was called on batches of images or feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) else result
        if isinstance(first, Tensor) and first.dim() == 4 and first.shape[0] == IMAGES:
            self.calls.append((func.name(), tuple(first.shape), first.dtype))
        return result


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32, cudnn.deterministic = before[1:]


@needs_native
def test_a_step_in_bfloat16_casts_its_images_and_no_activation() -> None:
    step = pretext_step("resnet10t", 32, torch.device("cpu"), "bf16")
    views = tuple(torch.randn(IMAGES // 2, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in range(2))
    with Watch() as watch:
        step(views)
    casts = [(shape, dtype) for name, shape, dtype in watch.calls if name == "aten::_to_copy"]
    assert casts == [((IMAGES, 3, 32, 32), torch.bfloat16)]
    after = [call for call in watch.calls if call[1][1] != 3]
    assert {dtype for _, _, dtype in after} == {torch.bfloat16}
    names = {name for name, _, _ in after}
    assert {"bissl_fast::batch_norm_fwd", "bissl_fast::batch_norm_bwd"} <= names
    elementwise = {"aten::mul.Tensor", "aten::sub.Tensor", "aten::relu", "aten::addcmul", "aten::native_batch_norm"}
    assert not names & elementwise
