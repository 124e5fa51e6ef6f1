"""The rollout core: ``step(spec, release, state, observation, now) -> (state, assignments)``.

Pure: same arguments, same answer; no clock, no randomness, no I/O. Safe to call at any rate and
after any crash, because it plans from the observed state and never from what it did before. An
assignment is repeated until the device's desired document shows it, so a lost commit costs nothing.

Rules (docs/rollouts.md): a wave is *installed* when every device of it confirmed the release; it
then soaks, and its gates are evaluated ``looks`` times. A failing gate or abort rule stops the
rollout at once and every exposed device goes back to what it ran before. An inconclusive gate at
the end of the soak holds. An offline device is not a success: it holds its wave until it times out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edgekit.contracts.messages import Deployment
from edgekit.contracts.release import Release
from edgekit.contracts.states import SlotState
from edgekit.contracts.verdict import Outcome, Verdict, combine
from edgekit_fleet.rollout import cohorts, gates
from edgekit_fleet.rollout.machine import Event, next_status
from edgekit_fleet.rollout.model import (
    TERMINAL,
    Assignment,
    DeviceView,
    Observation,
    Phase,
    RolloutState,
    Status,
    WaveState,
)
from edgekit_fleet.rollout.spec import Failure, RolloutSpec

Result = tuple[RolloutState, tuple[Assignment, ...]]


def initial(spec: RolloutSpec, now: float) -> RolloutState:
    """State of a rollout that has not begun."""
    return RolloutState(created=now, waves=tuple(WaveState(name=w.name) for w in spec.waves))


def deployment(spec: RolloutSpec, release: Release, wave: int) -> Deployment:
    """What devices of wave number ``wave`` are given."""
    return Deployment(
        rollout=spec.name,
        wave=wave,
        release=release.name,
        variants=release.variants,
        policy=spec.policy,
        retry_token=spec.retry_token,
        compose=release.compose,
        group=spec.group,
    )


def soak_began(state: RolloutState) -> float | None:
    """Since when evidence counts for the current wave; None before it soaks."""
    return state.waves[state.wave].soak_started


def step(
    spec: RolloutSpec, release: Release, state: RolloutState, seen: Observation, now: float
) -> Result:
    """One step of the rollout.

    Args:
        spec: what the operator asked for.
        release: the release under rollout.
        state: the stored state.
        seen: the fleet as observed now.
        now: Unix seconds.

    Returns:
        The new state (equal to the old one when nothing changed) and assignments to carry out.
    """
    if state.status in TERMINAL:
        return state, ()
    context = _Context(spec, release, seen, now)
    if state.status is Status.ROLLING_BACK:
        return context.roll_back(state)
    if seen.abort_requested is not None:
        return context.stop(state, f"aborted by operator: {seen.abort_requested}")
    wave = state.waves[state.wave]
    if wave.phase is Phase.WAITING:
        return context.begin_wave(state, wave)
    if wave.phase is Phase.INSTALLING:
        return context.install(state, wave)
    return context.soak(state, wave)


def _with_wave(state: RolloutState, wave: WaveState) -> RolloutState:
    waves = (*state.waves[: state.wave], wave, *state.waves[state.wave + 1 :])
    return msgspec.structs.replace(state, waves=waves)


def _acted(view: DeviceView) -> bool:
    """Whether what the device reports already reflects its newest desired document."""
    return view.gen_observed >= view.gen


@dataclass(frozen=True)
class _Context:
    spec: RolloutSpec
    release: Release
    seen: Observation
    now: float

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(variant.digest for variant in self.release.variants.values())

    def views(self, devices: tuple[str, ...]) -> Mapping[str, DeviceView]:
        return {d: self.seen.devices[d] for d in devices if d in self.seen.devices}

    # -- waves ---------------------------------------------------------------------------------

    def begin_wave(self, state: RolloutState, wave: WaveState) -> Result:
        """Draw the cohort, remember what its devices run now, hand out the release."""
        spec, views = self.spec.waves[state.wave], self.seen.devices
        targets = self.release.variants
        devices, control = cohorts.draw(self.spec, spec, views, state.exposed, targets)
        ineligible = tuple(
            sorted(
                device
                for device, view in views.items()
                if cohorts.matches(view.labels, self.spec.eligible)
                and cohorts.target_of(view, targets) is None
            )
        )
        wave = msgspec.structs.replace(
            wave, phase=Phase.INSTALLING, devices=devices, control=control, started=self.now
        )
        previous = state.previous | {device: views[device].deployment for device in devices}
        state = msgspec.structs.replace(
            _with_wave(state, wave), previous=previous, ineligible=ineligible
        )
        if not devices:
            return self.stop(state, f"wave {wave.name!r} has no devices: nothing would be proven")
        wanted = deployment(self.spec, self.release, state.wave)
        return state, tuple(Assignment(device=device, deployment=wanted) for device in devices)

    def install(self, state: RolloutState, wave: WaveState) -> Result:
        """Wait for confirmations; stop when an abort rule is met."""
        reason = self.abort_reason(state, wave)
        if reason:
            return self.stop(state, reason)
        failed, late = self.failures(state, wave)
        confirmed = [d for d, view in self.views(wave.devices).items() if self.confirmed(view)]
        if len(confirmed) + len(failed) + len(late) < len(wave.devices):
            return state, ()
        if not confirmed:
            return self.stop(state, f"no device of wave {wave.name!r} took the release")
        soaking = msgspec.structs.replace(wave, phase=Phase.SOAKING, soak_started=self.now)
        return _with_wave(state, soaking), ()

    def soak(self, state: RolloutState, wave: WaveState) -> Result:
        """Watch the gates: evaluate at each planned look, decide at the end."""
        reason = self.abort_reason(state, wave)
        if reason:
            return self.stop(state, reason)
        spec = self.spec.waves[state.wave]
        began = wave.soak_started if wave.soak_started is not None else self.now
        elapsed = self.now - began
        due = int(elapsed / (spec.soak_s / spec.looks))
        if due > wave.looks:
            # A manager that was down looks once, not once for every look it slept through; the
            # number still advances to what is due, which only makes the interval wider.
            wave = msgspec.structs.replace(
                wave,
                looks=due,
                verdicts=tuple(
                    gates.evaluate(gate, wave, self.seen.devices, due) for gate in spec.gates
                ),
            )
            state = _with_wave(state, wave)
        outcome = combine(wave.verdicts)
        if outcome is Outcome.FAIL:
            return self.stop(state, _failures_of(wave.verdicts))
        if elapsed < spec.soak_s:
            return state, ()
        if outcome is Outcome.INCONCLUSIVE:
            return self.hold(state, wave, elapsed - spec.soak_s)
        return self.pass_wave(state, wave), ()

    def pass_wave(self, state: RolloutState, wave: WaveState) -> RolloutState:
        """Close the wave; go on to the next one or finish."""
        state = _with_wave(
            state, msgspec.structs.replace(wave, phase=Phase.DONE, finished=self.now)
        )
        last = state.wave + 1 == len(state.waves)
        event = Event.LAST_WAVE_PASSED if last else Event.WAVE_PASSED
        return msgspec.structs.replace(
            state,
            status=next_status(state.status, event),
            wave=state.wave if last else state.wave + 1,
            reason="every wave passed its gates" if last else "",
            finished=self.now if last else None,
        )

    def hold(self, state: RolloutState, wave: WaveState, held_s: float) -> Result:
        """A gate cannot tell: touch no further device until it can, or until held too long."""
        unclear = "; ".join(
            f"{v.metric}: {v.reason}" for v in wave.verdicts if v.outcome is Outcome.INCONCLUSIVE
        )
        limit = self.spec.hold_s_max
        if limit is not None and held_s >= limit:
            return self.stop(state, f"held {held_s:.0f} s without a clear verdict: {unclear}")
        status = next_status(state.status, Event.INCONCLUSIVE)
        return msgspec.structs.replace(state, status=status, reason=f"holding: {unclear}"), ()

    # -- devices -------------------------------------------------------------------------------

    def confirmed(self, view: DeviceView) -> bool:
        """Whether the device runs the release and has confirmed it by its own policy."""
        report = view.report
        return (
            _acted(view)
            and report is not None
            and report.state is SlotState.CONFIRMED
            and report.active is not None
            and report.active.digest in self.digests
        )

    def refused(self, view: DeviceView) -> str | None:
        """Why the device gave up on the release by itself, or None."""
        report = view.report
        if not _acted(view) or report is None:
            return None
        for digest in self.digests & report.failed.keys():
            failure = report.failed[digest]
            if failure.retry_token == self.spec.retry_token:
                return failure.reason
        return None

    def failures(self, state: RolloutState, wave: WaveState) -> tuple[dict[str, str], list[str]]:
        """Devices that failed, with reasons, and devices that are late."""
        failed: dict[str, str] = {}
        late: list[str] = []
        started = wave.started if wave.started is not None else self.now
        overdue = self.now - started >= self.spec.waves[state.wave].timeout_s
        for device in wave.devices:
            view = self.seen.devices.get(device)
            reason = self.refused(view) if view else None
            if reason is not None:
                failed[device] = reason
            elif (
                overdue
                and wave.phase is Phase.INSTALLING
                and (view is None or not self.confirmed(view))
            ):
                late.append(device)
        return failed, late

    def abort_reason(self, state: RolloutState, wave: WaveState) -> str | None:
        """The first abort rule that is met, in words."""
        failed, late = self.failures(state, wave)
        counts = {
            Failure.FAILED: len(failed),
            Failure.TIMED_OUT: len(late),
            Failure.ANY: len(failed) + len(late),
        }
        for rule in self.spec.abort:
            count = counts[rule.failure]
            share = 100.0 * count / len(wave.devices)
            if count >= rule.min_n and share >= rule.percent:
                examples = "; ".join(f"{d}: {why}" for d, why in list(failed.items())[:3])
                return (
                    f"abort rule: {count} of {len(wave.devices)} devices of wave {wave.name!r} "
                    f"({rule.failure.value}, limit {rule.percent:g} %)"
                    + (f": {examples}" if examples else "")
                )
        return None

    # -- going back ----------------------------------------------------------------------------

    def stop(self, state: RolloutState, reason: str) -> Result:
        """Stop handing out the release and send every exposed device back."""
        wave = state.waves[state.wave]
        stopped = msgspec.structs.replace(wave, phase=Phase.STOPPED, finished=self.now)
        state = msgspec.structs.replace(
            _with_wave(state, stopped),
            status=next_status(state.status, Event.STOP),
            reason=reason,
        )
        return self.roll_back(state)

    def roll_back(self, state: RolloutState) -> Result:
        """Re-assign what is not yet assigned; done when every exposed device is back.

        A device that is offline gets its old deployment when it returns (the document is retained);
        the rollout stays in ROLLING_BACK until then, so that nobody reads "rolled back" too early.
        """
        assignments: list[Assignment] = []
        waiting = 0
        for device, view in self.views(state.exposed).items():
            before = state.previous.get(device)
            if view.deployment is not None and view.deployment.rollout == self.spec.name:
                assignments.append(Assignment(device=device, deployment=before))
                waiting += 1
            elif not self.is_back(view):
                waiting += 1
        if waiting:
            return state, tuple(assignments)
        status = next_status(state.status, Event.ALL_BACK)
        return msgspec.structs.replace(state, status=status, finished=self.now), ()

    def is_back(self, view: DeviceView) -> bool:
        """Whether the device acted on its newest document and no longer runs the release."""
        report = view.report
        if not _acted(view) or report is None:
            return _acted(view) and view.deployment is None
        settled = report.state in {SlotState.CONFIRMED, SlotState.EMPTY, SlotState.ROLLED_BACK}
        active = report.active
        if view.deployment is not None and active is not None:
            wanted = {variant.digest for variant in view.deployment.variants.values()}
            return settled and active.digest in wanted
        return settled and (active is None or active.digest not in self.digests)


def _failures_of(verdicts: tuple[Verdict, ...]) -> str:
    return "; ".join(f"{v.metric}: {v.reason}" for v in verdicts if v.outcome is Outcome.FAIL)
