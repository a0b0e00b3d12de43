#!/bin/sh
# What a GPU has to be asked, the most important first, in less than 8 minutes; results go to $OUT.
#
#     OUT=results sh benchmarks/gpu.sh            on a GPU
#     OUT=results sh benchmarks/gpu.sh --quick    anywhere: shows that every script runs
#
# $MODELS, a folder of state dicts of PreActResNet-18 for CIFAR-10, and $AWP_JAX_DATA, with CIFAR-10,
# are for AutoAttack on real models, which is left out without them. Every part has a time limit; one
# that fails or runs out of it does not stop the others.
set -u
OUT=${OUT:-runs/benchmarks}
PYTHON=${PYTHON:-python}
HERE=$(dirname "$0")
mkdir -p "$OUT"
PYTHONPATH="$HERE/..${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
failed=0
# A dry run may be on a slow machine.
quick= examples=1000 attacks=autoattack small=128 large=512
case " $* " in *" --quick "*) slower=6 quick=yes examples=8 attacks=fgsm small=4 large=8 ;; *) slower=1 ;; esac
timed() { # seconds, name of the results, command
    limit=$(($1 * slower)) result=$2
    shift 2
    echo "== $result: $*"
    timeout "$limit" "$@" > "$OUT/$result.log" 2>&1 || { echo "$result: exit status $?"; failed=1; }
    tail -n 15 "$OUT/$result.log"
}
part() { # seconds, name of the results, script, arguments
    limit=$1 result=$2 script=$3
    shift 3
    timed "$limit" "$result" "$PYTHON" "$HERE/$script.py" --readme="$OUT/$result.md" \
        --out="$OUT/$result.json" "$@"
}
model=preact-resnet-18
# PyTorch takes minutes to compile the large model on a CPU.
[ -n "$quick" ] && model=digits-resnet
preact="training --models=$model"
part 110 batch-128 $preact --batch=$small --methods="AT;AT-AWP" "$@"
part 110 batch-512 $preact --batch=$large --methods="AT-AWP" "$@"
# Launches in one graph (NOTES.md): to be compared with batch-128.
flags=${XLA_FLAGS:-}
export XLA_FLAGS="$flags --xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"
part 50 captured-128 $preact --batch=$small --methods="AT-AWP" --no_compile "$@"
export XLA_FLAGS="$flags"
timed 50 kernels "$PYTHON" "$HERE/trace.py" --out="$OUT/kernels.json" ${quick:+--quick}
if [ -n "${MODELS:-}" ] && [ -n "${AWP_JAX_DATA:-}" ]; then
    for model in "$MODELS"/cifar10_*.safetensors; do
        name=$(basename "$model" .safetensors) run="$OUT/run-$(basename "$model" .safetensors)"
        timed 30 "import-$name" "$PYTHON" -m awp_jax import "$model" --model=preact-resnet-18 \
            --data=cifar10 --workdir="$run" --normalize=true --norm=linf --epsilon=8/255
        timed 70 "autoattack-$name" "$PYTHON" -m awp_jax evaluate --workdir="$run" --sets=test \
            --attacks="$attacks" --examples=$examples
    done
fi
exit $failed
