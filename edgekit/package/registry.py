"""HTTP client of any OCI registry: requests, logging in, errors with a way to mend them.

Credentials: ``EDGEKIT_REGISTRY_USER`` and ``EDGEKIT_REGISTRY_PASSWORD``, else what ``docker login``
stored in its config file. They go to the registry they are for, or to the token service it names,
and never over plain HTTP to another machine.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec
from typing_extensions import Self

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, EdgekitError, ResourceError, UnavailableError
from edgekit.package.reference import Challenge, Reference, is_loopback, parse_challenge

USER_ENV, PASSWORD_ENV = "EDGEKIT_REGISTRY_USER", "EDGEKIT_REGISTRY_PASSWORD"
TIMEOUT_S = 30.0  # without a byte; a stalled registry is told apart from a slow one
_CONNECT_S = 5.0
_LOGIN_HINT = f"docker login HOST, or set {USER_ENV} and {PASSWORD_ENV}"


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: tuple[_Error, ...] = ()


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class _Login(msgspec.Struct):
    auth: str = ""


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Login] = {}


def credentials(host: str, environ: Mapping[str, str]) -> str | None:
    """``user:password`` in base64 for ``host``, from the environment or docker's config file.

    Raises:
        BadInputError: the config file is malformed.
    """
    user, password = environ.get(USER_ENV), environ.get(PASSWORD_ENV)
    if user is not None and password is not None:
        return base64.b64encode(f"{user}:{password}".encode()).decode()
    home = environ.get("DOCKER_CONFIG") or str(Path(environ.get("HOME", "/")) / ".docker")
    path = Path(home) / "config.json"
    if not path.is_file():
        return None
    auths = codec.read(_DockerConfig, path).auths
    found = auths.get(host) or auths.get(f"https://{host}") or auths.get(f"http://{host}")
    return (found.auth or None) if found else None


def refusal(response: httpx.Response, what: str) -> EdgekitError:
    """The error that a status of 400 and above stands for."""
    try:
        errors = msgspec.json.decode(response.content, type=_Errors).errors
    except (msgspec.MsgspecError, httpx.ResponseNotRead):
        errors = ()
    told = "; ".join(f"{e.code} {e.message}".strip() for e in errors[:3])[:500]
    message = f"{what}: HTTP {response.status_code}" + (f": {told}" if told else "")
    match response.status_code:
        case 401 | 403:
            return BadInputError(f"{message} (not allowed)", hint=_LOGIN_HINT)
        case 404:
            return BadInputError(message, hint="check host, repository and tag")
        case 507 | 413:
            return ResourceError(message, hint="the registry has no space for this")
        case 429:
            wait = response.headers.get("retry-after", "")
            after = float(wait) if wait.isdigit() else None
            return UnavailableError(message, hint="try again later", retry_after_s=after)
        case status if status >= 500:
            return UnavailableError(message, hint="the registry is failing: see its log")
    return BadInputError(message)


class Registry:
    """A connection to one registry for one repository; use as a context manager."""

    def __init__(
        self,
        reference: Reference,
        *,
        environ: Mapping[str, str] = os.environ,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.reference = reference
        self._basic = credentials(reference.host, environ)
        self._authorization: str | None = None
        timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
        self._http = httpx.Client(timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def url(self, path: str) -> str:
        """URL of ``path`` below the repository."""
        return f"{self.reference.base}/v2/{self.reference.repository}/{path}"

    def location(self, response: httpx.Response) -> str:
        """Where the registry says to go on.

        Raises:
            BadInputError: it says nothing.
        """
        told: str = response.headers.get("location", "")
        if not told:
            raise BadInputError(f"{self.reference.host}: answered without a Location")
        return urljoin(str(response.request.url), told)

    def _headers(self, url: str, given: Mapping[str, str]) -> dict[str, str]:
        """Headers for ``url``; the login goes to our registry only."""
        ours = urlsplit(url).netloc == self.reference.host
        login = {"Authorization": self._authorization} if self._authorization and ours else {}
        return {**given, **login}

    def send(
        self, method: str, url: str, *, allow: tuple[int, ...] = (), **options: Any
    ) -> httpx.Response:
        """One request with its answer read; logs in when asked to.

        Args:
            method: HTTP method.
            url: absolute URL.
            allow: statuses of 400 and above that the caller handles.
            options: of `httpx.Client.request`; ``content`` is a function when it is a stream, so
                that it can be sent again after logging in.

        Raises:
            UnavailableError: not reachable, timed out, 5xx or 429.
            BadInputError, ResourceError: refused.
        """
        response = self._send(method, url, options)
        if response.status_code == 401 and self._log_in(response):
            response = self._send(method, url, options)
        if response.status_code >= 400 and response.status_code not in allow:
            raise refusal(response, f"{method} {_bare(url)}")
        return response

    def _send(self, method: str, url: str, options: Mapping[str, Any]) -> httpx.Response:
        content = options.get("content")
        if callable(content):
            options = {**options, "content": content()}
        headers = self._headers(url, options.get("headers", {}))
        with self.reachable():
            return self._http.request(method, url, **{**options, "headers": headers})

    def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]:
        """A GET whose answer is read piece by piece; follows redirects to blob stores."""
        sent = self._headers(url, headers)
        return self._http.stream("GET", url, headers=sent, follow_redirects=True)

    def reachable(self) -> _Reachable:
        """A block whose network failures become `UnavailableError`."""
        return _Reachable(self.reference.host)

    def _log_in(self, response: httpx.Response) -> bool:
        """Answer a challenge; False when nothing can be done about it."""
        challenge = parse_challenge(response.headers.get("www-authenticate", ""))
        if self._authorization is not None and challenge.scheme != "bearer":
            return False
        secret_may_travel = self.reference.scheme == "https" or is_loopback(self.reference.host)
        if challenge.scheme == "basic" and self._basic and secret_may_travel:
            self._authorization = f"Basic {self._basic}"
            return True
        if challenge.scheme == "bearer":
            self._authorization = f"Bearer {self._token(challenge)}"
            return True
        return False

    def _token(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        where = urlsplit(realm)
        if where.scheme not in {"http", "https"}:
            raise BadInputError(f"{self.reference.host}: its token service {realm!r} is no URL")
        safe = where.scheme == "https" or is_loopback(where.netloc)
        headers = {"Authorization": f"Basic {self._basic}"} if self._basic and safe else {}
        asked = {k: v for k, v in challenge.parameters.items() if k in {"service", "scope"}}
        with self.reachable():
            answer = self._http.get(realm, params=asked, headers=headers)
        if answer.status_code != 200:
            raise refusal(answer, f"token service {_bare(realm)}")
        found = codec.decode(_Token, answer.content, what=f"token of {_bare(realm)}")
        return found.token or found.access_token


class _Reachable:
    """Translates network failures of httpx."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(value, httpx.TimeoutException):
            raise UnavailableError(
                f"registry {self._host}: no answer in time ({type(value).__name__})",
                hint="is it overloaded, or is a proxy in between? try again",
            ) from value
        if isinstance(value, (httpx.HTTPError, httpx.InvalidURL)):
            raise UnavailableError(
                f"registry {self._host} is not reachable: {value or type(value).__name__}",
                hint="check host and port; --plain-http when it speaks no TLS",
            ) from value


def _bare(url: str) -> str:
    """``url`` without its query, which may hold secrets."""
    return url.partition("?")[0]
