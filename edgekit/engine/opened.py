"""Opens the engine that there is; the SDK it needs is an extra."""

from __future__ import annotations

from edgekit.contracts.errors import UsageError
from edgekit.engine.ports import ContainerEngine


def engine(url: str | None = None) -> ContainerEngine:
    """The engine at ``url``, or where ``DOCKER_HOST`` or habit says. It is not asked anything yet.

    Raises:
        UsageError: the SDK is not installed.
    """
    try:
        from edgekit.engine.docker_engine import DockerEngine  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise UsageError(
            f"a container engine needs {exc.name}, which is not installed",
            hint="pip install 'edgekit-ml[docker]'",
        ) from exc
    return DockerEngine(url)
