# SPDX-License-Identifier: Apache-2.0
"""Policies as they are kept, what an apply makes of them, and how the policy feed tells of their changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import orjson

from services.chassis.feed import FeedEvent
from services.policy.groups import Members
from services.policy.manifest import Manifest, load_stored_manifest
from services.policy.resolve import BoundPolicy
from services.policy.rules import PolicyRef

# So many manifests, of at most this length, are not read again: what a client applies comes back from the
# store and by the feed.
_REMEMBERED = 64
_SHORT = 16 * 1024

# Payload of a deletion that was made together with what the next event is about.
_MORE = b"more"


class Outcome(Enum):
    """What an apply did to a policy."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy with its rule numbers, or a CIDR group. `manifest` is canonical JSON; `updated_ns` Unix time
    in nanoseconds.

    `prefixes` has the numbers of the prefixes that stand in the document. `source` is the file that it came
    from, as the client called it. `group` is what a CIDR group holds; None for a policy.
    `effective_revision` is that of its last change or of that of a group that it names.
    """

    bound: BoundPolicy
    manifest: str
    revision: int
    updated_ns: int
    prefixes: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    group: tuple[str, ...] | None = None
    effective_revision: int = 0

    @property
    def ref(self) -> PolicyRef:
        return self.bound.ref


@dataclass(frozen=True, slots=True)
class Gone:
    """A policy that was deleted, at a revision."""

    ref: PolicyRef
    revision: int


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """A policy as it is now, what an apply did to it, and what its author may not have meant."""

    stored: StoredPolicy
    outcome: Outcome
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of each policy of an apply, and the revision that has all of it."""

    policies: tuple[AppliedPolicy, ...]
    revision: int


def read_document(
    text: str, cookies: Mapping[str, int], lines: Mapping[str, int]
) -> tuple[BoundPolicy, Members | None]:
    """What a manifest that was accepted before says: the policy, and what it holds if it is a CIDR group.

    Raises ManifestError if it no longer parses.
    """
    manifest = _remembered.get(text)
    if manifest is None:
        manifest = load_stored_manifest(text)
        remember(manifest)
    return BoundPolicy(replace(manifest.policy, lines=lines), cookies), manifest.group


_remembered: OrderedDict[str, Manifest] = OrderedDict()


def remember(manifest: Manifest) -> None:
    """This manifest has been read; `read_document` need not read its text again."""
    if len(manifest.text) <= _SHORT:
        _remembered[manifest.text] = manifest
        if len(_remembered) > _REMEMBERED:
            _remembered.popitem(last=False)


def feed_key(ref: PolicyRef) -> str:
    return f"{ref.kind}/{ref.namespace}/{ref.name}"


def encode_change(stored: StoredPolicy, *, groups_changed: int, moved: bool, more: bool) -> bytes:
    """The payload of an event that tells of a policy as it is now.

    `groups_changed` is when a group that it names changed last. `moved`: it says what it said, and keeps its
    revision. `more`: the next event belongs to the same bundle.
    """
    payload = {
        "manifest": stored.manifest,
        "cookies": stored.bound.cookies,
        "updated_ns": stored.updated_ns,
        "prefixes": stored.prefixes,
        "lines": stored.bound.policy.lines,
        "source": stored.source,
        "groups_changed": groups_changed,
        "more": more,
    }
    if moved:
        payload["revision"] = stored.revision
    return orjson.dumps(payload)


def encode_deletion(*, more: bool) -> bytes:
    """The payload of an event that tells of a deleted policy."""
    return _MORE if more else b""


def change_of(event: FeedEvent) -> tuple[StoredPolicy | Gone, bool]:
    """What an event of the feed says, and whether it ends the bundle that it was written with."""
    if event.deleted:
        kind, namespace, name = event.key.split("/", 2)
        return Gone(PolicyRef(kind, namespace, name), event.revision), event.payload != _MORE
    # Events of a former version have the first three fields only.
    payload = orjson.loads(event.payload)
    bound, group = read_document(payload["manifest"], payload["cookies"], payload.get("lines", {}))
    revision = payload.get("revision", event.revision)
    stored = StoredPolicy(
        bound,
        payload["manifest"],
        revision,
        payload["updated_ns"],
        payload.get("prefixes", {}),
        payload.get("source", ""),
        group,
        max(revision, payload.get("groups_changed", 0)),
    )
    return stored, not payload.get("more", False)
