"""What the loader's core needs of the world: the kernel's datapath, its network devices, the three
services.

The core is written against these; :mod:`services.loader.kernel` and :mod:`services.loader.clients` are the
real ones, and a fake of each is a few dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec
from services.loader.ipcache.table import Changes, Meaning
from services.loader.policy.entries import EntryKey, EntryValue
from services.loader.policy.plan import Realized


class DatapathError(Exception):
    """The kernel refused a write or a load; the message names the operation and the kernel's words.

    ``metadata`` holds what is known besides, for a client's ErrorInfo.
    """

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class DatapathRefused(DatapathError):
    """The programs do not compile, the verifier refuses them, or a pinned map cannot become what they need:
    nothing has changed, and trying again does not help (FAILED_PRECONDITION, DATAPATH_UNAVAILABLE).
    """


class MapNotFound(DatapathError):
    """There is no map of that name (NOT_FOUND, MAP_NOT_FOUND); metadata: map."""


class MapNotResizable(DatapathError):
    """The programs count on the map's size (FAILED_PRECONDITION, MAP_NOT_RESIZABLE); metadata: map."""


class MapSizeInvalid(DatapathError):
    """No map can have that size (INVALID_ARGUMENT, MAP_SIZE_INVALID); metadata: map, max_entries."""


class MapTooSmall(DatapathError):
    """What the map holds would not fit (FAILED_PRECONDITION, MAP_TOO_SMALL); metadata: map, entries,
    max_entries.
    """


class MapHasNoEntries(DatapathError):
    """The map's type has no elements to list (FAILED_PRECONDITION, MAP_HAS_NO_ENTRIES); metadata: map."""


@dataclass(frozen=True, slots=True)
class SubjectHead:
    """A subject's row without its entries; ``audit_enforced`` by direction."""

    instance: int
    epoch: int
    revision: int
    ingress_enforced: bool
    egress_enforced: bool
    audit_enforced: tuple[bool, bool] = (False, False)


@dataclass(frozen=True, slots=True)
class EntryCount:
    """A policy-map entry as it is in the kernel, with what it has decided."""

    key: EntryKey
    value: EntryValue
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AttachedEndpoint:
    """An endpoint's row in the kernel; ``rate`` in bytes/s, 0 for no limit."""

    ifindex: int
    endpoint_id: int
    identity: int
    subject: int
    ipv4: str
    host_mac: str
    pod_mac: str
    ipv6: str = ""
    rate: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)


class ReportKind(StrEnum):
    """Why the datapath reported a packet: it dropped it, asked a policy about it, or traces flows."""

    DROP = "drop"
    VERDICT = "verdict"
    TRACE = "trace"


