"""From the kernel's ring buffer to the flow log, as the loader runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from services.loader.bpf import drop_reasons as reason
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.layout import NODE_EVENTS, NODE_TRACE
from services.loader.bpf.testrun import run_program
from services.loader.flows.filters import Addresses, FlowFilter, FlowQuery
from services.loader.flows.flow import Flow, Lost
from services.loader.flows.log import FlowLog
from services.loader.flows.reader import FlowReader
from services.loader.interfaces import ReportKind, Verdict
from services.loader.kernel import Kernel
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.bpf.node import CLIENT, CLIENT6, CLIENT_ID, WEB, WEB6, WEB_SUBJECT, Node, Rule, forwarded
from tests.kernel.bpf.packets import TCP, ethernet, tcp
from tests.kernel.bpf.packets6 import tcp6
from tests.unit.loader.waiting import until

pytestmark = pytest.mark.kernel


class Names:
    """The two pods of a test's node."""

    def pod(self, ip: str) -> str:
        return {CLIENT: "shop/client", CLIENT6: "shop/client", WEB: "shop/web", WEB6: "shop/web"}.get(ip, "")

    def rule(self, cookie: int) -> str:
        return f"rule {cookie}"

    def default_deny(self, endpoint_id: int, direction: int) -> Sequence[str]:
        return ("NetworkPolicy shop/web",)


class Observed:
    """A node whose reports are read in the test's event loop, and its log."""

    def __init__(self, node: Node, reopen: Callable[[], KernelDatapath]) -> None:
        self.node = node
        node.reader.close()
        self.kernel = Kernel(node.datapath, lambda **_: reopen())
        self.log = FlowLog(Names(), capacity=100_000)
        self.reader = FlowReader(self.kernel, self.log)

    def flows(self) -> list[Flow]:
        return [item for item in self.log.recent() if isinstance(item, Flow)]

    def lost(self) -> int:
        return sum(item.count for item in self.log.recent() if isinstance(item, Lost))

    def send(self, packet: bytes) -> bool:
        """Whether the client's packet passed."""
        return forwarded(self.node.leave(self.node.client, packet))


@pytest.fixture
async def observed(node: Node, config: NodeConfig, pin_dir: str, cache_dir: str) -> AsyncIterator[Observed]:
    def reopen() -> KernelDatapath:
        return KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)

    made = Observed(node, reopen)
    yield made
    made.reader.close()
    made.kernel.close()


def flags(datapath: KernelDatapath) -> int:
    return datapath._node_state()[1]


async def test_drops_verdicts_and_audits_of_both_families_become_flows(observed: Observed) -> None:
    rules = [Rule(CLIENT_ID, TCP, 80, cookie=5)]
    observed.node.policy(WEB_SUBJECT, ingress=rules, revision=3)
    assert observed.send(tcp(CLIENT, WEB, 1000, 80))
    assert not observed.send(tcp6(CLIENT6, WEB6, 1001, 81))
    assert not observed.send(ethernet(b"\0" * 46, 0x88CC))
    observed.node.policy(WEB_SUBJECT, ingress=rules, revision=4, audit=True)
    assert observed.send(tcp6(CLIENT6, WEB6, 1002, 81))
    await until(lambda: len(observed.flows()) == 4)
    verdict, drop, unknown, audit = observed.flows()
    assert (verdict.report.kind, verdict.report.verdict) == (ReportKind.VERDICT, Verdict.FORWARDED)
    assert (verdict.rule, verdict.report.family, verdict.report.policy_revision) == ("rule 5", 4, 3)
    assert (drop.report.kind, drop.report.verdict) == (ReportKind.DROP, Verdict.DROPPED)
    assert (drop.source_pod, drop.destination_pod) == ("shop/client", "shop/web")
    assert (drop.report.source, drop.report.source_port, drop.report.family) == (CLIENT6, 1001, 6)
    assert drop.rule == "default deny: NetworkPolicy shop/web"
    assert drop.report.packet == tcp6(CLIENT6, WEB6, 1001, 81)
    assert drop.report.location.startswith("policy.h:")
    assert (unknown.report.family, unknown.report.reason_code) == (0, reason.UNKNOWN_L3)
    assert (audit.report.kind, audit.report.verdict) == (ReportKind.VERDICT, Verdict.AUDIT)
    assert (audit.report.reason, audit.rule) == ("Policy denied", "default deny: NetworkPolicy shop/web")
    asked = FlowQuery(allow=[FlowFilter(source_ip=Addresses.parse("fd00:244:1::/48"))])
    assert observed.log.recent(asked) == [drop, audit]


async def test_traces_are_made_while_somebody_follows_with_them(observed: Observed) -> None:
    assert flags(observed.node.datapath) == NODE_EVENTS
    with observed.reader.tracing():
        assert flags(observed.node.datapath) == NODE_EVENTS | NODE_TRACE
        following = observed.log.get(FlowQuery(follow=True, traces=True))
        coming = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        assert observed.send(tcp6(CLIENT6, WEB6, 1000, 80))
        async with asyncio.timeout(10):
            found = await coming
        await following.aclose()
    assert isinstance(found, Flow)
    assert (found.report.kind, found.report.point, found.report.state) == ("trace", "to-endpoint", "new")
    assert flags(observed.node.datapath) == NODE_EVENTS
    assert observed.flows() == []
    observed.reader.close()
    assert flags(observed.node.datapath) == 0


async def test_reading_outlives_programs_that_are_loaded_anew(observed: Observed) -> None:
    observed.node.policy(WEB_SUBJECT, ingress=[])
    observed.kernel.reload(rebuild=True)
    fresh = observed.kernel._datapath
    run_program(
        fresh.program_fd("from_container"), tcp(CLIENT, WEB, 7, 80), ifindex=observed.node.client.ifindex
    )
    await until(lambda: [flow.report.source_port for flow in observed.flows()] == [7])
    with observed.reader.tracing():
        assert flags(fresh) == NODE_EVENTS | NODE_TRACE
    observed.reader.close()
    assert flags(fresh) == 0


async def test_a_flood_is_read_in_turns_and_what_is_lost_is_told(observed: Observed) -> None:
    observed.node.policy(WEB_SUBJECT, ingress=[])
    program = observed.node.datapath.program_fd("from_container")
    sent = 20_000
    run_program(program, tcp(CLIENT, WEB, 1, 80), ifindex=observed.node.client.ifindex, repeat=sent)
    turns = 0
    async with asyncio.timeout(60):
        while len(observed.flows()) + observed.lost() < sent:
            await asyncio.sleep(0)
            turns += 1
    assert len(observed.flows()) + observed.lost() == sent
    assert 0 < observed.lost() == observed.kernel.lost_events()
    assert turns > len(observed.flows()) // 128
    # A lost report is no packet.
    assert [(count.reason, count.packets) for count in observed.kernel.traffic()] == [("Policy denied", sent)]
