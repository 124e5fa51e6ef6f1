"""What the agent needs from outside, as protocols; `edgekit_runtime.wiring` builds the adapters.

Every write to the state folder goes through `Disk`, so that a test can cut power at each write,
fsync and rename. Apart from that are only locks, sockets, the mapped rings and pages of counters,
and runtimes, which `edgekit.contracts.device.bootstrap` unpacks beside everything and gives their
name at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from edgekit.contracts.bundle import BundleManifest
from edgekit.contracts.contract import Contract
from edgekit.contracts.messages import ClockQuality, Policy, SlotRef
from edgekit.contracts.reference import Reference
from edgekit.contracts.shadow import Expectation
from edgekit_runtime.supervision import Ending

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from edgekit.contracts.evaluation import NodeTime
    from edgekit_runtime.region import Region  # which needs our `Disk`

# In quotes: an agent that starts orders its first worker before it has imported numpy.
Array: TypeAlias = "npt.NDArray[Any]"


class LoadedModel(Protocol):
    """A model in memory. Safe to call from several threads."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the engine says about how it runs this model."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises `EngineError`."""


class Profiled(LoadedModel, Protocol):
    """A model whose engine was asked how long each operator takes; that costs some time itself."""

    def node_times(self, skip: int) -> tuple[NodeTime, ...]:
        """Means over all runs but the first ``skip``, in the order of the graph. Ends profiling.

        Raises:
            EngineError: the engine does not say.
        """


class Engine(Protocol):
    """An inference library."""

    name: str
    version: str

    def load(self, path: Path, *, weights: Path | None = None, threads: int = 1) -> LoadedModel:
        """Load a model file, and its weights where they are a file of their own.

        Raises:
            BadInputError: not a model this engine can run.
            UnsuitableError: the engine cannot run it the way it was measured.
        """


class Loaded(Protocol):
    """A bundle in memory: in this process, or in a worker's."""

    @property
    def manifest(self) -> BundleManifest:
        """What it is."""

    @property
    def contract(self) -> Contract:
        """What it takes and answers."""

    @property
    def reference(self) -> Reference | None:
        """Which numbers are watched, and their bins."""

    @property
    def expectation(self) -> Expectation | None:
        """How far it agreed with its original when it was built; None: its bundle does not say."""

    @property
    def failure(self) -> Ending | None:
        """Why it no longer answers; None while it does."""

    def close(self) -> None:
        """Unload, once what was asked is answered."""


class Replay(msgspec.Struct, frozen=True):
    """Samples of what was answered, and where a candidate is to say whether it agrees."""

    samples: int  # descriptor of a memory file (`edgekit_runtime.samples`)
    region: Region
    abs: float
    rel: float


class Host(Protocol):
    """Where bundles are loaded. Loading is slow and may run on any thread."""

    def load(self, model: str, ref: SlotRef, policy: Policy, *, tested: bool) -> Loaded:
        """Load a bundle; ``tested``: only when it reproduces its golden set.

        Raises:
            UnsuitableError: it does not, or it cannot run here.
            WorkerEndedError: its process ended, or took too long.
            BadInputError: a blob is missing or altered.
            ResourceError: no memory or no process for it.
        """

    def replay(self, model: str, ref: SlotRef, policy: Policy, replay: Replay) -> None:
        """Load a bundle, give it collected samples, unload it.

        Raises:
            EdgekitError: like `load`; an inference that did not end is a `WorkerEndedError`.
        """


class Images(Protocol):
    """Slots that are images, in a container engine. Slow: called from jobs.

    Raises:
        EngineAwayError: the engine does not answer; nothing was learnt, try again.
    """

    def fetch(self, ref: SlotRef, artifacts_url: str | None) -> int:
        """Make the image of ``ref`` present; returns the bytes that were transferred.

        Raises:
            UnavailableError: the registry does not answer.
            BadInputError: it has no such image, or refused.
            ResourceError: no space.
        """

    def check(self, model: str, ref: SlotRef) -> str:
        """The model's version, when the image is what ``ref`` promises and can run here.

        Raises:
            UnsuitableError: it is not, or cannot.
            BadInputError: it is gone.
        """

    def tidy(self, stale: Collection[str]) -> None:
        """Remove the images with these digests, and containers of an agent that is no more."""

    @property
    def untidy(self) -> bool:
        """Whether containers may have been left behind."""


class Clock(Protocol):
    """Time."""

    def wall(self) -> float:
        """Unix seconds; may jump."""

    def monotonic(self) -> float:
        """Seconds that never go back; meaningless across processes."""

    def quality(self) -> ClockQuality:
        """Whether wall time was set from a trusted source."""


class Disk(Protocol):
    """The state folder. All methods raise `ResourceError` (full) or `BadInputError` (other)."""

    def read(self, path: Path, *, bytes_max: int) -> bytes | None:
        """Whole file, None when absent; a larger file is cut at ``bytes_max``."""

    def read_at(self, path: Path, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``."""

    def size(self, path: Path) -> int | None:
        """Bytes, None when absent."""

    def append(self, path: Path, data: bytes, *, sync: bool) -> None:
        """Append, creating the file; ``sync`` makes data and length durable before returning."""

    def sync(self, path: Path) -> None:
        """Make everything appended to ``path`` durable."""

    def truncate(self, path: Path, length: int) -> None:
        """Cut the file and make that durable."""

    def overwrite(self, path: Path, data: bytes) -> None:
        """Write the file in place, fsync it and its folder: not atomic, for CRC'd copies."""

    def replace(self, path: Path, data: bytes) -> None:
        """Write a temporary file, fsync, rename over ``path``, fsync the folder: atomic."""

    def rename(self, source: Path, target: Path) -> None:
        """Rename and fsync the target's folder."""

    def unlink(self, path: Path) -> None:
        """Remove; absent is fine."""

    def sync_dir(self, path: Path) -> None:
        """Fsync a folder."""

    def make_dir(self, path: Path) -> None:
        """Create a folder and its parents; durable on return."""

    def names(self, path: Path) -> list[str]:
        """Sorted names in a folder; empty when it does not exist."""

    def free_bytes(self, path: Path) -> int:
        """Space left for this process."""


class Verifier(Protocol):
    """Says whether a document or blob may be trusted."""

    def desired(self, payload: bytes, signature: str | None) -> None:
        """Raises `BadInputError` when the desired state must not be obeyed."""

    def manifest(self, digest: str, raw: bytes) -> None:
        """Raises `BadInputError` when ``raw`` is not the manifest called ``digest``."""


class Fetcher(Protocol):
    """Reads manifests and blobs from the artifact server (OCI distribution API, read side)."""

    def manifest(self, repository: str, digest: str) -> bytes:
        """Raw manifest. Raises `UnavailableError` (transient) or `BadInputError`."""

    def blob(self, repository: str, digest: str, offset: int) -> Iterator[bytes]:
        """Chunks of a blob from ``offset`` on. Raises like `manifest`."""

    def referrers(self, repository: str, digest: str) -> bytes | None:
        """Index of what refers to a manifest; None when the server knows of nothing.

        Raises like `manifest`.
        """


class Link(Protocol):
    """The MQTT connection. Callbacks run on the link's own thread and must not block."""

    on_message: Callable[[str, bytes], None]  # (leaf, payload)
    on_connect: Callable[[], None]

    def start(self) -> None:
        """Begin connecting; keeps trying for ever."""

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand over at QoS 1; False when not connected (nothing is queued)."""

    @property
    def connected(self) -> bool:
        """Whether the broker answered the last connect."""

    def stop(self) -> None:
        """Say goodbye (offline presence) and disconnect."""
