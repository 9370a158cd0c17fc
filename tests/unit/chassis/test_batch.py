"""How long a batch waits for company."""

from __future__ import annotations

import asyncio
import contextvars

from services.chassis.batch import Pending, Waiting
from tests.patience import patient

LONG = patient(20.0)


def pending() -> Pending:
    """An operation whose caller waits."""
    return Pending(asyncio.get_running_loop().create_future(), contextvars.Context())


async def gathering(waiting: Waiting, seconds: float = 3600.0) -> asyncio.Task[None]:
    """`gather` as a task that has run as far as it gets by itself."""
    task = asyncio.create_task(waiting.gather(seconds))
    await asyncio.sleep(0)
    return task


async def test_whoever_calls_alone_does_not_wait() -> None:
    waiting = Waiting()
    for sizes in ((), (1, 1), (7, 1), (1, 7)):
        for size in sizes:
            waiting.note(size)
        waiting.add(pending())
        assert (await gathering(waiting)).done()


async def test_a_batch_waits_for_as_many_as_the_last_two_had() -> None:
    waiting = Waiting()
    waiting.note(2)
    waiting.note(3)
    waiting.add(pending())
    task = await gathering(waiting)
    for _ in range(4):
        assert not task.done()
        waiting.add(pending())
        await asyncio.sleep(0)
    await asyncio.wait_for(task, LONG)
    # All are there by now.
    assert (await gathering(waiting)).done()
    assert len(waiting.take(256)) == 5


async def test_a_batch_does_not_wait_for_long_nor_for_a_store_that_closes() -> None:
    waiting = Waiting()
    waiting.note(20)
    waiting.note(20)
    waiting.add(pending())
    await asyncio.wait_for(waiting.gather(0.001), LONG)
    task = await gathering(waiting)
    assert not task.done()
    waiting.hurry()
    await asyncio.wait_for(task, LONG)
