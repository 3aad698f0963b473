#!/usr/bin/env bash
# Collects what tests/gpu/run.sh needs on a machine without a network: the Debian packages that introspect is compiled
# against, and the wheels named. Run it where there is a network and Debian or Ubuntu of the same processor.
#
#   bash tests/gpu/carry.sh FOLDER [WHEEL...]      carry.sh carried transformers==5.14.1 safetensors
#
#   INTROSPECT_PYTHON=3.12    the Python version of the machine that the wheels are for
#
# Then there: INTROSPECT_CARRIED=FOLDER bash tests/gpu/run.sh
set -euo pipefail
folder=${1:?a folder is needed}
shift
mkdir -p "$folder"
cd "$folder"
apt-get download pkgconf pkgconf-bin libpkgconf3 libsentencepiece-dev libsentencepiece0 libprotobuf-lite32 libpcre2-dev \
  libpcre2-8-0 libsqlite3-dev libsqlite3-0 libeigen3-dev nlohmann-json3-dev
if [ $# -gt 0 ]; then
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest . \
    --python-version "${INTROSPECT_PYTHON:-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}" "$@"
fi
du -sh .
