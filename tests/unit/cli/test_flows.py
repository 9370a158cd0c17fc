"""Filters of `fimbria flows`, and flows as they are printed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from fimbria.loader.v1 import loader_pb2

from cli.commands.flows import _compact, _details, _shown, flows
from cli.errors import BadInput
from cli.flow import flow_row
from cli.flow_request import Wanted, request_of


def request(**given: Any) -> loader_pb2.GetFlowsRequest:
    return request_of(Wanted(**given))


def test_without_filters_the_last_twenty_are_asked_for() -> None:
    asked = request()
    assert (asked.last, len(asked.allow), asked.follow, asked.trace) == (20, 0, False, False)
    assert request(follow=True).last == 0
    assert request(follow=True, last=3).last == 3


def test_filters_of_one_kind_are_alternatives_of_different_kinds_conditions() -> None:
    asked = request(sources=("shop/a", "10.0.0.1"), targets=("shop/",), verdict="denied", port="80/TCP")
    assert len(asked.allow) == 2
    first, second = asked.allow
    assert (first.source_pod, first.source_ip) == ("shop/a", "")
    assert (second.source_pod, second.source_ip) == ("", "10.0.0.1")
    for item in asked.allow:
        assert item.destination_pod == "shop/"
        assert item.verdict == loader_pb2.FLOW_VERDICT_DROPPED
        assert item.destination_port == 80


def test_types_and_addresses_multiply() -> None:
    asked = request(types=("drop", "verdict"), ips=("10.0.0.1", "fd00::/64"), family="6", verdict="audit")
    assert [(item.ip, item.type) for item in asked.allow] == [
        ("10.0.0.1", loader_pb2.FLOW_TYPE_DROP),
        ("10.0.0.1", loader_pb2.FLOW_TYPE_VERDICT),
        ("fd00::/64", loader_pb2.FLOW_TYPE_DROP),
        ("fd00::/64", loader_pb2.FLOW_TYPE_VERDICT),
    ]
    for item in asked.allow:
        assert (item.family, item.verdict) == (6, loader_pb2.FLOW_VERDICT_AUDIT)
    assert not asked.trace


def test_traces_are_asked_for_by_who_follows() -> None:
    asked = request(follow=True, types=("trace", "drop"))
    assert asked.trace
    assert [item.type for item in asked.allow] == [loader_pb2.FLOW_TYPE_TRACE, loader_pb2.FLOW_TYPE_DROP]
    with pytest.raises(BadInput, match="--type trace needs --follow"):
        request(types=("trace",))


@pytest.mark.parametrize(
    ("text", "pod", "ip"),
    [
        ("shop/web", "shop/web", ""),
        ("shop/", "shop/", ""),
        ("fd00/web", "fd00/web", ""),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.1.2.3/16", "", "10.1.0.0/16"),
        ("FD00:0:0::0001", "", "fd00::1"),
        ("fd00:0244::1/48", "", "fd00:244::/48"),
        ("::/0", "", "::/0"),
    ],
)
def test_an_end_is_a_pod_a_namespace_an_address_or_a_prefix(text: str, pod: str, ip: str) -> None:
    asked = request(sources=(text,), targets=(text,), not_sources=(text,), not_targets=(text,))
    (both,) = asked.allow
    assert (both.source_pod, both.source_ip) == (both.destination_pod, both.destination_ip) == (pod, ip)
    source, target = asked.deny
    assert (source.source_pod, source.source_ip, source.destination_pod) == (pod, ip, "")
    assert (target.destination_pod, target.destination_ip, target.source_pod) == (pod, ip, "")


@pytest.mark.parametrize(
    "text", ["web", "", "/web", "10.0.0", "10.0.0.0/33", "fd00::/x", "fe80::1%eth0", "[::1]"]
)
def test_an_end_that_is_none_is_refused_with_its_option(text: str) -> None:
    for option, field in (("--from", "sources"), ("--to", "targets"), ("--not-to", "not_targets")):
        with pytest.raises(
            BadInput, match=f"^{option} .* is not valid: expected NS/NAME, NS/, an address or"
        ):
            request(**{field: (text,)})


@pytest.mark.parametrize("text", ["shop/web", "shop", "10.0.0.0/33"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--ip .* is not valid: expected an address or a prefix"):
        request(ips=(text,))


@pytest.mark.parametrize("since", ["", "5", "m", "5d", "-1s"])
def test_an_illegal_age_is_refused(since: str) -> None:
    with pytest.raises(BadInput, match="--since"):
        request(since=since)


def a_flow(**fields: Any) -> loader_pb2.Flow:
    flow = loader_pb2.Flow(
        node="node-1",
        type=loader_pb2.FLOW_TYPE_DROP,
        verdict=loader_pb2.FLOW_VERDICT_DROPPED,
        direction="ingress",
        family=4,
        protocol=6,
        source=loader_pb2.FlowEnd(ip="10.244.1.7", port=41004, identity=257, pod="shop/client"),
        destination=loader_pb2.FlowEnd(ip="192.0.2.1", port=80, identity=2),
    )
    flow.time.FromJsonString("2026-01-02T03:04:05.678Z")
    flow.MergeFrom(loader_pb2.Flow(**fields))
    return flow


def test_a_drop_reads_as_a_sentence() -> None:
    assert _compact(flow_row(a_flow(reason="Policy denied"))) == (
        "03:04:05.678 node-1: shop/client (10.244.1.7:41004) -> 192.0.2.1:80 (identity 2) TCP ingress "
        "DROPPED (Policy denied)"
    )


def test_audit_traces_and_ipv6_read_as_sentences_too() -> None:
    audit = a_flow(
        verdict=loader_pb2.FLOW_VERDICT_AUDIT,
        type=loader_pb2.FLOW_TYPE_VERDICT,
        reason="Policy denied",
        rule="default deny: NetworkPolicy shop/web",
    )
    assert _compact(flow_row(audit)).endswith("AUDIT (Policy denied; default deny: NetworkPolicy shop/web)")
    trace = a_flow(
        type=loader_pb2.FLOW_TYPE_TRACE,
        verdict=loader_pb2.FLOW_VERDICT_FORWARDED,
        trace_point=loader_pb2.TRACE_POINT_TO_OVERLAY,
        state=loader_pb2.FLOW_STATE_NEW,
        family=6,
        protocol=58,
        source=loader_pb2.FlowEnd(ip="fd00::7", port=0),
        destination=loader_pb2.FlowEnd(ip="fd00::8", port=128),
    )
    row = flow_row(trace)
    assert (row["type"], row["point"], row["state"], row["family"]) == ("trace", "to-overlay", "new", 6)
    assert "[fd00::8]:128 (identity 2) ICMPv6 ingress FORWARDED (to-overlay new)" in _compact(row)
    assert _shown(row)["why"] == "to-overlay new"


def test_what_has_no_address_is_unknown() -> None:
    row = flow_row(loader_pb2.Flow(source=loader_pb2.FlowEnd(identity=1002)))
    assert "unknown (identity 1002) -> unknown (identity 0)" in _compact(row)
    assert (row["type"], row["point"], row["state"]) == ("", "", "")


def test_the_first_bytes_are_shown_in_rows() -> None:
    row = flow_row(
        a_flow(packet=bytes(range(60, 80)), length=1514, location="policy.h:12", policy_revision=7)
    )
    assert row["packet"] == bytes(range(60, 80)).hex()
    assert _details(row) == [
        "    policy.h:12, policy revision 7, 1514 bytes, the first 20",
        "    0000  3c3d 3e3f 4041 4243 4445 4647 4849 4a4b  <=>?@ABCDEFGHIJK",
        "    0010  4c4d 4e4f                                LMNO",
    ]
    whole = flow_row(a_flow(packet=b"\0", length=1))
    assert _details(whole)[0].endswith(", 1 bytes")
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    "arguments", [["--type", "drops"], ["--family", "5"], ["--verdict", "lost"], ["--last", "0"]]
)
def test_what_is_no_choice_is_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(flows, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output
