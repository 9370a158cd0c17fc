"""Flows as messages of the loader's API, and what is asked for as the domain's query."""

from __future__ import annotations

from typing import Final

from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.errors import FieldViolation, InvalidArgument
from services.loader.flows.filters import Addresses, FlowFilter, FlowQuery
from services.loader.flows.flow import Flow
from services.loader.interfaces import ReportKind, Verdict
from services.loader.messages import Labels, direction_name, timestamp
from services.loader.policy.messages import PROTOCOL_NUMBERS

TYPES: Final = {
    ReportKind.DROP: pb.FLOW_TYPE_DROP,
    ReportKind.VERDICT: pb.FLOW_TYPE_VERDICT,
    ReportKind.TRACE: pb.FLOW_TYPE_TRACE,
}
VERDICTS: Final = {
    Verdict.FORWARDED: pb.FLOW_VERDICT_FORWARDED,
    Verdict.DROPPED: pb.FLOW_VERDICT_DROPPED,
    Verdict.AUDIT: pb.FLOW_VERDICT_AUDIT,
}
POINTS: Final = {
    "to-endpoint": pb.TRACE_POINT_TO_ENDPOINT,
    "to-overlay": pb.TRACE_POINT_TO_OVERLAY,
    "to-host": pb.TRACE_POINT_TO_HOST,
    "to-network": pb.TRACE_POINT_TO_NETWORK,
}
STATES: Final = {
    "new": pb.FLOW_STATE_NEW,
    "related": pb.FLOW_STATE_RELATED,
    "closing": pb.FLOW_STATE_CLOSING,
}
_KINDS: Final = {message: kind for kind, message in TYPES.items()}
_VERDICTS: Final = {message: verdict for verdict, message in VERDICTS.items()}
_ICMP: Final = (1, 58)


def flow_message(flow: Flow, node: str, labels: Labels) -> pb.Flow:
    """A flow."""
    report = flow.report
    return pb.Flow(
        time=timestamp(flow.time_ns),
        node=node,
        verdict=VERDICTS[report.verdict],
        reason=report.reason,
        reason_code=report.reason_code,
        direction=direction_name(report.direction),
        protocol=report.protocol,
        source=pb.FlowEnd(
            ip=report.source,
            port=report.source_port,
            identity=report.source_identity,
            pod=flow.source_pod,
            labels=labels(report.source_identity),
        ),
        destination=pb.FlowEnd(
            ip=report.destination,
            port=report.destination_port,
            identity=report.destination_identity,
            pod=flow.destination_pod,
            labels=labels(report.destination_identity),
        ),
        rule=flow.rule,
        rule_cookie=report.rule_cookie,
        policy_revision=report.policy_revision,
        tcp_flags=report.tcp_flags,
        endpoint_id=report.endpoint_id,
        location=report.location,
        type=TYPES[report.kind],
        family=report.family,
        trace_point=POINTS.get(report.point, pb.TRACE_POINT_UNSPECIFIED),
        state=STATES.get(report.state, pb.FLOW_STATE_UNSPECIFIED),
        length=report.length,
        packet=report.packet,
    )


def query_of(request: pb.GetFlowsRequest) -> FlowQuery:
    """What is asked for. Raises InvalidArgument (REQUEST_INVALID, TRACE_NEEDS_FOLLOW)."""
    if request.trace and not request.follow:
        raise InvalidArgument(
            "trace: nobody remembers traces; set follow as well",
            reason="TRACE_NEEDS_FOLLOW",
            metadata={"field": "trace"},
            violations=[FieldViolation("trace", "needs follow")],
        )
    return FlowQuery(
        allow=[_filter(each, f"allow[{index}]") for index, each in enumerate(request.allow)],
        deny=[_filter(each, f"deny[{index}]") for index, each in enumerate(request.deny)],
        last=request.last,
        since_ns=request.since.ToNanoseconds() if request.HasField("since") else 0,
        follow=request.follow,
        traces=request.trace,
    )


def _filter(message: pb.FlowFilter, field: str) -> FlowFilter:
    # Whoever asks for ICMP means pings of either family.
    icmp = message.protocol == types_pb2.PROTOCOL_ICMP
    number = PROTOCOL_NUMBERS.get(message.protocol)
    return FlowFilter(
        source_pod=message.source_pod,
        destination_pod=message.destination_pod,
        source_ip=_addresses(message.source_ip, f"{field}.source_ip"),
        destination_ip=_addresses(message.destination_ip, f"{field}.destination_ip"),
        ip=_addresses(message.ip, f"{field}.ip"),
        kind=_KINDS.get(message.type),
        verdict=_VERDICTS.get(message.verdict),
        family=message.family,
        destination_port=message.destination_port,
        protocols=_ICMP if icmp else () if number is None else (number,),
    )


def _addresses(text: str, field: str) -> Addresses | None:
    if not text:
        return None
    try:
        return Addresses.parse(text)
    except ValueError:
        description = f"is {text!r}: expected an address or a prefix, for example 10.244.1.7 or fd00:244::/48"
        raise InvalidArgument(
            f"invalid request: {field} {description}",
            reason="REQUEST_INVALID",
            metadata={"field": field},
            violations=[FieldViolation(field, description)],
        ) from None