class Verdict(StrEnum):
    """What became of a packet. AUDIT: it passed although a policy denies it."""

    FORWARDED = "forwarded"
    DROPPED = "dropped"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class PacketReport:
    """What the datapath said of one packet.

    ``time_ns`` is on CLOCK_MONOTONIC; ``reason`` names why it was dropped, or would have been but for audit
    mode, else it is empty; ``direction`` is 0 for ingress and 1 for egress; ``family`` is 4, 6, or 0 where
    the packet was neither. Of a trace, ``point`` is where the packet goes ("to-endpoint", "to-overlay",
    "to-host", "to-network") and ``state`` what it is to its flow ("new", "related", "closing"); else
    both are empty. ``length`` is in bytes with the Ethernet header; ``packet`` is its first 96 bytes or less.
    """

    time_ns: int
    kind: ReportKind
    verdict: Verdict
    reason: str
    reason_code: int
    direction: int
    family: int
    protocol: int
    source: str
    source_port: int
    source_identity: int
    destination: str
    destination_port: int
    destination_identity: int
    rule_cookie: int
    policy_revision: int
    tcp_flags: int
    endpoint_id: int
    location: str
    point: str
    state: str
    length: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class TrackedConnection:
    """A conntrack entry as its initiator sees it; ``expires_in`` in seconds."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int
    expires_in: float
    closing: bool


@dataclass(frozen=True, slots=True)
class ProgramAttachment:
    """One place where a program runs. ``hook``: "ingress", "egress", "xdp", "netkit-primary" or
    "netkit-peer"; ``kind``, what holds it there: "tcx", "clsact", "xdp-native", "xdp-generic" or "netkit".
    """

    device: str
    hook: str
    kind: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program. ``instructions`` as the verifier left them; ``memory_bytes`` is what the kernel
    charges for it; ``load_time`` in seconds since 1970.
    """

    name: str
    id: int
    tag: str
    verified_insns: int
    devices: tuple[str, ...]
    instructions: int = 0
    memory_bytes: int = 0
    load_time: float = 0.0
    attachments: tuple[ProgramAttachment, ...] = ()


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map; ``entries`` is None where nobody counts them.

    ``flags`` are BPF_F_…; ``memory_bytes`` is what the kernel charges for it; ``resized``: a setting or an
    operator gave it its size, not the programs.
    """

    name: str
    type: str
    max_entries: int
    entries: int | None
    id: int = 0
    key_size: int = 0
    value_size: int = 0
    flags: int = 0
    memory_bytes: int = 0
    resized: bool = False

    @property
    def pressure(self) -> float | None:
        """Entries as a share of max_entries, 0 to 1; None where they are not counted."""
        return None if self.entries is None or not self.max_entries else self.entries / self.max_entries


@dataclass(frozen=True, slots=True)
class StrayPin:
    """A pin that nothing in force needs: ``kind`` is "pin", "link" or "map"; ``path`` is relative to the
    node's directory.
    """

    kind: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class MapRow:
    """One element of a map: its bytes, of a per-CPU map one value after the other, and both as JSON by field
    names, "" where the map has no type information.
    """

    key: bytes
    value: bytes
    key_json: str = ""
    value_json: str = ""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did: the programs in force, how many endpoint devices run them, seconds in all and for
    switching the devices, the maps whose content moved. ``unchanged``: nothing had to be loaded.
    """

    programs: tuple[ProgramInfo, ...]
    endpoints: int
    seconds: float
    attach_seconds: float
    migrated_maps: tuple[str, ...] = ()
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class TrafficCount:
    """Packets and bytes of one reason and direction."""

    reason: str
    reason_code: int
    direction: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a round of conntrack garbage collection did."""

    seen: int
    removed: int


class IdentityBarrier(Protocol):
    """Knows how far the cluster's nodes have come."""

    async def wait(self, identity_revision: int, seconds: float) -> bool:
        """Whether every connected node's policy maps know the identities of a revision in time. Never
        raises.
        """


class PolicyKernel(Protocol):
    """Policy entries and subject rows. Every method raises DatapathError; a single put, delete or row is
    atomic.
    """

    def put_policy(self, instance: int, entries: Iterable[tuple[EntryKey, EntryValue]]) -> None:
        """Adds or replaces entries."""

    def delete_policy(self, instance: int, keys: Iterable[EntryKey]) -> None:
        """Removes entries; those that are not there are passed over."""

    def policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        """Every entry, by instance."""

    def walk_policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        """As :meth:`policy`, for a thread: entries that are written meanwhile may be among them or not."""

    def policy_counts(self, instance: int) -> list[EntryCount]:
        """One instance's entries with their counters."""

    def put_subject(self, subject: int, realized: Realized) -> None:
        """Puts a subject's policy into force."""

    def delete_subject(self, subject: int) -> None:
        """Removes a subject's row; its endpoints pass nothing from then on."""

    def subjects(self) -> dict[int, SubjectHead]:
        """Every subject's row."""

    def holds(self, subject: int, realized: Realized) -> bool:
        """Whether the subject's row is what :meth:`put_subject` would write."""


class PrefixKernel(Protocol):
    """The prefixes that policies know addresses by, whoever has them. Every method raises DatapathError."""

    def write_prefixes(self, puts: Mapping[str, int], deletes: Iterable[str]) -> None:
        """Adds or replaces numbers, and removes prefixes; those that are not there are passed over."""

    def prefixes(self) -> dict[str, int]:
        """Every number, by prefix."""

    def walk_prefixes(self) -> dict[str, int]:
        """As :meth:`prefixes`, for a thread: those that are written meanwhile may be among them or not."""


class IpcacheKernel(Protocol):
    """The ipcache. Every method raises DatapathError."""

    def write_ipcache(self, changes: Changes) -> None:
        """Adds, replaces and removes entries."""

    def ipcache(self) -> dict[str, Meaning]:
        """Every entry, by prefix."""

    def walk_ipcache(self) -> dict[str, Meaning]:
        """As :meth:`ipcache`, for a thread: entries that are written meanwhile may be among them or not."""


