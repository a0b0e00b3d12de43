#!/bin/sh
# AT and AT-AWP on handwritten digits, from training to the table and the figure.
set -eu
out=${1:-runs/quickstart}
here=$(dirname "$0")
for method in at at-awp; do
    awp-jax train --config="$here/quickstart.py:$method" --workdir="$out/$method"
    awp-jax evaluate --workdir="$out/$method" > /dev/null
done
awp-jax report --workdirs="$out/at,$out/at-awp" --output="$out/report"
