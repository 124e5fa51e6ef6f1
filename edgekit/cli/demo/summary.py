"""The report in a few lines, for people."""

from __future__ import annotations

from edgekit.cli.demo.report import Report
from edgekit.contracts.verdict import Outcome


def lines(report: Report) -> list[str]:
    """The summary; the report's problems come last."""
    books, agent = report.inferences, report.agent
    found = ["", "summary"]
    for rollout in report.rollouts:
        found.append(
            f"  {rollout.release}: {rollout.verdict} after {rollout.seconds:.0f} s, "
            f"{rollout.devices_exposed} of {len(agent.pids)} devices exposed"
        )
        gates = [gate for wave in rollout.waves for gate in wave.gates]
        found += [f"    {g.metric}: {g.reason}" for g in gates if g.outcome is Outcome.FAIL]
    faults = (f"{f.killed} back after {f.recovered_after_s:.1f} s" for f in report.faults)
    found.append(
        f"  inferences: {books.answered} answered (clients), {books.produced} produced (devices), "
        f"{books.counted} counted (manager), {books.evicted} evicted"
    )
    found.append("  faults: " + ", ".join(faults))
    found.append(
        f"  agent: {agent.rss_mb:.0f} MB resident, first inference "
        f"{agent.start_to_first_inference_s:.2f} s after start; broker {report.broker}"
    )
    found.append(f"  {'ok' if report.ok else 'NOT OK'} after {report.seconds:.0f} s")
    return found + [f"  problem: {problem}" for problem in report.problems]
