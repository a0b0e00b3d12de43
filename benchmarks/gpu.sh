#!/bin/sh
# All benchmarks of a GPU, the most important first, in less than 9 minutes; results go to $OUT.
#
#     OUT=results sh benchmarks/gpu.sh            on a GPU
#     OUT=results sh benchmarks/gpu.sh --quick    anywhere: shows that every script runs
#
# Every part has a time limit; one that fails or runs out of it does not stop the others.
set -u
OUT=${OUT:-runs/benchmarks}
PYTHON=${PYTHON:-python}
HERE=$(dirname "$0")
mkdir -p "$OUT"
PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
failed=0
# A dry run may be on a slow machine.
case " $* " in *" --quick "*) slower=6 ;; *) slower=1 ;; esac
part() { # seconds, name of the results, script, arguments
    limit=$(($1 * slower)) result=$2 script=$3
    shift 3
    echo "== $script $*"
    timeout "$limit" "$PYTHON" "$HERE/$script.py" --readme="$OUT/$result.md" \
        --out="$OUT/$result.json" "$@" > "$OUT/$result.log" 2>&1 \
        || { failed=1; echo "$result: exit status $?"; }
    tail -n 15 "$OUT/$result.log"
}
part 130 preact training --models=preact-resnet-18 --methods="AT;AT-AWP" "$@"
part 150 wrn training --models=wrn-34-10 --methods="AT;AT-AWP" "$@"
part 150 autoattack autoattack "$@"
part 60 memory memory --models=wrn-34-10 --batches=32,64 "$@"
part 45 growth growth "$@"
exit $failed
