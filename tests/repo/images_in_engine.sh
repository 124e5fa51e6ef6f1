#!/usr/bin/env bash
# Images in a real Docker Engine: writes amd64 and arm64 images from fresh roots, loads both, runs the
# self-test of each (arm64 under emulation by qemu 10 from trixie; 7.2 is too old for onnxruntime),
# and lets `docker pull` fetch both platforms from the manager's registry. Needs root and apt.
# Usage: images_in_engine.sh FOLDER, which keeps roots, wheels and layers for the next time.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?folder}"
work=$(realpath "$1")
python=${PYTHON:-$repository/.venv/bin/python}
edgekit() { "$python" -c 'from edgekit.cli.main import main; main()' "$@"; }
docker=(docker -H "unix://$work/engine/docker.sock")
export EDGEKIT_REGISTRY=$work/registry EDGEKIT_CACHE=$work/cache
mkdir -p "$work/engine" "$work/qemu/lists/partial"
pids=()
finish() {
  [ -e /proc/sys/fs/binfmt_misc/edgekit-aarch64 ] && echo -1 >/proc/sys/fs/binfmt_misc/edgekit-aarch64
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
}
trap finish EXIT

for package in mmdebstrap docker.io skopeo; do
  dpkg -s "$package" >/dev/null 2>&1 ||
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
done
for arch in amd64 arm64; do
  [ -s "$work/$arch.tar" ] || mmdebstrap --quiet --architectures=$arch --variant=extract \
    --include=python3-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates bookworm "$work/$arch.tar"
done

if [ ! -x "$work/qemu/usr/bin/qemu-aarch64" ]; then
  awk 'BEGIN { RS = ""; ORS = "\n\n" } !/security/' /etc/apt/sources.list.d/debian.sources |
    sed -E 's/^Suites:.*/Suites: trixie/' >"$work/qemu/trixie.sources"
  apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/qemu/trixie.sources"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$work/qemu/lists" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/qemu" && "${apt[@]}" download qemu-user && dpkg-deb -x qemu-user_*.deb .)
fi
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' ':edgekit-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$work/qemu/usr/bin/qemu-aarch64:F" \
  >/proc/sys/fs/binfmt_misc/register

dockerd --iptables=false --ip6tables=false --bridge=none --data-root "$work/engine/data" \
  --exec-root "$work/engine/exec" -H "unix://$work/engine/docker.sock" \
  --pidfile "$work/engine/pid" >"$work/engine/log" 2>&1 &
pids+=($!)
for _ in $(seq 60); do "${docker[@]}" version >/dev/null 2>&1 && break || sleep 0.5; done

cd "$work"
PYTHONPATH=$repository/tests "$python" -c "
from pathlib import Path
from buildkit import graphs
graphs.save(graphs.classifier(hidden=256), Path('waves.onnx')); graphs.save_data(Path('data.npz'))"
rm -rf bundles image again store
edgekit build ./waves.onnx --data data.npz -t x86-64-v3 -t rpi5 --out bundles
build=(edgekit image build bundles -t x86-64-v3 --base-rootfs amd64.tar -t rpi5 --base-rootfs arm64.tar)
"${build[@]}" --out image
EDGEKIT_CACHE=$work/other "${build[@]}" --wheels "$work/cache/wheels" --out again
diff -r image again
rm -rf other
echo "same inputs, other cache and folder: the same bytes"

for target in x86-64-v3 rpi5; do
  edgekit image save "image@waves-1-$target" --out "$target.tar" --name "waves:$target"
  "${docker[@]}" load --quiet -i "$target.tar"
  "${docker[@]}" run --rm --network none --read-only -e QEMU_CPU=cortex-a76 "waves:$target" >"$target.json"
  "$python" -c "
import json; found = json.load(open('$target.json'))
assert found['passed'] and found['target'] == '$target', found
print('$target', found['machine'], 'engine', found['engine_version'], found['golden']['reason'])"
done

"$python" - "$repository/tests" <<'PY' &
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from packagekit.servers import serving
with serving(Path("store")) as served:
    Path("port").write_text(served.host)
    time.sleep(600)
PY
pids+=($!)
rm -f port
for _ in $(seq 60); do [ -s port ] && break || sleep 0.5; done
edgekit push image@waves-1 "$(cat port)/waves:1" 2>/dev/null
for platform in linux/amd64 linux/arm64; do
  "${docker[@]}" pull --quiet --platform "$platform" "$(cat port)/waves:1"
done
echo "images in engine: all passed"
