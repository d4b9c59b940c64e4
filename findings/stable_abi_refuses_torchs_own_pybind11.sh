#!/usr/bin/env bash
# One would guess: an extension for PyTorch's stable ABI (TORCH_TARGET_VERSION defined) may use pybind11 for its module, for
# pybind11 knows nothing of PyTorch; and it finds the copy that PyTorch ships.
# What happens: every header of that copy stops with an #error in torch 2.11.0. In torch 2.14.1 none does.
# Whom it costs: whoever builds one extension for many versions of PyTorch, and has tried only the newest.
# Versions: headers of torch 2.11.0 and 2.14.1. Needs g++ and Python's headers. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
python_headers=$("$folder/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
echo '#include <pybind11/pybind11.h>
PYBIND11_MODULE(nothing, module) {}' >"$folder/nothing.cpp"

compiles() { # flags: whether the file does, with the compiler's words in a log
    g++ -std=c++17 -fsyntax-only -I"$folder/torch/torch/include" -I"$python_headers" "$@" \
        "$folder/nothing.cpp" 2>"$folder/log"
}

for version in 2.11.0 2.14.1; do
    rm -rf "$folder/torch"
    "$folder/env/bin/pip" install --quiet --no-deps --target "$folder/torch" "torch==$version"
    compiles || { cat "$folder/log"; exit 1; } # without the switch, it always does
    echo "torch $version, TORCH_TARGET_VERSION defined; expected: it compiles"
    if compiles -DTORCH_TARGET_VERSION=0x020b000000000000; then seen=compiles; else seen=stops; fi
    echo "seen: it $seen" && grep --max-count=1 'error:' "$folder/log" || true
    case $version-$seen in
        2.11.0-stops) grep -q 'should not be included when either TORCH_STABLE_ONLY' "$folder/log" ;;
        2.14.1-compiles) ;;
        *) echo "the behaviour has changed" && exit 1 ;;
    esac
done
