#!/usr/bin/env bash
# One would guess: torch.onnx.export(dynamo=True) with height and width dynamic gives a graph for other sizes, too, or raises,
# as torch.export does where it would have to fix a size that was asked to be Dim.DYNAMIC.
# What happens: torch.export keeps adaptive pooling as it is, and its program is right at every size. The ONNX graph has an
# AveragePool with the windows of the traced size. Where the number of outputs is the same by chance it returns other
# numbers, without a word; elsewhere a layer behind it raises. Export's own check (verify=True) sees the traced size alone.
# Whom it costs: networks with AdaptiveAvgPool2d((7, 7)) or spatial pyramids that are exported for images of any size.
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
from torch.export import Dim

print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(8 * 49, 5)).eval()
shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
traced = torch.rand(2, 3, 28, 28)
exported = torch.export.export(network, (traced,), dynamic_shapes=shapes).module()
torch.onnx.export(network, (traced,), sys.argv[1], dynamo=True, dynamic_shapes=shapes, verify=True, verbose=False)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])


def error(run, images):
    with torch.no_grad():
        expected = network(images)
        return ((run(images) - expected).abs().max() / expected.abs().max()).item()


def onnx(images):
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


seen = {}
for size in (28, 30):
    images = torch.rand(2, 3, size, size)
    seen[size] = error(exported, images), error(onnx, images)
    print(f"{size} px, error relative to the network: torch.export {seen[size][0]:.0e}, ONNX expected 0, seen {seen[size][1]:.0e}")
assert max(seen[28]) < 1e-5 and seen[30][0] < 1e-5
assert seen[30][1] > 0.05, "the behaviour has changed"
EOF
