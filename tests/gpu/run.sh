#!/usr/bin/env bash
# On a CUDA machine: builds introspect, compares it with the CPU in float32 (TF32 off, 1e-3), and prints a benchmark
# beside transformers. Within eight minutes.
#
#   bash tests/gpu/run.sh
#
#   INTROSPECT_PYTHON=python3       a Python whose torch sees the device; transformers is needed for the benchmark
#   INTROSPECT_DEVICE=cuda:0        another device: cpu rehearses everything
#   INTROSPECT_CARRIED=FOLDER       no network: Debian packages (.deb) and wheels (.whl) that tests/gpu/carry.sh put there
#   INTROSPECT_INSTALLED=1          no build: that Python has introspect already
#   INTROSPECT_MODEL=FILE           a checkpoint to compare as well: a .gguf file or a Hugging Face folder
#   INTROSPECT_QUICK=1              a few works, and few repeats of small shapes
#
# Exits 0 if everything was within its tolerance.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${INTROSPECT_PYTHON:-python3}
DEVICE=${INTROSPECT_DEVICE:-cuda:0}
CARRIED=${INTROSPECT_CARRIED:-}
WORK=${INTROSPECT_WORK:-$ROOT/build/gpu}
LIMIT=480 # seconds for everything

# within COMMAND...: what is left of the time
within() { timeout --foreground $((LIMIT > SECONDS ? LIMIT - SECONDS : 1)) "$@"; }
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

mkdir -p "$WORK"
cd "$ROOT"

step "device"
within "$PYTHON" - "$DEVICE" <<'PY'
import sys

import torch

device = torch.device(sys.argv[1])
torch.empty(1, device=device)
name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {name}")
PY

if [ -n "$CARRIED" ]; then
  step "what was carried"
  for package in "$CARRIED"/*.deb; do
    [ ! -e "$package" ] || dpkg -x "$package" "$WORK/debian"
  done
  libraries=$WORK/debian/usr/lib/$(uname -m)-linux-gnu
  export PATH=$PATH:$WORK/debian/usr/bin
  export PKG_CONFIG_PATH=$libraries/pkgconfig:$WORK/debian/usr/share/pkgconfig PKG_CONFIG_SYSROOT_DIR=$WORK/debian
  export CMAKE_PREFIX_PATH=$WORK/debian/usr LD_LIBRARY_PATH=$libraries:$WORK/debian/usr/lib:${LD_LIBRARY_PATH:-}
  wheels=("$CARRIED"/*.whl)
  if [ -e "${wheels[0]}" ]; then
    within "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$WORK/packages" "${wheels[@]}"
    export PYTHONPATH=$WORK/packages${PYTHONPATH:+:$PYTHONPATH} PATH=$WORK/packages/bin:$PATH
  fi
fi

if [ -z "${INTROSPECT_INSTALLED:-}" ]; then
  step "build"
  within cmake -S . -B "$WORK/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DINTROSPECT_BUILD_PYTHON=ON \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" >"$WORK/configure.log" 2>&1 || { tail -n 40 "$WORK/configure.log"; exit 1; }
  within cmake --build "$WORK/build" -- -k 0 >"$WORK/build.log" 2>&1 || { grep -m 40 -A 4 'error' "$WORK/build.log" || tail -n 40 "$WORK/build.log"; exit 1; }
  rm -rf "$WORK/site" && mkdir -p "$WORK/site"
  cp -r python/introspect "$WORK/site/"
  cmake --install "$WORK/build" --prefix "$WORK/site/introspect" >/dev/null
  export PYTHONPATH=$WORK/site${PYTHONPATH:+:$PYTHONPATH}
fi

failed=0
step "parity with the CPU"
within "$PYTHON" tests/gpu/parity.py --device "$DEVICE" ${INTROSPECT_MODEL:+--model "$INTROSPECT_MODEL"} \
  ${INTROSPECT_QUICK:+--architectures 1 --works logits graph} || failed=1
step "benchmark"
within "$PYTHON" tests/gpu/benchmark.py --device "$DEVICE" ${INTROSPECT_QUICK:+--quick} || failed=1
step "done"
exit $failed
