"""Names of artifacts in registries and what a registry says about logging in. Pure.

Grammar: distribution-spec v1.1, *Pulling manifests*; challenges: RFC 9110 §11.6.1 and Docker's
token authentication.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import UsageError

_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_HINT = "for example 127.0.0.1:8470/meter:1"


@dataclass(frozen=True)
class Reference:
    """``[scheme://]host[:port]/repository[:tag][@digest]``."""

    scheme: str
    host: str  # with the port
    repository: str
    tag: str | None
    digest: str | None

    @property
    def base(self) -> str:
        """URL of the registry."""
        return f"{self.scheme}://{self.host}"

    @property
    def name(self) -> str:
        """Digest or tag; ``latest`` when neither was given."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.digest else ':'}{self.name}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without a port) is this machine."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def parse(text: str, *, plain_http: bool = False) -> Reference:
    """Parse a reference. Plain HTTP is used for this machine, or when asked for; TLS otherwise.

    Raises:
        UsageError: malformed; says what is.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if scheme not in {"", "http", "https"}:
        raise UsageError(f"{text!r}: {scheme} is no scheme of a registry", hint=_HINT)
    host, slash, path = rest.partition("/")
    is_host = host == "localhost" or (_HOST.fullmatch(host) and ("." in host or ":" in host))
    if not slash or not is_host:
        raise UsageError(f"{text!r}: names no registry host", hint=_HINT)
    path, at, digest = path.partition("@")
    if at:
        digests.parse(digest)
    repository, colon, tag = path.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise UsageError(f"{text!r}: {repository!r} is no repository name", hint=_HINT)
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(f"{text!r}: {tag!r} is no tag", hint=_HINT)
    default = "http" if plain_http or is_loopback(host) else "https"
    return Reference(scheme or default, host, repository, tag or None, digest or None)


@dataclass(frozen=True)
class Challenge:
    """What ``WWW-Authenticate`` asks for."""

    scheme: str  # bearer | basic | whatever it says
    parameters: dict[str, str]


def parse_challenge(header: str) -> Challenge:
    """The first challenge of a ``WWW-Authenticate`` header."""
    scheme, _, rest = header.strip().partition(" ")
    return Challenge(scheme.lower(), dict(_PARAMETER.findall(rest)))
