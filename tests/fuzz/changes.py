"""What the loader does to a node, as data: for the model here, for the kernel in kernel.py, for a replay."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.model.conntrack import Flow
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.programs import Model
from tests.fuzz.model.world import Endpoint, Failsafe, Peer, Policy


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
class PutBlock:
    """A prefix has a number, or another one, by which policies know the addresses in it."""

    network: bytes
    length: int
    number: int

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.put_block(self.network, self.length, self.number)


@dataclass(frozen=True, slots=True)
class RemoveBlock:
    """A prefix loses its number."""

    network: bytes
    length: int

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.remove_block(self.network, self.length)


@dataclass(frozen=True, slots=True)
class PutHostPolicy:
    """The node itself comes under a subject's policy, 0: under none."""

    subject: int

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.host_subject = self.subject


@dataclass(frozen=True, slots=True)
class PutFailsafe:
    """The ports that no host policy closes."""

    ports: frozenset[Failsafe]

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.failsafe = self.ports


@dataclass(frozen=True, slots=True)
class Exclude:
    """The destinations that pods reach with their own addresses."""

    prefixes: tuple[tuple[bytes, int], ...]

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.excluded = self.prefixes


@dataclass(frozen=True, slots=True)
class Watch:
    """Somebody reads events, or no more; with ``trace`` those of flows that begin and end, too."""

    events: bool
    trace: bool = False

    def apply(self, model: Model) -> None:
        """To the model."""
        model.world.wants_events, model.world.wants_trace = self.events, self.trace


@dataclass(frozen=True, slots=True)
class Backlog:
    """An endpoint with a rate has sent so much that its next packet would have to wait ``seconds``."""

    ifindex: int
    seconds: float

    def apply(self, model: Model) -> None:
        """The model asks the kernel, whose clock it is."""


@dataclass(frozen=True, slots=True)
class Forget:
    """The table of translations, which is an LRU, forgets one of a flow's two entries."""

    flow: Tuple5
    port: int
    is_original: bool

    def apply(self, model: Model) -> None:
        """To the model."""
        model.masquerade.forget(self.flow, self.port, is_original=self.is_original)


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
        model.masquerade.collect()


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
    PutEndpoint
    | RemoveEndpoint
    | PutPolicy
    | RemovePolicy
    | PutPeer
    | RemovePeer
    | PutBlock
    | RemoveBlock
    | PutHostPolicy
    | PutFailsafe
    | Exclude
    | Watch
    | Backlog
    | Forget
    | Expire
    | Collect
    | Purge
)
