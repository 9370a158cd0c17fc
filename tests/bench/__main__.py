"""Measures every figure and writes docs/benchmarks.md: `python -m tests.bench`.

Takes some six minutes on two cores and wants the machine for itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bench import fimbria
from tests.bench.cni import Plugin, call, ptp
from tests.bench.cost import costs, table
from tests.bench.figures import Figure, median, percentile
from tests.bench.loader import loader
from tests.bench.namespaces import namespaces
from tests.bench.policy import policies
from tests.bench.policy_engine import engine, growth
from tests.bench.report import Table, render
from tests.bench.traffic_figures import traffic

_PAUSE_SECONDS = 0.03
_PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def control_plane(directory: Path) -> list[Figure]:
    """Start, CNI, policy, memory."""
    _tell("lab up")
    starts = [fimbria.lab_up_seconds(directory / f"up-{number}") for number in range(5)]
    figures = [
        Figure("lab up, two nodes", median(starts), "s", goal="<= 5 s", met=median(starts) <= 5),
    ]
    with fimbria.lab(directory / "lab") as lab:
        fimbria.pods(lab)
        lab.run("shop/web", node="node-1", labels=["app=web"])
        lab.run("shop/client", node="node-2", labels=["app=client"])
        _tell("CNI ADD and DEL")
        figures += _cni(fimbria.plugin(lab, "node-1"), directory)
        setup = fimbria.endpoint_setup_ms(lab, "node-1")
        for label, value, most in (
            ("p50", median(setup), 1.0),
            ("p99", percentile(setup, 0.99), 5.0),
        ):
            figures.append(
                Figure(
                    f"endpoint datapath set-up {label} (map writes and attachment)",
                    value,
                    "ms",
                    goal=f"<= {most:g} ms",
                    met=value <= most,
                    note=f"from the spans of {len(setup)} ADDs",
                )
            )
        _tell("policy apply")
        applied = fimbria.policy_apply_ms(lab, 60)[10:]
        figures.append(
            Figure(
                "policy apply to enforced on both nodes p50",
                median(applied),
                "ms",
                goal="<= 20 ms",
                met=median(applied) <= 20,
                note=f"p99 {percentile(applied, 0.99):.1f} ms over {len(applied)} changes of a policy",
            )
        )
        for name, resident in fimbria.resident_mb(lab).items():
            figures.append(
                Figure(f"resident memory, {name}", resident, "MB", goal="<= 120 MB", met=resident <= 120)
            )
    return figures


def _cni(ours: Plugin, directory: Path, rounds: int = 60) -> list[Figure]:
    known = replace(ours, config=lambda _number: ours.config(0))
    suffixes = [f"{who}{number}" for number in range(rounds) for who in ("a", "b", "c")]
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    with namespaces("node", *suffixes) as (node, *netns):
        plugins = {"new": ours, "known": known, "peer": ptp(node, directory / "host-local")}
        for command in ("ADD", "DEL"):
            for number in range(rounds):
                for place, (who, plugin) in enumerate(plugins.items()):
                    each = place * rounds + number
                    samples[command, who].append(call(plugin, command, each, netns[3 * number + place]))
                    # What one does after its answer is not to be in the way of the next.
                    time.sleep(_PAUSE_SECONDS)
    figures = []
    for command in ("ADD", "DEL"):
        for who, labels in (("known", "labels that the node knows"), ("new", "new labels")):
            for label, q in (("p50", 0.5), ("p99", 0.99)):
                value, theirs = (percentile(samples[command, each], q) for each in (who, "peer"))
                goal = "<= 1 x peer" if (command, label) == ("ADD", "p50") else None
                figures.append(
                    Figure(
                        f"CNI {command} {label}, {labels}",
                        value,
                        "ms",
                        theirs,
                        "ptp + host-local",
                        goal,
                        value <= theirs if goal else None,
                    )
                )
    return figures


def many_endpoints(directory: Path) -> list[Figure]:
    """A node with many endpoints."""
    _tell("a node with many endpoints")
    return loader(directory)


def cost(directory: Path) -> Table:
    """What each program takes for a packet."""
    _tell("cost per packet")
    return table(costs(directory))


def policy_engine(directory: Path) -> list[Figure]:
    """The policy engine alone."""
    _tell("policy engine")
    return engine(directory)


def policy_growth(directory: Path) -> Table:
    """The policy engine by the number of identities."""
    _tell("policy engine, more and more identities")
    return growth(directory)


def many_policies(directory: Path) -> list[Figure]:
    """The lab with many policies."""
    _tell("a lab with many policies")
    return policies(directory)


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the sections asked for; returns the exit code."""
    sections: dict[str, tuple[str, Callable[[Path], list[Figure] | Table]]] = {
        "control": ("Control plane", control_plane),
        "engine": ("Policy engine", policy_engine),
        "growth": ("Policy engine, by identities", policy_growth),
        "policy": ("Many policies", many_policies),
        "loader": ("Loader", many_endpoints),
        "cost": ("Cost per packet", cost),
        "traffic": ("Traffic", traffic),
    }
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(sections), help="measure this section and print it only")
    only = parser.parse_args().only
    if os.geteuid() != 0:
        print("bench: needs root: it makes network namespaces and loads BPF", file=sys.stderr)
        return 2
    found: dict[str, list[Figure] | Table] = {}
    with tempfile.TemporaryDirectory(prefix="fimbria-bench-") as directory:
        for key, (title, measure) in sections.items():
            if only in (None, key):
                base = Path(directory) / key
                base.mkdir()
                found[title] = measure(base)
    page = render(found)
    print(page)
    if only is None:
        _PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
