#!/usr/bin/env bash
# One would guess: what interpolate(scale_factor=0.5, antialias=True) exports to ONNX resizes by one half, as it does without
# antialias. interpolate's documentation: unless recompute_scale_factor is true, "size or scale_factor will be used directly
# for interpolation", not the ratio of the sizes.
# What happens: the antialiased export passes the output's size alone. Where the size is no multiple (9 px to 4) the
# runtime resizes by 4/9: other pixels, without an error. Plain bilinear and bicubic exports are right.
# Whom it costs: pyramids and preprocessing that are exported with the network, at odd sizes only.
# Versions: torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$folder/env/bin/python" -W ignore - "$folder/network.onnx" <<'EOF'
import sys

import onnxruntime
import torch
from torch import nn
from torch.nn.functional import interpolate

print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)


class Half(nn.Module):
    def __init__(self, mode, antialias):
        super().__init__()
        self.settings = {"mode": mode, "antialias": antialias}

    def forward(self, x):
        return interpolate(x, scale_factor=0.5, **self.settings)


def errors(mode, antialias, size):
    """The greatest difference of the export from the module, and from the same module told the size alone."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    module = Half(mode, antialias).eval()
    torch.onnx.export(module, (images,), sys.argv[1], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    seen = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    by_size = interpolate(images, size=seen.shape[2:], **module.settings)
    return [(seen - other).abs().max().item() for other in (module(images), by_size)]


for mode in ("bilinear", "bicubic"):
    for antialias, size in ((False, 9), (True, 8), (True, 9)):
        differs, from_size = errors(mode, antialias, size)
        print(f"{mode}, antialias {antialias}, {size} px: expected 0, seen {differs:.0e}; by the size alone {from_size:.0e}")
        if antialias and size == 9:
            assert differs > 0.05 and from_size < 1e-5, "the behaviour has changed"
        else:
            assert differs < 1e-5
EOF
