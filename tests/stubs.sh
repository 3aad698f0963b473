#!/usr/bin/env bash
# Writes python/introspect/_C.pyi from the built extension module, in the Python on PATH; with --check compares instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stub=python/introspect/_C.pyi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m pybind11_stubgen introspect._C -o "$work" --exit-code
generated=$work/introspect/_C.pyi
ruff format -q --config pyproject.toml "$generated"
if [ "${1:-}" != --check ]; then
  cp "$generated" "$stub"
elif ! diff -u "$stub" "$generated"; then
  echo "$stub is not what the bindings are: refresh it with  bash tests/stubs.sh" >&2
  exit 1
fi
