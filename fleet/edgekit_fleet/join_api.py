"""Joining: tokens for operators, the install script and its answer for devices.

A token says that an operator wants *one* device to be told what this fleet runs, for a while. It
guards nothing else yet: broker and registry ask for no login, so whoever reaches them needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from edgekit.contracts import codec, digest, oci, runtime
from edgekit.contracts.device import installer
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.ids import check_name
from edgekit_fleet.artifacts import ArtifactStore
from edgekit_fleet.config import HostPort, is_loopback
from edgekit_fleet.errors import RefusedError
from edgekit_fleet.store import tokens
from edgekit_fleet.store.engine import Database
from edgekit_fleet.views import TokenView

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
TTL_S = 3600.0


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks for."""

    device: str | None = None
    note: str = ""
    ttl_s: float = TTL_S
    url: str | None = None  # of this manager as the device reaches it; None: as the operator did


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says about itself; ``python`` and ``glibc`` read as ``3.11``, ``2.36``."""

    device: str
    arch: str
    python: str
    glibc: str


class RuntimeRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where the runtime lies."""

    repository: str
    digest: str


class JoinAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device that joins is told; travels in an envelope, whose signature comes later."""

    schema: int = 1
    device: str
    tenant: str
    broker: dict[str, str | int]
    artifacts_url: str
    runtime: RuntimeRef


@dataclass(frozen=True)
class Joining:
    """The rules of joining over the manager's parts."""

    database: Database
    store: ArtifactStore
    tenant: str
    broker: HostPort  # as devices reach it; loopback: where they reached us
    artifacts_url: str | None  # None: where they reached us
    clock: Callable[[], float]

    def create(self, wanted: TokenRequest, base: str) -> TokenView:
        """Make a token. Raises `BadInputError`."""
        if wanted.device is not None:
            check_name(wanted.device, "device")
        base = _plain((wanted.url or base).rstrip("/"))
        with self.database.write() as connection:
            secret, row = tokens.create(
                connection,
                tenant=self.tenant,
                device=wanted.device,
                note=wanted.note,
                ttl_s=wanted.ttl_s,
                now=self.clock(),
            )
        log.info("join token %d created, for %s", row.id, wanted.device or "any device")
        sha256 = digest.of_bytes(installer.script(base, installer.program()))
        name = f" --device {wanted.device}" if wanted.device else ""
        command = (
            f"curl -fsSL {base}/install.sh -o /tmp/install.sh && "
            f'echo "{digest.hex_of(sha256)}  /tmp/install.sh" | sha256sum -c && '
            f"sudo sh /tmp/install.sh --token {secret}{name}"
        )
        return _view(row, secret, command)

    def revoke(self, key: int) -> TokenView:
        """Make a token useless. Raises `NotFoundError`."""
        with self.database.write() as connection:
            row = tokens.revoke(connection, self.tenant, key, self.clock())
        log.info("join token %d revoked", key)
        return _view(row)

    def listed(self) -> list[TokenView]:
        """Every token, newest first."""
        with self.database.read() as connection:
            return [_view(row) for row in tokens.listed(connection, self.tenant)]

    def join(self, wanted: JoinRequest, secret: str, base: str) -> bytes:
        """Spend a token; the envelope for the device.

        Raises:
            RefusedError: the token is not good for it.
            BadInputError: a bad name, or there is no runtime for its platform (the token is kept).
        """
        check_name(wanted.device, "device")
        with self.database.write() as connection:
            tokens.spend(connection, secret, self.tenant, wanted.device, self.clock())
            found = self._runtime(wanted)
        log.info("device %s joins with runtime %s", wanted.device, digest.short(found))
        host = self.broker.host
        if is_loopback(host):
            host = HostPort(*_host_of(base)).host
        return codec.seal(
            JoinAnswer(
                device=wanted.device,
                tenant=self.tenant,
                broker={"host": host, "port": self.broker.port},
                artifacts_url=self.artifacts_url or base,
                runtime=RuntimeRef(repository=runtime.REPOSITORY, digest=found),
            )
        )

    def _runtime(self, wanted: JoinRequest) -> str:
        """Digest of the runtime for a platform."""
        what = f"{wanted.arch[:20]}, Python {wanted.python[:20]}, glibc {wanted.glibc[:20]}"
        hint = (
            f"edgekit runtime build --arch {wanted.arch[:20]} --python {wanted.python[:20]} "
            f"--glibc {wanted.glibc[:20]}, then edgekit runtime publish"
        )
        tag = runtime.tag_of(wanted.arch, wanted.python)
        found = self.store.resolve(runtime.REPOSITORY, tag)
        size = self.store.size(found[0]) if found else None
        if found is None or size is None:
            raise BadInputError(f"no runtime is published for {what}", hint=hint)
        raw = b"".join(self.store.stream(found[0], 0, size - 1))
        manifest = codec.decode(oci.Manifest, raw, what=f"runtime {tag}")
        needs = manifest.annotations.get(runtime.GLIBC, "")
        if _version(needs) > _version(wanted.glibc):
            raise BadInputError(f"the runtime for {what} needs glibc {needs}", hint=hint)
        return found[0]


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError as exc:
        raise BadInputError(f"glibc {text[:20]!r} is no version") from exc


