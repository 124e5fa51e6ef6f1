"""``edgekit image load|selftest|push``: what needs a container engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import output
from edgekit.cli.model import JsonOption
from edgekit.contracts.errors import BadInputError, GateFailedError, UsageError

if TYPE_CHECKING:
    from edgekit.engine.ports import ContainerEngine, Progress

EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", help="URL of the engine [env DOCKER_HOST]; default: its usual socket."
    ),
]
LayoutArgument = Annotated[
    str, typer.Argument(metavar="LAYOUT@TAG", help="Image layout and the image in it.")
]
_STEP = 10 * 1024 * 1024  # bytes between two lines of progress


def load(
    layout: LayoutArgument,
    *,
    name: Annotated[str, typer.Option(help="Name to load it under.")] = "edgekit:latest",
    engine: EngineOption = None,
) -> None:
    """Load an image into a container engine, without a registry between."""
    opened = _engine(engine)
    _load(opened, layout, name)
    output.emit(name)


def selftest(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="LAYOUT@TAG, or a name the engine knows.")
    ],
    *,
    cpu: Annotated[
        str | None, typer.Option(help="CPU model that qemu imitates, e.g. cortex-a76.")
    ] = None,
    engine: EngineOption = None,
    json: JsonOption = False,
) -> None:
    """Run an image's self-test in a container: golden outputs, versions, latencies.

    It has no network, no rights and a read-only root. What was loaded for it is removed again. An
    image for another architecture runs when the kernel has an emulator registered; its latencies
    mean nothing then.
    """
    with output.needs("docker"):
        from edgekit.engine import selftest as testing
    opened = _engine(engine)
    environment = {"QEMU_CPU": cpu} if cpu else {}
    with _in_engine(opened, image) as name:
        report = testing.run(opened, name, environment, called=image)
    if json:
        output.emit_json(report.document)
    else:
        output.emit(f"{report.golden.outcome.value}  {image}: {report.golden.reason}")
    if not report.passed:
        raise GateFailedError(
            f"self-test of {image}: {report.golden.reason}",
            hint="was the image built from this bundle, for this architecture?",
        )


def push(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="LAYOUT@TAG, or a name the engine knows.")
    ],
    to: Annotated[
        str, typer.Argument(metavar="HOST/REPOSITORY:TAG", help="Where it goes in a registry.")
    ],
    *,
    engine: EngineOption = None,
    json: JsonOption = False,
) -> None:
    """Push an image through the engine, with its logins and certificates; one platform.

    `edgekit push` needs no engine and pushes several platforms under one name.
    """
    with output.needs("build"):
        from edgekit.package import reference
    target = reference.parse(to)
    if target.digest is not None or target.tag is None:
        raise UsageError(f"{to!r}: push takes a tag", hint="HOST/REPOSITORY:TAG")
    opened, name = _engine(engine), f"{target.host}/{target.repository}:{target.tag}"
    had = opened.image(name) is not None
    with _in_engine(opened, image) as held:
        opened.tag(held, name)
        try:
            found = opened.push(name, _Told())
        finally:
            if not had:
                opened.remove_name(name)
    if json:
        output.emit_json({"digest": found, "name": name})
    else:
        output.emit(f"{name}  {found}")


def _engine(url: str | None) -> ContainerEngine:
    from edgekit.engine import opened

    found = opened.engine(url)
    found.architecture()  # says best what is wrong when it is not there
    return found


def _is_layout(text: str) -> bool:
    from edgekit.package import reader

    return (reader.split_reference(text)[0].root).is_dir()


@contextmanager
def _in_engine(engine: ContainerEngine, image: str) -> Iterator[str]:
    """What the engine calls ``image`` in this block; a layout's image is removed again after it.

    Raises:
        BadInputError: neither a layout's nor one the engine holds.
    """
    if not _is_layout(image):
        if engine.image(image) is None:
            raise BadInputError(
                f"{image}: is no layout, and the engine holds no image of that name",
                hint="edgekit image load LAYOUT@TAG --name NAME",
            )
        yield image
        return
    name = f"edgekit-temporary:{secrets.token_hex(6)}"
    try:
        _load(engine, image, name)
        yield name
    finally:
        engine.remove_name(name)


def _load(engine: ContainerEngine, layout: str, name: str) -> None:
    from edgekit.package import archive, reader

    source, tag = reader.split_reference(layout)
    found = source.resolve(tag)
    chunks = archive.stream(source, found, name)
    total = sum(blob.size for blob in source.manifest(found).layers)
    engine.load(_watched(chunks, total))


def _watched(chunks: Iterator[bytes], total: int) -> Iterator[bytes]:
    """Say how far it is, every few megabytes."""
    done = said = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if done - said >= _STEP:
            said = done
            output.note(f"  loading: {done / 1e6:.0f} of {total / 1e6:.0f} MB")


class _Told:
    """Says what an engine says, once for every layer and step."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def __call__(self, progress: Progress) -> None:
        key = progress.subject, progress.text
        if progress.subject and key not in self._said:
            self._said.add(key)
            size = f" ({progress.total} bytes)" if progress.total else ""
            output.note(f"  {progress.subject}: {progress.text}{size}")