class EndpointKernel(Protocol):
    """Endpoint rows and the programs on their devices. Every method raises DatapathError."""

    def attach(self, record: EndpointRecord) -> None:
        """Writes the endpoint's rows and attaches the programs to its device; again is fine, and never
        unhooks a device meanwhile.
        """

    def update(self, record: EndpointRecord) -> None:
        """Writes the endpoint's rows alone, for a new identity or subject."""

    def detach(self, ifindex: int, ipv4: str, ipv6: str = "") -> None:
        """Removes the endpoint's rows and programs; what is not there is passed over."""

    def attached(self) -> list[AttachedEndpoint]:
        """Every endpoint row."""

    def unhooked(self) -> frozenset[int]:
        """Interface indexes of endpoint rows whose device does not run the programs in force, or that are not
        found by device and addresses. Asks the kernel for each device: for a thread.
        """


class Datapath(PolicyKernel, PrefixKernel, IpcacheKernel, EndpointKernel, Protocol):
    """All of the node's kernel state."""

    def node_unhooked(self) -> list[str]:
        """Which of the node's own devices do not run a program that they should, in words. For a thread, as
        :meth:`unhooked`.
        """

    def reload(self, *, rebuild: bool) -> ReloadReport:
        """Loads the programs and moves every device of the node to them, those of endpoints too; with
        ``rebuild`` they are compiled anew even if the cache has them. Blocks other writes meanwhile: for a
        thread. Raises DatapathError; DatapathRefused where the programs do not compile or the verifier
        refuses them. After a failure every device has the programs that it had before.
        """

    def resize_map(self, name: str, max_entries: int) -> MapInfo:
        """Gives a map another size with what it holds, under traffic; 0: the size that the programs declare.
        The size outlives the process. As long and as blocking as :meth:`reload`. Raises MapNotFound,
        MapNotResizable, MapSizeInvalid, MapTooSmall, or DatapathError; then all is as it was.
        """

    def map_entries(self, name: str, limit: int) -> Iterator[MapRow]:
        """What a map holds, in no order; at most ``limit`` elements, 0 for all. Elements that come or go
        meanwhile may be among them or not. Raises MapNotFound, MapHasNoEntries or DatapathError before the
        first element; walking it may take long: for a thread.
        """

    def stray_pins(self, devices: Collection[str]) -> list[StrayPin]:
        """Pins that nothing in force needs, but for those of these devices and of the node's own. For a
        thread.
        """

    def remove_stray_pin(self, stray: StrayPin) -> None:
        """Removes what :meth:`stray_pins` has found. Raises OSError."""

    def collect_connections(self) -> Collected:
        """Removes expired connections. May take long: for a thread."""

    def connections(self, limit: int) -> tuple[list[TrackedConnection], int]:
        """At most ``limit`` connections, and how many there are."""

    def programs(self) -> list[ProgramInfo]:
        """Loaded programs."""

    def maps(self, *, count: bool = True) -> list[MapInfo]:
        """Maps; with ``count`` their entries are counted, which takes milliseconds for large ones."""

    def traffic(self) -> list[TrafficCount]:
        """Packets and bytes by reason and direction."""

    def lost_events(self) -> int:
        """How many events found the ring buffer full."""

    def open_events(self, callback: Callable[[PacketReport], None]) -> EventSource:
        """Starts to read events; the callback runs within :meth:`EventSource.consume`."""

    def close(self) -> None:
        """Lets go of everything; what is pinned stays and forwards."""


class EventSource(Protocol):
    """The ring buffer's reading end."""

    def fileno(self) -> int:
        """Becomes readable when there are events; of those that come at once, only the first makes it so."""

    def consume(self, limit: int) -> int:
        """Hands what there is to the callback, at most so many; returns how many that were. Raises what the
        callback raises.
        """

    def trace(self, wanted: bool) -> None:
        """Lets the datapath report flows that begin and end too, or no more. Raises DatapathError."""

    def close(self) -> None:
        """Ends reading."""


