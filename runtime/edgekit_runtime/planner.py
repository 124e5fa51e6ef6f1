"""Decides what to do next from the record, the desired state and facts. Pure and level-based.

Called again after every step: it re-reads what is, and never remembers what it asked for. A desired
state acts only when its generation is newer; a rollback is a newer generation that names an older
bundle. A digest that failed here is refused until its retry token changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgekit.contracts import digest as digests
from edgekit.contracts.messages import Deployment, Desired, SlotRef, VariantRef
from edgekit.contracts.shadow import ShadowMode
from edgekit.contracts.states import SlotState
from edgekit_runtime import beside, steps, verdicts
from edgekit_runtime.beside import Beside, Ruling
from edgekit_runtime.record import DeploymentRecord, ModelRecord
from edgekit_runtime.steps import Step
from edgekit_runtime.supervision import CRASH_WINDOW_S, CRASHES_MAX, Ending, EndKind
from edgekit_runtime.verdicts import Lately, Trial

_SPENT = "crash loop: every try to run it was spent"
PREPARING = frozenset(
    {
        SlotState.FETCHING,
        SlotState.STAGED,
        SlotState.VERIFIED,
        SlotState.SELF_TEST,
        SlotState.SHADOW,
    }
)


class Ended(msgspec.Struct, frozen=True):
    """The process that held a model ended, since this agent started."""

    ending: Ending  # the newest
    count: int = 1  # lately
    waits: bool = False  # the next start is not due


class Standing(msgspec.Struct, frozen=True):
    """A candidate stands beside what serves."""

    seen: Beside
    collected: bool = False  # enough samples are there to be replayed


class Facts(msgspec.Struct, frozen=True):
    """What is, outside the record."""

    targets: tuple[str, ...]  # of this device, best first
    loaded: Mapping[str, str] = {}  # model -> content that serves
    ready: frozenset[str] = frozenset()  # contents of candidates loaded and self-tested
    busy: bool = False  # a slow step is running
    waits: frozenset[str] = frozenset()  # models whose next attempt to prepare is not due
    trials: Mapping[str, Trial] = {}
    lately: Mapping[str, Lately] = {}  # of confirmed bundles
    ends: Mapping[str, Ended] = {}  # models whose worker ended
    lost: Mapping[str, Ended] = {}  # on trial in applications that ended
    clean_start: bool = False  # the process before this one stopped in order
    containers: bool = False  # this device runs images
    beside: Mapping[str, Standing] = {}  # candidates beside what serves
    fallen: Mapping[str, Ending] = {}  # loaded candidates that ended
    untidy: bool = False  # containers may have been left behind, and it is time to look


def plan(
    record: DeploymentRecord, desired: tuple[Desired, str] | None, facts: Facts
) -> tuple[Step, ...]:
    """The next steps; empty when there is nothing to do now.

    Args:
        record: what the device knows.
        desired: a desired state just received, with the digest of its payload.
        facts: what is.
    """
    if desired is not None and desired[0].gen > record.gen:
        return _take(record, desired[0], desired[1], facts)
    found: list[Step] = []
    for name in sorted(record.models):
        found += _advance(name, record.models[name], facts)
    found = _together(record, found)
    if not found and not facts.busy and facts.untidy:
        return (steps.Tidy(),)
    return tuple(found)


def _take(
    record: DeploymentRecord, desired: Desired, digest: str, facts: Facts
) -> tuple[Step, ...]:
    fits = {name: _offer(name, record, desired, facts) for name in sorted(desired.deployments)}
    found: list[Step] = []
    notes: list[str] = []
    for name, offered in fits.items():
        group = desired.deployments[name].group
        problem = _incomplete(group, desired, fits) if group else ""
        if isinstance(offered, str):
            notes.append(offered)
        elif problem:
            notes.append(f"{name}: stays as it is: {problem}")
        else:
            found.append(offered)
    for name, model in sorted(record.models.items()):
        if name not in desired.deployments and model.state is not SlotState.EMPTY:
            found.append(steps.Remove(name))
    found.append(steps.Observe(desired.gen, digest, desired.config, "; ".join(notes)))
    return tuple(found)


def _offer(name: str, record: DeploymentRecord, desired: Desired, facts: Facts) -> Step | str:
    """How to take up what is desired of one model, or why not."""
    deployment = desired.deployments[name]
    model = record.models.get(name, ModelRecord())
    target = next((t for t in facts.targets if t in deployment.variants), None)
    if target is None:
        return (
            f"{name}: release {deployment.release} has variants for "
            f"{', '.join(sorted(deployment.variants)) or 'nothing'}, "
            f"this device runs {', '.join(facts.targets) or 'none'}"
        )
    variant = deployment.variants[target]
    candidate = _candidate(deployment, target, variant, facts)
    failure = model.failed.get(variant.digest)
    if (
        failure is not None
        and not failure.shared
        and failure.retry_token == deployment.retry_token
        and failure.content in {"", candidate.content}
    ):
        return (
            f"{name}: {digests.short(variant.digest)} failed here ({failure.reason}) "
            "and is not tried again without a new retry token"
        )
    return _assign(name, model, deployment, candidate, variant)


def _incomplete(group: tuple[str, ...], desired: Desired, fits: Mapping[str, Step | str]) -> str:
    """Why a group cannot be taken up as a whole; empty when it can."""
    for name in group:
        deployment = desired.deployments.get(name)
        if deployment is None or deployment.group != group:
            return f"{name} of its group is not deployed with it"
        if isinstance(fits[name], str):
            return f"{name} of its group cannot be taken up"
    return ""


def _together(record: DeploymentRecord, found: list[Step]) -> list[Step]:
    """Members of a group take over in one step, once all can; they are confirmed together, too."""
    ready = {step.model: step for step in found if isinstance(step, steps.Activate)}
    good = {step.model for step in found if isinstance(step, steps.Confirm)}
    result: list[Step] = []
    for step in found:
        if isinstance(step, steps.Activate):
            candidate = record.models[step.model].candidate
            group = candidate.group if candidate is not None else ()
            pending = [name for name in group if _preparing(record, name, group)]
            if not group:
                result.append(step)
            elif pending[0] == step.model and ready.keys() >= set(pending):
                result.append(steps.ActivateGroup(tuple(ready[name] for name in pending)))
        elif isinstance(step, steps.Confirm):
            flip = record.models[step.model].flip
            mates = {
                name
                for name, model in record.models.items()
                if flip and model.flip == flip and model.state is SlotState.TRIAL
            }
            if good >= mates:
                result.append(step)
        else:
            result.append(step)
    return result


def _preparing(record: DeploymentRecord, name: str, group: tuple[str, ...]) -> bool:
    """Whether ``name`` has a candidate of ``group``: if not, it runs what is wanted already."""
    model = record.models.get(name)
    return model is not None and model.candidate is not None and model.candidate.group == group


def _candidate(deployment: Deployment, target: str, variant: VariantRef, facts: Facts) -> SlotRef:
    return SlotRef(
        digest=variant.digest,
        version="",  # the bundle's manifest tells it once it is here
        target=target,
        release=deployment.release,
        rollout=deployment.rollout,
        wave=deployment.wave,
        group=deployment.group,
        image=variant.image if facts.containers else None,
        compose=deployment.compose,
    )


def _assign(
    name: str, model: ModelRecord, deployment: Deployment, ref: SlotRef, variant: VariantRef
) -> Step:
    held = model.active
    if held is not None and held.content == ref.content and model.state is not SlotState.SAFE:
        same = SlotRef(
            digest=held.digest,
            version=held.version,
            target=held.target,
            release=ref.release,
            rollout=ref.rollout,
            wave=ref.wave,
            group=ref.group,
            image=held.image,
            compose=ref.compose,
        )
        return steps.Relabel(name, same, deployment.policy, deployment.retry_token)
    return steps.Adopt(name, ref, variant.repository, deployment.policy, deployment.retry_token)


def _advance(name: str, model: ModelRecord, facts: Facts) -> list[Step]:
    active = model.active
    serves = active is not None and facts.loaded.get(name) == active.content
    if active is not None and not serves and not _makes_way(model, facts):
        return _serve_again(name, model, facts)  # whatever else is to be done
    if serves and (step := _doubt(name, model, facts)) is not None:
        return [step]
    if model.state in PREPARING and model.candidate is not None:
        unfit = _unfit_candidate(name, model, model.candidate, facts)
        if unfit:
            return [steps.Refuse(name, unfit)]
        return _prepare(name, model, model.candidate, facts)
    if model.state is SlotState.TRIAL:
        return _judge(name, model, facts.trials.get(name, Trial()))
    return []


def _makes_way(model: ModelRecord, facts: Facts) -> bool:
    """Whether what is active was unloaded for a candidate that is loaded, as its policy has it."""
    candidate = model.candidate
    return (
        not model.policy.overlap
        and model.state in PREPARING
        and candidate is not None
        and candidate.content in facts.ready
    )


def _doubt(name: str, model: ModelRecord, facts: Facts) -> Step | None:
    """What has to be done about a bundle that serves, and not well."""
    if model.confirmed:
        if model.fallback is None:
            return None
        reason = verdicts.burns(model.policy, facts.lately.get(name, Lately()))
    else:
        reason = verdicts.unfit(model.policy, facts.trials.get(name, Trial()))
    if reason:
        return steps.Revert(name, reason)
    lost = facts.lost.get(name)
    return None if model.confirmed or lost is None else _charge(name, model, lost)


def _serve_again(name: str, model: ModelRecord, facts: Facts) -> list[Step]:
    if facts.busy:
        return []
    ended = facts.ends.get(name)
    reason = _unfit_to_run(model, ended)
    if reason:
        return [steps.Revert(name, reason)]
    if ended is not None and ended.waits:
        return []
    first = ended is None and facts.clean_start  # nothing has gone wrong so far
    blameless = first or (ended is not None and ended.ending.kind is EndKind.OUTSIDE)
    return [steps.Load(name, spend_try=not model.confirmed and not blameless)]


def _charge(name: str, model: ModelRecord, lost: Ended) -> Step:
    """The bundle goes on in other processes; what has ended costs as much as a worker's crash."""
    if model.tries <= 0:
        return steps.Revert(name, f"{_SPENT}, at last {lost.ending.reason}")
    return steps.SpendTry(name)


