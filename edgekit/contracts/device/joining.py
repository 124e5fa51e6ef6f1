"""Installs the agent on this device: asks a manager what to run, or reads it from a folder.

Run through ``install.sh``. Steps, each harmless to repeat: learn the settings, lay out the runtime,
write ``etc/edgekit/agent.toml`` unless it is there, point ``runtimes/current`` at the runtime, and
write the launcher and the systemd unit. A device that was installed before keeps its name and
settings and gets the runtime. Everything lies under ``--root``; only with ``/`` and as root is it
started.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from edgekit.contracts.device import bootstrap
from edgekit.contracts.device.bootstrap import BootstrapError

ARCHES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
SITE_FILE = "site.json"  # of an export: settings and runtimes
UNIT = "edgekit-agent.service"
STALL_S_MAX = 30.0
TRIES_MAX = 5  # of one blob; each goes on where the last one ended
CHUNK_BYTES = 256 * 1024
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_OK, _USAGE, _BAD, _UNAVAILABLE, _RESOURCE = 0, 2, 3, 5, 6


class JoinError(Exception):
    """Expected failure: message, hint, exit code."""

    def __init__(self, message: str, hint: str, code: int = _BAD) -> None:
        super().__init__(message)
        self.hint, self.code = hint, code


def facts() -> dict[str, str]:
    """Platform of this device, as runtimes name it.

    Raises:
        JoinError: there is no runtime for such a machine.
    """
    machine = platform.machine().lower()
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        glibc = ""
    if machine not in ARCHES or not glibc.startswith("glibc "):
        raise JoinError(
            f"this is {machine} with {glibc or 'no glibc'}: there is no runtime for it",
            "runtimes are made for amd64 and arm64 with glibc (Debian, Ubuntu, JetPack)",
        )
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return {"arch": ARCHES[machine], "python": python, "glibc": glibc.split()[1]}


# --- where from ----------------------------------------------------------------------------------


def _request(url: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - checked by main
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=STALL_S_MAX)  # noqa: S310
    except urllib.error.HTTPError as exc:
        raise _refusal(url, exc) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise JoinError(
            f"{url}: {exc}", "is the manager reachable from here?", _UNAVAILABLE
        ) from exc
    return answer


def _refusal(url: str, error: urllib.error.HTTPError) -> JoinError:
    try:
        told = json.loads(error.read(65536))
        message, hint = str(told["error"]), str(told.get("hint") or "")
    except (ValueError, KeyError, TypeError, OSError):
        message, hint = f"{url}: HTTP {error.code}", ""
    code = _UNAVAILABLE if error.code >= 500 else _BAD
    return JoinError(message, hint or "see the manager's log", code)


def ask(manager: str, token: str, device: str) -> dict[str, Any]:
    """Spend the token: what this device is to run, and where from.

    Raises:
        JoinError: the manager refused, or is not reachable.
    """
    body = json.dumps({"device": device, **facts()}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with _request(f"{manager}/api/v1/join", body, headers) as answer:
        raw = answer.read(bootstrap.DOCUMENT_BYTES_MAX)
    try:
        # An envelope, as desired state is: its signature will be checked here.
        payload = json.loads(raw)["payload"]
        return {**payload, "digest": payload["runtime"]["digest"]}
    except (ValueError, KeyError, TypeError) as exc:
        raise JoinError(
            f"{manager}: an answer that is none: {exc!r}", "upgrade the manager"
        ) from exc


def remote(artifacts: str, repository: str, kind: str) -> bootstrap.Read:
    """Reads blobs or manifests from a registry; a broken transfer goes on where it ended."""

    def read(digest: str) -> Iterator[bytes]:
        url, have, tries = f"{artifacts}/v2/{repository}/{kind}/{digest}", 0, 0
        while True:
            try:
                for chunk in _rest(url, have):
                    have += len(chunk)
                    yield chunk
            except (OSError, http.client.HTTPException, JoinError) as exc:  # noqa: PERF203 - one a try
                tries += 1
                final = isinstance(exc, JoinError) and exc.code != _UNAVAILABLE
                if final:
                    raise
                if tries >= TRIES_MAX:
                    raise JoinError(f"{url}: {exc}", "try again later", _UNAVAILABLE) from exc
                time.sleep(tries)
            else:
                return

    return read


def _rest(url: str, have: int) -> Iterator[bytes]:
    """What follows the first ``have`` bytes."""
    with _request(url, None, {"Range": f"bytes={have}-"} if have else {}) as answer:
        skip = have if answer.status != http.HTTPStatus.PARTIAL_CONTENT else 0
        while chunk := answer.read(CHUNK_BYTES):
            if kept := chunk[skip:]:
                yield kept
            skip = max(0, skip - len(chunk))
        if answer.length not in (None, 0):
            raise JoinError(f"{url}: broke off", "try again", _UNAVAILABLE)


def local(folder: Path) -> bootstrap.Read:
    """Reads blobs and manifests of an export."""

    def read(digest: str) -> Iterator[bytes]:
        path = folder / "layout" / "blobs" / "sha256" / bootstrap.hex_of(digest)
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError as exc:
            raise JoinError(f"{path} is missing", "export the folder again") from exc

    return read


def exported(folder: Path) -> dict[str, Any]:
    """What an export says about this platform.

    Raises:
        JoinError: it has no runtime for it.
    """
    site = bootstrap.document(folder / SITE_FILE, SITE_FILE)
    here = facts()
    key = f"{here['arch']}-cp{here['python'].replace('.', '')}"
    found = site.get("runtimes", {}).get(key)
    if found is None or _version(found["glibc"]) > _version(here["glibc"]):
        listed = ", ".join(sorted(site.get("runtimes", {}))) or "none"
        raise JoinError(
            f"{folder}: no runtime for {key} with glibc {here['glibc']} (it has {listed})",
            "build one with `edgekit runtime build` and export again",
        )
    return {**site, "digest": found["digest"]}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


# --- what is written -----------------------------------------------------------------------------


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.chmod(mode)
    partial.replace(path)
    bootstrap.sync_folder(path.parent)


def settings(told: dict[str, Any], device: str, labels: list[str], root: str) -> str:
    """The agent's configuration. JSON strings are TOML strings."""
    quote: Callable[[str], str] = json.dumps
    lines = [
        "[device]",
        f"id = {quote(device)}",
        f"tenant = {quote(str(told['tenant']))}",
        f"state_dir = {quote(root + '/var/lib/edgekit')}",
    ]
    if labels:
        lines.append("[device.labels]")
        pairs = (label.partition("=") for label in labels)
        lines += [f"{quote(key)} = {quote(value)}" for key, _, value in pairs]
    broker = told["broker"]
    lines += ["[broker]", f"host = {quote(str(broker['host']))}", f"port = {int(broker['port'])}"]
    return "\n".join(lines) + "\n"


