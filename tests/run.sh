#!/usr/bin/env bash
# Builds everything and runs every test, on a bare Debian or Ubuntu machine too (see tests/setup.sh for its settings).
#
#   bash tests/run.sh              every tier
#   bash tests/run.sh lint unit    only these
#
#   bash tests/run.sh sanitize     the C++ tests and 2,000 damaged files a reader under sanitizers: it compiles
#                                  everything once more
#
#   INTROSPECT_QUICK=1   only lint, layering, stubs, cpp and unit
#   INTROSPECT_SLOW=1    tests/python/slow and sanitize too, with ThreadSanitizer and 100,000 files a reader;
#                        INTROSPECT_SLOW=all: with those that take minutes each
#   INTROSPECT_WORKERS=N processes that run the Python tests (as many as there are cores, four at most)
#   INTROSPECT_REQUIRE=1 real checkpoints and data that are not there are failures, not skips (continuous integration)
#
# The last line is the total: "N passed, N failed". Exits 0 if nothing failed, 1 if something did, 2 when system
# packages are missing and may not be installed.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
REPORTS=$ROOT/build/reports

# name and time limit in minutes, in the order of running
TIERS="lint:5 layering:2 stubs:5 cpp:10 unit:45 parity:30 slow:45 consumer:25 examples:30 notebooks:25 sanitize:90"
[ -z "${INTROSPECT_SLOW:-}" ] || TIERS=${TIERS/sanitize:90/sanitize:240}
[ -z "${INTROSPECT_QUICK:-}" ] || TIERS="lint:5 layering:2 stubs:5 cpp:10 unit:45"

# Two threads a process: torch takes every core otherwise. Those that wait sleep: busy ones keep the cores from others.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg PYTHONUNBUFFERED=1

# Tests of Python run in WORKERS processes of one thread each; a file's tests stay together, since they share models.
WORKERS=${INTROSPECT_WORKERS:-$(nproc)}
[ "$WORKERS" -le 4 ] || WORKERS=4 # each holds some models: four gigabytes at most
SHARED=()
[ "$WORKERS" = 1 ] || SHARED=(-n "$WORKERS" --dist loadfile)

# Each tier below is a function that may write "passed failed skipped" to $COUNTS; without it the tier counts as one test.

tier_lint() {
  local bad=0 checks=0
  check() {
    echo "\$ $*" | cut -c-150
    checks=$((checks + 1))
    "$@" || bad=$((bad + 1))
  }
  check ruff check .
  check ruff format --check .
  check mypy
  # shellcheck disable=SC2046  # file names of the repository hold no spaces
  check clang-format --dry-run --Werror $(cd "$ROOT" && find cpp python tests examples -name '*.h' -o -name '*.cpp')
  echo "$((checks - bad)) $bad 0" >"$COUNTS"
  [ "$bad" = 0 ]
}

# run_pytest ARGUMENT...
run_pytest() {
  local xml=$REPORTS/$TIER.xml status=0
  rm -f "$xml"
  [ "$WORKERS" = 1 ] || export OMP_NUM_THREADS=1
  python -m pytest -q --junitxml="$xml" "${SHARED[@]}" "$@" || status=$?
  [ ! -e "$xml" ] || python - "$xml" >"$COUNTS" <<'PY'
import sys
import xml.etree.ElementTree as ET

suites = list(ET.parse(sys.argv[1]).getroot().iter("testsuite"))
total, failures, errors, skipped = (
    sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
)
print(total - failures - errors - skipped, failures + errors, skipped)
PY
  return $status
}

tier_layering() { run_pytest tests/python/unit/test_layering.py -n 0; }
tier_stubs() { bash tests/stubs.sh --check; }
tier_unit() { run_pytest tests/python/unit --ignore=tests/python/unit/test_layering.py; }
tier_parity() { run_pytest tests/python/parity; }
tier_slow() {
  if [ -n "${INTROSPECT_SLOW:-}" ]; then
    # Without the environments of TransformerLens and repeng the tests against them are skipped.
    python tests/benchmarks/peers/environment.py || true
    run_pytest tests/python/slow
  else
    skip "set INTROSPECT_SLOW=1"
  fi
}

# The C++ tests, and 2,000 damaged files for every reader.
tier_cpp() {
  local log=$REPORTS/cpp.log status=0
  "$BUILD/tests/cpp/introspect_tests" 2>&1 | tee "$log" || status=$?
  OMP_NUM_THREADS=1 "$BUILD/tests/cpp/introspect_fuzz" tests/data --count 2000 2>&1 | tee -a "$log" || status=$?
  # Catch2 ends with "All tests passed (... in N test cases)" or "test cases: N | N passed | N failed", the files with
  # "N inputs, N faults".
  python - "$log" >"$COUNTS" <<'PY'
import re
import sys

text = open(sys.argv[1]).read()
passed, failed = 0, 1
if ok := re.search(r"^All tests passed \(.* in (\d+) test cases?\)", text, re.MULTILINE):
    passed, failed = int(ok[1]), 0
elif line := re.search(r"^test cases:.*", text, re.MULTILINE):
    count = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed)", line[0])}
    passed, failed = count.get("passed", 0), count.get("failed", 0)
