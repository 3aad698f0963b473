#!/usr/bin/env bash
# Compiles the library for arm64 and runs it in an emulator of one program: the compiler is this machine's own and as
# quick as ever, what it makes runs some tens of times slower than on an arm64 machine.
#
#   bash tests/arm64/run.sh            the modules core and ops with their tests: all kernels
#   bash tests/arm64/run.sh models     the modules up to models with their tests
#   bash tests/arm64/run.sh forward OUT MODEL DTYPE HELD ID...    a pass of a model, see forward.cpp; after `models`
#   bash tests/arm64/run.sh all        the whole library and all C++ tests
#
#   INTROSPECT_ARM64=FOLDER   where to work (build/arm64); fetched into it: torch's wheel (430 MB), Debian's packages (5 MB)
#   INTROSPECT_JOBS=N         compilers at once (1)
#   INTROSPECT_TESTS=SPEC     which tests to run, in Catch2's words
#   QEMU_CPU=NAME             the processor (max: with SVE and bfloat16); neoverse-n1 has neither
#
# On Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static ninja-build catch2. Exits 2 where a tool is missing,
# 1 if something failed.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
WORK=${INTROSPECT_ARM64:-$ROOT/build/arm64}
SYSTEM=/usr/aarch64-linux-gnu # of the cross compiler: the C and C++ libraries
TORCH=$WORK/torch
BUILD=$WORK/build
DEBIAN=$WORK/debian
LIBRARIES=$DEBIAN/usr/lib/aarch64-linux-gnu
WHAT=${1:-ops}
case $WHAT in ops | models | forward | all) ;; *) sed -n '2,/^set/p' "$0" | grep '^#' >&2; exit 2 ;; esac

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static cmake ninja unzip flock dpkg apt-get; do
  command -v $tool >/dev/null || { echo "arm64: there is no $tool"; exit 2; }
done
mkdir -p "$WORK"
exec 9>"$WORK/lock"
flock -n 9 || { echo "arm64: another run works in $WORK"; exit 1; }
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

version=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' "$ROOT/pyproject.toml" | head -1)
if [ "$(cat "$TORCH/unpacked" 2>/dev/null)" != "$version" ]; then
  step "torch $version for arm64"
  ls "$WORK/torch-$version-"*aarch64.whl >/dev/null 2>&1 ||
    python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 \
      --python-version 311 --dest "$WORK" "torch==$version"
  rm -rf "$TORCH"
  # What runs on the processor alone; the wheel is one for CUDA.
  unzip -q -o "$WORK/torch-$version-"*aarch64.whl 'torch/include/*' 'torch/lib/libtorch.so' 'torch/lib/libtorch_cpu.so' \
    'torch/lib/libc10.so' 'torch/lib/libgomp*' 'torch/lib/libnvpl*' 'torch/lib/libarm*' \
    -d "$WORK" || [ $? = 11 ] # 11: a pattern that matches nothing
  rm "$WORK/torch-$version-"*aarch64.whl
  echo "$version" >"$TORCH/unpacked"
fi

