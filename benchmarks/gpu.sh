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
part() { # seconds, script, arguments
    limit=$1 name=$2
    shift 2
    echo "== $name $*"
    timeout "$limit" "$PYTHON" "$HERE/$name.py" --readme="$OUT/README.md" "$@" \
        > "$OUT/$name.log" 2>&1 || { failed=1; echo "$name: exit status $?"; }
    tail -n 15 "$OUT/$name.log"
}
part 210 training --out="$OUT/training.json" --models=preact-resnet-18,wrn-34-10 "$@"
part 150 autoattack --out="$OUT/autoattack.json" "$@"
part 100 memory --out="$OUT/memory.json" --models=wrn-34-10 "$@"
part 75 growth --out="$OUT/growth.json" "$@"
exit $failed
