"""Flows as the API tells them, and what it is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.errors import InvalidArgument
from services.loader.bpf import events
from services.loader.flows import messages
from services.loader.flows.filters import Addresses, FlowFilter
from services.loader.flows.flow import Flow
from services.loader.interfaces import PacketReport, ReportKind, Verdict
from tests.unit.loader.test_flows import AUDIT, REPORT, TRACE


def test_everything_of_a_report_is_in_the_message() -> None:
    report = replace(TRACE, family=6, source="fd00::1", length=1500, packet=b"\1\2")
    flow = Flow(1_500_000_000, report, "shop/client", "", "a rule")
    message = messages.flow_message(flow, "node-1", {256: ("app=client",), 257: ()}.__getitem__)
    assert (message.type, message.trace_point, message.state) == (
        pb.FLOW_TYPE_TRACE,
        pb.TRACE_POINT_TO_ENDPOINT,
        pb.FLOW_STATE_NEW,
    )
    assert (message.family, message.length, message.packet) == (6, 1500, b"\1\2")
    assert (message.source.ip, message.source.port, message.source.pod) == ("fd00::1", 40000, "shop/client")
    assert list(message.source.labels) == ["app=client"]
    assert (message.destination.ip, message.destination.identity) == ("10.0.0.2", 257)
    assert (message.rule, message.location, message.direction) == ("a rule", "policy.h:1", "ingress")
    assert message.time.ToNanoseconds() == 1_500_000_000


@pytest.mark.parametrize("report", [REPORT, AUDIT])
def test_what_is_no_trace_goes_nowhere(report: PacketReport) -> None:
    message = messages.flow_message(Flow(0, report, "", "", ""), "node-1", lambda number: ())
    assert (message.trace_point, message.state) == (0, 0)
    assert message.verdict == messages.VERDICTS[report.verdict]


def test_every_word_of_the_datapath_has_a_message() -> None:
    assert set(messages.POINTS) == set(events._POINTS.values())
    assert set(messages.STATES) == set(events._STATES.values())
    assert set(messages.TYPES) == set(events._KINDS.values())
    for values, numbers in (
        (pb.TracePoint, messages.POINTS),
        (pb.FlowState, messages.STATES),
        (pb.FlowType, messages.TYPES),
        (pb.FlowVerdict, messages.VERDICTS),
    ):
        assert {0, *numbers.values()} == set(values.values())


def test_a_request_becomes_a_query() -> None:
    request = pb.GetFlowsRequest(last=7, follow=True, trace=True)
    request.since.FromNanoseconds(12)
    request.allow.add(
        source_ip="FD00::/8",
        ip="10.0.0.1",
        destination_pod="shop/",
        type=pb.FLOW_TYPE_DROP,
        verdict=pb.FLOW_VERDICT_AUDIT,
        family=6,
    )
    request.deny.add(protocol=types_pb2.PROTOCOL_ICMP, destination_port=8)
    request.deny.add(protocol=types_pb2.PROTOCOL_TCP)
    request.deny.add(protocol=types_pb2.PROTOCOL_ICMPV6)
    query = messages.query_of(request)
    assert (query.last, query.since_ns, query.follow, query.traces) == (7, 12, True, True)
    assert query.allow == [
        FlowFilter(
            source_ip=Addresses.parse("fd00::/8"),
            ip=Addresses.parse("10.0.0.1"),
            destination_pod="shop/",
            kind=ReportKind.DROP,
            verdict=Verdict.AUDIT,
            family=6,
        )
    ]
    # ICMP is that of both families.
    assert [each.protocols for each in query.deny] == [(1, 58), (6,), (58,)]


@pytest.mark.parametrize("field", ["source_ip", "destination_ip", "ip"])
def test_an_address_that_is_none_is_refused_with_its_field(field: str) -> None:
    wrong = pb.FlowFilter()
    setattr(wrong, field, "fd00::/200")
    request = pb.GetFlowsRequest(allow=[pb.FlowFilter()], deny=[pb.FlowFilter(), wrong])
    with pytest.raises(InvalidArgument, match=rf"deny\[1\]\.{field} is 'fd00::/200': expected an address"):
        messages.query_of(request)


def test_traces_need_somebody_who_follows() -> None:
    with pytest.raises(InvalidArgument, match="follow") as caught:
        messages.query_of(pb.GetFlowsRequest(trace=True, last=3))
    assert caught.value.reason == "TRACE_NEEDS_FOLLOW"
