#!/bin/sh
# The native code builds against the oldest torch and the newest, and either binary runs right under both.
#   scripts/check_two_torch_versions.sh [FOLDER]     FOLDER keeps the two environments for the next run
# The newest torch is that of .venv, where `make test` has installed one. The other one takes 8 GB of disk meanwhile.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    folder=$1
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python=${PYTHON:-python3}
tests="test_derivatives_are_exact_to_second_order test_krylov_kernels_equal_the_reference
    test_lars_in_one_call_equals_the_loop test_batch_norm_is_exact_to_second_order"

environment() { # name, requirements
    name=$1
    shift
    [ -x "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
    if [ "$name" = newest ] && [ -e "$repository/.venv/installed" ]; then
        installed=$("$repository/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "$installed" >"$("$folder/newest/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/installed.pth"
    fi
    "$folder/$name/bin/pip" install --quiet --no-cache-dir 'setuptools>=77' wheel ninja
    "$folder/$name/bin/python" -c "import torch, torchvision, pytest, pytest_timeout, rich, tyro" 2>/dev/null ||
        "$folder/$name/bin/pip" install --quiet --no-cache-dir "$@" numpy scipy rich tyro pytest pytest-timeout
}

build() { # name: a wheel against that environment's torch
    rm -rf "$folder/wheel-$1"
    PATH="$folder/$1/bin:$PATH" BISSL_FAST_NATIVE=1 "$folder/$1/bin/pip" wheel --quiet --no-deps \
        --no-build-isolation --wheel-dir "$folder/wheel-$1" "$repository"
}

environment newest 'torch>=2.11,<3' torchvision
environment oldest 'torch==2.11.*' 'torchvision==0.26.*'
build newest
build oldest

rm -rf "$folder/apart" # away from the sources: the wheel is what is tested
mkdir -p "$folder/apart"
cp -r "$repository/tests" "$repository/pyproject.toml" "$folder/apart"
cd "$folder/apart"
for built in newest oldest; do
    for name in oldest newest; do
        "$folder/$name/bin/pip" install --quiet --no-deps --force-reinstall "$folder/wheel-$built"/*.whl
        "$folder/$name/bin/python" "$repository/scripts/check_installed_kernels.py"
    done
done
for name in oldest newest; do
    "$folder/$name/bin/pip" install --quiet --no-deps --force-reinstall "$folder/wheel-oldest"/*.whl
    for test in $tests; do echo "tests/ops/$test.py"; done |
        OMP_NUM_THREADS=1 xargs "$folder/$name/bin/python" -m pytest -q -m 'not gpu and not slow and not peer'
done
