"""Checks of what the device holds: bundles, engines, quarantine, ends of processes, the spool."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.contracts import digest as digests
from edgekit.contracts.errors import EdgekitError
from edgekit.contracts.states import SlotState
from edgekit_runtime import bundles, machine_facts, profile, runtime_record
from edgekit_runtime import engines as installed_engines
from edgekit_runtime.config import AgentConfig
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.doctor.check import Check, fail, ok, warn
from edgekit_runtime.doctor.held import Held

IMPORT_S_MAX = 120.0
LATELY_S = 3600.0
ENDINGS_MAX = 3  # within LATELY_S
SPOOL_SHARE_MAX = 0.8


def engines(held: Held) -> Iterator[Check]:
    """Does each engine's library load, and does its version fit what is deployed?"""
    versions = installed_engines.versions()
    if not versions:
        mend = "install one: pip install 'edgekit-ml[runtime]'"
        yield fail("engine", "no inference engine is installed", mend)
    for name, version in sorted(versions.items()):
        # In a process of its own: a library built for another processor may end the one it is in.
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            capture_output=True,
            timeout=IMPORT_S_MAX,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            detail = f"{name} {version} does not load (exit {done.returncode}): {last}"
            mend = f"reinstall it for this device: pip install --force-reinstall {name}"
            yield fail("engine", detail, mend)
        else:
            yield ok("engine", f"{name} {version} loads")
    for model, role, ref in held.refs():
        # A candidate is checked before it is tried; an image brings its own engine.
        if role != "candidate" and ref.image is None:
            yield from _engine_fits(f"{model} ({role})", ref.digest, held, versions)


def _engine_fits(
    name: str, digest: str, held: Held, versions: Mapping[str, str]
) -> Iterator[Check]:
    try:
        manifest = bundles.read_manifest(held.blobs, digest)
        bundles.check_engine(manifest, manifest.engine, versions.get(manifest.engine, "0"))
    except EdgekitError as exc:
        yield fail("engine", f"{name}: {exc.message}", exc.hint or "restart the agent")


def targets(config: AgentConfig, held: Held) -> Check:
    """Can this processor run what is configured and deployed?"""
    name, arch, isa = "processor", machine_facts.arch(), machine_facts.isa_flags()
    here = profile.targets(arch, isa, machine_facts.board())
    wanted = dict.fromkeys(config.device.targets or (), "[device] targets")
    wanted |= {ref.target: f"{model} ({role})" for model, role, ref in held.refs()}
    wrong = {
        target: who for target, who in wanted.items() if not profile.runnable(target, arch, isa)
    }
    if wrong:
        detail = ", ".join(f"{who} is for {target}" for target, who in sorted(wrong.items()))
        mend = f"deploy variants for {', '.join(here) or 'this processor'}"
        return fail(name, f"{detail}, this is {arch}", mend)
    if not here and not config.device.targets:
        mend = "set [device] targets to the profile your bundles are built for"
        return fail(name, f"{arch}: no shipped target runs here", mend)
    return ok(name, f"{arch}, runs {', '.join(config.device.targets or here)}")


def models(held: Held) -> Iterator[Check]:
    """Does something serve for each model, is it intact, and what was refused?"""
    if held.problem:
        mend = "see `edgekit-agent logs`; the agent starts anew from the desired state"
        yield fail("record", held.problem, mend)
    for name, model in sorted(held.record.models.items()):
        if model.state is SlotState.SAFE:
            detail = f"{name}: nothing can serve; every bundle it had failed"
            yield fail("model", detail, "roll out a bundle that works, or a retry token")
        for digest, failure in sorted(model.failed.items(), key=lambda item: item[1].at):
            short = digests.short(digest)
            mend = "build a better bundle; to try this one again publish a new retry token"
            yield warn("quarantine", f"{name} {short}: {failure.reason}", mend)
    for name, role, ref in held.refs():
        if role != "candidate" and ref.image is None:
            yield _intact(f"{name} ({role})", ref.digest, held)
    if not held.record.models:
        yield ok("model", "none is deployed")
    if held.record.note:
        yield warn("desired state", held.record.note, "correct the release or the desired state")


def _intact(name: str, digest: str, held: Held) -> Check:
    try:
        version = bundles.open_bundle(held.blobs, digest).manifest.version
    except EdgekitError as exc:
        mend = "restart the agent: it falls back or fetches it again"
        return fail("model", f"{name}: {exc.message}", mend)
    return ok("model", f"{name}: version {version}, every file intact")


def runtimes(state: Path) -> Iterator[Check]:
    """Which runtime runs, and which did not work here?"""
    try:
        record = runtime_record.read(PosixDisk(), state)
    except EdgekitError as exc:
        yield fail("runtime", exc.message, "let the agent's user read its state folder")
        return
    if record is None:
        yield ok("runtime", "no supervisor: the agent is updated by whoever installed it")
        return
    how = "proven" if record.confirmed else f"on trial, {record.tries} tries left"
    yield ok("runtime", f"{digests.short(record.active)}, {how}")
    for digest, failure in sorted(record.failed.items(), key=lambda item: item[1].at):
        mend = "release a better runtime; to try this one again publish a new retry token"
        yield warn("quarantine", f"runtime {digests.short(digest)}: {failure.reason}", mend)


def endings(held: Held) -> Check:
    """Do processes keep ending?"""
    name, since = "crash loops", time.time() - LATELY_S
    lately = [event for event in held.events if event.at >= since]
    ended = [event for event in lately if event.kind == "worker_ended"]
    starts = [event for event in lately if event.kind == "start"]
    if len(ended) >= ENDINGS_MAX:
        detail = f"{len(ended)} workers ended within the last hour, at last {ended[-1].detail}"
        return warn(name, detail, "roll the model back, or raise the limit that is named")
    if len(starts) > ENDINGS_MAX:
        mend = "see `edgekit-agent logs` for what ended it, and the service manager's journal"
        return warn(name, f"the agent started {len(starts)} times within the last hour", mend)
    return ok(name, f"{len(ended)} workers ended, {len(starts)} agent starts in the last hour")


def spool(held: Held, bytes_max: int) -> Check:
    """Is telemetry waiting for long, or lost already?"""
    name, report = "telemetry", held.spool
    told = f"{report.frames_unacked} frames wait, {report.bytes_used} of {bytes_max} bytes used"
    if report.frames_evicted:
        lost = f"{report.frames_evicted} frames with {report.inferences_evicted} inferences dropped"
        mend = "connect the device more often or give [spool] bytes_max more room"
        return warn(name, f"{told}; {lost} so far", mend)
    if report.bytes_used > SPOOL_SHARE_MAX * bytes_max:
        mend = "connect the device soon: the oldest of the least important is dropped when full"
        return warn(name, told, mend)
    if report.damaged:
        mend = "check the storage medium (power cuts without damage leave no such places)"
        return warn(name, f"{told}; {report.damaged} damaged places were stepped over", mend)
    return ok(name, told)
