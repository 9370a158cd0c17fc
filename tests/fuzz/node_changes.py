"""What happens to the node itself while packets pass."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.fuzz.addresses import FAMILIES, PORTS, SUBJECTS
from tests.fuzz.changes import Backlog, Change, Exclude, Forget, PutFailsafe, PutHostPolicy, Watch
from tests.fuzz.model.parsing import SCTP, TCP, UDP
from tests.fuzz.model.programs import Model
from tests.fuzz.model.world import Failsafe
from tests.fuzz.variants import Variant


class NodeChanges:
    """Makes up changes of the node. ``source`` is shared with whoever makes up the rest."""

    def __init__(self, source: random.Random, variant: Variant) -> None:
        self._random = source
        self._variant = variant

    def start(self) -> Iterator[Change]:
        """What an episode begins with."""
        pick = self._random
        if pick.random() < 0.5:
            yield from self.failsafe()
            yield PutHostPolicy(pick.choice(SUBJECTS))
        if pick.random() < 0.3:
            yield self.exclusions()
        if pick.random() < 0.5:
            yield Watch(events=True, trace=pick.random() < 0.5)

    def failsafe(self) -> Iterator[Change]:
        """Ports that no host policy closes."""
        pick = self._random
        ports = (
            Failsafe(pick.random() < 0.6, pick.choice((TCP, UDP, SCTP)), pick.choice(PORTS))
            for _ in range(pick.randrange(4))
        )
        yield PutFailsafe(frozenset(ports))

    def host_policy(self, model: Model) -> Iterator[Change]:
        """The node comes under a policy, or under none."""
        if self._random.random() < 0.3:
            yield from self.failsafe()
        yield PutHostPolicy(self._random.choice((0, *SUBJECTS)))

    def excluded(self, model: Model) -> Iterator[Change]:
        """Other destinations are reached with pods' own addresses."""
        yield self.exclusions()

    def exclusions(self) -> Exclude:
        """Some destinations, known ones among them."""
        pick = self._random
        family = FAMILIES[pick.choice(self._variant.families)]
        known = [(address, family.bits) for address in family.other] + [*family.prefixes[1:]]
        return Exclude(tuple(pick.sample(known, pick.randrange(4))))

    def watched(self, model: Model) -> Iterator[Change]:
        """Somebody begins or ends to read events."""
        pick = self._random
        yield pick.choice((Watch(False), Watch(True), Watch(True, trace=True)))

    def backlog(self, model: Model) -> Iterator[Change]:
        """An endpoint with a rate has sent a lot, or nothing for long."""
        limited = [endpoint for endpoint in model.world.devices.values() if endpoint.rate]
        if limited:
            yield Backlog(self._random.choice(limited).ifindex, self._random.choice((-1, 1, 1, 30)))

    def forgotten(self, model: Model) -> Iterator[Change]:
        """The table of translations loses entries."""
        known = [*model.masquerade.originals.items()]
        for flow, port in self._random.sample(known, min(len(known), 3)):
            yield Forget(flow, port, is_original=self._random.random() < 0.5)
            if self._random.random() < 0.15:
                yield Forget(flow, port, is_original=True)
                yield Forget(flow, port, is_original=False)
