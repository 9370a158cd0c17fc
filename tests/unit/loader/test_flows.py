"""Flows: named, remembered, filtered, followed, and lost ones told once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.loader.flows.filters import Addresses, FlowFilter, FlowQuery
from services.loader.flows.flow import Flow, Lost
from services.loader.flows.log import FlowLog
from services.loader.interfaces import PacketReport, ReportKind, Verdict


class Names:
    """Two pods with addresses of both families, one rule, one default deny."""

    def pod(self, ip: str) -> str:
        return {
            "10.0.0.1": "shop/client",
            "10.0.0.2": "shop/web",
            "fd00::1": "shop/client",
            "fd00::2": "shop/web",
        }.get(ip, "")

    def rule(self, cookie: int) -> str:
        return "CiliumNetworkPolicy shop/web spec.ingress[0]" if cookie == 1 else ""

    def default_deny(self, endpoint_id: int, direction: int) -> Sequence[str]:
        return ["CiliumNetworkPolicy shop/web"] if (endpoint_id, direction) == (7, 0) else []


REPORT = PacketReport(
    time_ns=5,
    kind=ReportKind.VERDICT,
    verdict=Verdict.FORWARDED,
    reason="",
    reason_code=0,
    direction=0,
    family=4,
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
    point="",
    state="",
    length=54,
    packet=bytes(54),
)
DROP = replace(
    REPORT,
    kind=ReportKind.DROP,
    verdict=Verdict.DROPPED,
    reason="Policy denied",
    reason_code=133,
    rule_cookie=0,
)
AUDIT = replace(DROP, kind=ReportKind.VERDICT, verdict=Verdict.AUDIT)
TRACE = replace(REPORT, kind=ReportKind.TRACE, rule_cookie=0, point="to-endpoint", state="new")
REPORT6 = replace(REPORT, family=6, source="fd00::1", destination="fd00::2")
ARP = replace(DROP, family=0, source="", destination="", reason="ARP", reason_code=222)


@pytest.fixture
def log() -> FlowLog:
    return FlowLog(Names(), capacity=4, offset=lambda: 1000)


def flow(log: FlowLog, report: PacketReport = REPORT) -> Flow:
    log.report(report)
    last = log.recent()[-1]
    assert isinstance(last, Flow)
    return last


def traced(report: PacketReport = TRACE) -> Flow:
    return Flow(report.time_ns, report, "", "", "")


@pytest.mark.parametrize("report", [REPORT, REPORT6])
def test_a_flow_has_the_names_of_pods_and_rule(log: FlowLog, report: PacketReport) -> None:
    found = flow(log, report)
    assert (found.source_pod, found.destination_pod) == ("shop/client", "shop/web")
    assert found.rule == "CiliumNetworkPolicy shop/web spec.ingress[0]"
    assert found.time_ns == 1005
    assert found.report is report


@pytest.mark.parametrize("report", [DROP, AUDIT])
def test_a_denial_that_no_rule_decided_names_who_denies_by_default(
    log: FlowLog, report: PacketReport
) -> None:
    assert flow(log, report).rule == "default deny: CiliumNetworkPolicy shop/web"
    assert flow(log, replace(report, endpoint_id=8)).rule == "default deny"
    assert flow(log, replace(report, reason_code=132)).rule == ""


NET = Addresses.parse


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
        (FlowFilter(source_ip=NET("10.0.0.1"), destination_ip=NET("10.0.0.2")), True),
        (FlowFilter(destination_ip=NET("10.0.0.1")), False),
        (FlowFilter(ip=NET("10.0.0.1")), True),
        (FlowFilter(ip=NET("10.0.0.2/32")), True),
        (FlowFilter(ip=NET("10.0.0.3")), False),
        (FlowFilter(ip=NET("fd00::/8")), False),
        (FlowFilter(verdict=Verdict.DROPPED), False),
        (FlowFilter(verdict=Verdict.FORWARDED, protocols=(6,)), True),
        (FlowFilter(kind=ReportKind.VERDICT), True),
        (FlowFilter(kind=ReportKind.DROP), False),
        (FlowFilter(family=4), True),
        (FlowFilter(family=6), False),
        (FlowFilter(protocols=(17,)), False),
        (FlowFilter(protocols=(1, 58)), False),
    ],
)
def test_a_filter_matches_when_all_of_it_does(log: FlowLog, filter_: FlowFilter, matches: bool) -> None:
    assert filter_.matches(flow(log)) is matches


def test_verdicts_and_kinds_are_told_apart() -> None:
    for report in (REPORT, DROP, AUDIT, TRACE):
        same = [each for each in (REPORT, DROP, AUDIT, TRACE) if each.verdict is report.verdict]
        for each in (REPORT, DROP, AUDIT, TRACE):
            assert FlowFilter(verdict=report.verdict).matches(traced(each)) is (each in same)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.1", ["10.0.0.1"], ["10.0.0.2", "fd00::1", ""]),
        ("10.0.0.1/24", ["10.0.0.0", "10.0.0.255"], ["10.0.1.0"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", ""]),
        ("FD00:0:0:0::0001", ["fd00::1"], ["fd00::2"]),
        ("fd00:244:1::/63", ["fd00:244:1::5", "fd00:244:1:1::5"], ["fd00:244:1:2::5", "10.0.0.1"]),
        ("::/0", ["::", "2001:db8::1", "::ffff:10.0.0.1"], ["10.0.0.1", ""]),
        ("::ffff:10.0.0.1", ["::ffff:10.0.0.1"], ["10.0.0.1"]),
    ],
)
def test_addresses_are_compared_as_numbers(text: str, inside: list[str], outside: list[str]) -> None:
    addresses = NET(text)
    assert [ip for ip in [*inside, *outside] if ip in addresses] == inside


@pytest.mark.parametrize(
    "text",
    ["", "web", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/x", "fd00::/129", "fe80::1%eth0", "::/-1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|prefix|device"):
        NET(text)


def test_one_allowed_is_enough_and_one_denied_is_too_much(log: FlowLog) -> None:
    found = flow(log)
    web, other = FlowFilter(destination_pod="shop/web"), FlowFilter(destination_pod="shop/api")
    assert FlowQuery(allow=[other, web]).wants(found)
    assert not FlowQuery(allow=[other]).wants(found)
    assert not FlowQuery(allow=[web], deny=[FlowFilter(verdict=Verdict.FORWARDED)]).wants(found)
    assert not FlowQuery(deny=[web]).wants(found)
    assert FlowQuery(deny=[other]).wants(found)


def test_traces_are_for_those_who_ask_for_them() -> None:
    assert not FlowQuery().wants(traced())
    assert not FlowQuery(allow=[FlowFilter(kind=ReportKind.TRACE)]).wants(traced())
    assert FlowQuery(traces=True).wants(traced())
    assert not FlowQuery(allow=[FlowFilter(kind=ReportKind.DROP)], traces=True).wants(traced())


def test_the_newest_are_remembered_but_no_traces(log: FlowLog) -> None:
    for port in range(1, 8):
        log.report(replace(REPORT, source_port=port))
        log.report(TRACE)
    ports = [item.report.source_port for item in log.recent() if isinstance(item, Flow)]
    assert ports == [4, 5, 6, 7]
    last = log.recent(FlowQuery(last=2, traces=True))
    assert [item.report.source_port for item in last if isinstance(item, Flow)] == [6, 7]
    assert log.recent(FlowQuery(since_ns=1006)) == []


def test_what_has_no_address_has_no_name(log: FlowLog) -> None:
    found = flow(log, ARP)
    assert (found.source_pod, found.destination_pod, found.rule) == ("", "", "")
    assert not FlowFilter(source_ip=NET("0.0.0.0/0")).matches(found)


async def test_who_follows_gets_what_comes(log: FlowLog) -> None:
    log.report(REPORT)
    following = log.get(FlowQuery(allow=[FlowFilter(verdict=Verdict.DROPPED)], follow=True))
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    for report in (REPORT, TRACE, AUDIT, DROP):
        log.report(report)
    async with asyncio.timeout(5):
        found = await first
    assert isinstance(found, Flow)
    assert found.report is DROP
    await following.aclose()


async def test_who_follows_with_traces_gets_those_too(log: FlowLog) -> None:
    following = log.get(FlowQuery(follow=True, traces=True))
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.report(TRACE)
    log.report(DROP)
    async with asyncio.timeout(5):
        items = [await first, await anext(following)]
    assert [item.report for item in items if isinstance(item, Flow)] == [TRACE, DROP]
    await following.aclose()


async def test_who_follows_from_the_last_ones_on_gets_both(log: FlowLog) -> None:
    log.report(REPORT)
    following = log.get(FlowQuery(last=1, follow=True))
    assert isinstance(await anext(following), Flow)
    log.report(DROP)
    async with asyncio.timeout(5):
        found = await anext(following)
    assert isinstance(found, Flow)
    assert found.report is DROP
    await following.aclose()


async def test_lost_ones_are_told_once_at_their_place(log: FlowLog) -> None:
    following = log.get(FlowQuery(follow=True))
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
    assert [item for item in log.recent() if isinstance(item, Lost)] == [Lost(3), Lost(2)]
    await following.aclose()


async def test_a_reader_that_is_too_slow_is_told_how_much_it_missed() -> None:
    log = FlowLog(Names(), capacity=1, offset=lambda: 0)
    following = log.get(FlowQuery(follow=True))
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


async def test_what_is_not_wanted_takes_no_room_from_what_is(log: FlowLog) -> None:
    following = log.get(FlowQuery(allow=[FlowFilter(verdict=Verdict.DROPPED)], follow=True))
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    for _ in range(1500):
        log.report(REPORT)
    log.report(DROP)
    async with asyncio.timeout(5):
        found = await first
    assert isinstance(found, Flow)
    assert found.report is DROP
    await following.aclose()
