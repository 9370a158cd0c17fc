# SPDX-License-Identifier: Apache-2.0
"""How far each node has come, and waiting for all of them."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from services.policy import problems
from services.policy.engine import Subject
from services.policy.node_store import Acknowledged, NodeSave, StoredNode

# How often the store is looked at while somebody waits for a node of another replica.
LOOK_SECONDS = 0.05
# Of how many revisions is remembered when they came: enough to say how long a node has been late.
REMEMBERED_REVISIONS = 4096


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node that enforces policy. `error` of what it acknowledged says why it cannot realize more.

    `failed_subjects` are those that it cannot realize. `late_since_ns`: since when there has been a policy
    revision that it has not acknowledged, as Unix time in nanoseconds; 0 when it has acknowledged all.
    """

    name: str
    acknowledged: Acknowledged
    subscribed: bool = False
    subjects: int = 0
    failed_subjects: frozenset[Subject] = frozenset()
    late_since_ns: int = 0


class Enforcement:
    """The nodes that enforce policy. A node counts from its first subscription until it is forgotten.

    `known` is what the store has of earlier processes; `changed` is called with a node whose state is worth
    keeping, `changed_a_little` with one that can wait; `clock` returns Unix time in nanoseconds. `look` has
    `take` told what other replicas have stored; without it there is no other.
    """

    def __init__(
        self,
        known: Mapping[str, Acknowledged],
        changed: Callable[[str], None],
        clock: Callable[[], int],
        look: Callable[[bool], Awaitable[None]] | None = None,
        changed_a_little: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._nodes = {name: NodeState(name, state) for name, state in known.items()}
        self._keep = changed
        self._keep_later = changed_a_little
        self._clock = clock
        self._look = look
        self._progress = asyncio.Event()
        # Nodes whose streams are here; those whose coming the store has not been told of; those of which
        # anything has not been stored yet.
        self._here: set[str] = set()
        self._claims: set[str] = set()
        self._unsaved: set[str] = set()
        # Policy revisions, and when each came.
        self._revisions: list[int] = []
        self._came: list[int] = []

    def state(self, name: str) -> NodeState | None:
        state = self._nodes.get(name)
        return replace(state, late_since_ns=self._late_since(state)) if state is not None else None

    def nodes(self) -> list[NodeState]:
        """Every node by name."""
        return [state for name in sorted(self._nodes) if (state := self.state(name)) is not None]

    def is_here(self, name: str) -> bool:
        """Whether the node's stream is open at this replica."""
        return name in self._here

    # -- what nodes do

    def advanced(self, revision: int) -> None:
        """The policies have come to a revision, which nodes have to acknowledge from now on."""
        if self._revisions and revision <= self._revisions[-1]:
            return
        self._revisions.append(revision)
        self._came.append(self._clock())
        if len(self._revisions) > REMEMBERED_REVISIONS:
            half = REMEMBERED_REVISIONS // 2
            del self._revisions[:half], self._came[:half]

    def subscribed(self, name: str) -> None:
        """A node's stream has opened."""
        state = self._nodes.get(name, NodeState(name, Acknowledged()))
        self._nodes[name] = replace(state, subscribed=True, subjects=0)
        self._here.add(name)
        self._claims.add(name)
        self._mark(name)

    def unsubscribed(self, name: str) -> None:
        self._here.discard(name)
        state = self._nodes.get(name)
        if state is not None:
            self._nodes[name] = replace(state, subscribed=False)
            self._mark(name)
            self._keep_later(name)

    def watches(self, name: str, subjects: int) -> None:
        """How many subjects a node watches now."""
        if name in self._nodes:
            self._nodes[name] = replace(self._nodes[name], subjects=subjects)
            self._keep_later(name)

    def acknowledge(
        self, name: str, policy: int, identity: int, error: str, failed: Iterable[Subject] = ()
    ) -> None:
        """A node says what it has realized, and what keeps it from more: the subjects in `failed`."""
        state = self._nodes.get(name, NodeState(name, Acknowledged()))
        told = Acknowledged(policy, identity, error, self._clock())
        before = state.acknowledged
        self._nodes[name] = replace(state, acknowledged=told, failed_subjects=frozenset(failed))
        if (before.policy, before.error) != (policy, error) or state.failed_subjects != frozenset(failed):
            self._mark(name)
            self._wake()
        elif before.identity != identity:
            # Of use only while the stream is open, and not worth a write each.
            self._keep_later(name)

    async def wait(self, revision: int, names: Iterable[str], timeout: float) -> list[NodeState]:
        """Return when the nodes (all there are, if none is named) have acknowledged a policy revision.

        Raises DeadlineExceeded (NODES_BEHIND) after `timeout` seconds.
        """
        wanted = tuple(dict.fromkeys(names))
        # Beside the wait for the nodes that are known, which most often takes longer.
        look = asyncio.create_task(self.refresh(watched=False))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while (behind := self._behind(revision, wanted)) or not look.done():
                        if behind:
                            await self._something(elsewhere=any(name not in self._here for name in behind))
                        else:
                            await look
                    look.result()
        finally:
            look.cancel()
            await asyncio.gather(look, return_exceptions=True)
        if behind := self._behind(revision, wanted):
            raise problems.nodes_behind(revision, behind)
        return [
            self._nodes.get(name, NodeState(name, Acknowledged())) for name in wanted or sorted(self._nodes)
        ]

    def forget(self, name: str) -> None:
        """Stop counting a node. Raises FailedPrecondition (NODE_SUBSCRIBED) while its stream is open."""
        state = self._nodes.get(name)
        if state is not None and state.subscribed:
            raise problems.node_subscribed(name)
        self._nodes.pop(name, None)
        self._claims.discard(name)
        self._unsaved.discard(name)
        self._wake()

    # -- the store, and other replicas by way of it

    async def refresh(self, *, watched: bool = True) -> None:
        """Know what other replicas have stored, with or without which subjects their nodes watch."""
        if self._look is not None:
            await self._look(watched)

    def take(
        self,
        stored: Mapping[str, StoredNode],
        replica: str,
        watched: Mapping[str, frozenset[Subject]] | None = None,
    ) -> list[str]:
        """What the store has. Of nodes that are here it counts for nothing, but for those that have gone to
        another replica than this one: they are returned. `watched` is what nodes watch that are not here.
        """
        before = dict(self._nodes)
        for name, node in stored.items():
            if name in self._here or name in self._unsaved:
                continue
            state = self._nodes.get(name, NodeState(name, Acknowledged()))
            elsewhere = bool(node.replica) and node.replica != replica
            # A look that began before a save ended would bring back the state of before.
            if elsewhere or node.acknowledged.updated_ns >= state.acknowledged.updated_ns:
                self._nodes[name] = replace(
                    state,
                    acknowledged=node.acknowledged,
                    subscribed=elsewhere,
                    failed_subjects=node.failed,
                )
        for name in before.keys() - stored.keys() - self._here - self._unsaved:
            del self._nodes[name]
        for name, subjects in (watched or {}).items():
            if name in self._nodes and name not in self._here:
                self._nodes[name] = replace(self._nodes[name], subjects=len(subjects))
        if self._nodes != before:
            self._wake()
        return [
            name
            for name, node in stored.items()
            if name in self._here and name not in self._claims and node.replica not in ("", replica)
        ]

    def to_save(self, names: Iterable[str]) -> list[NodeSave]:
        """What the store has to be told of these nodes."""
        return [
            NodeSave(
                name, state.acknowledged, state.failed_subjects, name in self._here, name in self._claims
            )
            for name in names
            if (state := self._nodes.get(name)) is not None
        ]

    def saved(self, saves: Iterable[NodeSave]) -> None:
        """The store has been told."""
        for save in saves:
            if save.claim and save.subscribed == (save.name in self._here):
                self._claims.discard(save.name)
            if self.to_save((save.name,)) in ([], [replace(save, claim=False)]):
                self._unsaved.discard(save.name)

    # -- inside

    def _mark(self, name: str) -> None:
        self._unsaved.add(name)
        self._keep(name)

    async def _something(self, *, elsewhere: bool) -> None:
        """Return when something has happened; when it may happen elsewhere, after a look at the store."""
        if not elsewhere or self._look is None:
            await self._progress.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._progress.wait()
                return
        await self.refresh(watched=False)

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _late_since(self, state: NodeState) -> int:
        at = bisect_right(self._revisions, state.acknowledged.policy)
        return self._came[at] if at < len(self._came) else 0

    def _behind(self, revision: int, wanted: tuple[str, ...]) -> dict[str, tuple[int, str]]:
        behind = {}
        for name in wanted or sorted(self._nodes):
            state = self._nodes.get(name)
            told = state.acknowledged if state is not None else Acknowledged()
            if told.policy < revision:
                behind[name] = (told.policy, told.error)
        return behind
