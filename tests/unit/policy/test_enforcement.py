# SPDX-License-Identifier: Apache-2.0
"""Waiting for nodes, and keeping what they said."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from services.policy import enforcement as enforcement_module
from services.policy import saver as saver_module
from services.policy.enforcement import Enforcement
from services.policy.engine import Subject
from services.policy.node_store import Acknowledged, StoredNode
from services.policy.saver import Saver


def enforcement(**known: int) -> tuple[Enforcement, list[str]]:
    kept: list[str] = []
    nodes = {name: Acknowledged(policy) for name, policy in known.items()}
    return Enforcement(nodes, kept.append, lambda: 7), kept


async def test_waiting_is_over_when_the_last_node_has_acknowledged() -> None:
    nodes, _ = enforcement(a=4, b=2)
    waiting = asyncio.create_task(nodes.wait(4, (), 10))
    await asyncio.sleep(0)
    assert not waiting.done()
    nodes.acknowledge("b", 5, 9, "")
    assert [state.name for state in await waiting] == ["a", "b"]


async def test_who_is_behind_is_named_with_the_reason() -> None:
    nodes, _ = enforcement(a=4, b=2)
    nodes.acknowledge("b", 2, 0, "policy map is full")
    with pytest.raises(DeadlineExceeded) as caught:
        await nodes.wait(4, (), 0)
    assert caught.value.metadata == {"revision": "4", "nodes": "b=2"}
    assert "b is at 2 (policy map is full)" in caught.value.message


async def test_forgetting_a_node_ends_the_waiting_for_it() -> None:
    nodes, _ = enforcement(a=4, b=2)
    waiting = asyncio.create_task(nodes.wait(4, (), 10))
    await asyncio.sleep(0)
    nodes.forget("b")
    assert [state.name for state in await waiting] == ["a"]


def test_a_subscribed_node_is_not_forgotten() -> None:
    nodes, _ = enforcement()
    nodes.subscribed("a")
    with pytest.raises(FailedPrecondition, match="stop its loader"):
        nodes.forget("a")
    nodes.unsubscribed("a")
    nodes.forget("a")
    assert nodes.nodes() == []


def test_only_what_matters_after_a_restart_is_kept() -> None:
    nodes, kept = enforcement()
    nodes.subscribed("a")
    nodes.subscribed("a")
    nodes.acknowledge("a", 1, 1, "")
    nodes.acknowledge("a", 1, 2, "")
    nodes.acknowledge("a", 1, 2, "full")
    # Twice it came, and twice it said something else.
    assert kept == ["a"] * 4
    (state,) = nodes.nodes()
    assert state.acknowledged == Acknowledged(1, 2, "full", 7)


async def test_what_could_not_be_saved_is_saved_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "RETRY_SECONDS", 0.0)
    saved: list[list[str]] = []
    done = asyncio.Event()

    async def save(names: list[str]) -> None:
        saved.append(names)
        if len(saved) == 1:
            raise Unavailable("locked", reason="DATABASE_BUSY")
        done.set()

    saver = Saver("nodes", save)
    task = asyncio.create_task(saver.run())
    for name in ("a", "b", "a"):
        saver.mark(name)
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()
    assert saved == [["a", "b"], ["a", "b"]]


async def test_flushing_waits_for_what_is_being_saved() -> None:
    saved: list[list[str]] = []
    started, go = asyncio.Event(), asyncio.Event()

    async def save(names: list[str]) -> None:
        started.set()
        await go.wait()
        saved.append(names)

    saver = Saver("nodes", save)
    running = asyncio.create_task(saver.run())
    saver.mark("a")
    await started.wait()
    flushing = asyncio.create_task(saver.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    go.set()
    assert await flushing
    assert saved == [["a"]]
    running.cancel()


async def test_what_was_being_saved_when_it_was_cancelled_is_saved_the_last_time() -> None:
    saved: list[list[str]] = []
    started, never = asyncio.Event(), asyncio.Event()

    async def save(names: list[str]) -> None:
        started.set()
        if not saved:
            saved.append([])
            await never.wait()
        saved.append(names)

    saver = Saver("nodes", save)
    running = asyncio.create_task(saver.run())
    saver.mark("a")
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await saver.flush()
    assert saved == [[], ["a"]]


def other(
    policy: int, replica: str = "b", updated_ns: int = 0, failed: frozenset[Subject] = frozenset()
) -> StoredNode:
    return StoredNode(Acknowledged(policy, 1, "", updated_ns), replica, failed)


def test_what_another_replica_has_stored_counts_for_nodes_that_are_not_here() -> None:
    nodes, _ = enforcement(away=1)
    nodes.subscribed("here")
    nodes.acknowledge("here", 3, 1, "")
    stuck = frozenset((Subject(300),))
    lost = nodes.take(
        {"here": other(9, "a"), "away": other(5, failed=stuck), "new": other(2)},
        "a",
        {"away": frozenset((Subject(300), Subject(301)))},
    )
    assert lost == []
    found = {state.name: state for state in nodes.nodes()}
    assert {name: state.acknowledged.policy for name, state in found.items()} == {
        "here": 3,
        "away": 5,
        "new": 2,
    }
    assert found["away"].subscribed
    assert (found["away"].subjects, found["away"].failed_subjects) == (2, stuck)
    # Forgotten by way of the other.
    nodes.take({"here": other(9, "a"), "new": other(2)}, "a")
    assert [state.name for state in nodes.nodes()] == ["here", "new"]


def test_a_node_that_has_gone_to_another_replica_is_lost_once_this_one_has_claimed_it() -> None:
    nodes, _ = enforcement()
    nodes.subscribed("n")
    assert nodes.take({"n": other(1, "b")}, "a") == []
    saves = nodes.to_save(["n"])
    assert (saves[0].claim, saves[0].subscribed) == (True, True)
    nodes.saved(saves)
    assert not nodes.to_save(["n"])[0].claim
    assert nodes.take({"n": other(1, "a")}, "a") == []
    assert nodes.take({"n": other(1, "b")}, "a") == ["n"]


def test_what_is_not_stored_yet_is_not_undone_by_what_is() -> None:
    nodes, _ = enforcement()
    nodes.subscribed("n")
    nodes.acknowledge("n", 7, 1, "")
    nodes.unsubscribed("n")
    nodes.take({}, "a")
    nodes.take({"n": other(2, "")}, "a")
    (state,) = nodes.nodes()
    assert state.acknowledged.policy == 7
    nodes.saved(nodes.to_save(["n"]))
    # A look that began before the save ended.
    nodes.take({"n": other(2, "", updated_ns=3)}, "a")
    (state,) = nodes.nodes()
    assert state.acknowledged.policy == 7
    nodes.take({"n": other(8, "b", updated_ns=9)}, "a")
    (state,) = nodes.nodes()
    assert (state.acknowledged.policy, state.subscribed) == (8, True)


def test_how_long_a_node_has_been_late() -> None:
    now = 100
    nodes = Enforcement({"n": Acknowledged(4)}, lambda name: None, lambda: now)
    for revision, at in ((4, 100), (5, 110), (6, 120), (6, 130), (9, 140)):
        now = at
        nodes.advanced(revision)
    late = {}
    for acknowledged in (3, 4, 5, 6, 8, 9):
        nodes.acknowledge("n", acknowledged, 1, "")
        (state,) = nodes.nodes()
        late[acknowledged] = state.late_since_ns
    assert late == {3: 100, 4: 110, 5: 120, 6: 140, 8: 140, 9: 0}


def test_subjects_that_failed_are_kept_until_the_node_has_said_more() -> None:
    nodes, kept = enforcement()
    nodes.acknowledge("n", 1, 1, "map is full", [Subject(300)])
    (state,) = nodes.nodes()
    assert state.failed_subjects == {Subject(300)}
    nodes.acknowledge("n", 1, 1, "map is full", [Subject(300), Subject(301)])
    nodes.acknowledge("n", 2, 1, "")
    (state,) = nodes.nodes()
    assert state.failed_subjects == frozenset()
    assert kept == ["n"] * 3


async def test_waiting_for_a_node_elsewhere_looks_at_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement_module, "LOOK_SECONDS", 0.0)
    looks = 0

    async def look(watched: bool) -> None:
        nonlocal looks
        looks += 1
        nodes.take({"n": other(looks, "b", updated_ns=looks)}, "a")

    nodes = Enforcement({}, lambda name: None, lambda: 0, look)
    (state,) = await nodes.wait(5, ["n"], 10)
    assert state.acknowledged.policy == looks == 5


async def test_waiting_for_nodes_that_are_here_looks_once() -> None:
    looks = 0

    async def look(watched: bool) -> None:
        nonlocal looks
        looks += 1

    nodes = Enforcement({}, lambda name: None, lambda: 0, look)
    nodes.subscribed("n")
    waiting = asyncio.create_task(nodes.wait(1, (), 10))
    await asyncio.sleep(0)
    nodes.acknowledge("n", 1, 1, "")
    await waiting
    assert looks == 1
