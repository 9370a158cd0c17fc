"""The label filter over real processes: shown before it is set, one for all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypeAlias

import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.errors import Aborted, InvalidArgument
from services.identity.label_filter import DEFAULT_PATTERNS
from tests.patience import patient
from tests.postgres import fresh_database
from tests.service.processes import ServiceProcess, start
from tests.service.refusals import refused

Identities: TypeAlias = "identity_pb2_grpc.IdentityServiceAsyncStub"

NAMESPACE = "k8s:io.kubernetes.pod.namespace=shop"
SLOTS = [[NAMESPACE, "k8s:app=web", f"k8s:slot={slot}"] for slot in ("blue", "green")]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    with fresh_database("identity") as url:
        one, other = (
            start("identity", directory, f"--database-url={url}")
            for directory in (tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other"))
        )
        yield one, other
        assert (one.terminate(), other.terminate()) == (0, 0)


async def resolve(identities: Identities, labels: list[str]) -> identity_pb2.Identity:
    return await identities.Resolve(identity_pb2.ResolveRequest(labels=labels))


async def set_filter(
    identities: Identities, *patterns: str, validate_only: bool = False, expected_revision: int = 0
) -> identity_pb2.SetLabelFilterResponse:
    return await identities.SetLabelFilter(
        identity_pb2.SetLabelFilterRequest(
            patterns=patterns, validate_only=validate_only, expected_revision=expected_revision
        )
    )


async def test_a_filter_is_shown_then_set_and_all_replicas_follow(
    replicas: tuple[ServiceProcess, ServiceProcess],
) -> None:
    async with open_channel(replicas[0].target) as first, open_channel(replicas[1].target) as second:
        one, other = (identity_pb2_grpc.IdentityServiceStub(channel) for channel in (first, second))
        ipcache = identity_pb2_grpc.IpCacheServiceStub(first)
        present = await one.GetLabelFilter(identity_pb2.GetLabelFilterRequest())
        assert tuple(present.patterns) == DEFAULT_PATTERNS
        blue, green = [await resolve(one, labels) for labels in SLOTS]
        assert await resolve(other, [*SLOTS[0], "k8s:pod-template-hash=5d4"]) == blue
        plain = await resolve(one, [NAMESPACE, "k8s:app=web"])
        entries = [identity_pb2.IpCacheEntry(prefix=f"10.0.0.{host}/32", identity=blue.id) for host in (1, 2)]
        await ipcache.Publish(identity_pb2.PublishRequest(node="a", entries=entries))

        shown = await set_filter(one, "!k8s:slot$", validate_only=True, expected_revision=present.revision)
        assert [(c.identity, c.becomes, c.entries) for c in shown.changes] == [
            (blue, plain.id, 2),
            (green, plain.id, 0),
        ]
        assert all(list(change.labels) == list(plain.labels) for change in shown.changes)
        assert (shown.changed, shown.entries, shown.merged) == (2, 2, 1)
        assert list(shown.filter.patterns) == ["!k8s:slot$"]
        assert await one.GetLabelFilter(identity_pb2.GetLabelFilterRequest()) == present
        assert await resolve(one, SLOTS[0]) == blue

        done = await set_filter(one, "!k8s:slot$", expected_revision=present.revision)
        assert done.filter.revision == shown.filter.revision > present.revision
        assert (done.changed, done.entries, done.merged) == (2, 2, 1)
        assert await resolve(one, SLOTS[1]) == plain
        report = identity_pb2.ReportUseRequest(holder="node/a", identities=[blue.id])
        assert (await one.ReportUse(report)).label_filter_revision == done.filter.revision
        async with asyncio.timeout(patient(5)):
            while await resolve(other, SLOTS[0]) != plain:
                continue
        assert (await other.ReportUse(report)).label_filter_revision == done.filter.revision

        # What it says already is no change; who goes by an older one is told.
        assert (await set_filter(other, "!k8s:slot$")).filter == done.filter
        for validate_only in (True, False):
            error = await refused(
                set_filter(other, validate_only=validate_only, expected_revision=present.revision),
                Aborted,
                "FILTER_CHANGED",
            )
            assert error.metadata["revision"] == str(done.filter.revision)
        back = await set_filter(other, expected_revision=done.filter.revision)
        assert tuple(back.filter.patterns) == DEFAULT_PATTERNS
        assert await resolve(other, SLOTS[0]) == blue


async def test_a_bad_pattern_is_named_and_nothing_changes(
    replicas: tuple[ServiceProcess, ServiceProcess],
) -> None:
    async with open_channel(replicas[0].target) as channel:
        identities = identity_pb2_grpc.IdentityServiceStub(channel)
        before = await identities.GetLabelFilter(identity_pb2.GetLabelFilterRequest())
        error = await refused(set_filter(identities, "k8s:app", "k8s:a=b"), InvalidArgument, "FILTER_INVALID")
        assert error.metadata["pattern"] == "k8s:a=b"
        assert error.violations[0].field == "patterns[1]"
        error = await refused(set_filter(identities, "x" * 600), InvalidArgument, "REQUEST_INVALID")
        assert await identities.GetLabelFilter(identity_pb2.GetLabelFilterRequest()) == before


async def test_a_late_withdrawal_through_another_replica_removes_nothing_newer(
    replicas: tuple[ServiceProcess, ServiceProcess],
) -> None:
    async with open_channel(replicas[0].target) as first, open_channel(replicas[1].target) as second:
        web = await resolve(identity_pb2_grpc.IdentityServiceStub(first), SLOTS[0])
        stubs = [identity_pb2_grpc.IpCacheServiceStub(channel) for channel in (first, second)]

        def publish(node: str, *hosts: int, replace: bool = False) -> identity_pb2.PublishRequest:
            entries = [
                identity_pb2.IpCacheEntry(prefix=f"10.9.{host}.1/32", identity=web.id) for host in hosts
            ]
            return identity_pb2.PublishRequest(node=node, entries=entries, replace_node=replace)

        hosts = range(40)
        await stubs[0].Publish(publish("old", *hosts))
        # At once, through both: the new node takes over what the old one withdraws and replaces by nothing.
        await asyncio.gather(
            *(stubs[host % 2].Publish(publish("new", host)) for host in hosts),
            *(
                stubs[(host + 1) % 2].Withdraw(
                    identity_pb2.WithdrawRequest(node="old", prefixes=[f"10.9.{host}.1/32"])
                )
                for host in hosts
            ),
            stubs[1].Publish(publish("old", replace=True)),
        )
        for stub in stubs:
            listed = await stub.ListIpCacheEntries(
                identity_pb2.ListIpCacheEntriesRequest(node="new", page_size=1000)
            )
            assert {entry.prefix for entry in listed.entries} == {f"10.9.{host}.1/32" for host in hosts}
            listed = await stub.ListIpCacheEntries(identity_pb2.ListIpCacheEntriesRequest(node="old"))
            assert not listed.entries