def _view(row: tokens.Found, secret: str | None = None, command: str | None = None) -> TokenView:
    names = ("id", "device", "note", "created", "expires", "revoked", "used", "used_by")
    found = {name: getattr(row, name) for name in names}
    return TokenView(token=secret, command=command, **found)


def _base(request: Request) -> str:
    """Where the client reached us, fit for a shell script.

    Raises:
        BadInputError: its Host header is no host.
    """
    return _plain(str(request.base_url).rstrip("/"))


def _plain(base: str) -> str:
    try:
        installer.script(base, b"")
    except ValueError as exc:
        raise BadInputError(f"address of this manager: {exc}") from exc
    return base


def _host_of(base: str) -> tuple[str, int]:
    host = base.partition("://")[2].partition("/")[0]
    if host.startswith("["):
        return host[1:].partition("]")[0], 0
    return host.partition(":")[0], 0


def router(joining: Joining) -> APIRouter:
    """Routes for operators under ``/api/v1`` and for devices."""
    routes = APIRouter(tags=["joining"])
    _operators(routes, joining)
    _devices(routes, joining)
    return routes


async def _body(request: Request) -> bytes:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise BadInputError(f"request body: more than {BODY_BYTES_MAX} bytes")
    return bytes(raw)


def _json(value: object, status: int = 200) -> Response:
    return Response(codec.encode(value), status_code=status, media_type="application/json")


def _operators(routes: APIRouter, joining: Joining) -> None:

    @routes.post("/api/v1/tokens", summary="Make a join token; its secret is told once")
    async def create(request: Request) -> Response:
        wanted = codec.decode(TokenRequest, await _body(request) or b"{}", what="token request")
        made = await run_in_threadpool(joining.create, wanted, _base(request))
        return _json(made, 201)

    @routes.get("/api/v1/tokens", summary="List join tokens, without their secrets")
    def listed() -> Response:
        return _json(joining.listed())

    @routes.delete("/api/v1/tokens/{key}", summary="Revoke a join token")
    def revoke(key: int) -> Response:
        return _json(joining.revoke(key))


def _devices(routes: APIRouter, joining: Joining) -> None:

    @routes.post("/api/v1/join", summary="Spend a join token: what to run, and where from")
    async def join(
        request: Request, authorization: Annotated[str | None, Header()] = None
    ) -> Response:
        wanted = codec.decode(JoinRequest, await _body(request), what="join request")
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise RefusedError("no join token was sent", hint="install.sh --token TOKEN")
        sealed = await run_in_threadpool(joining.join, wanted, secret.strip(), _base(request))
        return Response(sealed, media_type="application/json")

    @routes.get("/install.sh", summary="Install script for devices")
    def script(request: Request) -> Response:
        text = installer.script(_base(request), installer.program())
        return Response(
            text, media_type="text/x-shellscript", headers={"Cache-Control": "no-store"}
        )

    @routes.get(f"/install/{installer.PROGRAM}", summary="The program the install script runs")
    def program() -> Response:
        return Response(installer.program(), media_type="application/zip")