def _unfit_to_run(model: ModelRecord, ended: Ended | None) -> str:
    """Why what ended must not be started again; empty when it may be."""
    why = ended.ending.reason if ended is not None else ""
    if ended is not None and ended.ending.kind is EndKind.OUTSIDE:
        return ""
    if not model.confirmed:
        if ended is not None and ended.ending.kind is not EndKind.CRASH:
            return why  # a hang or a leak is the bundle's own; a crash may be anyone's, once
        if model.tries <= 0:
            last = f", at last {why}" if why else ""
            return f"{_SPENT}{last}"
    elif ended is not None and ended.count >= CRASHES_MAX and model.fallback is not None:
        return f"crash loop: {ended.count} times within {CRASH_WINDOW_S:.0f} s, at last {why}"
    return ""


def _prepare(name: str, model: ModelRecord, candidate: SlotRef, facts: Facts) -> list[Step]:
    if facts.busy or name in facts.waits:
        return []
    simple: dict[SlotState, Step] = {
        SlotState.FETCHING: steps.Fetch(name),
        SlotState.STAGED: steps.Verify(name),
        SlotState.VERIFIED: steps.BeginTest(name),
    }
    if model.state in simple:
        return [simple[model.state]]
    if model.state is SlotState.SHADOW and model.active is not None:
        found = _stand_beside(name, model, candidate, facts)
        if found is not None:
            return found
    return _tested(name, model, candidate, facts)


