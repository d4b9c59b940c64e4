"""Convolutions that give small maps, in bfloat16: oneDNN's beside one matrix product, pass by pass and in turns.

Where the product is slower, `MOST_PIXELS` in `bissl_fast/ops/convolution/function.py` is set too high for the machine.

    python -m benchmarks.small_maps --out docs/results    # small_maps_<processor>.json and .md
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_report import Report, place
from bissl_fast.measuring.timing import best_of
from bissl_fast.ops.convolution import function

SHAPES = [(512, 512, 3, 1), (256, 256, 3, 1), (256, 512, 3, 2), (512, 2048, 1, 1)]  # channels in, out; kernel; stride


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--pixels", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6], help="a side of the result")
    parser.add_argument("--rounds", type=int, default=10, help="turns; the best counts")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    title = "Convolutions of small maps: `python -m benchmarks.small_maps`"
    report = Report(place(arguments.out, "small_maps", device), title, device, arguments)
    for inputs, outputs, kernel, stride in SHAPES:
        for pixels in arguments.pixels:
            run = partial(compare, arguments.images, inputs, outputs, kernel, stride, pixels, arguments.rounds)
            labels = {"channels": f"{inputs} to {outputs}", "kernel": kernel, "stride": stride, "pixels": pixels}
            report.row("passes", run, **labels)


def compare(
    images: int, inputs: int, outputs: int, kernel: int, stride: int, pixels: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of oneDNN's passes, and of ours as a share of them."""
    strides, padding = (stride, stride), (kernel // 2, kernel // 2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)

    x, weight = drawn(images, inputs, pixels * stride, pixels * stride), drawn(outputs, inputs, kernel, kernel)
    grad = torch.randn_like(F.conv2d(x, weight, None, strides, padding))
    given = (grad, x, weight, strides, padding)
    calls = {
        "forward": (
            lambda: F.conv2d(x, weight, None, strides, padding),
            lambda: function.small_map_convolution(x, weight, strides, padding),
        ),
        "images": (lambda: function.by_pytorch(*given, True, False), lambda: function.input_gradient(*given)),
        "weights": (lambda: function.by_pytorch(*given, False, True), lambda: function.weight_gradient(*given)),
    }
    found: dict[str, Any] = {}
    for name, (theirs, ours) in calls.items():
        seconds = best_of({"theirs": theirs, "ours": ours}, rounds, "cpu")
        found |= {f"{name}, oneDNN ms": 1e3 * seconds["theirs"], f"{name}, ours": seconds["ours"] / seconds["theirs"]}
    return found


if __name__ == "__main__":
    main()
