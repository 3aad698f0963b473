#!/usr/bin/env bash
# Compiles the library for arm64 and runs its C++ tests there, in an emulator.
#
#   bash tests/arm64/run.sh        the modules core and ops with their tests: all kernels
#   bash tests/arm64/run.sh all    the whole library and all C++ tests
#
#   INTROSPECT_ARM64=FOLDER   where to work (build/arm64); torch's wheel for arm64 is fetched into it (430 MB)
#   INTROSPECT_JOBS=N         compilers at once (1)
#
# On Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static. Exits 2 without them, 1 if something failed.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
WORK=${INTROSPECT_ARM64:-$ROOT/build/arm64}
WHAT=${1:-ops}
SYSTEM=/usr/aarch64-linux-gnu # of the cross compiler: the C and C++ libraries
TORCH=$WORK/torch

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static cmake ninja; do
  command -v $tool >/dev/null || { echo "arm64: there is no $tool"; exit 2; }
done
mkdir -p "$WORK"
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

if [ ! -e "$TORCH/unpacked" ]; then
  step "torch for arm64"
  version=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' "$ROOT/pyproject.toml" | head -1)
  python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --python-version 311 \
    --dest "$WORK" "torch==$version"
  rm -rf "$TORCH"
  # What runs on the processor alone; the wheel is one for CUDA.
  unzip -q -o "$WORK"/torch-*.whl 'torch/include/*' 'torch/lib/libtorch.so' 'torch/lib/libtorch_cpu.so' \
    'torch/lib/libc10.so' 'torch/lib/libgomp*' 'torch/lib/libnvpl*' 'torch/lib/libarm*' \
    -d "$WORK" || [ $? = 11 ] # 11: a pattern that matches nothing
  rm "$WORK"/torch-*.whl
  touch "$TORCH/unpacked"
fi

# Libraries of CUDA that libtorch_cpu names and that nothing here calls.
mkdir -p "$WORK/stubs"
PATHS=$TORCH/lib:$WORK/stubs
for library in "$TORCH"/lib/*.so*; do
  for name in $(aarch64-linux-gnu-readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [ -e "$TORCH/lib/$name" ] || [ -e "$SYSTEM/lib/$name" ] || [ -e "$WORK/stubs/$name" ] ||
      { echo "arm64: an empty $name"; aarch64-linux-gnu-gcc -shared -nostdlib -Wl,-soname,"$name" -x c /dev/null -o "$WORK/stubs/$name"; }
  done
done

step "compile"
SOURCE=$ROOT/tests/arm64
BUILD=$WORK/ops
TARGET=ops_tests
OPTIONS=()
if [ "$WHAT" = all ]; then
  SOURCE=$ROOT
  BUILD=$WORK/all
  TARGET=introspect_tests
  OPTIONS=(-DINTROSPECT_BUILD_TESTS=ON -DINTROSPECT_FETCH_DEPENDENCIES=OFF)
  # Debian's packages for arm64, unpacked beside the machine's own.
  if [ ! -e "$WORK/debian/unpacked" ]; then
    mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/archives/partial" "$WORK/debian"
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$WORK/apt/lists"
      -o Dir::Cache="$WORK/apt" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$WORK/apt" && "${apt[@]}" download libsqlite3-dev libsqlite3-0 libpcre2-dev libpcre2-8-0 libsentencepiece-dev libsentencepiece0)
    for package in "$WORK"/apt/*.deb; do dpkg -x "$package" "$WORK/debian"; done
    touch "$WORK/debian/unpacked"
  fi
  export PKG_CONFIG_LIBDIR=$WORK/debian/usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig
  export PKG_CONFIG_SYSROOT_DIR=$WORK/debian
  PATHS=$PATHS:$WORK/debian/usr/lib/aarch64-linux-gnu
fi
cmake -S "$SOURCE" -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE="$ROOT/tests/arm64/toolchain.cmake" \
  -DINTROSPECT_TORCH_PREFIX="$TORCH" -DCMAKE_EXE_LINKER_FLAGS="-Wl,-rpath-link,$PATHS" \
  -DCMAKE_SHARED_LINKER_FLAGS="-Wl,-rpath-link,$PATHS" "${OPTIONS[@]}" >"$WORK/configure.log" 2>&1 ||
  { tail -n 40 "$WORK/configure.log"; exit 1; }
cmake --build "$BUILD" --target "$TARGET" -j "${INTROSPECT_JOBS:-1}" >"$WORK/build.log" 2>&1 ||
  { grep -m 5 -A 10 'error' "$WORK/build.log" || tail -n 40 "$WORK/build.log"; exit 1; }

step "tests in the emulator"
program=$(find "$BUILD" -name "$TARGET" -type f | head -1)
aarch64-linux-gnu-readelf -h "$program" | grep 'Machine:'
OMP_NUM_THREADS=2 qemu-aarch64-static -L "$SYSTEM" -E LD_LIBRARY_PATH="$PATHS:$SYSTEM/lib" "$program"
step "done"