def _tested(name: str, model: ModelRecord, candidate: SlotRef, facts: Facts) -> list[Step]:
    if candidate.content in facts.ready:
        fallback = model.fallback
        proven = fallback is not None and fallback.content == candidate.content
        first = model.state is SlotState.SELF_TEST and not proven
        if first and beside.wanted(model.policy, model.active):
            return [steps.StandBeside(name)]
        return [steps.Activate(name, proven)]
    if model.test_tries <= 0:
        return [steps.Refuse(name, "crash loop: every try of its self-test was spent")]
    return [steps.SelfTest(name)]


def _unfit_candidate(name: str, model: ModelRecord, candidate: SlotRef, facts: Facts) -> str:
    """Why a candidate that is loaded, or stands beside what serves, must go."""
    fallen = facts.fallen.get(candidate.content)
    if fallen is not None and fallen.kind is not EndKind.OUTSIDE:
        return f"beside what serves: {fallen.reason}"
    standing = facts.beside.get(name)
    if model.state is not SlotState.SHADOW or standing is None or model.beside is None:
        return ""
    ruling, reason = beside.judge(model.policy, model.beside.agreement_min, standing.seen)
    return reason if ruling is Ruling.REFUSE else ""


def _stand_beside(
    name: str, model: ModelRecord, candidate: SlotRef, facts: Facts
) -> list[Step] | None:
    """What a candidate in SHADOW needs next; None when it has shown enough."""
    shadow, standing = model.policy.shadow, facts.beside.get(name)
    replays = shadow is not None and shadow.mode is ShadowMode.REPLAY
    if standing is None or model.beside is None:
        if replays or candidate.content in facts.ready:
            return [steps.StandBeside(name)]
        return None  # it is loaded again
    ruling, _ = beside.judge(model.policy, model.beside.agreement_min, standing.seen)
    if ruling is Ruling.PASS:
        return None
    if ruling is Ruling.UNPROVEN and not model.unproven:
        return [steps.MarkUnproven(name)]
    return [steps.Replay(name)] if replays and standing.collected else []


def _judge(name: str, model: ModelRecord, trial: Trial) -> list[Step]:
    policy = model.policy
    enough = trial.n >= policy.confirm_inferences_min and verdicts.measured(policy, trial)
    if enough and trial.seconds >= policy.confirm_s_min:
        return [steps.Confirm(name)]
    if not enough and trial.seconds >= policy.unproven_after_s and not model.unproven:
        return [steps.MarkUnproven(name)]
    return []
