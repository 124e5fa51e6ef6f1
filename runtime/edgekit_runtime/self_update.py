"""Brings the runtime the desired state asks for onto the device, and hands over to it.

Fetched and verified like a bundle, into a store of its own; unpacked by the code that installs
devices; checked against this machine and against what is deployed. Then a request is left for the
supervisor and the agent ends in order. What becomes of it stands in the supervisor's record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit.contracts import codec, runtime
from edgekit.contracts import digest as digests
from edgekit.contracts.errors import (
    BadInputError,
    ResourceError,
    UnavailableError,
    translate_os_errors,
)
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX
from edgekit.contracts.messages import Desired, DeviceEvent, Record, VariantRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.runtime import RuntimeManifest, RuntimeTarget
from edgekit_runtime import bundles, deployment, notify, runtime_record
from edgekit_runtime.downloads import Downloads
from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.jobs import Done, JobRunner
from edgekit_runtime.notify import Notifier
from edgekit_runtime.planner import PREPARING
from edgekit_runtime.ports import Clock, Disk, Fetcher
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.runtime_record import Request, RuntimeFailure, RuntimeRecord
from edgekit_runtime.store import FREE_BYTES_MIN, BlobStore
from edgekit_runtime.twocopy import TwoCopy

BLOBS = "runtime-blobs"  # apart from the bundles: each store collects what it does not know
NAME = "runtime-agent"
FAILED_MAX = 8
UNPACKED_FACTOR = 4  # wheels with the engine unpack to three times their size
log = logging.getLogger(__name__)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is persisted: runtimes refused before they were tried, and what was last told."""

    refused: dict[str, RuntimeFailure] = {}
    told: str = ""


class Surroundings(msgspec.Struct, frozen=True):
    """What the updater works with."""

    disk: Disk
    clock: Clock
    store: BlobStore  # below `BLOBS`
    state_dir: Path
    fetcher: Callable[[str | None], Fetcher | None]
    emit: Callable[[Record], None]
    wake: Callable[[], None]
    environ: Mapping[str, str]


