# SPDX-License-Identifier: Apache-2.0
"""Waiting for nodes, and keeping what they said."""

from __future__ import annotations

import asyncio

import pytest

from services.chassis.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from services.policy import saver as saver_module
from services.policy.enforcement import Enforcement
from services.policy.node_store import Acknowledged
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
