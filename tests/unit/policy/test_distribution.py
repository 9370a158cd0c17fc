# SPDX-License-Identifier: Apache-2.0
"""Who is told what, in which order, and what has to be known first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.chassis.errors import Aborted
from services.chassis.telemetry import TraceContext
from services.policy import stream as stream_module
from services.policy.distribution import (
    Distributor,
    Message,
    PrefixUpdate,
    Progress,
    Revision,
    Subscription,
    Update,
    Watch,
)
from services.policy.engine import HOST, Subject, SubjectChange
from services.policy.entries import SubjectPolicy
from services.policy.manifest import parse_manifests
from services.policy.prefixes import PrefixUse
from services.policy.resolve import BoundPolicy
from services.policy.selector import Labels
from services.policy.stored import Gone, StoredPolicy

QUIET = TraceContext()
WRITER = TraceContext("00-" + "1" * 32 + "-" + "2" * 16 + "-01")


def pod(app: str) -> Labels:
    return Labels([f"k8s:app={app}", "k8s:io.kubernetes.pod.namespace=shop"])


def policy(name: str, rule: str = "{}", cookie: int = 1) -> StoredPolicy:
    (manifest,) = parse_manifests(
        f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{podSelector: {{}}, ingress: [{rule}]}}
"""
    )
    cookies = {"spec.ingress[0]": cookie}
    return StoredPolicy(BoundPolicy(manifest.policy, cookies), manifest.text, cookie, 0)


FROM_PODS = "{from: [{podSelector: {}}]}"


async def told(subscription: Subscription) -> list[Message]:
    """Everything that waits to be sent."""
    subscription.end()
    found = []
    while (message := await subscription.next()) is not None:
        found.append(message)
    return found


def kinds(messages: list[Message]) -> list[str]:
    names = []
    for message in messages:
        if isinstance(message, Progress):
            names.append("progress")
        elif isinstance(message, PrefixUpdate):
            names.append("prefixes")
        else:
            names.append("snapshot" if isinstance(message.shared.content, SubjectPolicy) else "delta")
    return names


async def test_nothing_is_told_before_the_identities_are_known() -> None:
    distributor = Distributor([policy("web")], 5)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    distributor.take_policies([policy("api", cookie=2)], 6, WRITER)
    distributor.take_all_identities({300: pod("web")}, 9)
    messages = await told(subscription)
    assert kinds(messages) == ["prefixes", "snapshot", "progress"]
    assert messages[-1].revision == Revision(6, 9)


async def test_streams_go_on_where_nobody_has_an_identity_yet() -> None:
    distributor = Distributor()
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(HOST, labels=("k8s:role=edge",))))
    distributor.take_policies([policy("web")], 1, WRITER)
    distributor.take_all_identities({}, 0)
    messages = await told(subscription)
    assert kinds(messages) == ["prefixes", "snapshot", "progress"]
    assert messages[-1].revision == Revision(1, 0)


async def test_a_change_goes_to_every_stream_as_one_shared_delta_and_then_progress() -> None:
    distributor = Distributor()
    distributor.take_all_identities({300: pod("web")}, 1)
    streams = [distributor.subscribe(name) for name in ("node-1", "node-2")]
    for number, stream in enumerate(streams, 1):
        distributor.watch(stream, Watch(number, Subject(300)))
    distributor.take_policies([policy("web")], 2, WRITER)
    both = [await told(stream) for stream in streams]
    assert [kinds(messages) for messages in both] == [
        ["prefixes", "progress", "snapshot", "delta", "progress"]
    ] * 2
    deltas = [messages[3] for messages in both]
    assert all(isinstance(delta, Update) for delta in deltas)
    first, second = (delta for delta in deltas if isinstance(delta, Update))
    assert first.shared is second.shared
    assert (first.number, second.number) == (1, 2)
    assert (first.trace, first.revision) == (WRITER, Revision(2, 1))
    assert first.shared.rules[1].path == "spec.ingress[0]"


