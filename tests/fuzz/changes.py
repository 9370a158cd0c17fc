"""What the loader does to a node, as data: for the model here, for the kernel in kernel.py, for a replay."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.model.conntrack import Flow
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.programs import Model
from tests.fuzz.model.world import Endpoint, Peer, Policy


@dataclass(frozen=True, slots=True)
class PutEndpoint:
    """A new endpoint on a device, or other content for the one it has."""

    endpoint: Endpoint

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.put_endpoint(self.endpoint)


@dataclass(frozen=True, slots=True)
class RemoveEndpoint:
    """The endpoint of a device goes."""

    endpoint: Endpoint

    def apply(self, model: Model) -> None:
        """To the model."""
        if self.endpoint.ifindex in model.world.devices:
            model.world.remove_endpoint(self.endpoint.ifindex)


@dataclass(frozen=True, slots=True)
class PutPolicy:
    """A subject comes under a policy, which is in the map as ``instance``."""

    subject: int
    instance: int
    policy: Policy

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.policies[self.subject] = self.policy


@dataclass(frozen=True, slots=True)
class RemovePolicy:
    """A subject's row goes."""

    subject: int

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.policies.pop(self.subject, None)


@dataclass(frozen=True, slots=True)
class PutPeer:
    """An ipcache entry, new or changed."""

    network: bytes
    length: int
    peer: Peer

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.put_peer(self.network, self.length, self.peer)


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """An ipcache entry goes."""

    network: bytes
    length: int

    def apply(self, model: Model) -> None:
        """To the model."""
        if (self.network, self.length) in model.world.prefixes():
            model.world.remove_peer(self.network, self.length)


@dataclass(frozen=True, slots=True)
class Expire:
    """A flow's time is up. The kernel's clock cannot be turned: its entry is given a time in the past."""

    flow: Tuple5

    def apply(self, model: Model) -> None:
        """To the model."""
        found: Flow | None = model.conntrack.flows.get(self.flow)
        if found is not None:
            found.expired = True


@dataclass(frozen=True, slots=True)
class Collect:
    """The loader collects what has expired."""

    def apply(self, model: Model) -> None:
        """To the model."""
        flows = model.conntrack.flows
        for key in [key for key, flow in flows.items() if flow.expired]:
            del flows[key]


@dataclass(frozen=True, slots=True)
class Purge:
    """The loader removes every flow of an address."""

    address: bytes

    def apply(self, model: Model) -> None:
        """To the model."""
        flows = model.conntrack.flows
        for key in [key for key in flows if self.address in (key.source, key.destination)]:
            del flows[key]


Change = (
    PutEndpoint | RemoveEndpoint | PutPolicy | RemovePolicy | PutPeer | RemovePeer | Expire | Collect | Purge
)