sound = re.search(r"^\d+ inputs, 0 faults", text, re.MULTILINE) is not None
print(passed + sound, failed + (not sound), 0)
PY
  return $status
}

# A program of somebody else's: against what our build installs, against what pip installed, and with introspect's
# sources inside it. The last compiles the whole library once more: without INTROSPECT_SLOW only the program's own objects.
tier_consumer() {
  local work=$ROOT/build/consumer done=0 definitions=(-G Ninja -DPython_EXECUTABLE="$VENV/bin/python")
  configured() {
    local name=$1
    shift
    echo "== $name"
    cmake -S tests/cmake_consumer -B "$work/$name" "${definitions[@]}" "$@" >"$work-$name.log" 2>&1 ||
      { cat "$work-$name.log"; return 1; }
  }
  # built NAME [TARGET...]
  built() {
    local name=$1
    shift
    cmake --build "$work/$name" ${1:+--target "$@"} >>"$work-$name.log" 2>&1 || { tail -n 60 "$work-$name.log"; return 1; }
  }
  one() {
    configured "$@" && built "$1" || return
    ctest --test-dir "$work/$1" --output-on-failure --no-tests=error | tail -n 5
    [ "${PIPESTATUS[0]}" = 0 ] && done=$((done + 1))
  }
  mkdir -p "$work"
  rm -rf "$work/prefix" && cmake --install "$BUILD" --prefix "$work/prefix" >/dev/null &&
    one find_package -DCMAKE_PREFIX_PATH="$work/prefix"
  local inside=(add_subdirectory -DINTROSPECT_SOURCE="$ROOT")
  if [ -n "${INTROSPECT_SLOW:-}" ]; then
    one "${inside[@]}"
  else
    configured "${inside[@]}" &&
      built add_subdirectory CMakeFiles/main.dir/main.cpp.o CMakeFiles/umbrella.dir/umbrella.cpp.o && done=$((done + 1))
  fi
  one pip_package -DCMAKE_PREFIX_PATH="$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/introspect"
  echo "$done $((3 - done)) 0" >"$COUNTS"
  [ "$done" = 3 ]
}

# Every example, on the smallest real model and with few pairs.
tier_examples() {
  local model=$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf work=$ROOT/build/examples good=0 bad=0 example arguments start
  [ -e "$model" ] || { missing "$model is not there"; return; }
  mkdir -p "$work"
  for example in examples/python/*.py examples/cpp/*.cpp; do
    case $example in
      */python/circuit.py | */python/attribution_graph.py) arguments=(python "$example" --model "$model") ;;
      *.py) arguments=(python "$example" --model "$model" --suffixes 40) ;;
      *) arguments=("$BUILD/examples/cpp/example_$(basename "$example" .cpp)" "$model") ;;
    esac
    case $example in
      */python/seven_experiments.py) arguments+=(--nulls 2) ;;
      */python/finetuned_pair.py) arguments+=(--nulls 2 --steps 4) ;;
      */python/inject.py) arguments+=(--nulls 2) ;;
      */cpp/generate.cpp) arguments+=("What is a KV cache?") ;;
      */cpp/vector.cpp) arguments+=(cat 7 "$work/cat.gguf") ;;
      */python/vectors.py) arguments+=(--output "$work/vectors") ;;
    esac
    echo "\$ ${arguments[*]}"
    start=$SECONDS
    if "${arguments[@]}" </dev/null; then good=$((good + 1)); else echo "FAILED: $example"; bad=$((bad + 1)); fi
    echo "($((SECONDS - start)) s)"
  done
  echo "$good $bad 0" >"$COUNTS"
  [ "$bad" = 0 ]
}

tier_notebooks() {
  [ -e "$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf" ] || { missing "the real checkpoints are not there"; return; }
  run_pytest --nbmake --nbmake-timeout=600 notebooks
}

# sanitized NAME SANITIZERS: the C++ tests and the fuzzer in a build of their own, build/NAME.
sanitized() {
  cmake -S . -B "build/$1" -G Ninja -DCMAKE_BUILD_TYPE=Sanitize -DINTROSPECT_SANITIZE="$2" -DINTROSPECT_BUILD_TESTS=ON \
    -DINTROSPECT_INSTALL=OFF -DPython_EXECUTABLE="$VENV/bin/python" >"$REPORTS/$1.log" 2>&1 &&
    cmake --build "build/$1" --target introspect_tests introspect_fuzz >>"$REPORTS/$1.log" 2>&1 ||
    { tail -n 60 "$REPORTS/$1.log"; return 1; }
}

