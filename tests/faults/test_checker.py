"""The checker finds what it is there to find, and nothing where nothing is wrong."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.faults.checker import (
    Violation,
    check_held_back,
    check_kept,
    check_keys,
    check_single_owners,
    holding,
    linearizable,
    numbered,
    published,
)
from tests.faults.history import NEVER, History, Operation, OutcomeUnknown, Refused


def take(key: str, result: str, invoked: float, returned: float = NEVER) -> Operation:
    return Operation("take", key, "", result, invoked, returned)


def free(key: str, result: str, invoked: float, returned: float = NEVER) -> Operation:
    return Operation("free", key, "", result, invoked, returned)


def read(key: str, result: str, at: float = 1000) -> Operation:
    return Operation("read", key, "", result, at, at + 1)


def put(argument: str, invoked: float, returned: float = NEVER) -> Operation:
    return Operation("put", "p", argument, "", invoked, returned)


def drop(who: str, invoked: float, returned: float = NEVER) -> Operation:
    return Operation("drop", "p", who, "", invoked, returned)


GOOD = {
    "take, take again, free": [
        take("a", "1", 0, 1),
        take("a", "1", 2, 3),
        free("a", "1", 4, 5),
        read("a", ""),
    ],
    "an answer that was lost, then the same": [take("a", "", 0), take("a", "1", 2, 3), read("a", "1")],
    "an answer that was lost, never done": [take("a", "", 0), read("a", "")],
    "an answer that was lost, done late": [take("a", "", 0), free("a", "", 1, 2), read("a", "7")],
    "free of unknown outcome": [take("a", "1", 0, 1), free("a", "", 2), take("a", "2", 3, 4), read("a", "2")],
    "free of unknown outcome, not done": [take("a", "1", 0, 1), free("a", "", 2), read("a", "1")],
    "concurrent take and free": [take("a", "1", 0, 10), free("a", "", 1, 9), read("a", "1")],
    "two at once": [take("a", "1", 0, 5), take("a", "1", 1, 6), read("a", "1")],
}
BAD = {
    "an acknowledged write is lost": [take("a", "1", 0, 1), read("a", "")],
    "another value than was acknowledged": [take("a", "1", 0, 1), read("a", "2")],
    "an acknowledged release is undone": [take("a", "1", 0, 1), free("a", "1", 2, 3), read("a", "1")],
    "the same owner gets another one": [take("a", "1", 0, 1), take("a", "2", 2, 3)],
    "a release gives back what another one has": [take("a", "1", 0, 1), free("a", "2", 2, 3)],
    "a release finds nothing where something is": [take("a", "1", 0, 1), free("a", "", 2, 3)],
    "an unknown one cannot have been before its call": [
        take("a", "1", 0, 1),
        read("a", "", 2),
        free("a", "", 5),
    ],
    "a take without a value": [take("a", "", 0, 1)],
}


@pytest.mark.parametrize("operations", GOOD.values(), ids=GOOD)
def test_what_can_have_happened_passes(operations: list[Operation]) -> None:
    assert check_keys(operations, holding) == 1


@pytest.mark.parametrize("operations", BAD.values(), ids=BAD)
def test_what_cannot_have_happened_is_found(operations: list[Operation]) -> None:
    with pytest.raises(Violation, match="no order of the operations on a"):
        check_keys(operations, holding)


def test_two_owners_at_one_moment_are_found() -> None:
    fine = [take("a", "1", 0, 1), free("a", "1", 2, 5), take("b", "1", 4, 6), take("c", "2", 0, 9)]
    assert check_single_owners(fine) == 3
    with pytest.raises(Violation, match="1 had two owners"):
        check_single_owners([take("a", "1", 0, 1), take("b", "1", 2, 3), free("a", "1", 4, 5)])
    # It was given back at once, and yet must have been held while another certainly held it.
    brief = [take("a", "1", 0, 1), take("b", "1", 2, 4), free("b", "1", 3, 5)]
    with pytest.raises(Violation, match="two owners"):
        check_single_owners(brief)
    # Whether the release of unknown outcome came first is not known.
    assert check_single_owners([take("a", "1", 0, 1), free("a", "", 2), take("b", "1", 3, 4)]) == 2


def test_a_value_given_again_too_soon_is_found() -> None:
    again = [take("a", "1", 0, 1), free("a", "1", 2, 3), take("b", "1", 6, 7)]
    check_held_back(again, 5)
    with pytest.raises(Violation, match=r"5\.000 s after its release"):
        check_held_back(again, 6)


def test_a_value_that_did_not_last_is_found() -> None:
    rested = [take("a", "1", 0, 1), take("a", "2", 6, 7), take("b", "1", 9, 10)]
    assert check_kept(rested, 5) == 1
    with pytest.raises(Violation, match="did not last for 8 s"):
        check_kept(rested, 8)
    with pytest.raises(Violation, match="did not last"):
        check_kept([take("a", "1", 0, 1), take("b", "1", 2, 3)], 5)
    # As long as it is taken again and again it lasts.
    assert check_kept([take("a", "1", 0, 1), take("a", "1", 6, 7), take("a", "2", 13, 14)], 5) == 1


def test_what_nobody_uses_may_be_dropped_but_what_is_used_may_not() -> None:
    unused = [take("a", "1", 0, 1), free("a", "", 2, 3), take("a", "2", 4, 5)]
    assert linearizable(unused, numbered)
    assert linearizable([take("a", "1", 0, 1), free("a", "", 2, 3), take("a", "1", 4, 5)], numbered)
    assert not linearizable([take("a", "1", 0, 1), take("a", "2", 4, 5)], numbered)


def test_an_entry_belongs_to_who_put_it_last() -> None:
    late = [put("a 1", 0, 1), put("b 2", 2, 3), drop("a", 4, 5), Operation("read", "p", "", "b 2", 6, 7)]
    assert linearizable(late, published)
    removed = [*late[:3], Operation("read", "p", "", "", 6, 7)]
    assert not linearizable(removed, published)
    older = [put("a 1", 0, 1), put("b 2", 2, 3), Operation("read", "p", "", "a 1", 6, 7)]
    assert not linearizable(older, published)
    unsure = [put("a 1", 0), put("b 2", 2, 3), Operation("read", "p", "", "a 1", 6, 7)]
    assert linearizable(unsure, published)


@pytest.mark.parametrize("seed", range(20))
def test_any_history_of_a_real_owner_passes_and_a_wrong_end_does_not(seed: int) -> None:
    """Concurrent clients of a correct owner, their answers delayed and some of them lost."""
    random_ = random.Random(seed)
    values = itertools.count(1)
    state, operations, now = "", [], 0.0
    for _ in range(60):
        now += 1
        kind = random_.choice(["take", "take", "free"])
        operation = Operation(kind, "a", invoked=now - random_.random() * 4)
        had = state
        if kind == "take":
            state = state or str(next(values))
            operation.result = state
        else:
            state, operation.result = "", had
        operation.returned = now + random_.random() * 4
        if seed % 2 and random_.random() < 0.1:
            operation.returned, operation.result = NEVER, ""
        operations.append(operation)
    assert linearizable([*operations, read("a", state)], holding)
    if seed % 2 == 0:
        # Every answer is known: a value that nobody was given cannot be there in the end.
        assert not linearizable([*operations, read("a", "98")], holding)
        assert not linearizable([*operations, read("a", "" if state else "1")], holding)


def test_the_recorder_keeps_what_may_have_happened() -> None:
    ticks = itertools.count()
    history = History(clock=lambda: float(next(ticks)))
    with history.operation("take", "a") as done:
        done.result = "1"
    with history.operation("take", "b"):
        raise Refused
    with history.operation("free", "a"):
        raise OutcomeUnknown
    with history.batch("take", ["c", "d"]):
        raise Refused
    with history.batch("take", ["c", "d"]) as (one, two):
        one.result, two.result = "3", "4"
    history.finally_read({"a": "1"}, ["a"])
    assert [(each.kind, each.result, each.known) for each in history.operations] == [
        ("take", "1", True),
        ("free", "", False),
        ("take", "3", True),
        ("take", "4", True),
        ("read", "1", True),
    ]
    assert (history.refused, history.unknown, history.acknowledged) == (2, 1, 2)
