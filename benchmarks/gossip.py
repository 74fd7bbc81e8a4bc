"""Simulate gossip swarms on virtual time, beside the figures of iroh-gossip's own simulator.

    python benchmarks/gossip.py [--nodes N…] [--seeds N] [--loss P] [--large] [--quick] [--json]

The state machines are the real ones; the network between them is a model without QUIC, the one of the
original's simulator. Everything is drawn from seeds, so each figure can be had again exactly. What the
columns say, ours first and the original's after the slash:

    RMR      payloads received for each delivery, beyond the first one; 0 is a perfect tree
    settled  the same in the last third of the rounds, when there is a tree
    LDH      hops of the delivery that took most; 0 is a neighbour of the publisher
    ms       virtual time from the broadcast to the last delivery
    missed   deliveries that did not happen within 5 s
    control  messages without content, for each delivery
    degree   neighbours of a node when the first round begins

The original's figures are means over 32 seeds of its machines in its simulator; none was missed. Ours are
over the seeds that the original's CI uses, or over 0, 1, 2, … with --seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import attrs
from measuring.parent import end_with_parent

from dialkey_gossip.simulation import (
    CHURN_BASELINE,
    ChurnResult,
    ChurnScenario,
    Kind,
    Latency,
    Result,
    Scenario,
    merge,
    run_churn,
    run_scenario,
)

CI_SEEDS = (0, 1, 212312388123, 123)
NODES = (20, 100, 1000)
LARGE_NODES = 10_000
MOST_NODES_THAT_ALL_PUBLISH = 100
SLOW = Latency(0.01, 0.1)
HEADER = (
    f"{'scenario':38} {'RMR':>13} {'settled':>8} {'LDH':>11} {'ms':>9} {'missed':>7}"
    f" {'control':>8} {'degree':>7} {'CPU s':>6}"
)


@attrs.frozen
class Row:
    """A scenario that was run, and the processor time that took."""

    result: Result
    cpu_s: float


@attrs.frozen
class ChurnRow:
    """The same for churn."""

    result: ChurnResult
    cpu_s: float


def scenarios(nodes: Sequence[int], loss: float, *, quick: bool) -> Iterator[Scenario]:
    """Give what is to be run."""
    for count in nodes:
        rounds = 3 if quick or count >= LARGE_NODES else 30
        yield Scenario(Kind.SINGLE, count, rounds, loss=loss)
        yield Scenario(Kind.MULTI, count, rounds, loss=loss)
        if count <= MOST_NODES_THAT_ALL_PUBLISH:
            rounds = 2 if quick else 30 if count < 100 else 5
            yield Scenario(Kind.ALL, count, rounds, loss=loss)
    if 100 in nodes and not quick:
        for kind, rounds in ((Kind.SINGLE, 30), (Kind.MULTI, 30), (Kind.ALL, 5)):
            yield Scenario(kind, 100, rounds, latency=SLOW, loss=loss)


def churns(nodes: Sequence[int]) -> Iterator[ChurnScenario]:
    """Give the mass failures that are to be run."""
    for count, killed, wait_s in CHURN_BASELINE:
        if count in nodes:
            yield ChurnScenario(count, killed, wait_s)


def measure(scenario: Scenario, seed: int) -> Row:
    """Run one scenario with one seed."""
    started_s = time.process_time()
    result = run_scenario(scenario, [seed])
    return Row(result, time.process_time() - started_s)


def measure_churn(scenario: ChurnScenario, seeds: Sequence[int]) -> ChurnRow:
    """Run one mass failure with all seeds."""
    started_s = time.process_time()
    result = run_churn(scenario, seeds)
    return ChurnRow(result, time.process_time() - started_s)


def text_of(row: Row) -> str:
    """Give the line of a scenario."""
    result = row.result
    base = result.scenario.baseline
    hops = f"{result.last_hops:.1f}"
    redundancy = f"{result.redundancy:.3f}"
    duration = f"{result.duration_s * 1e3:.0f}"
    if base is not None:
        redundancy += f"/{base.redundancy:.3f}"
        hops += f"/{base.last_hops:.1f}"
        duration += f"/{base.duration_s * 1e3:.0f}"
    publishers = result.scenario.nodes if result.scenario.kind is Kind.ALL else 1
    control = result.control / (publishers * (result.scenario.nodes - 1))
    return (
        f"{result.scenario.label:38} {redundancy:>13} {result.settled_redundancy:8.3f} {hops:>11}"
        f" {duration:>9} {result.missed:7} {control:8.2f} {result.degree:7.2f} {row.cpu_s:6.1f}"
    )


def churn_text_of(row: ChurnRow) -> str:
    """Give the line of a mass failure."""
    result = row.result
    scenario = result.scenario
    base = CHURN_BASELINE.get((scenario.nodes, scenario.killed, scenario.wait_s))
    missed = f"{result.missed:.2f}" + ("" if base is None else f"/{base:.2f}")
    return (
        f"{scenario.label:38} missed {missed} of {scenario.nodes - scenario.killed - 1}"
        f" in {result.runs_with_missed} of {result.runs} runs, degree {result.degree:.2f}"
    )


def data_of(row: Row) -> dict[str, object]:
    """Give a scenario for machines to read."""
    result = row.result
    base = result.scenario.baseline
    return {
        "scenario": result.scenario.label,
        "redundancy": result.redundancy,
        "first_redundancy": result.first_redundancy,
        "settled_redundancy": result.settled_redundancy,
        "last_hops": result.last_hops,
        "duration_s": result.duration_s,
        "missed": result.missed,
        "control": result.control,
        "degree": result.degree,
        "isolated": result.isolated,
        "cpu_s": row.cpu_s,
        "original": None if base is None else attrs.asdict(base),
    }


def churn_data_of(row: ChurnRow) -> dict[str, object]:
    """Give a mass failure for machines to read."""
    result = row.result
    scenario = result.scenario
    return {
        "scenario": scenario.label,
        "missed": result.missed,
        "runs": result.runs,
        "runs_with_missed": result.runs_with_missed,
        "degree": result.degree,
        "cpu_s": row.cpu_s,
        "original_missed": CHURN_BASELINE.get((scenario.nodes, scenario.killed, scenario.wait_s)),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="sizes of swarms")
    parser.add_argument("--seeds", type=int, help="how many; the original's four by default")
    parser.add_argument("--loss", type=float, default=0.0, help="share of messages that vanish")
    parser.add_argument("--large", action="store_true", help=f"also {LARGE_NODES} nodes, one seed")
    parser.add_argument("--no-churn", action="store_true", help="no mass failures")
    parser.add_argument("--quick", action="store_true", help="few rounds, one seed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run everything, print it as it comes, and fail if a message was missed without loss."""
    options = parse(arguments)
    seeds = CI_SEEDS if options.seeds is None else tuple(range(options.seeds))
    if options.quick:
        seeds = seeds[:1]
    say: Callable[[str], None] = (
        (lambda _: None) if options.json else lambda text: print(text, flush=True)
    )
    rows: list[Row] = []
    churn_rows: list[ChurnRow] = []
    started_s = time.monotonic()
    with ProcessPoolExecutor(options.jobs, initializer=end_with_parent) as pool:
        wanted = [
            (each, seeds) for each in scenarios(options.nodes, options.loss, quick=options.quick)
        ]
        if options.large:
            wanted += [
                (each, seeds[:1]) for each in scenarios([LARGE_NODES], options.loss, quick=False)
            ]
        runs = [
            (each, [pool.submit(measure, each, seed) for seed in those]) for each, those in wanted
        ]
        failures = [] if options.no_churn or options.loss else list(churns(options.nodes))
        churn_runs = [pool.submit(measure_churn, each, seeds) for each in failures]
        say(f"seeds {', '.join(map(str, seeds))}; ours/the original's\n\n{HEADER}")
        for _, futures in runs:
            parts = [future.result() for future in futures]
            rows.append(
                Row(merge([part.result for part in parts]), sum(part.cpu_s for part in parts))
            )
            say(text_of(rows[-1]))
        for churn_run in churn_runs:
            churn_rows.append(churn_run.result())
            say(churn_text_of(churn_rows[-1]))
    missed = sum(row.result.missed for row in rows)
    say(f"\n{missed} missed in all scenarios; {time.monotonic() - started_s:.0f} s")
    if options.json:
        data = {
            "seeds": list(seeds),
            "scenarios": [data_of(row) for row in rows],
            "churn": [churn_data_of(row) for row in churn_rows],
        }
        print(json.dumps(data, indent=2))
    return 1 if missed and not options.loss else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
