"""Measures every figure and writes docs/benchmarks.md: `python -m tests.bench`.

Takes some eleven minutes on two cores and wants the machine for itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
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
from tests.bench.report import Section, Table, render, updated
from tests.bench.scale import replicas, unary
from tests.bench.scale_growth import growth as address_growth
from tests.bench.scale_watch import watches
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


def scale(directory: Path) -> Mapping[str, Section]:
    """IPAM and identity under many callers and with many addresses."""
    # Each service's socket and store are in the directory: a new one each time.
    found: list[Figure] = []
    for line, measure in (("many callers", unary), ("replicas", replicas), ("watches", watches)):
        _tell(line)
        base = directory / line.replace(" ", "-")
        base.mkdir()
        found += measure(base)
    _tell("more and more addresses")
    grown, memory = address_growth(directory)
    return {"IPAM and identity under load": [*found, *memory], "IPAM, by addresses in use": grown}


def _one(title: str, measure: Callable[[Path], Section]) -> Callable[[Path], Mapping[str, Section]]:
    """A part of the run that makes one section."""
    return lambda directory: {title: measure(directory)}


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the sections asked for; returns the exit code."""
    parts: dict[str, Callable[[Path], Mapping[str, Section]]] = {
        "control": _one("Control plane", control_plane),
        "scale": scale,
        "engine": _one("Policy engine", policy_engine),
        "growth": _one("Policy engine, by identities", policy_growth),
        "policy": _one("Many policies", many_policies),
        "loader": _one("Loader", many_endpoints),
        "cost": _one("Cost per packet", cost),
        "traffic": _one("Traffic", traffic),
    }
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(parts), help="measure this part and print it only")
    parser.add_argument(
        "--update", action="store_true", help="with --only: replace this part of the page, leave the others"
    )
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root: it makes network namespaces and loads BPF", file=sys.stderr)
        return 2
    found: dict[str, Section] = {}
    with tempfile.TemporaryDirectory(prefix="fimbria-bench-") as directory:
        for key, measure in parts.items():
            if given.only in (None, key):
                base = Path(directory) / key
                base.mkdir()
                found |= measure(base)
    page = render(found)
    print(page)
    if given.only is None:
        _PAGE.write_text(page)
    elif given.update:
        _PAGE.write_text(updated(_PAGE.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
