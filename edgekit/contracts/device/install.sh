#!/bin/sh
# Installs the edgekit agent on this device. Served by the fleet manager, or part of an export.
#
#   curl -fsSL MANAGER/install.sh | sudo sh -s -- --token TOKEN [--device NAME] [--label KEY=VALUE]
#   sudo sh /media/stick/install.sh
#
# It fetches one program and compares it with the SHA-256 below before it runs it; the program does
# the same with everything it fetches. Nothing is signed yet: without TLS, somebody on the way could
# replace this script. `edgekit fleet token create` prints a line that pins its SHA-256 as well.
set -eu

MANAGER='@MANAGER@' # empty in an export
PROGRAM='edgekit-install.pyz'
SHA256='@SHA256@'

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit "${3:-3}"
}

PYTHON=${EDGEKIT_PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "no Python 3.10 or newer found" "apt-get install python3, or set EDGEKIT_PYTHON" 5

if [ -n "$MANAGER" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  curl -fsSL --retry 3 -o "$work/$PROGRAM" "$MANAGER/install/$PROGRAM" ||
    fail "cannot fetch $MANAGER/install/$PROGRAM" "is the manager reachable from here?" 5
  set -- --manager "$MANAGER" "$@"
else
  work=$(cd "$(dirname "$0")" && pwd)
  set -- --from "$work" "$@"
fi

echo "$SHA256  $work/$PROGRAM" | sha256sum -c --status - ||
  fail "$PROGRAM is not the program this script was made for" "fetch install.sh again"

status=0
"$PYTHON" -I "$work/$PROGRAM" "$@" || status=$?
exit "$status"
