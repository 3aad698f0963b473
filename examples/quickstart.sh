#!/usr/bin/env bash
# Does a chat model notice a concept injected into its KV cache? From a bare Debian or Ubuntu machine to the report:
# sets everything up (tests/setup.sh says how to influence that), fetches a model, trains two concept vectors, asks, and
# writes the tables and plots to introspect-runs/quickstart. A second run reuses vectors and finished cells.
#
#   bash examples/quickstart.sh [MODEL]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../tests/setup.sh"
setup ""

model=${1:-qwen2.5-coder-0.5b-instruct}
out=introspect-runs/quickstart
[ "$model" = qwen2.5-coder-0.5b-instruct ] || out=$out-$(basename "$model" .gguf)
mkdir -p "$out"

# Weights and activations in bfloat16, what is read in float32: with AVX-512 about three times as fast as float32
# throughout, and within 0.06 nat of it. Other processors multiply bfloat16 no faster than float32.
dtype=bfloat16
[ "$(uname -m)" != x86_64 ] || grep -qs avx512bw /proc/cpuinfo || dtype=float32
echo "Weights and activations are $dtype; every reading is float32."
[ -e "$model" ] || introspect pull "$model"
vectors=()
for concept in cat bread; do
  [ -e "$out/$concept.gguf" ] || introspect train "$model" --concept "$concept" --dtype "$dtype" -o "$out/$concept.gguf"
  vectors+=(--vector "$concept=$out/$concept.gguf")
done
# 0.05 of the residual norm in nine blocks: at 0.1 the 0.5B loops. The report shows the dose beside it.
introspect run "$model" top_of_mind no_info with_info content_report "${vectors[@]}" \
  --fraction 0.05 --layers 0.33-0.66 --nulls 10 --dtype "$dtype" --yes -o "$out"
introspect report "$out"
echo "The report: $out/report.html (the whole took $SECONDS s)"