@dataclass(frozen=True, slots=True)
class EndpointLink:
    """An endpoint's veth pair; MACs ``aa:bb:cc:dd:ee:ff``. ``default_routes`` has the IP versions whose
    default route leads through it.
    """

    ifindex: int
    host_mac: str
    pod_mac: str
    mtu: int
    default_routes: tuple[int, ...] = (4, 6)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster: its underlay addresses, and those of its pods and of its router. A family that
    it does not have is empty.
    """

    name: str
    ipv4: str
    pod_cidrs: tuple[str, ...]
    router_ipv4: str
    ipv6: str = ""
    router_ipv6: str = ""


class NodeLinks(Protocol):
    """The node's network devices. The methods are quick to call and do their work elsewhere."""

    async def prepare_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> None:
        """Makes the pair of devices, for which it needs no address yet, the node's side down. Raises
        FimbriaError.
        """

    async def create_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> EndpointLink:
        """Gives a pair that is prepared its addresses and routes. Raises FimbriaError; nothing is left of a
        failure.
        """

    async def open_endpoint_link(self, record: EndpointRecord) -> None:
        """Brings the node's side up, and makes the node's routes to the endpoint if it is to have any.
        Raises FimbriaError.
        """

    async def delete_endpoint_link(self, device: str) -> None:
        """Removes the pair; one that is not there is fine."""

    async def check_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> list[str]:
        """What is not as it was made, in words."""

    async def endpoint_links(self) -> Mapping[str, int]:
        """Name and interface index of every endpoint device on the node."""

    async def sync_endpoint_routes(self, records: Sequence[EndpointRecord]) -> None:
        """Makes the routes to these endpoints and removes those to others; where endpoints have none, all of
        them. Raises FimbriaError.
        """

    async def list_endpoint_routes(self) -> list[tuple[int, str]]:
        """Interface index and address of every route to an endpoint."""

    async def delete_endpoint_route(self, ifindex: int, address: str) -> None:
        """Removes a route to an endpoint, with the neighbour entry; one that is not there is fine."""

    async def set_own(self, own: Node) -> None:
        """These are the node's own pod CIDRs from now on, and they are routed when this returns. Those that
        it has no longer are until the next :meth:`set_remote_nodes`. Raises FimbriaError.
        """

    async def set_remote_nodes(self, nodes: Sequence[Node]) -> None:
        """Routes the pod CIDRs of these nodes, and of no others. Raises FimbriaError."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What IPAM gave to an endpoint: an address of each family that node and pool have, the others are empty.
    ``created_ns`` is when it did, in nanoseconds since the epoch by its clock.
    """

    ipv4: str
    router_ipv4: str
    ipv6: str = ""
    router_ipv6: str = ""
    created_ns: int = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)


@dataclass(frozen=True, slots=True)
class ResolvedIdentity:
    """A label set's number, and the revision at which it was made."""

    id: int
    revision: int


@dataclass(frozen=True, slots=True)
class UseReport:
    """What the identity service answers to a report of use: for how long it is good, the reported numbers
    that there are not, and the revision of the label filter.
    """

    lease_seconds: float
    unknown: frozenset[int]
    filter_revision: int


class AddressClient(Protocol):
    """IPAM's addresses. Methods raise FimbriaError."""

    async def allocate(self, spec: EndpointSpec) -> Allocation:
        """Addresses for the endpoint's owner; the same again for the same owner."""

    async def release(self, owner: str, created_ns: int = 0) -> None:
        """Gives the owner's addresses back; with ``created_ns`` those of that allocation alone: another one
        that the owner has by now is left to it.
        """

    async def held(self) -> Mapping[str, tuple[str, ...]]:
        """All addresses that are held on this node, by owner."""


class IdentityClient(Protocol):
    """Identities and the cluster's ipcache. Methods raise FimbriaError."""

    async def resolve(self, labels: Sequence[str]) -> ResolvedIdentity:
        """The number of a label set, which this node uses from then on."""

    async def report(self, identities: Sequence[int]) -> UseReport:
        """Says that this node uses these identities, and no others."""

    async def labels(self, identity: int) -> tuple[str, ...]:
        """The labels of a number."""

    async def publish(self, records: Sequence[EndpointRecord], *, replace: bool = False) -> int:
        """Tells the cluster of endpoints; with ``replace`` there are no others here. Returns the feed's
        revision.
        """

    async def withdraw(self, prefixes: Sequence[str]) -> None:
        """Takes prefixes back."""

    async def published_here(self) -> Mapping[str, str]:
        """Every prefix that this node has published, with its owner's name."""
