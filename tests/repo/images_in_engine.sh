#!/usr/bin/env bash
# Images and container slots in a real Docker Engine: writes amd64 and arm64 images from fresh roots,
# then runs tests/engine (self-test of both, arm64 under emulation by qemu 10 from trixie; 7.2 is too
# old for onnxruntime; rollouts, kills, registries that fail), then writes the images again, minutes
# later in another folder: the same bytes. Needs root and apt.
# Usage: images_in_engine.sh FOLDER, which keeps roots, wheels and layers for the next time.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:?folder}"
work=$(realpath "$1")
python=${PYTHON:-$repository/.venv/bin/python}
edgekit() { "$python" -c 'from edgekit.cli.main import main; main()' "$@"; }
export EDGEKIT_REGISTRY=$work/registry EDGEKIT_CACHE=$work/cache
binfmt=/proc/sys/fs/binfmt_misc
finish() { [ ! -e $binfmt/edgekit-aarch64 ] || echo -1 >$binfmt/edgekit-aarch64; }
trap finish EXIT

missing=()
for package in mmdebstrap docker.io skopeo; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if ((${#missing[@]})); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
fi
[ -s "$work/amd64.tar" ] || mmdebstrap --quiet --architectures=amd64 --variant=extract \
  --include=python3-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates bookworm "$work/amd64.tar"
bash "$repository/tests/repo/arm_parts.sh" "$work"

mountpoint -q $binfmt || mount -t binfmt_misc binfmt_misc $binfmt
finish # left by a run that was killed
printf '%s' ':edgekit-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$work/qemu/usr/bin/qemu-aarch64:F" \
  >$binfmt/register

cd "$work"
PYTHONPATH=$repository/tests "$python" -c "
from pathlib import Path
from buildkit import graphs
graphs.save(graphs.classifier(hidden=256), Path('waves.onnx')); graphs.save_data(Path('data.npz'))"
rm -rf bundles image other
edgekit build ./waves.onnx --data data.npz -t x86-64-v3 -t rpi5 --out bundles
build=(edgekit image build "$work/bundles" -t x86-64-v3 --base-rootfs "$work/amd64.tar"
  -t rpi5 --base-rootfs "$work/arm64.tar")
"${build[@]}" --out image

(cd "$repository" && EDGEKIT_ENGINE_WORK=$work "$python" -m pytest -q tests/engine)

mkdir other && cd other
EDGEKIT_CACHE=$work/other/cache "${build[@]}" --wheels "$work/cache/wheels" --out again
diff -r "$work/image" again
cd "$work" && rm -rf other
echo "same inputs, other cache and folder, minutes later: the same bytes"
