"""Which cluster the CLI talks to: the one that the environment names, else the lab in a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import BadInput, ServiceUnavailable
from cli.lab.files import read_json
from cli.lab.paths import CLUSTER_SERVICES, DEFAULT_DIRECTORY, LabPaths

_VARIABLES = {service: f"FIMBRIA_{service.upper()}_TARGET" for service in CLUSTER_SERVICES}
_LOADERS = "FIMBRIA_LOADER_TARGETS"


@dataclass(frozen=True)
class Targets:
    """gRPC targets of a cluster: one for each service, one for each node's loader.

    A service's target may have the addresses of several replicas: `ipv4:10.0.0.1:4001,10.0.0.2:4001`.
    """

    services: Mapping[str, str]
    loaders: Mapping[str, str] = field(default_factory=dict)
    trace_file: Path | None = None
    """The lab's span store for the CLI's own spans."""

    def service(self, name: str) -> str:
        """Target of a cluster service; BadInput when the environment names others only."""
        if name not in self.services:
            raise BadInput(f"the address of the {name} service is not known", hint=f"set {_VARIABLES[name]}")
        return self.services[name]

    def loader(self, node: str) -> str:
        """Target of a node's loader; BadInput for a node that is not known."""
        if node not in self.loaders:
            known = ", ".join(self.loaders) or "none"
            raise BadInput(
                f"node {node!r} is not known; the cluster's nodes: {known}", reason="NODE_NOT_FOUND"
            )
        return self.loaders[node]


def lab_directory(directory: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The lab's directory: as given, else FIMBRIA_LAB_DIR, else the default."""
    return directory or environ.get("FIMBRIA_LAB_DIR") or DEFAULT_DIRECTORY


def resolve(directory: str | None = None, environ: Mapping[str, str] = os.environ) -> Targets:
    """The cluster to talk to. `directory` wins over FIMBRIA_*_TARGET, those win over the default lab.

    Raises ServiceUnavailable when there is neither, BadInput for a malformed FIMBRIA_LOADER_TARGETS.
    """
    named = {service: environ[variable] for service, variable in _VARIABLES.items() if environ.get(variable)}
    if directory is None and (named or environ.get(_LOADERS)):
        return Targets(named, _loaders(environ.get(_LOADERS, "")))
    paths = LabPaths.of(lab_directory(directory, environ))
    state = read_json(paths.state)
    if state is None:
        raise ServiceUnavailable(
            f"there is no lab in {paths.directory}",
            reason="NO_CLUSTER",
            hint=f"`fimbria lab up` starts one; another cluster is named by {', '.join(_VARIABLES.values())}",
        )
    return Targets(
        {service: paths.service_target(service, state.get("replicas", 1)) for service in CLUSTER_SERVICES},
        {node: paths.target(node) for node in state["nodes"]},
        paths.trace_file("cli"),
    )


def _loaders(text: str) -> dict[str, str]:
    loaders = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, target = part.partition("=")
        if not equals or not name or not target:
            raise BadInput(f"{_LOADERS} holds {part!r}; expected NODE=TARGET,NODE=TARGET")
        loaders[name] = target
    return loaders
