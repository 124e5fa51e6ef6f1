#!/usr/bin/env bash
# What a device installs must be enough for a device: imports every module that belongs there in a fresh
# environment that holds only the [runtime] extra, then runs the device's own tests in it (with what
# the tests themselves need added). PYTHON names the interpreter; JetPack 6 has 3.10.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
pip() { "$bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

pip '.[runtime]'
cd "$folder" # the checkout must not shadow what is installed
"$bin/python" - <<'PY'
import importlib
import pkgutil
import sys

count = 0
for root in ("edgekit.contracts", "edgekit.stats", "edgekit.preprocess", "edgekit_runtime"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        importlib.import_module(module.name)
        count += 1
heavy = {"onnx", "sqlalchemy", "fastapi", "torch", "httpx"} & set(sys.modules)
if heavy:
    sys.exit(f"runtime imports builder or manager packages: {sorted(heavy)}")
print(f"Python {sys.version.split()[0]}: {count} modules import with [runtime] alone")
PY
"$bin/edgekit-agent" --help >/dev/null

pip onnx pytest pytest-timeout hypothesis scipy iotcore backports.zstd pillow # [delta] [images]
cd "$repository"
"$bin/python" -m pytest -q -p no:cacheprovider tests/unit/contracts tests/unit/stats \
  tests/unit/runtime tests/faults tests/property tests/integration/test_agent_lifecycle.py
