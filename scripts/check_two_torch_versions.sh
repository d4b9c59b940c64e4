#!/bin/sh
# One binary for every torch: build a wheel against the newest torch, load it under the oldest and the newest one.
#   scripts/check_two_torch_versions.sh [FOLDER]     FOLDER keeps the two environments for the next run
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
oldest="torch==2.11.*"
newest="torch>=2.11,<3"

environment() { # name, requirement
    [ -x "$folder/$1/bin/python" ] || "$python" -m venv "$folder/$1"
    "$folder/$1/bin/python" -c "import torch, numpy" 2>/dev/null ||
        "$folder/$1/bin/pip" install --quiet "$2" numpy 'setuptools>=77' wheel ninja
}

environment newest "$newest"
environment oldest "$oldest"
rm -rf "$folder/wheel"
PATH="$folder/newest/bin:$PATH" BISSL_FAST_NATIVE=1 "$folder/newest/bin/pip" wheel --quiet --no-deps \
    --no-build-isolation --wheel-dir "$folder/wheel" "$repository"
cd "$folder" # away from the sources: the wheel is what is tested
for name in oldest newest; do
    "$folder/$name/bin/pip" install --quiet --no-deps --force-reinstall "$folder"/wheel/*.whl
    "$folder/$name/bin/python" "$repository/scripts/check_installed_kernels.py"
done