def point(runtimes: Path, digest: str) -> None:
    """Let ``current`` be this runtime, by one rename."""
    partial = runtimes / ".current.new"
    partial.unlink(missing_ok=True)
    partial.symlink_to(bootstrap.hex_of(digest))
    partial.replace(runtimes / "current")
    bootstrap.sync_folder(runtimes)


def place(told: dict[str, Any], read: tuple[bootstrap.Read, bootstrap.Read], options: Any) -> None:
    """Every step that writes; see the module."""
    root = "" if options.root == Path("/") else str(options.root.absolute())
    runtimes = Path(root + "/var/lib/edgekit/runtimes")
    folder = bootstrap.install(*read, told["digest"], runtimes, lambda text: _say(f"  {text}"))
    _say(f"runtime {folder}")
    config = Path(root + "/etc/edgekit/agent.toml")
    if config.exists():
        _say(f"kept {config}")
    else:
        write(config, settings(told, options.device, options.label, root))
        _say(f"wrote {config}")
    point(runtimes, told["digest"])
    launcher = f'#!/bin/sh\nexec {sys.executable} {runtimes}/current/agent.py "$@"\n'
    write(Path(root + "/usr/local/bin/edgekit-agent"), launcher, 0o755)
    unit = resources.files("edgekit.contracts.device").joinpath(UNIT).read_text()
    unit = unit.replace("@PYTHON@", sys.executable).replace("@ROOT@", root)
    write(Path(f"{root}/etc/systemd/system/{UNIT}"), unit)
    if not root and os.geteuid() == 0 and not options.no_start and shutil.which("systemctl"):
        _start()
    else:
        _say(f"start it: {root}/usr/local/bin/edgekit-agent run --config {config}")