class RuntimeUpdater:
    """Belongs to the control thread."""

    def __init__(self, env: Surroundings) -> None:
        self._env = env
        self._supervised = bool(env.environ.get("EDGEKIT_SUPERVISOR"))
        self._file = TwoCopy(env.disk, env.state_dir, NAME, Kept)
        self._kept = self._file.load().value or Kept()
        self._record = runtime_record.read(env.disk, env.state_dir) if self._supervised else None
        self._jobs = JobRunner(env.wake)
        self._downloads = Downloads(env.clock)
        self._target: tuple[int, RuntimeTarget] | None = None
        self._deployed = DeploymentRecord()
        self._candidate = ""
        self._note = ""
        self._said = self._tidied = False
        self.switching = False  # the request is written: end in order
        self.changed = False  # since the last report

    def offer(self, desired: Desired) -> None:
        """The newest desired state; the same may come again.

        Raises:
            BadInputError: it asks for what cannot be obeyed.
        """
        if desired.runtime is None:
            self._target = None
            return
        try:
            target = msgspec.convert(desired.runtime, RuntimeTarget)
        except msgspec.ValidationError as exc:
            raise BadInputError(f"desired runtime: {exc}") from exc
        self._target = desired.gen, runtime.check_target(target)
        self._note = ""

    def advance(self, deployed: DeploymentRecord, *, healthy: bool) -> None:
        """Do what is to be done now.

        Args:
            deployed: what the models' record says.
            healthy: everything deployed is served and the control loop goes round.
        """
        self._deployed = deployed
        self._jobs.take()
        if self._record is None:
            if self._target is not None:
                self._tell_note("no supervisor runs here: the runtime is not updated")
            return
        self._follow(self._record)
        if healthy and not self._said:
            self._said = True
            notifier = Notifier(self._env.environ)
            notifier.send(notify.REPORTED)
            notifier.close()
        preparing = any(model.state in PREPARING for model in deployed.models.values())
        if self._target is not None and not self._jobs.busy and not preparing:
            self._pursue(self._record, *self._target, deployed)

    def report(self) -> dict[str, Any] | None:
        """What the manager is told; None where there is no supervisor and nothing is asked."""
        self.changed = False
        if self._record is None:
            return {"state": "UNSUPERVISED", "note": self._note} if self._note else None
        return runtime_record.report(self._record, self._kept.refused, self._candidate, self._note)

    # --- what the supervisor did ---------------------------------------------------------------

    def _follow(self, record: RuntimeRecord) -> None:
        if not record.confirmed:
            record = runtime_record.read(self._env.disk, self._env.state_dir) or record
            self.changed |= record != self._record
            self._record = record
        worst = max(record.failed.items(), key=lambda item: item[1].at, default=None)
        now = f"{record.active} {record.confirmed} {worst[1].at if worst else 0}"
        if now != self._kept.told:
            how = "confirmed" if record.confirmed else "on trial"
            detail = f"runtime {digests.short(record.active)} runs, {how}"
            if record.note:
                detail += f"; {record.note}"
            at = self._env.clock.wall()
            self._env.emit(DeviceEvent(kind="runtime", detail=detail[:500], at=at))
            self._keep(told=now)
        if record.confirmed and not self._tidied and not self._jobs.busy:
            self._tidied = True
            self._jobs.start("tidy", lambda: self._tidy(record), lambda _done: None)

    def _tidy(self, record: RuntimeRecord) -> None:
        """Remove runtimes that nothing refers to; the half-removed never look like one."""
        folder = self._env.state_dir / "runtimes"
        keep = {digests.hex_of(d) for d in (record.active, record.fallback) if d}
        keep.add((folder / "current").resolve().name)
        for path in sorted(folder.iterdir()):
            half = path.name.startswith((".new-", ".old-"))
            if path.is_symlink() or not path.is_dir() or (path.name in keep and not half):
                continue
            with translate_os_errors("remove", path):
                gone = path if half else path.rename(folder / f".old-{path.name}")
                import shutil  # noqa: PLC0415 - 2 ms, and a start seldom has any

                shutil.rmtree(gone, ignore_errors=True)
        self._env.store.collect([record.active])
        for copy in "ab":
            self._env.disk.unlink(self._env.state_dir / f"{deployment.BEFORE}.{copy}")

    # --- what the manager wants ----------------------------------------------------------------

    def _pursue(
        self, record: RuntimeRecord, gen: int, target: RuntimeTarget, deployed: DeploymentRecord
    ) -> None:
        from edgekit.contracts.device import joining  # noqa: PLC0415 - HTTP, seldom needed

        try:
            facts = joining.facts()
        except joining.JoinError as exc:  # no runtimes are made for such a machine
            self._tell_note(str(exc))
            return
        tag = runtime.tag_of(facts["arch"], facts["python"])
        variant = target.variants.get(tag)
        if variant is None:
            names = ", ".join(sorted(target.variants)) or "nothing"
            self._tell_note(f"runtime {target.release} is for {names}, this device needs {tag}")
            return
        failure = {**self._kept.refused, **record.failed}.get(variant.digest)
        if failure is not None and failure.token == target.retry_token:
            self._tell_note(f"runtime {target.release} failed here: {failure.reason}")
            return
        if variant.digest == record.active or self._downloads.waiting(variant.digest):
            return
        self._candidate, self.changed = variant.digest, True
        url, facts_now = deployed.config.artifacts_url, facts

        def work() -> None:
            prepare(self._env, variant, url, facts_now, deployed)

        self._jobs.start(
            "runtime", work, lambda done: self._prepared(gen, target, variant.digest, done)
        )

    def _prepared(self, gen: int, target: RuntimeTarget, digest: str, done: Done) -> None:
        self._candidate, self.changed = "", True
        if isinstance(done.error, (UnavailableError, ResourceError)):
            count = self._downloads.failed(digest)
            self._note = f"runtime {target.release}: attempt {count}: {done.error.message}"
        elif done.error is not None:
            self._refuse(target, digest, done.error.message)
        else:
            request = Request(
                id=f"{gen}/{digest}/{target.retry_token}",
                digest=digest,
                token=target.retry_token,
                tries=target.tries,
                report_s=target.report_s,
                confirm_s=target.confirm_s,
            )
            # Should the next runtime write what this one cannot read, there is a way back.
            disk, state = self._env.disk, self._env.state_dir
            before = TwoCopy(disk, state, deployment.BEFORE, DeploymentRecord)
            before.load()
            before.save(self._deployed)
            path = self._env.state_dir / runtime_record.REQUEST
            self._env.disk.replace(path, codec.encode(request))
            log.info("runtime %s is ready: handing over to it", digests.short(digest))
            self.switching = True

    def _refuse(self, target: RuntimeTarget, digest: str, reason: str) -> None:
        at = self._env.clock.wall()
        failure = RuntimeFailure(reason=reason[:500], at=at, token=target.retry_token)
        refused = {**self._kept.refused, digest: failure}
        newest = sorted(refused.items(), key=lambda item: item[1].at)[-FAILED_MAX:]
        detail = f"runtime {digests.short(digest)} refused: {reason}"
        self._env.emit(DeviceEvent(kind="runtime", detail=detail[:500], at=at))
        self._keep(refused=dict(newest))

    def _keep(self, **changes: Any) -> None:
        self._kept = msgspec.structs.replace(self._kept, **changes)
        self._file.save(self._kept)

    def _tell_note(self, note: str) -> None:
        self.changed |= note != self._note
        self._note = note


