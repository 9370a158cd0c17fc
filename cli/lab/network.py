"""How the nodes of a lab are connected: said once, when the lab is made, and remembered in its directory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cli.errors import BadInput, CliError

Routing: TypeAlias = Literal["tunnel", "native"]

_IPV6 = Path("/proc/sys/net/ipv6")
_SETTING = re.compile(r"FIMBRIA_[A-Z0-9_]+")
# What a lab gives its loaders in any case, so that two labs never meet and the options mean what they say.
_OWN = re.compile(
    r"FIMBRIA_(LISTEN|INSTANCE|(READY|TRACE)_FILE|NODE_(NAME|IPV[46])|(STATE|PIN|CACHE|SOURCE)_DIR|BPFFS"
    r"|CNI_(SOCKET|QUEUE)|\w+_TARGET|POOL|ROUTING_MODE|ENDPOINT_ROUTES|MASQUERADE)"
)


@dataclass(frozen=True)
class Network:
    """The options of a lab's network."""

    routing: Routing = "tunnel"
    endpoint_routes: bool = False
    masquerade: bool = True
    ipv6: bool = True
    """Nodes and pods have IPv6 beside IPv4."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """More settings of the loaders, by variable; a service is given those that begin with its name."""

    @property
    def families(self) -> tuple[int, ...]:
        """IP versions of nodes and pods, 4 first."""
        return (4, 6) if self.ipv6 else (4,)

    @property
    def environ(self) -> dict[str, str]:
        """What the loaders are told."""
        return {
            "FIMBRIA_ROUTING_MODE": self.routing,
            "FIMBRIA_ENDPOINT_ROUTES": str(self.endpoint_routes).lower(),
            "FIMBRIA_MASQUERADE": str(self.masquerade).lower(),
            **self.settings,
        }

    def node_labels(self, node: str) -> list[str]:
        """The labels by which policies select a node, as its loader makes them of its settings."""
        given = [label.strip() for label in self.settings.get("FIMBRIA_NODE_LABELS", "").split(",")]
        labels = dict(label.split("=", 1) for label in given if "=" in label)
        return [f"k8s:{key}={value}" for key, value in ({"kubernetes.io/hostname": node} | labels).items()]

    def stored(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self) | {"settings": dict(self.settings)}


@dataclass(frozen=True)
class Asked:
    """The options that `lab up` was given; None is for those that it was not."""

    routing: Routing | None = None
    endpoint_routes: bool | None = None
    masquerade: bool | None = None
    ipv6: bool | None = None
    settings: Mapping[str, str] | None = None

    @property
    def given(self) -> dict[str, Any]:
        told = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in told.items() if value is not None}


def parse_settings(texts: Sequence[str]) -> dict[str, str] | None:
    """`FIMBRIA_NAME=VALUE` strings -> settings; None for none. BadInput for those that are the lab's own."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _SETTING.fullmatch(name):
            raise BadInput(
                f"--set {text!r} is not valid: expected FIMBRIA_NAME=VALUE, as in docs/settings.md"
            )
        if _OWN.fullmatch(name):
            raise BadInput(f"--set {text!r} is not valid: a lab sets {name} itself")
        settings[name] = value
    return settings or None


def of_state(state: Mapping[str, Any]) -> Network:
    """The network of a lab, as its state file tells."""
    if "network" not in state:
        # Made before there were options, and without IPv6.
        return Network(ipv6=False)
    known = {each.name for each in dataclasses.fields(Network)}
    return Network(**{name: value for name, value in state["network"].items() if name in known})


def choose(state: Mapping[str, Any] | None, asked: Asked) -> Network:
    """The network of a lab that is started: a new one as asked for, one that exists as it is.

    Raises BadInput (NETWORK_DIFFERS) when an existing one is asked to be another, CliError (IPV6_MISSING)
    when IPv6 is asked for and the kernel has none; where nobody asked, the lab then does without.
    """
    if state is None:
        chosen = Network(**asked.given)
        if chosen.ipv6 and not _IPV6.exists():
            if asked.ipv6:
                raise CliError(
                    "this kernel has no IPv6",
                    reason="IPV6_MISSING",
                    hint="say --ipv4-only, or boot with IPv6",
                )
            chosen = dataclasses.replace(chosen, ipv6=False)
        return chosen
    present = of_state(state)
    for name, value in asked.given.items():
        had = getattr(present, name)
        if had != value:
            raise BadInput(
                f"the lab's network has {name} {_shown(had)}, not {_shown(value)}: a lab keeps what it has",
                reason="NETWORK_DIFFERS",
                hint="`fimbria lab down` first",
            )
    return present


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in sorted(value.items())) or "none"
    return str(value)
