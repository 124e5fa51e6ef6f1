#!/usr/bin/env bash
# What ARM is emulated with: qemu 10 from Debian 13 (Debian 12's 7.2 crashes or hangs while onnxruntime is
# imported) and a root file system. Needs root and apt; what is there already is kept.
# Usage: arm_parts.sh FOLDER, which gets qemu/usr/bin/qemu-* and arm64.tar.
set -euo pipefail
mkdir -p "${1:?folder}"
work=$(realpath "$1")

if [ ! -s "$work/arm64.tar" ]; then
  if ! dpkg -s mmdebstrap >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
  fi
  mmdebstrap --quiet --architectures=arm64 --variant=extract \
    --include=python3-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates bookworm "$work/arm64.part.tar"
  mv "$work/arm64.part.tar" "$work/arm64.tar"
fi

if [ ! -x "$work/qemu/usr/bin/qemu-aarch64" ]; then
  mkdir -p "$work/qemu/lists/partial"
  awk 'BEGIN { RS = ""; ORS = "\n\n" } !/security/' /etc/apt/sources.list.d/debian.sources |
    sed -E 's/^Suites:.*/Suites: trixie/' >"$work/qemu/trixie.sources"
  apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/qemu/trixie.sources"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$work/qemu/lists" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/qemu" && "${apt[@]}" download qemu-user && dpkg-deb -x qemu-user_*.deb .)
fi
