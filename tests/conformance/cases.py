"""The published cases as data: which there are, and what their actions and probes mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("netpol_cases.json")

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """One connection and what becomes of it. Ends are `namespace/name`, `@host`…, or an address."""

    source: str
    target: str
    protocol: str
    port: int
    allowed: bool

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} {self.port}/{self.protocol}"


@dataclass(frozen=True)
class Stage:
    """Actions, and the probes after them."""

    actions: Sequence[Mapping[str, Any]]
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Case:
    """A published case. The first stage's actions create its policies."""

    id: str
    description: str
    namespaces: Mapping[str, Mapping[str, str]]
    pods: Sequence[Mapping[str, Any]]
    stages: Sequence[Stage]

    @property
    def manifests(self) -> Iterator[Manifest]:
        """Every policy that the case creates at some time."""
        for stage in self.stages:
            for action in stage.actions:
                if action["action"] in ("create_policy", "update_policy"):
                    yield action["policy"]


def _probe(data: Mapping[str, Any]) -> Probe:
    return Probe(data["from"], data["to"], data["proto"], data["port"], data["expect"] == "allow")


def _case(data: Mapping[str, Any]) -> Case:
    first = Stage(
        [{"action": "create_policy", "policy": policy} for policy in data["policies"]],
        [_probe(probe) for probe in data["probes"]],
    )
    steps = [
        Stage(step["actions"], [_probe(probe) for probe in step["probes"]]) for step in data.get("steps", [])
    ]
    namespaces = {name: space["labels"] for name, space in data["namespaces"].items()}
    return Case(data["id"], data["description"], namespaces, data["pods"], [first, *steps])


@cache
def cases(prefix: str) -> tuple[Case, ...]:
    """The cases whose id begins with `prefix`."""
    return tuple(_case(data) for data in json.loads(_FILE.read_text()) if data["id"].startswith(prefix))


def ip_blocks(manifest: Manifest) -> list[str]:
    """Field paths of the peers that select by CIDR, which is not supported yet."""
    found = []
    for direction, end in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(manifest["spec"].get(direction) or []):
            for j, peer in enumerate(rule.get(end) or []):
                if "ipBlock" in peer:
                    found.append(f"spec.{direction}[{i}].{end}[{j}].ipBlock")
    return found
