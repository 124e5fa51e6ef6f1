"""Runs the self-test that every image brings, in a container that leaves nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.verdict import Outcome, Verdict, not_measured
from edgekit.engine import trouble
from edgekit.engine.ports import ContainerEngine, ContainerSpec

LABEL = "edgekit.selftest"
FAILED = 4  # exit code of an image whose golden outputs were not reproduced


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an image said of itself."""

    golden: Verdict
    document: dict[str, Any]  # as printed: versions, golden verdict, latencies

    @property
    def passed(self) -> bool:
        """Whether the golden outputs were reproduced."""
        return self.golden.outcome is Outcome.PASS


class _Printed(msgspec.Struct):
    passed: bool
    golden: Verdict | None = None


def run(
    engine: ContainerEngine,
    image: str,
    environment: Mapping[str, str] | None = None,
    *,
    called: str | None = None,
) -> Report:
    """Self-test ``image``, which the engine holds; messages name it ``called``.

    Raises:
        BadInputError: it has no self-test, ended some other way, or cannot run on this machine.
        EdgekitError: see `ContainerEngine`.
    """
    name = f"edgekit-selftest-{secrets.token_hex(4)}"
    spec = ContainerSpec(
        image=image,
        command=("selftest",),
        name=name,
        labels={LABEL: image},
        environment=environment or {},
    )
    container = engine.start(spec)
    try:
        ended = engine.wait(container)
        out, err = engine.logs(container)
    finally:
        engine.remove(container)
    what = f"self-test of {called or image}"
    if ended.code not in {0, FAILED}:
        told = " ".join(err.decode(errors="replace").split())[-300:]
        if "exec format error" in told:
            raise trouble.meaning(told, what)
        why = "it ran out of memory" if ended.out_of_memory else f"exit code {ended.code}"
        raise BadInputError(f"{what}: {why}: {told}", hint="is it an image edgekit built?")
    document = codec.decode(dict[str, Any], out, what=what)
    printed = codec.decode(_Printed, out, what=what)
    golden = printed.golden or not_measured("golden_agreement", "it has no golden set")
    if printed.passed != (ended.code == 0) or printed.passed != (golden.outcome is Outcome.PASS):
        raise BadInputError(f"{what}: its exit code, {ended.code}, contradicts what it printed")
    return Report(golden=golden, document=document)
