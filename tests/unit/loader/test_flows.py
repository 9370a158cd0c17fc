"""Flows: named, remembered, filtered, followed, and lost ones told once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.loader.flows.log import Flow, FlowEnd, FlowFilter, FlowLog, Lost, wanted
from services.loader.interfaces import PacketReport


class Names:
    """Two pods, one rule, one default deny."""

    def pod(self, ip: str) -> str:
        return {"10.0.0.1": "shop/client", "10.0.0.2": "shop/web"}.get(ip, "")

    def rule(self, cookie: int) -> str:
        return "CiliumNetworkPolicy shop/web spec.ingress[0]" if cookie == 1 else ""

    def default_deny(self, endpoint_id: int, direction: int) -> Sequence[str]:
        return ["CiliumNetworkPolicy shop/web"] if (endpoint_id, direction) == (7, 0) else []


REPORT = PacketReport(
    time_ns=5,
    dropped=False,
    reason="",
    reason_code=0,
    direction=0,
    protocol=6,
    source="10.0.0.1",
    source_port=40000,
    source_identity=256,
    destination="10.0.0.2",
    destination_port=80,
    destination_identity=257,
    rule_cookie=1,
    policy_revision=3,
    tcp_flags=2,
    endpoint_id=7,
    location="policy.h:1",
)
DROP = replace(REPORT, dropped=True, reason="Policy denied", reason_code=133, rule_cookie=0)


@pytest.fixture
def log() -> FlowLog:
    return FlowLog(Names(), capacity=4, offset=lambda: 1000)


def flow(log: FlowLog, report: PacketReport = REPORT) -> Flow:
    log.report(report)
    last = log.recent()[-1]
    assert isinstance(last, Flow)
    return last


def test_a_flow_has_the_names_of_pods_and_rule(log: FlowLog) -> None:
    found = flow(log)
    assert found.source == FlowEnd("10.0.0.1", 40000, 256, "shop/client")
    assert found.destination.pod == "shop/web"
    assert found.rule == "CiliumNetworkPolicy shop/web spec.ingress[0]"
    assert found.time_ns == 1005


def test_a_drop_that_no_rule_decided_names_who_denies_by_default(log: FlowLog) -> None:
    assert flow(log, DROP).rule == "default deny: CiliumNetworkPolicy shop/web"
    assert flow(log, replace(DROP, endpoint_id=8)).rule == "default deny"
    assert flow(log, replace(DROP, reason_code=132)).rule == ""


@pytest.mark.parametrize(
    ("filter_", "matches"),
    [
        (FlowFilter(), True),
        (FlowFilter(source_pod="shop/client"), True),
        (FlowFilter(source_pod="shop/"), True),
        (FlowFilter(source_pod="shop"), False),
        (FlowFilter(source_pod="shop/web"), False),
        (FlowFilter(destination_pod="shop/web", destination_port=80), True),
        (FlowFilter(destination_pod="shop/web", destination_port=81), False),
        (FlowFilter(source_ip="10.0.0.1", destination_ip="10.0.0.2"), True),
        (FlowFilter(destination_ip="10.0.0.1"), False),
        (FlowFilter(dropped=True), False),
        (FlowFilter(dropped=False, protocol=6), True),
        (FlowFilter(protocol=17), False),
    ],
)
def test_a_filter_matches_when_all_of_it_does(log: FlowLog, filter_: FlowFilter, matches: bool) -> None:
    assert filter_.matches(flow(log)) is matches


def test_one_allowed_is_enough_and_one_denied_is_too_much(log: FlowLog) -> None:
    found = flow(log)
    web, other = FlowFilter(destination_pod="shop/web"), FlowFilter(destination_pod="shop/api")
    assert wanted(found, [other, web], [])
    assert not wanted(found, [other], [])
    assert not wanted(found, [web], [FlowFilter(dropped=False)])
    assert not wanted(found, [], [web])
    assert wanted(found, [], [other])


def test_the_newest_are_remembered(log: FlowLog) -> None:
    for port in range(1, 8):
        log.report(replace(REPORT, source_port=port))
    ports = [item.source.port for item in log.recent() if isinstance(item, Flow)]
    assert ports == [4, 5, 6, 7]
    last = log.recent(last=2)
    assert [item.source.port for item in last if isinstance(item, Flow)] == [6, 7]
    late = log.recent(since_ns=1006)
    assert late == []


async def test_who_follows_gets_what_comes(log: FlowLog) -> None:
    log.report(REPORT)
    following = log.get(allow=[FlowFilter(dropped=True)], follow=True)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.report(REPORT)
    log.report(DROP)
    async with asyncio.timeout(5):
        found = await first
    assert isinstance(found, Flow)
    assert found.dropped
    await following.aclose()


async def test_who_follows_from_the_last_ones_on_gets_both(log: FlowLog) -> None:
    log.report(REPORT)
    following = log.get(last=1, follow=True)
    assert isinstance(await anext(following), Flow)
    log.report(DROP)
    async with asyncio.timeout(5):
        found = await anext(following)
    assert isinstance(found, Flow)
    assert found.dropped
    await following.aclose()


async def test_lost_ones_are_told_once_at_their_place(log: FlowLog) -> None:
    following = log.get(follow=True)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.report(REPORT)
    log.lose(3)
    log.lose(2)
    log.report(DROP)
    async with asyncio.timeout(5):
        items = [await first, await anext(following), await anext(following)]
    assert items[1] == Lost(5)
    assert [type(item) for item in items] == [Flow, Lost, Flow]
    await following.aclose()


async def test_a_reader_that_is_too_slow_is_told_how_much_it_missed() -> None:
    log = FlowLog(Names(), capacity=1, offset=lambda: 0)
    following = log.get(follow=True)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    for _ in range(1500):
        log.report(REPORT)
    async with asyncio.timeout(5):
        count = 1 if isinstance(await first, Flow) else 0
        while not isinstance(item := await anext(following), Lost):
            count += 1
    assert count + item.count == 1500
    await following.aclose()
