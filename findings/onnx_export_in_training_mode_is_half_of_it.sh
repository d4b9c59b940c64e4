#!/usr/bin/env bash
# One would guess: torch.onnx.export(dynamo=True) exports a network as it stands, in training or in evaluation mode. Its
# documentation says of "training": "Deprecated option. Instead, set the training mode of the model before exporting."
# What happens: of a network in training mode, dropout is exported as training does it, and batch norm as evaluation does it,
# by the running statistics. torch.export's own program normalises by the batch. The graph is neither; nothing is said.
# Whom it costs: who forgets eval(): with batch norm alone all looks right; and who exports a network to go on training it.
# Versions: torch 2.14.1, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0 on a CPU. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$folder/env/bin/python" -W ignore - "$folder/network.onnx" <<'EOF'
import copy
import sys

import onnxruntime
import torch
from torch import nn

print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)
torch.manual_seed(0)
images = 5 + 3 * torch.randn(8, 3, 4, 4)


def exported(network):
    torch.onnx.export(network, (images,), sys.argv[1], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


norm = nn.BatchNorm2d(3)  # running statistics 0 and 1, far from the batch's
with torch.no_grad():
    training = copy.deepcopy(norm).train()(images)
    evaluation = copy.deepcopy(norm).eval()(images)
    program = torch.export.export(copy.deepcopy(norm).train(), (images,)).module()(images)
seen = exported(norm.train())
dropped = exported(nn.Dropout(0.5).train()).eq(0).float().mean().item()
print("mean and standard deviation of what a batch norm in training mode returns, expected 0 and 1")
for name, values in (("torch.export", program), ("ONNX", seen), ("evaluation mode", evaluation)):
    print(f"{name}: {values.mean():.2f} and {values.std():.2f}")
print(f"share that dropout zeroes: expected 0.5, ONNX {dropped:.2f}")
torch.testing.assert_close(program, training)
assert 0.3 < dropped < 0.7, "the behaviour has changed"
assert (seen - evaluation).abs().max() < 1e-4 and (seen - training).abs().max() > 1, "the behaviour has changed"
EOF
