"""Write operations that wait for one transaction, and how they are carried out together.

What several callers submit to one group becomes one unit, which one call carries out; every other operation
is a unit of its own. Units know nothing of transactions: `services.chassis.db` decides what is kept.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
Operation = Callable[[AsyncConnection], Awaitable[T]]
Together = Callable[[AsyncConnection, Sequence[I]], Awaitable[Sequence[R | FimbriaError]]]

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Pending:
    """An operation, or an item of a group, that somebody waits for: its context, and how it ended."""

    done: asyncio.Future[Any]
    context: contextvars.Context
    operation: Operation[Any] | None = None
    together: Together[Any, Any] | None = None
    group: object = None
    item: Any = None
    result: Any = None
    failure: BaseException | None = None

    def settle(self) -> None:
        """Tells the caller, unless it is gone."""
        if self.done.done():
            return
        if self.failure is None:
            self.done.set_result(self.result)
        elif isinstance(self.failure, asyncio.CancelledError):
            self.done.cancel()
        else:
            self.done.set_exception(self.failure)


@dataclass(slots=True, eq=False)
class Unit:
    """What is carried out by one call, and what is to be told once it is committed."""

    members: list[Pending]
    committed: list[Callable[[], None]] = field(default_factory=list)
    announced: dict[str, int] = field(default_factory=dict)

    def drop_abandoned(self) -> None:
        """Leaves out members whose caller is gone."""
        if any(member.done.done() for member in self.members):
            self.members = [member for member in self.members if not member.done.done()]

    async def run(self, connection: AsyncConnection, current: contextvars.ContextVar[Unit | None]) -> None:
        """Carries the unit out in the context of its first member, in which `current` is then this unit.

        May be called again when nothing of an earlier run was kept. Raises what the call as a whole raises;
        an item's own failure is noted with the item.
        """
        self.forget()
        for member in self.members:
            member.failure = None

        async def call() -> None:
            current.set(self)
            first = self.members[0]
            if first.operation is not None:
                first.result = await first.operation(connection)
                return
            assert first.together is not None
            results = await first.together(connection, [member.item for member in self.members])
            for member, result in zip(self.members, results, strict=True):
                if isinstance(result, FimbriaError):
                    member.failure = result
                else:
                    member.result = result

        await asyncio.get_running_loop().create_task(call(), context=self.members[0].context)

    def fail(self, problem: BaseException) -> None:
        """All of it ends with `problem`; nothing of it is kept."""
        self.forget()
        for member in self.members:
            member.failure = problem

    def forget(self) -> None:
        """What was to be told after the commit is not."""
        self.committed.clear()
        self.announced.clear()

    def alone(self) -> list[Unit]:
        """Each member as a unit of its own."""
        return [Unit([member]) for member in self.members]

    def settle(self) -> None:
        """Calls what waits for the commit, then tells the callers."""
        for callback in self.committed:
            try:
                callback()
            except Exception:
                log.exception("a callback after commit failed")
        for member in self.members:
            member.settle()


class Waiting:
    """Operations that wait for their transaction, in the order of their arrival."""

    def __init__(self) -> None:
        self._queue: deque[Pending] = deque()
        # How many operations each of the last two batches had.
        self._sizes = (0, 0)
        self._enough: int | None = None
        self._gathered = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: Pending) -> None:
        self._queue.append(pending)
        if self._enough is not None and len(self._queue) >= self._enough:
            self._gathered.set()

    def note(self, size: int) -> None:
        """A batch had `size` operations."""
        self._sizes = (self._sizes[1], size)

    async def gather(self, seconds: float) -> None:
        """Waits, up to `seconds`, until there are as many as the last two batches had together.

        Callers who wait for their answers are then nearly all there, whichever of the two they were in.
        Returns at once where one of the two had a single operation: nobody waits for company that never
        comes.
        """
        expected = sum(self._sizes)
        if min(self._sizes) < 2 or len(self._queue) >= expected:
            return
        self._enough = expected
        self._gathered.clear()
        timer = asyncio.get_running_loop().call_later(seconds, self._gathered.set)
        try:
            await self._gathered.wait()
        finally:
            timer.cancel()
            self._enough = None

    def hurry(self) -> None:
        """Ends `gather`."""
        self._gathered.set()

    def drop_abandoned(self) -> None:
        """Forgets those whose caller is gone."""
        self._queue = deque(pending for pending in self._queue if not pending.done.done())

    def take(self, count: int) -> list[Pending]:
        """The first `count` whose callers still wait."""
        taken: list[Pending] = []
        while self._queue and len(taken) < count:
            pending = self._queue.popleft()
            if not pending.done.done():
                taken.append(pending)
        return taken


def units(batch: Sequence[Pending]) -> list[Unit]:
    """One unit for each operation, and one for all items of a group, where its first one stands."""
    found: list[Unit] = []
    of_group: dict[int, Unit] = {}
    for pending in batch:
        known = of_group.get(id(pending.group)) if pending.group is not None else None
        if known is not None:
            known.members.append(pending)
            continue
        unit = Unit([pending])
        found.append(unit)
        if pending.group is not None:
            of_group[id(pending.group)] = unit
    return found
