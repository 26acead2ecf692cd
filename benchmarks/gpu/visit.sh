#!/usr/bin/env bash
# All that one visit to a GPU can tell, within 9 minutes, without network, make or .venv:
#
#     bash benchmarks/gpu/visit.sh OUT          # on a machine with a GPU
#     bash benchmarks/gpu/visit.sh OUT --dry    # tiny shapes on the CPU: proves that every step runs
#
# Three steps: the benchmark with its tuner, `python3 -m benchmarks gpu --tune`; the checks under compute-sanitizer,
# `python3 -m benchmarks check-gpu`; and the tests marked gpu. Each has its own time limit, and one that fails or is too
# slow does not stop the next. OUT/visit.txt takes what they print as they print it; beside it lie the benchmark's JSON,
# table and plots, six files in all. The exit status is 1 if a step failed, which for the benchmark includes a figure
# that is not reached, and for the checks that there is no compute-sanitizer.
#
# Read from the environment: PYTHON, the interpreter [python3]; BENCHMARK_SECONDS, CHECK_SECONDS and TOTAL_SECONDS,
# limits of the first step, of the second and of all.
set -uo pipefail

usage="visit.sh: expected OUT, the folder of the results, and perhaps --dry; got '$*'"
if [[ $# -lt 1 || $# -gt 2 || $1 == -* || ${2:---dry} != --dry ]]; then
    echo "$usage" >&2
    exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2

python=${PYTHON:-python3}
total=${TOTAL_SECONDS:-530}
log=$out/visit.txt
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
unset TRITON_INTERPRET
benchmark=(--tune)
check=()
most_files=1000
if [[ ${2:-} == --dry ]]; then
    export TRITON_INTERPRET=1
    benchmark=(--dry-run --tune)
    check=(--dry-run --only pamr)
    most_files=1 # Without a GPU every test is skipped.
fi
: >"$log"
failed=0

say() {
    echo "== $*" | tee -a "$log"
}

# step NAME SECONDS COMMAND...: run a command with a time limit, given to it as $limit, where any time is left.
step() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    ((limit > total - SECONDS)) && limit=$((total - SECONDS))
    if ((limit < 1)); then
        say "$name: FAILED, no time is left for it"
        failed=1
        return
    fi
    say "$name, at most $limit s"
    limit=$limit "$@" 2>&1 | tee -a "$log"
    status=$?
    if ((status == 0)); then
        say "$name: ok after $((SECONDS - start)) s"
    else
        say "$name: FAILED with status $status after $((SECONDS - start)) s"
        failed=1
    fi
}

# An interrupt comes first, so that the command can still write what it has.
limited() {
    timeout --signal=INT --kill-after=10 "$limit" "$@"
}

# Both end by themselves a little before their time is up.
minutes() {
    awk -v seconds="$limit" 'BEGIN { printf "%.2f", 0.95 * seconds / 60 }'
}

run_benchmark() {
    limited "$python" -m benchmarks gpu "${benchmark[@]}" --minutes "$(minutes)" --out "$out"
}

check_gpu() {
    limited "$python" -m benchmarks check-gpu ${check[@]+"${check[@]}"} --minutes "$(minutes)"
}

# Up to 8 processes, a file each: most of the time goes into compiling kernels, which takes one core a process. grep
# passes whole lines on, so that lines of several processes do not mix.
gpu_tests() {
    grep -rl --include='test_*.py' 'mark\.gpu' tests | sort | head -n "$most_files" |
        xargs -P 8 -n 1 timeout --signal=INT --kill-after=5 "$limit" \
            "$python" -m pytest -m gpu -v --tb=short -p no:cacheprovider --continue-on-collection-errors 2>&1 |
        grep --line-buffered ''
}

if ! reason=$("$python" -c 'import open_clip' 2>&1); then
    say "no open_clip (${reason##*$'\n'}): no pipeline is measured, and tests that need it fail"
fi
step benchmark "${BENCHMARK_SECONDS:-300}" run_benchmark
step check-gpu "${CHECK_SECONDS:-120}" check_gpu
step tests "$total" gpu_tests
rm -f "$out"/.resclip-*.tmp # What the benchmark was writing when its time was up.
exit "$failed"
