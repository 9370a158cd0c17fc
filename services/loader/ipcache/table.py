"""Which identity each prefix means on this node, and what of that the kernel may know already. No I/O.

Four sources speak of prefixes: the node itself (its own and other nodes' addresses), its endpoints, the
identity service's feed, and policies that name prefixes. They win in this order, so that nothing published
can take a node's address over, a late event of the feed cannot unseat an endpoint that is here, and a policy
about an address that a pod has is not about the pod.

A prefix starts to mean a new identity only when the policy maps know that identity: an entry waits until
the policy stream has been realized up to the revision at which its identity was made. Until then the kernel
keeps what it has. Those of policies are given here only when that is so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.loader.policy.prefix_table import in_order, is_prefix_number


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a prefix means: an identity, and the underlay address of the node behind which it is ("" when
    reached without a tunnel).
    """

    identity: int
    tunnel: str = ""


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """An entry of the identity service's feed; ``here`` when it speaks of an endpoint of this node."""

    meaning: Meaning
    identity_revision: int = 0
    revision: int = 0
    owner: str = ""
    here: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """Writes that bring the kernel up to date."""

    puts: Mapping[str, Meaning] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)


class IpcacheTable:
    """The node's view of the ipcache. ``kernel`` is what the kernel holds at the start."""

    def __init__(self, kernel: Mapping[str, Meaning]) -> None:
        self._kernel: dict[str, Meaning] = dict(kernel)
        self._host: dict[str, Meaning] = {}
        self._local: dict[str, FeedEntry] = {}
        self._feed: dict[str, FeedEntry] = {}
        self._prefixes = {
            prefix: FeedEntry(held) for prefix, held in kernel.items() if is_prefix_number(held.identity)
        }
        self._prefixes_changed: set[str] = set()
        self._dirty: set[str] = set()
        self._waiting: set[str] = set()
        self._reached = 0
        self._received = 0
        self._snapshot: set[str] | None = None
        self._settled = False

    @property
    def waiting(self) -> frozenset[str]:
        """Prefixes whose new meaning waits for the policy maps."""
        return frozenset(self._waiting)

    @property
    def applied_revision(self) -> int:
        """The feed's revision up to which everything is in the kernel."""
        behind = self._dirty | self._waiting
        if not behind:
            return self._received
        revisions = [entry.revision for prefix in behind if (entry := self._feed.get(prefix)) is not None]
        # A removal that is still to be made has no entry to ask; it came with the newest revision or before.
        if len(revisions) < len(behind):
            revisions.append(self._received)
        return max(min(revisions) - 1, 0)

    def kernel(self) -> Mapping[str, Meaning]:
        """What the kernel holds, as far as this table has written it."""
        return self._kernel

    def found(self, entries: Mapping[str, Meaning | None]) -> None:
        """The kernel holds these, or None, and not what was written there."""
        for prefix, held in entries.items():
            if held is None:
                self._kernel.pop(prefix, None)
            else:
                self._kernel[prefix] = held
            self._dirty.add(prefix)

    def owner(self, prefix: str) -> str:
        """What an address belongs to, as the feed says; empty when it does not."""
        entry = self._feed.get(prefix)
        return entry.owner if entry is not None else ""

    def set_host(self, entries: Mapping[str, Meaning]) -> None:
        """Replaces the addresses of nodes."""
        for prefix in self._host.keys() | entries.keys():
            if self._host.get(prefix) != entries.get(prefix):
                self._dirty.add(prefix)
        self._host = dict(entries)

    def put_local(self, prefix: str, identity: int, identity_revision: int) -> None:
        """An endpoint of this node has the address."""
        self._local[prefix] = FeedEntry(Meaning(identity), identity_revision)
        self._dirty.add(prefix)

    def remove_local(self, prefix: str) -> None:
        """The endpoint is gone. The feed's entry, which speaks of the same endpoint, no longer counts
        either.
        """
        if self._local.pop(prefix, None) is not None:
            feed = self._feed.get(prefix)
            if feed is not None and feed.here:
                del self._feed[prefix]
        self._dirty.add(prefix)

    def put_feed(self, prefix: str, entry: FeedEntry) -> None:
        """The feed says what a prefix means."""
        self._feed[prefix] = entry
        self._dirty.add(prefix)
        if self._snapshot is not None:
            self._snapshot.add(prefix)

    def delete_feed(self, prefix: str) -> None:
        """The feed says that a prefix means nothing of its own any more."""
        self._feed.pop(prefix, None)
        self._dirty.add(prefix)
        if self._snapshot is not None:
            self._snapshot.discard(prefix)

    def prefix_identities(self) -> dict[str, int]:
        """The prefixes that policies name, as far as this table knows, with their numbers: at the start those
        that the kernel holds.
        """
        return {prefix: entry.meaning.identity for prefix, entry in self._prefixes.items()}

    def put_prefix(self, prefix: str, number: int | None) -> None:
        """A policy names the prefix, by this number; None: none does any more."""
        if number is None:
            self._prefixes.pop(prefix, None)
        else:
            self._prefixes[prefix] = FeedEntry(Meaning(number))
        self._prefixes_changed.add(prefix)
        self._dirty.add(prefix)

    @property
    def prefixes_behind(self) -> bool:
        """Whether the kernel has still to be told of a prefix that policies name or named."""
        self._prefixes_changed &= self._dirty
        return bool(self._prefixes_changed)

    def begin_snapshot(self) -> None:
        """The feed starts over: what it does not name until :meth:`end_snapshot` is gone."""
        self._snapshot = set()

    def end_snapshot(self) -> None:
        """The feed has named everything that there is."""
        if self._snapshot is not None:
            for prefix in self._feed.keys() - self._snapshot:
                self.delete_feed(prefix)
            self._snapshot = None

    def received(self, revision: int) -> None:
        """Everything up to this revision of the feed has been told."""
        self._received = revision

    def settle(self) -> None:
        """All sources have told all they have: what the kernel holds beyond that is a leftover. Of prefixes
        that policies named :meth:`put_prefix` says when they are gone.
        """
        if not self._settled:
            self._settled = True
            self._dirty.update(prefix for prefix in self._kernel if self._meaning(prefix) is None)

    def reach(self, identity_revision: int) -> None:
        """The policy maps know every identity made up to this revision."""
        self._reached = identity_revision
        self._dirty |= self._waiting
        self._waiting = set()

    def changes(self) -> Changes:
        """What has to be written now. It stays to be written until :meth:`written` is told."""
        puts: dict[str, Meaning] = {}
        deletes: list[str] = []
        done: list[str] = []
        for prefix in self._dirty:
            entry = self._meaning(prefix)
            held = self._kernel.get(prefix)
            if entry is None:
                if held is not None:
                    deletes.append(prefix)
                    continue
            elif entry.meaning != held:
                if entry.identity_revision <= self._reached:
                    puts[prefix] = entry.meaning
                    continue
                self._waiting.add(prefix)
                done.append(prefix)
                continue
            self._waiting.discard(prefix)
            done.append(prefix)
        self._dirty.difference_update(done)
        if self.prefixes_behind:
            named = self._prefixes_changed
            others = {prefix: meaning for prefix, meaning in puts.items() if prefix not in named}
            puts = {prefix: puts[prefix] for prefix in in_order(named & puts.keys(), begin=True)} | others
            kept = [prefix for prefix in deletes if prefix not in named]
            deletes = kept + in_order(named.intersection(deletes), begin=False)
        return Changes(puts, tuple(deletes))

    def written(self, changes: Changes) -> None:
        """The kernel holds these changes now."""
        for prefix, meaning in changes.puts.items():
            self._kernel[prefix] = meaning
            self._waiting.discard(prefix)
        for prefix in changes.deletes:
            self._kernel.pop(prefix, None)
            self._waiting.discard(prefix)
        self._dirty.difference_update(changes.puts)
        self._dirty.difference_update(changes.deletes)

    def _meaning(self, prefix: str) -> FeedEntry | None:
        host = self._host.get(prefix)
        if host is not None:
            return FeedEntry(host)
        return self._local.get(prefix) or self._feed.get(prefix) or self._prefixes.get(prefix)
