# SPDX-License-Identifier: Apache-2.0
"""Who is told what, in which order, and what has to be known first."""

from __future__ import annotations

import pytest

from services.chassis.errors import Aborted
from services.chassis.telemetry import TraceContext
from services.policy import distribution
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
from services.policy.resolve import BoundPolicy
from services.policy.selector import Labels
from services.policy.store import StoredPolicy

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
    monkeypatch.setattr(distribution, "MAX_WAITING", 4)
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
