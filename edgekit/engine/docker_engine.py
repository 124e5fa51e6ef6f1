"""`ContainerEngine` over a Docker Engine, through the ``docker`` SDK (extra ``docker``).

A connection of its own for every call: threads share nothing, and a restarted engine is simply
asked again. No exception of the SDK leaves this module.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import docker
import requests
from docker import errors
from docker.types import LogConfig, Mount

from edgekit.contracts.errors import BadInputError, UnavailableError
from edgekit.engine import trouble
from edgekit.engine.ports import ContainerSpec, Exit, ImageFacts, OnProgress, Progress

DEFAULT_URL = "unix:///var/run/docker.sock"
CALL_S_MAX = 60.0  # without a byte of answer
PULL_S_MAX = 600.0  # a slow registry says nothing while a large layer is unpacked
LOG_LINES_MAX = 2000
STOP_S = 1  # the engine's patience when it stops itself: our containers hold nothing to save
_TMPFS = {"/tmp": "size=64m,mode=1777"}  # noqa: S108 - inside the container
_LOGS = {"max-size": "1m", "max-file": "1"}


def url_of(environ: Mapping[str, str] = os.environ) -> str:
    """Where the engine is: ``DOCKER_HOST``, else its usual socket."""
    return environ.get(trouble.ENGINE_ENV) or DEFAULT_URL


class _Session(docker.APIClient):  # type: ignore[misc]  # the SDK ships no types
    def send(self, request: Any, **options: Any) -> Any:
        options["timeout"] = self.timeout  # the SDK would let a pull wait for ever
        return super().send(request, **options)


class DockerEngine:
    """See `edgekit.engine.ports.ContainerEngine` for the methods and what they raise."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or url_of()

    @contextlib.contextmanager
    def _client(self, what: str, timeout_s: float | None = CALL_S_MAX) -> Iterator[Any]:
        self._reach()
        try:
            client = _Session(self.url, version="auto", timeout=timeout_s)
            try:
                yield client
            finally:
                client.close()
        except errors.APIError as exc:
            raise trouble.meaning(str(exc.explanation or exc), what) from exc
        except requests.Timeout as exc:
            raise self._stalled(what, timeout_s) from exc
        except (errors.DockerException, requests.RequestException, OSError) as exc:
            if "timed out" in str(exc):  # while an answer streams, it comes as a ConnectionError
                raise self._stalled(what, timeout_s) from exc
            raise trouble.away(self.url, _root(exc)) from exc

    def _reach(self) -> None:
        """Knock first: it names the reason plainly, and the SDK leaks sockets that fail to connect.

        Raises:
            EngineAwayError: nobody listens.
        """
        scheme, _, path = self.url.partition("://")
        if scheme != "unix":
            return
        try:
            with socket.socket(socket.AF_UNIX) as knock:
                knock.settimeout(CALL_S_MAX)
                knock.connect(path)
        except OSError as exc:
            raise trouble.away(self.url, exc.strerror or str(exc)) from exc

    def _stalled(self, what: str, timeout_s: float | None) -> UnavailableError:
        if timeout_s == PULL_S_MAX:  # the registry, or the disk, and the engine tells nobody
            return UnavailableError(f"{what}: nothing moved for {timeout_s:g} s", hint="try again")
        return trouble.away(self.url, f"no answer within {timeout_s} s")

    def architecture(self) -> str:
        """See `ContainerEngine.architecture`."""
        with self._client("engine") as client:
            found: str = client.version()["Arch"]
        return found

    def load(self, archive: Iterator[bytes]) -> None:
        """See `ContainerEngine.load`."""
        with self._client("load", PULL_S_MAX) as client:
            for line in client.load_image(archive):
                _complain(line, "load")

    def pull(self, repository: str, digest: str, said: OnProgress) -> int:
        """See `ContainerEngine.pull`."""
        what = f"pull {repository}@{digest}"
        layers: dict[str, int] = {}
        with self._client(what, PULL_S_MAX) as client:
            for line in client.pull(repository, tag=digest, stream=True, decode=True):
                _complain(line, what)
                progress = _progress(line)
                if progress.text == "Downloading":
                    layers[progress.subject] = max(progress.done, layers.get(progress.subject, 0))
                said(progress)
        return sum(layers.values())

    def push(self, name: str, said: OnProgress) -> str:
        """See `ContainerEngine.push`."""
        what, digest = f"push {name}", ""
        with self._client(what, PULL_S_MAX) as client:
            for line in client.push(name, stream=True, decode=True):
                _complain(line, what)
                digest = (line.get("aux") or {}).get("Digest", digest)
                said(_progress(line))
        if not digest:
            raise BadInputError(f"{what}: the engine names no digest", hint="see the engine's log")
        return digest

    def tag(self, image: str, name: str) -> None:
        """See `ContainerEngine.tag`."""
        repository, _, tag = name.rpartition(":")
        with self._client(f"tag {image}") as client:
            client.tag(image, repository, tag)

    def image(self, name: str) -> ImageFacts | None:
        """See `ContainerEngine.image`."""
        with self._client(f"image {name}") as client:
            return _image(client, name)

    def remove_name(self, name: str) -> None:
        """See `ContainerEngine.remove_name`."""
        with self._client(f"image {name}") as client:
            found = _image(client, name)
            if found is None:
                return
            if found.tags == (name,):
                client.remove_image(found.id, force=True)  # with the digests it was pulled by
            else:
                client.remove_image(name, noprune=False)

    def start(self, spec: ContainerSpec) -> str:
        """See `ContainerEngine.start`."""
        what = f"container of {spec.image}"
        with self._client(what) as client:
            limits = {"mem_limit": spec.memory_bytes_max} if spec.memory_bytes_max else {}
            host = client.create_host_config(
                mounts=[
                    Mount(inside, here, type="bind", read_only=False)
                    for here, inside in spec.mounts.items()
                ],
                network_mode="none",
                read_only=True,
                tmpfs=_TMPFS,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                log_config=LogConfig(type="json-file", config=_LOGS),
                **limits,
            )
            made: str = client.create_container(
                spec.image,
                list(spec.command),
                name=spec.name,
                labels=dict(spec.labels),
                user=spec.user,
                environment=dict(spec.environment),
                healthcheck={"test": ["NONE"]},  # the image's is for one that serves by itself
                host_config=host,
                network_disabled=True,
                stop_timeout=STOP_S,
            )["Id"]
            try:
                client.start(made)
            except BaseException:
                with contextlib.suppress(errors.DockerException, requests.RequestException):
                    client.remove_container(made, force=True)
                raise
        return made

    def wait(self, container: str) -> Exit:
        """See `ContainerEngine.wait`."""
        what = f"container {container[:12]}"
        with self._client(what, None) as client:
            code = client.wait(container, timeout=None)["StatusCode"]
        with self._client(what) as client:
            state = client.inspect_container(container)["State"]
        return Exit(int(code), bool(state.get("OOMKilled")))

    def logs(self, container: str) -> tuple[bytes, bytes]:
        """See `ContainerEngine.logs`."""
        with self._client(f"container {container[:12]}") as client:
            found = [
                client.logs(container, stdout=out, stderr=not out, tail=LOG_LINES_MAX)
                for out in (True, False)
            ]
        return found[0], found[1]

    def kill(self, container: str) -> None:
        """See `ContainerEngine.kill`."""
        with self._client(f"container {container[:12]}") as client, _absent_is_fine():
            client.kill(container)

    def remove(self, container: str) -> None:
        """See `ContainerEngine.remove`."""
        with self._client(f"container {container[:12]}") as client, _absent_is_fine():
            client.remove_container(container, force=True)

    def containers(self, label: str, value: str) -> list[str]:
        """See `ContainerEngine.containers`."""
        with self._client("containers") as client:
            found = client.containers(all=True, filters={"label": f"{label}={value}"})
        return [entry["Id"] for entry in found]


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    """404: no such container; 409: not running, or being removed already."""
    try:
        yield
    except errors.APIError as exc:
        if exc.status_code not in {404, 409}:
            raise


def _image(client: Any, name: str) -> ImageFacts | None:
    try:
        found = client.inspect_image(name)
    except errors.APIError as exc:
        if exc.status_code == 404:
            return None
        raise
    return ImageFacts(
        id=found["Id"],
        architecture=found["Architecture"],
        labels=(found.get("Config") or {}).get("Labels") or {},
        tags=tuple(found.get("RepoTags") or ()),
    )


def _progress(line: Mapping[str, Any]) -> Progress:
    detail = line.get("progressDetail") or {}
    return Progress(
        subject=str(line.get("id", "")),
        text=str(line.get("status", "")),
        done=int(detail.get("current") or 0),
        total=int(detail.get("total") or 0),
    )


def _complain(line: Mapping[str, Any], what: str) -> None:
    """Long calls answer 200 and say later what went wrong."""
    told = line.get("error") or line.get("message")
    if told:
        raise trouble.meaning(str(told), what)


def _root(exc: BaseException) -> str:
    """The innermost reason: the SDK wraps it several times."""
    seen: set[int] = set()
    while (inner := exc.__cause__ or exc.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        exc = inner
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