def _start() -> None:
    """Make the user the agent runs as, hand it its state, enable and start the unit."""
    commands = [
        [
            "chown",
            "edgekit:",
            "/var/lib/edgekit",
        ],  # runtimes stay root's: code is not its to change
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", UNIT],
        ["systemctl", "restart", UNIT],
    ]
    if subprocess.run(["id", "edgekit"], capture_output=True, check=False).returncode != 0:
        commands.insert(0, ["useradd", "--system", "--no-create-home", "edgekit"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise JoinError(
                f"{' '.join(command)}: {last}", f"systemctl status {UNIT}", _UNAVAILABLE
            )
    _say(f"started {UNIT}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _options(words: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="install.sh", description="Install the edgekit agent.")
    parser.add_argument("--manager", default="", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--token", default=os.environ.get("EDGEKIT_JOIN_TOKEN", ""),
                        help="join token of the manager [env EDGEKIT_JOIN_TOKEN]")  # fmt: skip
    parser.add_argument("--device", default=socket.gethostname().partition(".")[0].lower(),
                        help="name of this device [its host name]")  # fmt: skip
    parser.add_argument("--label", action="append", default=[], help="KEY=VALUE; repeatable")
    parser.add_argument("--runtime", default="", help="the only runtime to accept, sha256:...")
    parser.add_argument("--root", type=Path, default=Path("/"), help="install below this folder")
    parser.add_argument("--no-start", action="store_true", help="install, do not start")
    return parser.parse_args(words)


def _install(options: Any) -> None:
    if not _NAME.fullmatch(options.device) or ".." in options.device:
        raise JoinError(
            f"device name {options.device!r} cannot be used", "--device NAME: a-z 0-9 . _ -", _USAGE
        )
    bad = next((label for label in options.label if not re.fullmatch(r"[^=]+=.+", label)), None)
    if bad is not None:
        raise JoinError(
            f"--label {bad!r} is not KEY=VALUE", "for example --label site=north", _USAGE
        )
    if options.folder is not None:
        told = exported(options.folder)
        read = (local(options.folder), local(options.folder))
    else:
        if not options.manager.startswith(("http://", "https://")) or not options.token:
            raise JoinError("--token is missing", "`edgekit fleet token create` makes one", _USAGE)
        told = ask(options.manager, options.token, options.device)
        repository = str(told["runtime"]["repository"])
        base = str(told["artifacts_url"])
        read = (remote(base, repository, "manifests"), remote(base, repository, "blobs"))
    if options.runtime and told["digest"] != options.runtime:
        raise JoinError(
            f"the runtime offered is {told['digest']}, not the {options.runtime} asked for",
            "was another one published since? ask who gave you the command",
        )
    place(told, read, options)


def main(words: list[str] | None = None) -> int:
    """Entry point of the program; returns the exit code."""
    try:
        _install(_options(words))
    except JoinError as exc:
        _say(f"error: {exc}\nhint: {exc.hint}")
        return exc.code
    except BootstrapError as exc:
        _say(f"error: {exc}\nhint: nothing was changed; run the same command again")
        return _BAD
    except PermissionError as exc:
        _say(f"error: {exc}\nhint: run it as root, or install below --root FOLDER")
        return _RESOURCE
    except OSError as exc:
        _say(f"error: {exc}\nhint: is there space left?")
        return _RESOURCE
    return _OK
