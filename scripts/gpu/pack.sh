#!/usr/bin/env bash
# What must be brought to a bare machine with a GPU, into build/gpu: the extension, and what Python packages it lacks.
#   scripts/gpu/pack.sh PYTHON     of the version that the machine has, with its torch: python3.12 with torch 2.11, say
# The GPU's architecture is TORCH_CUDA_ARCH_LIST, 9.0 if it is not given.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${1:-python3.12}"
packed="$PWD/build/gpu"

rm -rf "$packed"
mkdir -p "$packed/wheels"
"$python" -m pip download --quiet --no-deps --dest "$packed/wheels" 'tyro>=0.9.20,<2' docstring_parser typeguard

# From a copy, so that the extension which the sources are used with stays as it is.
sources="$(mktemp -d)"
trap 'rm -rf "$sources"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$sources"
(
    cd "$sources"
    export BISSL_FAST_NATIVE=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}"
    PATH="$(dirname "$(command -v "$python")"):$PATH" "$python" setup.py --quiet build_ext --inplace
)
strip --strip-debug "$sources"/bissl_fast/_C.*.so
cp "$sources"/bissl_fast/_C.*.so "$packed"
du -sh "$packed"
