#!/usr/bin/env bash
# Imports every module of edgekit_runtime (and what it may use of edgekit) in a fresh environment that
# holds only the [runtime] extra: what a device installs must be enough for a device.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check '.[runtime]'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
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
print(f"{count} modules import with [runtime] alone")
PY
"$folder/venv/bin/edgekit-agent" --help >/dev/null
