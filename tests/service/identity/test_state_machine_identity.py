"""Any order of resolving, reporting, publishing, ending and collecting, over two replicas and a small space.

What must hold: nobody who uses a number ever sees it mean something else, or nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.chassis.db import Database
from services.chassis.errors import NotFound, ResourceExhausted
from services.identity.ipcache import Entry
from services.identity.numbers import Space
from tests.service.identity.stores import GRACE, LEASE, MIGRATIONS, Clock, Replica, app, pass_time

T = TypeVar("T")

SPACE = Space("cluster", 256, 261, "help")
# More label sets than numbers.
NAMES = st.sampled_from("abcdefgh")
HOLDERS = st.sampled_from(["node/a", "node/b"])
REPLICAS = st.integers(0, 1)


class Identities(RuleBasedStateMachine):
    """Two replicas over one store; `believed` is what each holder takes its numbers for."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.believed: dict[str, dict[int, str]] = {"node/a": {}, "node/b": {}}
        self.silent: dict[str, float] = {"node/a": 0.0, "node/b": 0.0}
        self.entries: dict[str, tuple[int, str]] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        url = f"sqlite:///{Path(self.directory.name)}/identity.db"
        self.databases = [self.run(Database.open(url, MIGRATIONS)) for _ in range(2)]
        self.replicas = [Replica.over(database, self.clock, SPACE) for database in self.databases]

    def teardown(self) -> None:
        for database in self.databases:
            self.run(database.close())
        self.runner.close()
        self.directory.cleanup()

    @rule(at=REPLICAS, name=NAMES, holder=HOLDERS)
    def resolve(self, at: int, name: str, holder: str) -> None:
        try:
            number = self.run(self.replicas[at].number(name, holder))
        except ResourceExhausted:
            return
        self.believed[holder][number] = name
        # A node tells soon after it has something new, as loaders do.
        self.tell(at, holder)

    @rule(at=REPLICAS, name=NAMES)
    def resolve_for_nobody(self, at: int, name: str) -> None:
        try:
            number = self.run(self.replicas[at].number(name))
        except ResourceExhausted:
            return
        # Long enough to be published: somebody who has just been told of a number can rely on it.
        self.run(pass_time(self.clock, GRACE / 2, self.replicas[1 - at]))
        self.age(GRACE / 2)
        assert self.meaning(number) == name

    @rule(at=REPLICAS, holder=HOLDERS, kept=st.sets(NAMES))
    def report(self, at: int, holder: str, kept: set[str]) -> None:
        self.believed[holder] = {
            number: name for number, name in self.believed[holder].items() if name in kept
        }
        self.tell(at, holder)

    @rule(at=REPLICAS, holder=HOLDERS)
    def end(self, at: int, holder: str) -> None:
        self.believed[holder] = {}
        self.run(self.replicas[at].uses.end(holder))

    @rule(at=REPLICAS, holder=HOLDERS, host=st.integers(1, 3), data=st.data())
    def publish(self, at: int, holder: str, host: int, data: st.DataObject) -> None:
        if not self.believed[holder]:
            return
        number = data.draw(st.sampled_from(sorted(self.believed[holder])))
        prefix = f"10.0.0.{host}/32"
        entry = Entry(prefix, number, holder)
        try:
            self.run(self.replicas[at].ipcache.publish(holder, [entry], replace_node=False, trace=""))
        except NotFound:
            # Only who has let its lease run out can come to this.
            assert self.silent[holder] > LEASE
            return
        self.entries[prefix] = (number, holder)

    @rule(at=REPLICAS, holder=HOLDERS, host=st.integers(1, 3))
    def withdraw(self, at: int, holder: str, host: int) -> None:
        prefix = f"10.0.0.{host}/32"
        self.run(self.replicas[at].ipcache.withdraw(holder, [prefix], trace=""))
        if self.entries.get(prefix, (0, ""))[1] == holder:
            del self.entries[prefix]

    @rule(at=REPLICAS, seconds=st.sampled_from([5.0, 40.0, GRACE, LEASE / 2]))
    def pass_by(self, at: int, seconds: float) -> None:
        """Time, in which one replica alone, or both, look after things."""
        self.run(pass_time(self.clock, seconds, *self.replicas[: at + 1]))
        self.age(seconds)

    @invariant()
    def numbers_mean_what_their_users_believe(self) -> None:
        if not hasattr(self, "replicas"):
            return
        for holder, numbers in self.believed.items():
            if self.silent[holder] < LEASE:
                for number, name in numbers.items():
                    assert self.meaning(number) == name, (holder, number)

    @invariant()
    def entries_have_identities(self) -> None:
        if hasattr(self, "replicas"):
            there = self.run(self.replicas[0].numbers())
            assert {number for number, _ in self.entries.values()} <= there

    def tell(self, at: int, holder: str) -> None:
        """A holder's report, and what it does about numbers that mean nothing: it lets go of them."""
        unknown = self.run(self.replicas[at].report(holder, *self.believed[holder]))
        if self.silent[holder] < LEASE:
            assert unknown == ()
        for number in unknown:
            del self.believed[holder][number]
        self.silent[holder] = 0.0

    def age(self, seconds: float) -> None:
        for holder in self.silent:
            self.silent[holder] += seconds

    def meaning(self, number: int) -> str:
        """The label set that a number stands for, by its one label's value."""
        identity = self.run(self.replicas[0].store.get(number, "id"))
        (name,) = [name for name in "abcdefgh" if app(name) == identity.labels]
        return name


Identities.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestIdentities = Identities.TestCase