async def test_a_subject_waits_for_the_revision_that_made_its_identity() -> None:
    answered: list[int] = []
    distributor = Distributor()
    distributor.take_all_identities({300: pod("web")}, 1)
    subscription = distributor.subscribe("node-1")
    watch = Watch(1, Subject(300), 3, WRITER, lambda: answered.append(1))
    distributor.watch(subscription, watch)
    distributor.take_policies([policy("web", FROM_PODS)], 2, QUIET)
    distributor.take_identities([(301, pod("new"))], 2, QUIET)
    assert answered == []
    distributor.take_identities([(302, pod("newer"))], 3, QUIET)
    assert answered == [1]
    messages = await told(subscription)
    assert kinds(messages) == ["prefixes", "progress", "snapshot", "progress"]
    snapshot = messages[2]
    assert isinstance(snapshot, Update)
    assert isinstance(snapshot.shared.content, SubjectPolicy)
    assert {key.identity for key in snapshot.shared.content.entries} == {300, 301, 302}
    assert snapshot.trace == WRITER


async def test_an_identity_that_comes_back_is_told_as_a_snapshot() -> None:
    distributor = Distributor([policy("web")], 1)
    distributor.take_all_identities({300: pod("web")}, 1)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    distributor.take_identities([(300, None)], 2, QUIET)
    distributor.take_identities([(300, pod("web"))], 3, QUIET)
    expected = ["prefixes", "progress", "snapshot", "progress", "snapshot", "progress"]
    assert kinds(await told(subscription)) == expected


async def test_identities_that_are_missing_from_a_whole_set_are_gone() -> None:
    distributor = Distributor([policy("web", FROM_PODS)], 1)
    distributor.take_all_identities({300: pod("web"), 301: pod("old")}, 5)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    distributor.take_all_identities({300: pod("web"), 302: pod("new")}, 4)
    delta = (await told(subscription))[3]
    assert isinstance(delta, Update)
    change = delta.shared.content
    assert isinstance(change, SubjectChange)
    assert [key.identity for key in change.deletes] == [301]
    assert [key.identity for key, _ in change.upserts] == [302]
    assert distributor.revision == Revision(1, 4)


async def test_ending_a_stream_answers_what_waits_and_a_later_one_starts_afresh() -> None:
    answered: list[int] = []
    distributor = Distributor()
    first = distributor.subscribe("node-1")
    distributor.watch(first, Watch(1, Subject(300), answered=lambda: answered.append(1)))
    second = distributor.subscribe("node-1")
    assert answered == [1]
    with pytest.raises(Aborted, match="subscribed again"):
        await first.next()
    # The old stream's reader may still have something to say; it changes nothing.
    distributor.watch(first, Watch(2, Subject(300), answered=lambda: answered.append(2)))
    assert answered == [1, 2]
    assert not distributor.unsubscribe(first)
    assert distributor.unsubscribe(second)


async def test_a_node_that_does_not_read_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MAX_WAITING", 4)
    distributor = Distributor()
    distributor.take_all_identities({300: pod("web")}, 1)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    for revision in range(2, 6):
        distributor.take_policies([policy(f"p{revision}", cookie=revision)], revision, QUIET)
    with pytest.raises(Aborted, match="left 4 messages unread"):
        await subscription.next()


async def test_progress_without_anything_between_is_told_once() -> None:
    distributor = Distributor()
    distributor.take_all_identities({}, 1)
    subscription = distributor.subscribe("node-1")
    for revision in (2, 3, 4):
        distributor.take_identities([(300 + revision, pod("x"))], revision, WRITER)
    messages = await told(subscription)
    assert [message.revision for message in messages[1:]] == [Revision(0, 4)]


def watched(distributor: Distributor) -> dict[int, tuple[str, ...]]:
    return {subject.identity: distributor.watchers(subject) for subject in distributor.watched_subjects()}


