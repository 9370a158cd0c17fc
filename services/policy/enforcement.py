# SPDX-License-Identifier: Apache-2.0
"""How far each node has come, and waiting for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from services.policy import problems
from services.policy.node_store import Acknowledged


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node that enforces policy. `error` says why it cannot realize more than it has acknowledged."""

    name: str
    acknowledged: Acknowledged
    subscribed: bool = False
    subjects: int = 0


class Enforcement:
    """The nodes that enforce policy. A node counts from its first subscription until it is forgotten.

    `known` is what the store has of earlier processes; `changed` is called with a node whose state is worth
    keeping; `clock` returns Unix time in nanoseconds.
    """

    def __init__(
        self,
        known: Mapping[str, Acknowledged],
        changed: Callable[[str], None],
        clock: Callable[[], int],
    ) -> None:
        self._nodes = {name: NodeState(name, state) for name, state in known.items()}
        self._keep = changed
        self._clock = clock
        self._progress = asyncio.Event()

    def state(self, name: str) -> NodeState | None:
        return self._nodes.get(name)

    def nodes(self) -> list[NodeState]:
        """Every node by name."""
        return [self._nodes[name] for name in sorted(self._nodes)]

    def subscribed(self, name: str) -> None:
        """A node's stream has opened."""
        state = self._nodes.get(name)
        self._nodes[name] = replace(state or NodeState(name, Acknowledged()), subscribed=True, subjects=0)
        if state is None:
            self._keep(name)

    def unsubscribed(self, name: str) -> None:
        state = self._nodes.get(name)
        if state is not None:
            self._nodes[name] = replace(state, subscribed=False)

    def watches(self, name: str, subjects: int) -> None:
        """How many subjects a node watches now."""
        if name in self._nodes:
            self._nodes[name] = replace(self._nodes[name], subjects=subjects)

    def acknowledge(self, name: str, policy: int, identity: int, error: str) -> None:
        """A node says what it has realized, and what keeps it from more."""
        state = self._nodes.get(name, NodeState(name, Acknowledged()))
        told = Acknowledged(policy, identity, error, self._clock())
        before = state.acknowledged
        self._nodes[name] = replace(state, acknowledged=told)
        # How far the identities have come is of use only while the stream is open: not worth a write each.
        if (before.policy, before.error) != (policy, error):
            self._keep(name)
            self._wake()

    async def wait(self, revision: int, names: Iterable[str], timeout: float) -> list[NodeState]:
        """Return when the nodes (all there are, if none is named) have acknowledged a policy revision.

        Raises DeadlineExceeded (NODES_BEHIND) after `timeout` seconds.
        """
        wanted = tuple(dict.fromkeys(names))
        try:
            async with asyncio.timeout(timeout):
                while self._behind(revision, wanted):
                    await self._progress.wait()
        except TimeoutError:
            raise problems.nodes_behind(revision, self._behind(revision, wanted)) from None
        return [self._nodes[name] for name in wanted or sorted(self._nodes)]

    def forget(self, name: str) -> None:
        """Stop counting a node. Raises FailedPrecondition (NODE_SUBSCRIBED) while its stream is open."""
        state = self._nodes.get(name)
        if state is not None and state.subscribed:
            raise problems.node_subscribed(name)
        self._nodes.pop(name, None)
        self._wake()

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _behind(self, revision: int, wanted: tuple[str, ...]) -> dict[str, tuple[int, str]]:
        behind = {}
        for name in wanted or sorted(self._nodes):
            state = self._nodes.get(name)
            told = state.acknowledged if state is not None else Acknowledged()
            if told.policy < revision:
                behind[name] = (told.policy, told.error)
        return behind
