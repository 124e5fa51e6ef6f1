"""What an engine's error messages mean, and what mends it. Pure.

The engine's API has a status and a sentence, no codes; the sentences are those of Docker Engine
20.10 and newer (moby: distribution/errors.go, image/tarexport, libcontainer).
"""

from __future__ import annotations

import re

from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError, UnavailableError
from edgekit.engine.ports import EngineAwayError

ENGINE_ENV = "DOCKER_HOST"
_TEXT_MAX = 300
_BINFMT_HINT = (
    "register an emulator with the kernel: apt-get install qemu-user-static binfmt-support "
    "(Debian 13 or newer; older qemu cannot run ONNX Runtime)"
)
_REFUSED = (
    "unauthorized|authentication required|access denied|requested access|denied:|no basic auth"
)
_ALTERED = (
    "filesystem layer verification failed|digest .*mismatch|unexpected EOF|archive/tar"
    "|gzip: invalid|invalid tar header|wrong diff id|invalid diffID"
    "|failed to verify|failed to register layer"
)
# First match wins: pattern, error, what it means, hint.
_RULES: tuple[tuple[str, type[EdgekitError], str, str], ...] = (
    ("no space left on device", ResourceError, "no space left", "docker image prune, or more disk"),
    ("exec format error", BadInputError, "this machine cannot run its architecture", _BINFMT_HINT),
    (
        "no matching manifest for|does not match the specified platform|image operating system",
        BadInputError,
        "has no image for this engine's platform",
        "build one: edgekit image build -t TARGET of that architecture",
    ),
    (
        "server gave HTTP response to HTTPS client",
        BadInputError,
        "the registry speaks no TLS",
        "name it under insecure-registries in the engine's daemon.json; loopback needs no entry",
    ),
    (_REFUSED, BadInputError, "the registry does not allow it", "docker login HOST"),
    ("toomanyrequests|429", UnavailableError, "the registry wants us to wait", "try again later"),
    (
        "manifest unknown|name unknown|repository .*not found|manifest for .* not found",
        BadInputError,
        "the registry has no such image",
        "check host, repository and digest; was it pushed?",
    ),
    (
        r"unexpected HTTP status: 5\d\d|50[0-4] |bad gateway|service unavailable",
        UnavailableError,
        "the registry is failing",
        "see the registry's log; try again",
    ),
    (
        "deadline exceeded|i/o timeout|Client.Timeout|TLS handshake timeout",
        UnavailableError,
        "the registry did not answer in time",
        "is it overloaded, or is a proxy in between? try again",
    ),
    (
        "connection refused|no such host|network is unreachable|connection reset|no route to host",
        UnavailableError,
        "the registry is not reachable",
        "check host and port",
    ),
    (
        _ALTERED,
        BadInputError,
        "a layer is altered or cut off",
        "build or push it again",
    ),
)


def meaning(text: str, what: str) -> EdgekitError:
    """The error that the engine's ``text`` stands for, when it was asked for ``what``."""
    told = " ".join(text.split())[:_TEXT_MAX]
    for pattern, kind, means, hint in _RULES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{what}: {means} (engine: {told})", hint=hint)
    return BadInputError(f"{what}: the engine refused: {told}", hint="see the engine's log")


def away(url: str, reason: str) -> EngineAwayError:
    """The engine does not answer at ``url``."""
    told = " ".join(reason.split())[:_TEXT_MAX]
    if "Permission" in reason:
        hint = "may this user use the engine? usermod -aG docker USER, or run as root"
    else:
        hint = f"is it running? start it, or name another with {ENGINE_ENV}"
    return EngineAwayError(f"no container engine answers at {url}: {told}", hint=hint)