# The C++ tests and damaged files for every reader, with what g++ adds to find wrong reads, writes and arithmetic; and
# two threads on one model. The sanitizers see introspect's own code: torch is as it comes.
tier_sanitize() {
  local count=2000 good=0 bad=0
  [ -z "${INTROSPECT_SLOW:-}" ] || count=100000
  one() {
    echo "\$ $*" | cut -c-150
    if "$@"; then good=$((good + 1)); else bad=$((bad + 1)); fi
  }
  export UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1
  # More than a gigabyte at once for a file of some kilobytes is a fault. torch never frees what it keeps for its whole life.
  export ASAN_OPTIONS=max_allocation_size_mb=1024:detect_leaks=0
  one sanitized asan address,undefined
  one build/asan/tests/cpp/introspect_tests "~[process]"
  one build/asan/tests/cpp/introspect_fuzz tests/data --count "$count"
  if [ -n "${INTROSPECT_SLOW:-}" ]; then
    export TSAN_OPTIONS="suppressions=$ROOT/tests/cpp/tsan.supp:ignore_noninstrumented_modules=1"
    one sanitized tsan thread
    one build/tsan/tests/cpp/introspect_tests "[threads]"
  fi
  echo "$good $bad 0" >"$COUNTS"
  [ "$bad" = 0 ]
}

skip() {
  echo "skipped: $*"
  echo "0 0 1" >"$COUNTS"
}

missing() {
  [ -n "${INTROSPECT_REQUIRE:-}" ] || { skip "$@"; return; }
  echo "FAILED: $*"
  echo "0 1 0" >"$COUNTS"
  return 1
}

# fetch_models: the real checkpoints. Tests on them are skipped, and say so, where they are not.
export MODELS=${INTROSPECT_MODELS:-$HOME/.cache/introspect/models}
fetch_models() {
  local tool=${INTROSPECT_SHARED:-$ROOT/../shared}/tools/fetch_models.py
  if [ -e "$tool" ]; then
    step "real checkpoints in $MODELS" models python "$tool" --to "$MODELS"
  else
    echo "no $tool: tests on real checkpoints run only if these are in $MODELS already"
  fi
}

# run_tier NAME MINUTES: in a process of its own, under its time limit; adds to the totals.
run_tier() {
  local name=$1 minutes=$2 start=$SECONDS status=0 outcome
  echo "==== $name"
  rm -f "$REPORTS/$name.counts"
  timeout --kill-after=20 "${minutes}m" bash "$ROOT/tests/run.sh" --tier "$name" </dev/null &
  child=$!
  wait $child || status=$?
  child=
  read -r passed failed skipped <<<"$(cat "$REPORTS/$name.counts" 2>/dev/null || echo "$((status == 0)) 0 0")"
  [ $status = 0 ] || [ "$failed" != 0 ] || failed=1
  case $status in
    0) outcome=ok ;;
    124 | 137) outcome="FAILED: over its limit of $minutes minutes" ;;
    *) outcome=FAILED ;;
  esac
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  summary+=$(printf '%-10s %5d passed %4d failed %4d skipped %5d s  %s' \
    "$name" "$passed" "$failed" "$skipped" "$((SECONDS - start))" "$outcome")$'\n'
}

if [ "${1:-}" = --tier ]; then
  cd "$ROOT" || exit
  TIER=$2 COUNTS=$REPORTS/$2.counts
  "tier_$TIER"
  exit
fi

for name in "$@"; do
  [[ " $TIERS" == *" $name:"* ]] || status=2 fail "tests/run.sh: no tier called '$name'; there are: $(sed 's/:[0-9]*//g' <<<"$TIERS")"
done
child=
trap '[ -z "$child" ] || kill "$child"; exit 130' INT TERM
mkdir -p "$REPORTS"
setup "[test]" INTROSPECT_BUILD_TESTS=ON INTROSPECT_BUILD_EXAMPLES=ON
export PATH
fetch_models
total_passed=0 total_failed=0 summary=
for tier in $TIERS; do
  [ $# = 0 ] || [[ " $* " == *" ${tier%:*} "* ]] || continue
  [ $# != 0 ] || [ "${tier%:*}" != sanitize ] || [ -n "${INTROSPECT_SLOW:-}" ] || continue
  run_tier "${tier%:*}" "${tier#*:}"
done
echo "==== summary (${SECONDS} s)"
printf '%s' "$summary"
echo "$total_passed passed, $total_failed failed"
[ "$total_failed" = 0 ]
