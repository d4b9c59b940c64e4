#!/usr/bin/env bash
# Everything that only a GPU can show: its tests, then each benchmark, the paper's size first. What fails stops nothing
# else, and each part writes its file when it ends. `make gpu` sets up and calls this; OUT names another folder.
set -uo pipefail
cd "$(dirname "$0")/.."
BIN="${BIN:-.venv/bin}"
OUT="${OUT:-docs/results}"
mkdir -p "$OUT"

part() { # part NAME COMMAND…: at most twenty minutes, with its output in a file
    local name="$1"
    shift
    echo "== $name: $*"
    timeout 1200 "$@" >"$OUT/gpu_$name.txt" 2>&1 || echo "== $name ended with $?, see $OUT/gpu_$name.txt"
}

if ! "$BIN/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "PyTorch finds no CUDA device here: nothing to measure." >&2
    exit 1
fi
part environment nvidia-smi
part doctor "$BIN/bissl-fast" doctor
part tests "$BIN/python" -m pytest -m gpu -q
part nt_xent "$BIN/python" -m benchmarks.gpu_nt_xent --out "$OUT"

paper=(--device cuda --pairs 1024)
for dtype in tf32 bfloat16; do
    part "products_$dtype" "$BIN/bissl-fast" bench products "${paper[@]}" --products-dtype "$dtype" \
        --output "$OUT/products_gpu_$dtype.md"
    part "upper_phase_$dtype" "$BIN/python" -m benchmarks.upper_phase "${paper[@]}" --products-dtype "$dtype" \
        --output "$OUT/upper_phase_gpu_$dtype"
    part "alternation_$dtype" "$BIN/python" -m benchmarks.alternation "${paper[@]}" --downstream 256 --alternations 3 \
        --precision tf32 --products-dtype "$dtype" --output "$OUT/alternation_gpu_$dtype"
done
part step "$BIN/python" -m benchmarks.step "${paper[@]}" --fed --output "$OUT/step_gpu"
# Short kernels: where one captured graph for all solves should pay.
part upper_phase_small "$BIN/python" -m benchmarks.upper_phase --device cuda --size 32 --pairs 32 \
    --output "$OUT/upper_phase_gpu_small"

part augment "$BIN/python" -m benchmarks.gpu_augment --out "$OUT"
part data "$BIN/bissl-fast" bench data --output "$OUT/data_gpu.md"
part batch_norm "$BIN/python" -m pytest benchmarks/test_batch_norm.py -q -k cuda
part krylov "$BIN/python" -m pytest benchmarks/test_krylov.py -q -k cuda
