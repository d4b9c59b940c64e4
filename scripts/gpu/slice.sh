#!/usr/bin/env bash
# One slice of what only a GPU can show, in less than 250 seconds, so that a machine lent for minutes is enough.
#   scripts/gpu/slice.sh N OUT    N: 1 smoke, 2 kernels, 3 nt-xent, 4 products, 5 upper phase, 6 step, 7 views
# What was packed by scripts/gpu/pack.sh is taken from build/gpu, where it is. OUT/slice-N.txt names each part with how it
# ended: what was cut off, too, has written what it knew by then. DEVICE=cpu tries the script itself, in small.
set -uo pipefail
cd "$(dirname "$0")/../.."
slice="$1" OUT="$2"
DEVICE="${DEVICE:-cuda}"
PYTHON="${PYTHON:-python3}"
log="$OUT/slice-$slice.txt"
mkdir -p "$OUT"
: >"$log"
export PYTHONUNBUFFERED=1

take_what_was_packed() {
    local site
    [ -d build/gpu ] || return 0
    site="$(mktemp -d)"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" build/gpu/wheels/*.whl || exit 1
    cp build/gpu/_C.*.so bissl_fast/
    export PYTHONPATH="$site:$PWD"
}

part() { # part SECONDS COMMAND…
    local seconds="$1" start="$SECONDS" code ending
    shift
    echo "== $*" >>"$log"
    timeout --kill-after 5 "$seconds" "$@" >>"$log" 2>&1
    code=$?
    ending="ended with $code"
    [ "$code" = 0 ] && ending="passed"
    [ "$code" -ge 124 ] && ending="was cut off; what it had by then is above"
    echo "== $ending after $((SECONDS - start)) s: $*" | tee -a "$log" | cut -c 1-200
}

tests() { # tests SECONDS PYTEST-ARGUMENTS…: a line for each as soon as it is known
    local seconds="$1" how=(-n "$(nproc)" --dist worksteal) files
    shift
    # These files alone: others import packages that such a machine lacks, and pytest would run none of them then.
    mapfile -t files < <(grep -rlE --include='test_*.py' '\bmark\.gpu\b' tests | sort)
    [ "$DEVICE" = cpu ] && how=(--collect-only)
    OMP_NUM_THREADS=1 part "$seconds" "$PYTHON" -m pytest -m gpu -v -rf --tb=short -p no:cacheprovider "${how[@]}" "$@" "${files[@]}"
    grep -E "^(FAILED|ERROR) |(passed|failed|collected).* in " "$log" | cut -c 1-170 | tail -n 40
}

checked() { # checked TOOL: this package's CUDA kernels under compute-sanitizer
    [ "$DEVICE" = cpu ] && return 0
    part 110 compute-sanitizer --tool "$1" --kernel-name kernel_substring=bissl_fast --error-exitcode 9 \
        "$PYTHON" scripts/check_installed_kernels.py cuda
}

small=() pairs=1024
[ "$DEVICE" = cpu ] && small=(--quick) pairs=8
paper=(--device "$DEVICE" --pairs "$pairs")
[ "$DEVICE" = cpu ] && paper+=(--size 32)
SMOKE="(65-128-0.5 or 129-256-0.01 or 1500-256-0.5-dtype1 or 33-100-0.5 or 129-2500-0.005 or 1-True-True-shape2
    or 2-True-True-shape1 or shape1-dtype1 or same_bits or 3_gb or cuda_graph or never_waits or update or lars
    or sizes_for_shared or everything or pinned or far_from_zero or autocast or serves)
    and not every_right_hand and not interval"

take_what_was_packed
case "$slice" in
1)
    [ "$DEVICE" = cpu ] || part 20 nvidia-smi
    part 60 "$PYTHON" scripts/check_installed_kernels.py "$DEVICE"
    tests 120 -k "$(echo $SMOKE)"
    ;;
2)
    (log="$OUT/slice-2-sanitizer.txt" && : >"$log" && checked memcheck && checked racecheck) &
    tests 220
    wait
    ;;
3)
    part 160 "$PYTHON" -m benchmarks.gpu_nt_xent --device "$DEVICE" "${small[@]}" --skip errors,sweep --budget-seconds 145 \
        --out "$OUT"
    mkdir -p "$OUT/tiles"
    part 85 "$PYTHON" -m benchmarks.gpu_nt_xent --device "$DEVICE" "${small[@]}" --skip ceilings,errors,times,small,large \
        --sweep exact-product --budget-seconds 70 --out "$OUT/tiles"
    ;;
4)
    for dtype in tf32 bfloat16; do
        part 120 "$PYTHON" -m bissl_fast.cli bench products "${paper[@]}" --rounds 2 --products-dtype "$dtype" \
            --output "$OUT/products_gpu_$dtype.md"
    done
    ;;
5)
    for dtype in tf32 bfloat16; do
        part 120 "$PYTHON" -m benchmarks.upper_phase "${paper[@]}" --steps 2 --products-dtype "$dtype" \
            --budget-seconds 100 --output "$OUT/upper_phase_gpu_$dtype"
    done
    ;;
6)
    part 90 "$PYTHON" -m benchmarks.step --device "$DEVICE" "${small[@]}" --fed --budget-seconds 80 --out "$OUT"
    part 150 "$PYTHON" -m benchmarks.alternation "${paper[@]}" --downstream "$((pairs / 4))" --alternations 1 \
        --no-reference --precision tf32 --products-dtype bfloat16 --budget-seconds 130 --output "$OUT/alternation_gpu"
    ;;
7)
    part 130 "$PYTHON" -m benchmarks.gpu_augment --device "$DEVICE" "${small[@]}" --seconds 0.5 --out "$OUT"
    part 60 "$PYTHON" -m pytest benchmarks/test_batch_norm.py benchmarks/test_krylov.py -q -k "$DEVICE"
    ;;
*)
    echo "There is no slice $slice; expected 1 to 7." >&2
    exit 2
    ;;
esac
