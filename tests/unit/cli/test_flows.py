"""Filters of `fimbria flows`, and flows as they are printed."""

from __future__ import annotations

import pytest
from fimbria.loader.v1 import loader_pb2

from cli.commands.flows import _compact, _request
from cli.errors import BadInput
from cli.flow import flow_row


def request(**given: object) -> loader_pb2.GetFlowsRequest:
    defaults = {
        "follow": False,
        "last": None,
        "since": None,
        "verdict": None,
        "sources": (),
        "targets": (),
        "port": None,
    }
    return _request(**{**defaults, **given})  # type: ignore[arg-type]


def test_without_filters_the_last_twenty_are_asked_for() -> None:
    asked = request()
    assert (asked.last, len(asked.allow), asked.follow) == (20, 0, False)
    assert request(follow=True).last == 0


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


@pytest.mark.parametrize("since", ["", "5", "m", "5d", "-1s"])
def test_an_illegal_age_is_refused(since: str) -> None:
    with pytest.raises(BadInput, match="--since"):
        request(since=since)


def test_a_drop_reads_as_a_sentence() -> None:
    flow = loader_pb2.Flow(
        node="node-1",
        verdict=loader_pb2.FLOW_VERDICT_DROPPED,
        reason="Policy denied",
        direction="ingress",
        protocol=6,
        source=loader_pb2.FlowEnd(ip="10.244.1.7", port=41004, identity=257, pod="shop/client"),
        destination=loader_pb2.FlowEnd(ip="192.0.2.1", port=80, identity=2),
    )
    flow.time.FromJsonString("2026-01-02T03:04:05.678Z")
    assert _compact(flow_row(flow)) == (
        "03:04:05.678 node-1: shop/client (10.244.1.7:41004) -> 192.0.2.1:80 (identity 2) TCP ingress "
        "DROPPED (Policy denied)"
    )
