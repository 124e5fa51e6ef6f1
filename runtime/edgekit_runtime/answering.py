"""What a worker answers to requests for its model: inference and feedback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, EdgekitError
from edgekit_runtime import composition, oip
from edgekit_runtime.contract_facts import scored_output
from edgekit_runtime.errors import NotServingError
from edgekit_runtime.guard import Flags
from edgekit_runtime.http1 import HttpError, Reply, Request
from edgekit_runtime.journal import hash_id
from edgekit_runtime.kinds import Kind
from edgekit_runtime.oip import Route
from edgekit_runtime.ports import Array
from edgekit_runtime.replies import check_version, failed, only
from edgekit_runtime.samples import Disagreements, Sample
from edgekit_runtime.session import Session
from edgekit_runtime.splitting import Splitting

if TYPE_CHECKING:
    from edgekit_runtime.upstream import Upstream

log = logging.getLogger(__name__)


def _taken_at(parameters: Mapping[str, Any]) -> float | None:
    """When the inputs were measured, as the client says. Raises `BadInputError`."""
    found = parameters.get("taken_at")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise BadInputError("parameter taken_at is not a number", hint="send Unix seconds")
    return float(found)


class Answerer:
    """Belongs to one loaded model."""

    def __init__(
        self,
        model: str,
        session: Session,
        body_bytes_max: int,
        upstream: Callable[[], Upstream] | None = None,
    ) -> None:
        """``upstream`` makes what asks other models, when one feeds this."""
        self._make_upstream = upstream
        self._upstream: Upstream | None = None
        self._model = model
        self._session = session
        self.splitting = Splitting(session)
        self._body_bytes_max = body_bytes_max
        self.seen: tuple[Kind, float] | None = None  # kind and latency of the newest inference
        self.answered: Sample | None = None  # the newest, when its outputs were numbers
        self.disagreements = Disagreements()  # of a candidate in the shadow

    def answer(self, request: Request, route: Route) -> Reply:
        """The answer to ``request``; problems are answers, too.

        Raises:
            MemoryError: this process is done for.
        """
        self.seen = self.answered = None
        try:
            only(request, "POST")
            check_version(route, self._session.place.version)
            if route.action == "infer":
                return self._infer(request)
            return self._feedback(request)
        except HttpError as exc:
            return Reply(exc.status, oip.error(exc.message), exc.headers)
        except EdgekitError as exc:
            return failed(exc)

    def _infer(self, request: Request) -> Reply:
        length = oip.ALL_JSON if request.json_length is None else request.json_length
        asked, given = oip.parse_infer(request.body, self._body_bytes_max, length)
        arrays: Mapping[str, Array] = given
        oip.check_outputs(asked, self._session.predictor.model.output_names)
        hashed = hash_id(asked.id)
        place = self._session.place
        sources: Mapping[str, str] = {}
        if place.links:
            own = {spec.name for spec in self._session.predictor.contract.inputs}
            ask = partial(self._ask, asked.id)
            arrays, sources = composition.feed(place.links, own, arrays, ask)
        seen = self._session.call(arrays, hashed, _taken_at(asked.parameters))
        self.seen = seen.kind, seen.latency_us
        if seen.error is not None:
            if seen.kind is Kind.REJECTED:
                return Reply(400, oip.error(seen.error.message))
            who = f"{self._model} {self._session.place.version}, request {asked.id or '-'}"
            log.error("%s: %s", who, seen.error.message)
            return Reply(500, oip.error(seen.error.message))
        flags = seen.flags
        if not seen.counted and hashed in self.disagreements:
            flags |= Flags.SHADOW_DISAGREED
        if seen.counted and not flags & Flags.OUTPUT_NAN:
            self.answered = Sample(hashed, arrays, seen.outputs)
        label = oip.Label(self._model, place.version, place.slot)
        json_length, body = oip.answer(
            label, seen.outputs, flags, asked, counted=seen.counted, sources=sources
        )
        if json_length == oip.ALL_JSON:
            return Reply(200, body)
        kind = "application/octet-stream"
        headers = {"inference-header-content-length": str(json_length), "content-type": kind}
        return Reply(200, body, headers)

    def _ask(
        self, request_id: str | None, model: str, arrays: Mapping[str, Array], names: Sequence[str]
    ) -> tuple[Mapping[str, Array], str]:
        if self._upstream is None:
            if self._make_upstream is None:
                raise NotServingError(f"{model}, which feeds this model, cannot be asked here")
            self._upstream = self._make_upstream()
        return self._upstream.ask(model, arrays, names, request_id)

    def _feedback(self, request: Request) -> Reply:
        feedback = codec.decode(oip.Feedback, bytes(request.body), what="feedback")
        label = feedback.label
        if isinstance(label, str):
            names = scored_output(self._session.predictor.contract).labels
            if label not in names:
                known = ", ".join(names[:20]) or "none"
                raise BadInputError(f"feedback: label {label[:80]!r} is not one of: {known}")
            label = names.index(label)
        if not 0 <= label < 2**31:
            raise BadInputError(f"feedback: label {label} is not a class number")
        right = self._session.feedback(feedback.id, label)
        if right is None:
            raise HttpError(404, f"request id {feedback.id[:80]!r} is not (or no longer) known")
        return Reply(200, msgspec.json.encode({"id": feedback.id, "correct": right}))
