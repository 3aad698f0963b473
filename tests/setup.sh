# Sourced by tests/run.sh and examples/quickstart.sh: from a bare Debian or Ubuntu machine to a virtual environment in
# which introspect is built and installed. Every step is skipped or quick when it was done before.
#
#   setup EXTRA [CMAKE_DEFINITION...]     EXTRA: "" or "[test]", the optional dependencies of pyproject.toml
#
# Afterwards $VENV/bin holds python and introspect, $BUILD the CMake build, $LOGS what the steps printed. Settings:
#
#   PYTHON                  the interpreter the environment is made from (3.10 or later, with venv and headers)
#   INTROSPECT_VENV         the virtual environment (.venv)
#   INTROSPECT_BUILD        the build folder (build/dev)
#   INTROSPECT_TORCH        what pip installs as torch (torch==2.13.0)
#   INTROSPECT_TORCH_INDEX  index searched for it beside PyPI; empty for none (PyTorch's CPU wheels: on Linux those of
#                           PyPI bring gigabytes of CUDA)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${INTROSPECT_VENV:-$ROOT/.venv}
BUILD=${INTROSPECT_BUILD:-$ROOT/build/dev}
LOGS=$ROOT/build/logs
TORCH=${INTROSPECT_TORCH:-torch==2.13.0}
TORCH_INDEX=${INTROSPECT_TORCH_INDEX-https://download.pytorch.org/whl/cpu}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

fail() {
  printf '%s\n' "$@" >&2
  exit "${status:-1}"
}

# step TITLE LOG COMMAND...: runs it with its output in $LOGS/LOG.log, which is shown when it fails.
step() {
  local title=$1 log=$LOGS/$2.log start=$SECONDS
  shift 2
  mkdir -p "$LOGS"
  printf '%-60s ' "$title"
  if "$@" >"$log" 2>&1 </dev/null; then
    echo "$((SECONDS - start)) s"
  else
    echo "FAILED after $((SECONDS - start)) s"
    grep -v '^WARNING: ' "$log" | tail -n 60 >&2
    fail "$title failed; the whole log is $log"
  fi
}

# A Python to build on: 3.10 or later, able to make environments and to compile extensions.
usable_python() {
  local candidate
  for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
    if "$candidate" - <<'PY' >/dev/null 2>&1; then
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not (sys.version_info >= (3, 10) and os.path.exists(header)))
PY
      echo "$candidate"
      return
    fi
  done
  return 1
}

# The Debian packages that this machine still needs.
missing_packages() {
  local command package module
  while read -r command package; do
    command -v "$command" >/dev/null || echo "$package"
  done <<<'g++ g++
cmake cmake
ninja ninja-build
pkg-config pkg-config'
  while read -r module package; do
    pkg-config --exists "$module" 2>/dev/null || echo "$package"
  done <<<'sentencepiece libsentencepiece-dev
libpcre2-8 libpcre2-dev
sqlite3 libsqlite3-dev
eigen3 libeigen3-dev
nlohmann_json nlohmann-json3-dev
catch2 catch2'
  usable_python >/dev/null || printf '%s\n' python3 python3-venv python3-dev
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

install_packages() {
  local missing
  missing=$(missing_packages | xargs)
  [ -n "$missing" ] || return 0
  status=2
  if ! command -v apt-get >/dev/null; then
    fail "introspect needs what Debian calls: $missing" \
      "(a C++20 compiler, CMake 3.24, ninja, pkg-config, Python 3.10 with headers, and these libraries)." \
      "Install them with this system's package manager and start again."
  elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    fail "introspect needs system packages and may not install them itself. Please run" \
      "  sudo apt-get install $missing" "and start again."
  fi
  echo "system packages needed: $missing"
  step "apt-get update" apt-update as_root apt-get -o DPkg::Lock::Timeout=300 update -q
  # shellcheck disable=SC2086  # a list of words
  step "apt-get install" apt-install as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends $missing ccache
  missing=$(missing_packages | xargs)
  [ -z "$missing" ] || fail "still missing after apt-get install: $missing" \
    "(Python must be 3.10 or later, with venv and Python.h; set PYTHON to choose another one.)"
  status=1
}

# Tests open pages in a browser. Without one they are skipped, or fail where INTROSPECT_REQUIRE is set.
install_browser() {
  local name
  for name in chromium chromium-browser google-chrome; do
    command -v $name >/dev/null && return
  done
  command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } || return 0
  printf '%-60s ' "Chromium, for tests of pages"
  mkdir -p "$LOGS"
  if { as_root apt-get -o DPkg::Lock::Timeout=300 update -q && as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends chromium; } >"$LOGS/chromium.log" 2>&1 </dev/null; then
    echo installed
  else
    echo "cannot be installed (log: $LOGS/chromium.log)"
  fi
}

make_venv() {
  [ -x "$VENV/bin/python" ] || step "virtual environment $VENV" venv "$(usable_python)" -m venv "$VENV"
}

install_torch() {
  # pip knows -C since 23.1; Debian 12 makes environments with 23.0.
  "$VENV/bin/python" -m pip install -q "pip>=23.1" || return
  # The build links against this torch, so it comes first and on its own.
  local index=()
  if [ -n "$TORCH_INDEX" ] && [ "$(uname -sm)" = "Linux x86_64" ] &&
    "$VENV/bin/python" -c "import urllib.request as r; r.urlopen('$TORCH_INDEX/torch/', timeout=5)" 2>/dev/null; then
    index=(--extra-index-url "$TORCH_INDEX")
  fi
  "$VENV/bin/python" -m pip install -q "${index[@]}" "$TORCH" &&
    "$VENV/bin/python" -m pip install -q "scikit-build-core>=1.0" numpy || return
  # Ubuntu 22.04 brings CMake 3.22; scikit-build-core prefers the newer one of the environment.
  cmake --version | "$VENV/bin/python" -c '
import re, sys
sys.exit(tuple(map(int, re.search(r"(\d+)\.(\d+)", sys.stdin.read()).groups())) < (3, 24))' ||
    "$VENV/bin/python" -m pip install -q "cmake>=3.24,<5"
}

# An editable install: one CMake build gives the library, the extension module and whatever the definitions ask for.
build() {
  local what=$1 options=(--no-build-isolation -C "build-dir=$BUILD") definition
  shift
  for definition in "$@"; do
    options+=(-C "cmake.define.$definition")
  done
  "$VENV/bin/python" -m pip install -q "${options[@]}" $what
}

setup() {
  local extra=$1 stamp
  shift
  cd "$ROOT" || exit
  install_packages
  [[ $extra != *test* ]] || install_browser
  make_venv
  # The packages are looked at again when what asks for them has changed.
  stamp=$VENV/.introspect-$( (echo "$TORCH" "$extra" && cat pyproject.toml python/packaging/*.py) | sha256sum | cut -c-16)
  if [ -e "$stamp" ]; then
    step "build" build build "--no-deps -e ." "$@"
  else
    step "torch ($TORCH)" torch install_torch
    step "build and Python packages (minutes when new; log: build/logs)" build build "-e .$extra" "$@"
    touch "$stamp"
  fi
  PATH=$VENV/bin:$PATH
}