def prepare(
    env: Surroundings,
    variant: VariantRef,
    url: str | None,
    facts: Mapping[str, str],
    deployed: DeploymentRecord,
) -> None:
    """Fetch, verify, check and unpack a runtime. Slow.

    Raises:
        UnavailableError: the artifact server is not reachable.
        ResourceError: no space.
        UnsuitableError: it does not fit this device, or what is deployed on it.
        BadInputError: damaged, or no runtime.
    """
    from edgekit.contracts.device import bootstrap  # noqa: PLC0415 - zip files, seldom needed

    digest = variant.digest
    env.store.fetch_bundle(env.fetcher(url), variant.repository, digest)
    blobs = env.store.reader
    manifest = _manifest(blobs, digest)
    _check_fits(manifest, facts)
    _check_serves(manifest, deployed, LayoutReader(env.state_dir))

    def read(wanted: str) -> Iterator[bytes]:
        with blobs.blob_path(wanted).open("rb") as file:
            while chunk := file.read(digests.CHUNK_BYTES):
                yield chunk

    runtimes = env.state_dir / "runtimes"
    need = UNPACKED_FACTOR * sum(file.size for file in manifest.files) + FREE_BYTES_MIN
    free = env.disk.free_bytes(env.state_dir)
    if free < need:
        raise ResourceError(
            f"{env.state_dir}: {free} bytes free, {need} needed to unpack the runtime",
            hint="free space on the device",
        )
    try:
        with translate_os_errors("write", runtimes):
            bootstrap.verify(bootstrap.install(read, read, digest, runtimes, lambda _: None))
    except bootstrap.BootstrapError as exc:
        raise BadInputError(str(exc)) from exc


def _manifest(blobs: LayoutReader, digest: str) -> RuntimeManifest:
    oci = blobs.manifest(digest)
    what = f"runtime {digests.short(digest)}"
    if oci.config.media_type != runtime.CONFIG_MEDIA_TYPE:
        raise BadInputError(f"{what}: is {oci.config.media_type}, not a runtime")
    raw = blobs.read_blob(oci.config.digest, bytes_max=DOCUMENT_BYTES_MAX)
    return runtime.validate(codec.decode(RuntimeManifest, raw, what=what))


def _check_fits(manifest: RuntimeManifest, facts: Mapping[str, str]) -> None:
    def version(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    for name in ("arch", "python"):
        if getattr(manifest, name) != facts[name]:
            raise UnsuitableError(
                f"runtime {manifest.version} is for {name} {getattr(manifest, name)}, "
                f"this device has {facts[name]}"
            )
    if version(manifest.glibc) > version(facts["glibc"]):
        raise UnsuitableError(
            f"runtime {manifest.version} needs glibc {manifest.glibc}, this device has "
            f"{facts['glibc']}"
        )


def _check_serves(
    manifest: RuntimeManifest, deployed: DeploymentRecord, blobs: LayoutReader
) -> None:
    """Whether its engines run what serves now: else the update would end in nothing served."""
    for model in deployed.models.values():
        for ref in (model.active, model.fallback):
            if ref is not None and ref.image is None:  # an image brings its own engine
                needs = bundles.read_manifest(blobs, ref.digest)
                version = manifest.engines.get(needs.engine, "0")
                bundles.check_engine(needs, needs.engine, version)
