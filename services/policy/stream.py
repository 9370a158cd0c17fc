# SPDX-License-Identifier: Apache-2.0
"""What a node is told on its stream, and the stream as a queue of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from services.chassis.errors import FimbriaError
from services.chassis.telemetry import TraceContext
from services.policy import problems
from services.policy.engine import Subject, SubjectChange
from services.policy.entries import SubjectPolicy
from services.policy.prefixes import PrefixUse
from services.policy.rules import PolicyRef

MAX_WAITING = 50_000


@dataclass(frozen=True, slots=True, order=True)
class Revision:
    """A point in the service's view of the world."""

    policy: int = 0
    identity: int = 0


@dataclass(frozen=True, slots=True)
class RuleName:
    """Where a rule stands, and what it does: allow unless `deny` or `passes`. `line` 0: not known."""

    ref: PolicyRef
    path: str
    deny: bool
    passes: bool = False
    source: str = ""
    line: int = 0


@dataclass(slots=True)
class Shared:
    """A change that goes to several streams; `rendered` is for whoever turns it into a message, once.

    `rules` are those that the entries in it name, by cookie.
    """

    subject: Subject
    content: SubjectPolicy | SubjectChange
    rules: dict[int, RuleName]
    rendered: object = None


@dataclass(frozen=True, slots=True)
class Update:
    """What a stream is told about its subject `number`: its whole state, or what has changed of it."""

    number: int
    shared: Shared
    revision: Revision
    trace: TraceContext


@dataclass(slots=True)
class SharedPrefixes:
    """Prefixes by number as they are in use from now on; those that are in no use any more are gone. `whole`:
    there are no others. `rendered` as in `Shared`.
    """

    prefixes: tuple[tuple[int, PrefixUse], ...]
    whole: bool = False
    rendered: object = None


@dataclass(frozen=True, slots=True)
class PrefixUpdate:
    """What a stream is told about prefixes."""

    shared: SharedPrefixes
    revision: Revision
    trace: TraceContext


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything up to the revision has been told."""

    revision: Revision
    trace: TraceContext


Message = Update | PrefixUpdate | Progress


@dataclass(frozen=True, slots=True)
class Watch:
    """A subject that a node asks for. `answered` is called when its first snapshot is on the way, or never
    will be.
    """

    number: int
    subject: Subject
    identity_revision: int = 0
    trace: TraceContext = field(default_factory=TraceContext)
    answered: Callable[[], None] = lambda: None


class Subscription:
    """One node's stream: what it watches, and what it has not been sent yet."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.watched: dict[int, Watch] = {}
        # Watched subjects whose snapshot waits for their identity.
        self.pending: dict[int, Watch] = {}
        # It has been told all prefixes, which comes before everything else.
        self.greeted = False
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._ended: FimbriaError | None = None
        self._closed = False

    def send(self, message: Message) -> None:
        # Progress says "up to here": the newer one says it for both, and keeps the trace that is worth more.
        if isinstance(message, Progress) and self._waiting and isinstance(self._waiting[-1], Progress):
            older = self._waiting.pop()
            message = Progress(message.revision, message.trace or older.trace)
        if len(self._waiting) >= MAX_WAITING:
            self.end(problems.subscriber_too_slow(self.node, len(self._waiting)))
            return
        self._waiting.append(message)
        self._arrived.set()

    def end(self, error: FimbriaError | None = None) -> None:
        """No more messages; whoever reads the stream gets the error at once, or the end after what is
        waiting.
        """
        self._ended = self._ended or error
        self._closed = True
        self._arrived.set()

    async def next(self) -> Message | None:
        """The next message; None at the end. Raises the error that the stream was ended with."""
        while True:
            if self._ended is not None:
                raise self._ended
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
