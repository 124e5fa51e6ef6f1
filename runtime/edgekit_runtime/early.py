"""A bundle that was verified already; its model is loaded while its worker imports itself.

See `edgekit_runtime.head_start`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from edgekit.contracts.errors import BugError, EdgekitError
from edgekit_runtime import bundles, engines
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.engines import ladder
from edgekit_runtime.ports import Engine, LoadedModel


class Early:
    """What a worker will be ordered to load first, by what the agent knew when it forked it."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        """Load the model for ``threads``; None: not before the worker has set its limits."""
        self.bundle = bundle
        self._threads = threads
        self._loaded: Engine | None = None
        self._error: EdgekitError | MemoryError | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        if threads is not None and ladder.LABEL not in bundle.manifest.labels:
            self._thread.start()
        else:  # an accelerator is to be tried first, or there are limits
            self._threads = None

    def engine(self, threads: int) -> Engine | None:
        """An engine that has loaded the model for ``threads``; None: it is not loaded like that.

        Raises:
            EdgekitError: it cannot be loaded, as `Engine.load` says it.
            MemoryError: there was none for it.
        """
        if threads != self._threads:
            return None
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._loaded

    def _load(self) -> None:
        manifest, bundle = self.bundle.manifest, self.bundle
        what = _What(bundle.model_path, bundle.weights_path, self._threads or 1)
        try:
            engine = engines.create(manifest.engine, manifest.engine_options)
            bundles.check_engine(manifest, engine.name, engine.version)
            model = engine.load(what.path, weights=what.weights, threads=what.threads)
            self._loaded = _Loaded(engine, what, model)
        except (EdgekitError, MemoryError) as exc:
            self._error = exc


class _What(NamedTuple):
    path: Path
    weights: Path | None
    threads: int


class _Loaded:
    """`edgekit_runtime.ports.Engine` that has loaded the only model it will be asked for."""

    def __init__(self, engine: Engine, what: _What, model: LoadedModel) -> None:
        self.name, self.version = engine.name, engine.version
        self._what, self._model = what, model

    def load(self, path: Path, *, weights: Path | None = None, threads: int = 1) -> LoadedModel:
        """The model."""
        if _What(path, weights, threads) != self._what:
            raise BugError(f"{path}: {self._what} was loaded ahead")
        return self._model
