"""What has been seen unchanged for how long, by a clock that nobody sets and that stops count against."""

from __future__ import annotations

from services.chassis.labels import LabelSet
from services.identity.model import Identity
from services.identity.remembered import Memory, memory_seconds
from services.identity.sightings import Sightings


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_age_counts_from_the_first_look_to_the_last() -> None:
    clock = Clock()
    seen: Sightings[str] = Sightings(clock, 10.0)
    seen.look([("a", 1)])
    clock.now += 4
    assert seen.over(1) == []
    seen.look([("a", 1), ("b", 1)])
    assert seen.over(4) == [("a", 1)]
    assert sorted(seen.ages()) == [0.0, 4.0]
    clock.now += 2
    assert sorted(seen.ages()) == [2.0, 6.0]


def test_another_token_and_an_absence_begin_anew() -> None:
    clock = Clock()
    seen: Sightings[str] = Sightings(clock, 10.0)
    seen.look([("a", 1), ("b", 1)])
    clock.now += 5
    seen.look([("a", 2)])
    clock.now += 5
    seen.look([("a", 2), ("b", 1)])
    assert seen.over(10) == []
    assert seen.over(5) == [("a", 2)]
    seen.forget(["a"])
    assert len(seen) == 1


def test_a_long_gap_counts_as_a_short_one() -> None:
    clock = Clock()
    seen: Sightings[str] = Sightings(clock, 10.0)
    seen.look([("a", 1)])
    clock.now += 100_000
    assert seen.ages() == [10.0]
    seen.look([("a", 1)])
    assert seen.over(10.5) == []
    assert seen.over(10) == [("a", 1)]


WEB = Identity(256, LabelSet(["k8s:app=web"]), 1)


def remembering(clock: Clock, capacity: int = 4) -> Memory[str]:
    return Memory(capacity, 30.0, clock)


def test_memory_is_a_part_of_the_grace_period_and_of_a_minute() -> None:
    assert [memory_seconds(seconds) for seconds in (300.0, 60.0, 4.0, 0.0)] == [30.0, 15.0, 1.0, 30.0]


def test_what_is_remembered_ends() -> None:
    clock = Clock()
    memory = remembering(clock)
    # Asked for ten seconds ago: nobody knows when in between it was touched.
    memory.keep("web", WEB, "", clock.now - 10)
    assert memory.find("web") == WEB
    clock.now += 19.9
    assert memory.find("web") == WEB
    clock.now += 0.2
    assert memory.find("web") is None


def test_a_use_is_remembered_by_itself() -> None:
    clock = Clock()
    memory = remembering(clock)
    memory.keep("web", WEB, "node/a", clock.now)
    assert memory.find("web", "node/a") == WEB
    assert memory.find("web", "node/b") is None
    clock.now += 20
    memory.keep("web", WEB, "node/b", clock.now)
    clock.now += 20
    assert (memory.find("web", "node/a"), memory.find("web", "node/b")) == (None, WEB)
    memory.forget_uses("node/b", [256])
    assert (memory.find("web", "node/b"), memory.find("web")) == (None, WEB)


def test_what_is_gone_is_forgotten_also_under_a_new_number() -> None:
    clock = Clock()
    memory = remembering(clock)
    memory.keep("web", WEB, "", clock.now)
    memory.forget([256, 300])
    assert memory.find("web") is None
    again = Identity(300, WEB.labels, 9)
    memory.keep("web", again, "", clock.now)
    memory.forget([256])
    assert memory.find("web") == again


def test_memory_is_bounded() -> None:
    clock = Clock()
    memory = remembering(clock, capacity=2)
    for number, name in enumerate("abc", start=256):
        memory.keep(name, Identity(number, WEB.labels, number), "", clock.now)
    assert [memory.find(name) is not None for name in "abc"] == [False, True, True]