if [ ! -e "$DEBIAN/unpacked" ]; then
  step "Debian's packages for arm64, unpacked beside the machine's own"
  mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/archives/partial" "$DEBIAN"
  touch "$WORK/apt/status"
  apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$WORK/apt/lists"
    -o Dir::Cache="$WORK/apt" -o Dir::State::status="$WORK/apt/status" -o APT::Sandbox::User=root)
  # Other sources than Debian's have no such packages.
  sources=/etc/apt/sources.list.d/debian.sources
  [ ! -e $sources ] || apt+=(-o Dir::Etc::sourcelist=$sources -o Dir::Etc::sourceparts=-)
  "${apt[@]}" update
  (cd "$WORK/apt" && "${apt[@]}" download libsqlite3-dev libsqlite3-0 libpcre2-dev libpcre2-8-0 libpcre2-16-0 \
    libpcre2-32-0 libpcre2-posix3 libsentencepiece-dev libsentencepiece0 libeigen3-dev nlohmann-json3-dev)
  for package in "$WORK"/apt/*.deb; do dpkg -x "$package" "$DEBIAN"; done
  touch "$DEBIAN/unpacked"
fi

# Libraries of CUDA that libtorch_cpu names and that nothing here calls.
mkdir -p "$WORK/stubs"
PATHS=$TORCH/lib:$WORK/stubs:$LIBRARIES
for library in "$TORCH"/lib/*.so*; do
  for name in $(aarch64-linux-gnu-readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [ -e "$TORCH/lib/$name" ] || [ -e "$SYSTEM/lib/$name" ] || [ -e "$WORK/stubs/$name" ] ||
      { echo "arm64: an empty $name"; aarch64-linux-gnu-gcc -shared -nostdlib -Wl,-soname,"$name" -x c /dev/null -o "$WORK/stubs/$name"; }
  done
done

step "configure"
export PKG_CONFIG_LIBDIR=$LIBRARIES/pkgconfig:$DEBIAN/usr/share/pkgconfig PKG_CONFIG_SYSROOT_DIR=$DEBIAN
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 # of the unpacked packages, not of this machine
cmake -S "$ROOT" -B "$BUILD" -G Ninja -DCMAKE_BUILD_TYPE=Release -DINTROSPECT_BUILD_TESTS=ON \
  -DINTROSPECT_FETCH_DEPENDENCIES=OFF -DINTROSPECT_TORCH_PREFIX="$TORCH" \
  -DCMAKE_TOOLCHAIN_FILE="$ROOT/tests/arm64/toolchain.cmake" -DCMAKE_EXE_LINKER_FLAGS="-Wl,-rpath-link,$PATHS,--unresolved-symbols=ignore-in-shared-libs" \
  -DCMAKE_SHARED_LINKER_FLAGS="-Wl,-rpath-link,$PATHS" >"$WORK/configure.log" 2>&1 ||
  { tail -n 40 "$WORK/configure.log"; exit 1; }

build() { # targets of the build
  ninja -C "$BUILD" -j "${INTROSPECT_JOBS:-1}" -k 0 "$@" >"$WORK/build.log" 2>&1 ||
    { grep -A 10 'error' "$WORK/build.log" | head -n 200 || tail -n 40 "$WORK/build.log"; exit 1; }
}
objects() { # of folders, given as a|b: those of the library or of its tests
  ninja -C "$BUILD" -t targets all | sed -nE "s#^($1/($2)/[^:]*\.o): .*#\1#p"
}
LIBRARY=cpp/CMakeFiles/introspect.dir/src TESTS=tests/cpp/CMakeFiles/introspect_tests.dir
link() { # a program of some objects, where the library would lie: its module and its data are found from there
  local program=$BUILD/cpp/$1
  shift
  (cd "$BUILD" && aarch64-linux-gnu-g++ -o "$program" "$@" -Wl,-rpath-link,"$PATHS" -Wl,--unresolved-symbols=ignore-in-shared-libs "$TORCH"/lib/lib{torch,torch_cpu,c10}.so \
    "$TORCH/lib/libgomp.so.1" -L"$LIBRARIES" -Wl,--as-needed -lpcre2-8 -ldl)
}
# What the emulator's programs find before this machine's own files: torch's libcpuinfo ends on a /proc/cpuinfo of x86-64.
SEEN=$WORK/root
mkdir -p "$SEEN/proc"
ln -sfn "$SYSTEM/lib" "$SEEN/lib"
for ((cpu = 0; cpu < $(nproc --all); ++cpu)); do # of a Neoverse N1
  printf '%s\n' "processor	: $cpu" "BogoMIPS	: 50.00" \
    "Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
    "CPU implementer	: 0x41" "CPU architecture: 8" "CPU variant	: 0x3" "CPU part	: 0xd0c" "CPU revision	: 1" ""
  mkdir -p "$SEEN/sys/devices/system/cpu/cpu$cpu/regs/identification"
  echo 0x00000000413fd0c1 >"$SEEN/sys/devices/system/cpu/cpu$cpu/regs/identification/midr_el1"
done >"$SEEN/proc/cpuinfo"
run() {
  OMP_NUM_THREADS=2 qemu-aarch64-static -L "$SEEN" -E LD_LIBRARY_PATH="$PATHS:$SYSTEM/lib" "$@"
}
tests() { # runs a program of tests
  step "tests in the emulator"
  aarch64-linux-gnu-readelf -h "$1" | grep 'Machine:'
  run "$1" ${INTROSPECT_TESTS:+"$INTROSPECT_TESTS"}
}

# Tests of the ladder's lower modules alone; io/test_share.cpp reads what upper modules make of the data.
case $WHAT in ops) modules='core|ops' ;; *) modules='core|io|text|ops|hooks|cache|nn|models' ;; esac
if [ "$WHAT" = all ]; then
  step "compile everything"
  build introspect_tests
  tests "$BUILD/tests/cpp/introspect_tests"
else
  step "compile ${modules//|/ }"
  mapfile -t library < <(objects $LIBRARY "$modules")
  if [ "$WHAT" = forward ]; then
    out=$2
    shift 2
    build "${library[@]}"
    aarch64-linux-gnu-g++ -std=c++20 -O1 -c "$ROOT/tests/arm64/forward.cpp" -o "$BUILD/forward.o" -I"$ROOT/cpp/include" \
      -I"$BUILD/include" -I"$TORCH/include" -I"$TORCH/include/torch/csrc/api/include"
    link forward forward.o "${library[@]}"
    step "a pass in the emulator"
    run "$BUILD/cpp/forward" "$@" >"$out"
  else
    mapfile -t of_tests < <(objects $TESTS "${modules%|models}" | grep -v io/test_share)
    build "${library[@]}" "${of_tests[@]}" $TESTS/main.cpp.o introspect_sentencepiece_module
    link "tests_$WHAT" "${library[@]}" "${of_tests[@]}" $TESTS/main.cpp.o
    tests "$BUILD/cpp/tests_$WHAT"
  fi
fi
step "done"
