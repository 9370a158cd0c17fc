"""Random clusters around a node, and what changes in them while packets pass."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.addresses import ENDPOINTS, FAMILIES, PORTS, SUBJECTS, TUNNELS
from tests.fuzz.changes import (
    Change,
    Collect,
    Expire,
    Purge,
    PutBlock,
    PutEndpoint,
    PutPeer,
    PutPolicy,
    RemoveBlock,
    RemoveEndpoint,
    RemovePeer,
    RemovePolicy,
)
from tests.fuzz.model.parsing import ICMP, ICMPV6, SCTP, TCP, UDP
from tests.fuzz.model.programs import Model
from tests.fuzz.model.world import (
    HOST,
    REMOTE_NODE,
    WORLD,
    WORLD_IPV4,
    WORLD_IPV6,
    DirectionPolicy,
    Endpoint,
    Entry,
    Peer,
    Policy,
    Tier,
)
from tests.fuzz.node_changes import NodeChanges
from tests.fuzz.variants import Variant

IDENTITIES = (300, 301, 302, 4096, 65535)
# Of prefixes that policies name, by identity and by address.
NUMBERS = (0xFF0000, 0xFF0001, 0xFF8000, 0xFFFFFF)
OUTSIDE = (WORLD, WORLD_IPV4, WORLD_IPV6, *NUMBERS)
RATES = (0, 0, 0, 1_000_000, 125)


class Topology:
    """Makes up the start of an episode and its changes. ``devices`` are the ifindexes for endpoints."""

    def __init__(self, source: random.Random, variant: Variant, devices: tuple[int, ...]) -> None:
        self._random = source
        self._variant = variant
        self._devices = devices
        self._node = NodeChanges(source, variant)
        # Of endpoints, policy instances and epochs: never the same twice while flows may remember them.
        self._numbers = itertools.count(1)
        self._identities = source.sample(IDENTITIES, source.randrange(1, len(IDENTITIES) + 1))

    def start(self) -> list[Change]:
        """A cluster, as the changes that make it from nothing."""
        pick = self._random
        slots = pick.sample(range(ENDPOINTS), pick.randrange(2, 7))
        endpoints = [self._endpoint(device, slot) for device, slot in zip(self._devices, slots, strict=False)]
        changes: list[Change] = [PutEndpoint(endpoint) for endpoint in endpoints]
        for endpoint in endpoints:
            for address in endpoint.addresses():
                if pick.random() < 0.95:
                    changes.append(PutPeer(address, len(address) * 8, Peer(endpoint.identity)))
        for number in self._variant.families:
            changes += self._peers(number)
            changes += self._blocks(number)
        for subject in SUBJECTS:
            if pick.random() < 0.93:
                changes.append(self._policy(subject))
        changes += self._node.start()
        return changes

    def change(self, model: Model) -> list[Change]:
        """Something that happens to the cluster as ``model`` has it."""
        makers: tuple[tuple[int, Callable[[Model], Iterator[Change]]], ...] = (
            (6, self._new_policy),
            (1, self._lost_policy),
            (3, self._new_identity),
            (2, self._new_subject),
            (2, self._gone_endpoint),
            (3, self._moved_address),
            (2, self._new_endpoint),
            (4, self._new_peer),
            (2, self._gone_peer),
            (3, self._changed_block),
            (6, self._expired_flows),
            (1, self._collected),
            (1, self._purged),
            (3, self._node.host_policy),
            (1, self._node.excluded),
            (2, self._node.watched),
            (4, self._node.backlog),
            (3, self._node.forgotten),
        )
        (maker,) = self._random.choices([made for _, made in makers], [weight for weight, _ in makers])
        return list(maker(model))

    # Endpoints

    def _endpoint(self, device: int, slot: int) -> Endpoint:
        pick, families = self._random, self._variant.families
        if len(families) == 2:
            families = pick.choice(((4, 6), (4, 6), (4, 6), (4,), (6,)))
        number = next(self._numbers)
        return Endpoint(
            ifindex=device, endpoint_id=number, identity=pick.choice(self._identities),
            subject=pick.choice(SUBJECTS), rate=pick.choice(RATES),
            pod_mac=bytes((2, 0xAA, 0, 0, number >> 8 & 0xFF, number & 0xFF)),
            host_mac=bytes((2, 0xBB, 0, 0, number >> 8 & 0xFF, number & 0xFF)),
            ipv4=FAMILIES[4].local[slot] if 4 in families else None,
            ipv6=FAMILIES[6].local[slot] if 6 in families else None,
        )  # fmt: skip

    def _any_endpoint(self, model: Model) -> Endpoint | None:
        endpoints = list(model.world.devices.values())
        return self._random.choice(endpoints) if endpoints else None

    def _free(self, model: Model) -> tuple[list[int], list[int]]:
        """Devices and address numbers that no endpoint has."""
        world = model.world
        slots = [
            slot
            for slot in range(ENDPOINTS)
            if not any(FAMILIES[n].local[slot] in world.by_address for n in (4, 6))
        ]
        return [device for device in self._devices if device not in world.devices], slots

    def _new_identity(self, model: Model) -> Iterator[Change]:
        endpoint = self._any_endpoint(model)
        if endpoint is None:
            return
        changed = replace(endpoint, identity=self._random.choice(IDENTITIES))
        peers = [PutPeer(a, len(a) * 8, Peer(changed.identity)) for a in changed.addresses()]
        # The ipcache may hear of it sooner or later, or not at all within this episode.
        order: list[Change] = [PutEndpoint(changed)]
        if self._random.random() < 0.8:
            order = [*order, *peers] if self._random.random() < 0.5 else [*peers, *order]
        yield from order

    def _new_subject(self, model: Model) -> Iterator[Change]:
        endpoint = self._any_endpoint(model)
        if endpoint is not None:
            yield PutEndpoint(replace(endpoint, subject=self._random.choice(SUBJECTS)))

    def _gone_endpoint(self, model: Model) -> Iterator[Change]:
        endpoint = self._any_endpoint(model)
        if endpoint is None or len(model.world.devices) < 2:
            return
        yield RemoveEndpoint(endpoint)
        if self._random.random() < 0.5:
            for address in endpoint.addresses():
                yield Purge(address)
                yield RemovePeer(address, len(address) * 8)

    def _new_endpoint(self, model: Model) -> Iterator[Change]:
        devices, slots = self._free(model)
        if devices and slots:
            endpoint = self._endpoint(self._random.choice(devices), self._random.choice(slots))
            for address in endpoint.addresses():
                if self._random.random() < 0.9:
                    yield PutPeer(address, len(address) * 8, Peer(endpoint.identity))
            yield PutEndpoint(endpoint)

    def _moved_address(self, model: Model) -> Iterator[Change]:
        """Another endpoint has the addresses of one that is gone, or goes only after."""
        old = self._any_endpoint(model)
        devices, _ = self._free(model)
        if old is None or not devices:
            return
        slot = next(
            slot
            for slot in range(ENDPOINTS)
            if {f.local[slot] for f in FAMILIES.values()} & {*old.addresses()}
        )
        new = self._endpoint(self._random.choice(devices), slot)
        steps: list[Change] = [RemoveEndpoint(old), PutEndpoint(new)]
        # One that kept an address that the new one has not would be half a move.
        if self._random.random() < 0.3 and set(old.addresses()) <= set(new.addresses()):
            steps.reverse()
        yield from steps
        for address in new.addresses():
            if self._random.random() < 0.8:
                yield PutPeer(address, len(address) * 8, Peer(new.identity))

    # Policies

    def _new_policy(self, model: Model) -> Iterator[Change]:
        yield self._policy(self._random.choice(SUBJECTS))

    def _lost_policy(self, model: Model) -> Iterator[Change]:
        yield RemovePolicy(self._random.choice(SUBJECTS))

    def _policy(self, subject: int) -> PutPolicy:
        number = next(self._numbers)
        return PutPolicy(subject, number, Policy(number, self._direction(), self._direction()))

    def _direction(self) -> DirectionPolicy:
        pick = self._random
        if pick.random() < 0.25:
            return DirectionPolicy()
        denies, is_tried = pick.random() < 0.4, pick.random() < 0.3
        # Most subjects have none but the normal tier's entries for identities.
        is_layered = pick.random() < 0.5
        entries: dict[tuple[object, ...], Entry] = {}
        for _ in range(pick.randrange(0, 12)):
            entry = self._entry(deny=denies and pick.random() < 0.25)
            if is_layered:
                entry = self._layered(entry)
            if is_tried:
                entry = replace(entry, tried=pick.random() < 0.4)
            place = (entry.tier, entry.by_address, entry.tried)
            entries[(*place, entry.identity, entry.protocol, entry.port, entry.prefix)] = entry
        named = tuple(replace(entry, cookie=number) for number, entry in enumerate(entries.values(), 1))
        tries_to_enforce = is_tried and pick.random() < 0.5
        enforced = pick.random() < (0.6 if is_layered or is_tried else 0.85)
        return DirectionPolicy(enforced, pick.random() < 0.08, named, tries_to_enforce)

    def _layered(self, entry: Entry) -> Entry:
        """The entry in some tier, perhaps by address; the normal tier has no orders, and nothing to pass."""
        pick = self._random
        if pick.random() < 0.4:
            entry = replace(entry, identity=pick.choice(NUMBERS), by_address=True)
        tier = pick.choice((Tier.ADMIN, Tier.NORMAL, Tier.BASELINE))
        if tier is Tier.NORMAL:
            return entry
        deny, passes = pick.choice(((False, False), (True, False), (False, True)))
        order = pick.choice((0, 1, 2, 3, 1 << 30, 1000 << 16 | 7, 0xFFFFFFFF))
        return replace(entry, tier=tier, deny=deny, passes=passes, order=order)

    def _entry(self, *, deny: bool) -> Entry:
        pick = self._random
        identity = pick.choice((0, 0, *self._identities, *self._identities, HOST, *OUTSIDE, REMOTE_NODE))
        protocol = pick.choice((0, 0, TCP, TCP, UDP, UDP, SCTP, ICMP, ICMPV6))
        if not protocol:
            return Entry(identity, 0, 0, 0, deny)
        if protocol in (ICMP, ICMPV6):
            port, prefix = {ICMP: 8, ICMPV6: 128}[protocol], pick.choice((0, 16, 16, 12))
        else:
            port, prefix = pick.choice(PORTS), pick.choice((0, 16, 16, 16, pick.randrange(1, 17)))
        return Entry(identity, protocol, port & ~(0xFFFF >> prefix) & 0xFFFF, prefix, deny)

    # The ipcache

    def _peers(self, number: int) -> Iterator[Change]:
        pick, family = self._random, FAMILIES[number]
        for address in family.remote:
            if pick.random() < 0.8:
                yield PutPeer(address, family.bits, self._peer(pick.choice(self._identities)))
        yield PutPeer(family.remote_node, family.bits, Peer(REMOTE_NODE))
        yield PutPeer(family.remote_router, family.bits, self._peer(REMOTE_NODE))
        for network, length in pick.sample(family.prefixes, pick.randrange(0, 6)):
            yield PutPeer(network, length, self._random_peer())
        for address in family.other:
            if pick.random() < 0.2:
                yield PutPeer(address, family.bits, self._random_peer())

    def _peer(self, identity: int) -> Peer:
        return Peer(identity, self._random.choice(TUNNELS) if self._variant.tunnel else None)

    def _random_peer(self) -> Peer:
        pick = self._random
        identity = pick.choice((*self._identities, *OUTSIDE, REMOTE_NODE, 70000, HOST))
        # What is tunnelled carries the identity of its sender, not its own; both exist with and without.
        return self._peer(identity) if pick.random() < 0.3 and identity != HOST else Peer(identity)

    def _new_peer(self, model: Model) -> Iterator[Change]:
        pick = self._random
        family = FAMILIES[pick.choice(self._variant.families)]
        if pick.random() < 0.5:
            network, length = pick.choice(family.prefixes)
        else:
            network, length = pick.choice(family.remote + family.other + family.local), family.bits
        yield PutPeer(network, length, self._random_peer())

    def _gone_peer(self, model: Model) -> Iterator[Change]:
        known = model.world.prefixes()
        if known:
            yield RemovePeer(*self._random.choice(known))

    # Prefixes that policies know addresses by

    def _blocks(self, number: int) -> Iterator[Change]:
        pick, family = self._random, FAMILIES[number]
        for network, length in pick.sample(family.prefixes, pick.randrange(0, 6)):
            yield PutBlock(network, length, pick.choice(NUMBERS))
        for address in family.everybody():
            if pick.random() < 0.1:
                yield PutBlock(address, family.bits, pick.choice(NUMBERS))

    def _changed_block(self, model: Model) -> Iterator[Change]:
        pick = self._random
        known = model.world.blocks()
        if known and pick.random() < 0.5:
            yield RemoveBlock(*pick.choice(known))
            return
        family = FAMILIES[pick.choice(self._variant.families)]
        network, length = pick.choice([*family.prefixes, *((a, family.bits) for a in family.everybody())])
        yield PutBlock(network, length, pick.choice(NUMBERS))

    # Flows

    def _expired_flows(self, model: Model) -> Iterator[Change]:
        flows = [key for key, flow in model.conntrack.flows.items() if not flow.expired]
        for key in self._random.sample(flows, min(len(flows), self._random.randrange(1, 6))):
            yield Expire(key)

    def _collected(self, model: Model) -> Iterator[Change]:
        yield Collect()

    def _purged(self, model: Model) -> Iterator[Change]:
        family = FAMILIES[self._random.choice(self._variant.families)]
        yield Purge(self._random.choice(family.everybody()))