def test_who_watches_what_here_and_elsewhere() -> None:
    distributor = Distributor()
    distributor.take_all_identities({300: pod("web"), 301: pod("db")}, 1)
    streams = {name: distributor.subscribe(name) for name in ("node-2", "node-1")}
    for stream in streams.values():
        distributor.watch(stream, Watch(1, Subject(300)))
    distributor.watched_elsewhere(
        {"away": frozenset((Subject(300), Subject(302))), "node-1": frozenset((Subject(303),))}
    )
    # What is known of a node by way of the store is of no use while it is here.
    assert watched(distributor) == {300: ("away", "node-1", "node-2"), 302: ("away",)}
    assert distributor.watched_by("away") == {Subject(300), Subject(302)}
    assert distributor.watched_by("node-1") == {Subject(300)}
    # A node that leaves still has its pods, and the store has not heard of all of them.
    distributor.unsubscribe(streams["node-1"])
    distributor.watched_elsewhere({"node-1": frozenset()})
    assert watched(distributor) == {300: ("node-1", "node-2")}
    distributor.watched_is_stored("node-1")
    distributor.watched_elsewhere({"node-1": frozenset((Subject(303),))})
    assert watched(distributor) == {300: ("node-2",), 303: ("node-1",)}


async def test_lines_that_move_are_told_with_the_next_entries_and_change_nothing_else() -> None:
    distributor = Distributor()
    distributor.take_all_identities({300: pod("web")}, 1)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    first = policy("web")
    distributor.take_policies([first], 2, QUIET)
    lines = {"spec.ingress[0]": 7}
    moved = replace(
        first, bound=replace(first.bound, policy=replace(first.bound.policy, lines=lines)), source="b.yaml"
    )
    distributor.take_policies([moved], 3, QUIET)
    distributor.watch(subscription, Watch(1, Subject(300)))
    messages = await told(subscription)
    assert kinds(messages) == ["prefixes", "progress", "snapshot", "delta", "progress", "snapshot"]
    last = messages[-1]
    assert isinstance(last, Update)
    assert (last.shared.rules[1].source, last.shared.rules[1].line) == ("b.yaml", 7)


async def test_rules_that_go_are_named_as_long_as_deltas_refer_to_them() -> None:
    def egress(number: int, cidr: str) -> StoredPolicy:
        (manifest,) = parse_manifests(
            f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p{number}, namespace: shop}}
spec: {{endpointSelector: {{}}, egress: [{{toCIDR: [{cidr}]}}]}}
"""
        )
        bound = BoundPolicy(manifest.policy, {"spec.egress[0]": number})
        numbers = {"10.0.0.0/8": 0xFF0000, "10.1.0.0/16": 0xFF0001}
        return StoredPolicy(bound, manifest.text, number, 0, {cidr: numbers[cidr]})

    distributor = Distributor([egress(1, "10.0.0.0/8")], 1)
    distributor.take_all_identities({300: pod("web")}, 1)
    subscription = distributor.subscribe("node-1")
    distributor.watch(subscription, Watch(1, Subject(300)))
    # The new prefix lies in the one that the policy that goes is about: there are entries of it in between.
    distributor.take_policies([Gone(egress(1, "10.0.0.0/8").ref, 2), egress(2, "10.1.0.0/16")], 3, QUIET)
    messages = await told(subscription)
    assert kinds(messages)[3:] == ["delta", "prefixes", "delta", "prefixes", "progress"]
    named = [sorted(message.shared.rules) for message in messages if isinstance(message, Update)]
    assert named == [[1], [1], [2]]
    begun, ceased = messages[4], messages[6]
    assert isinstance(begun, PrefixUpdate)
    assert isinstance(ceased, PrefixUpdate)
    assert begun.shared.prefixes == ((0xFF0001, PrefixUse("10.1.0.0/16", by_identity=True)),)
    assert ceased.shared.prefixes == ((0xFF0000, PrefixUse("10.0.0.0/8")),)
    assert distributor.policies.keys() == {egress(2, "10.1.0.0/16").ref}
