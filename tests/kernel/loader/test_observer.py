"""Flows as a client of the loader's API gets them: both families, traces, first bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import grpc
import pytest
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.loader.v1 import loader_pb2_grpc

from services.chassis.errors import error_from_rpc
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig
from tests.kernel.loader.traffic import reaches
from tests.kernel.netlink.namespaces import Namespaces

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]
Observer = loader_pb2_grpc.ObserverServiceStub

ONLY_HTTP = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: observed, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 80, protocol: TCP}]}]
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Namespaces() as namespaces:
        made = Rig(tmp_path_factory.mktemp("rig"), namespaces, nodes=1, cidrs=DUAL_POOL)
        try:
            made.start()
            made.apply(ONLY_HTTP)
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def web(rig: Rig) -> Iterator[Pod]:
    pod = rig.pod(rig.nodes[0], "web", app="web")
    pod.add()
    with echo_server(pod.namespace, 80):
        yield pod


@pytest.fixture(scope="module")
def client(rig: Rig, web: Pod) -> Pod:
    pod = rig.pod(rig.nodes[0], "client", app="client")
    pod.add()
    return pod


@pytest.fixture
def observer(rig: Rig) -> Iterator[Observer]:
    with grpc.insecure_channel(rig.nodes[0].target) as channel:
        yield Observer(channel)


def flows(observer: Observer, *allow: pb.FlowFilter) -> list[pb.Flow]:
    answers = observer.GetFlows(pb.GetFlowsRequest(allow=allow), timeout=10)
    return [item.flow for item in answers if item.HasField("flow")]


def told(observer: Observer, asked: pb.FlowFilter) -> bool:
    return bool(flows(observer, asked))


@contextmanager
def followed(observer: Observer, **asked: object) -> Iterator[list[pb.Flow]]:
    """The flows that come until the block ends."""
    stream = observer.GetFlows(pb.GetFlowsRequest(follow=True, **asked))  # type: ignore[arg-type]
    seen: list[pb.Flow] = []

    def take() -> None:
        try:
            for item in stream:
                if item.HasField("flow"):
                    seen.append(item.flow)
        except grpc.RpcError:
            return

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield seen
    finally:
        stream.cancel()
        thread.join()


def node_flags(rig: Rig) -> int:
    path = rig.pin_root / "node-1" / "maps" / "node_state"
    command = ["bpftool", "-j", "map", "lookup", "pinned", str(path), "key", *["0"] * 4]
    value = bytes(int(byte, 0) for byte in json.loads(subprocess.check_output(command))["value"])
    return int.from_bytes(value[4:8], sys.byteorder)


def test_a_drop_of_each_family_is_found_by_its_prefix(
    client: Pod, web: Pod, observer: Observer, eventually: Eventually
) -> None:
    for ipv6, prefix in ((False, "10.244.0.0/16"), (True, "FD00:10:244:0::/64")):
        assert not reaches(client, web, 81, 0.2, ipv6=ipv6)
        asked = pb.FlowFilter(source_ip=prefix, ip=web.ipv6 if ipv6 else web.ipv4, type=pb.FLOW_TYPE_DROP)
        eventually(partial(told, observer, asked))
        flow = flows(observer, asked)[-1]
        assert (flow.type, flow.verdict, flow.reason) == (
            pb.FLOW_TYPE_DROP,
            pb.FLOW_VERDICT_DROPPED,
            "Policy denied",
        )
        assert (flow.source.pod, flow.destination.pod, flow.destination.port) == (
            "shop/client",
            "shop/web",
            81,
        )
        assert (flow.source.ip, flow.family) == ((client.ipv6, 6) if ipv6 else (client.ipv4, 4))
        assert flow.rule == "default deny: NetworkPolicy shop/observed"
        assert flow.policy_revision > 0
        name, _, line = flow.location.partition(":")
        assert name.endswith(".h") and int(line) > 0
        # The whole of a SYN with its options.
        assert flow.length == len(flow.packet) and flow.packet[12:14] == (
            b"\x86\xdd" if ipv6 else b"\x08\x00"
        )
        assert flow.packet[36 if not ipv6 else 56 :][:2] == (81).to_bytes(2, "big")
        families = {each.family for each in flows(observer, pb.FlowFilter(family=flow.family))}
        assert families == {flow.family}


def test_a_verdict_names_its_rule(client: Pod, web: Pod, observer: Observer, eventually: Eventually) -> None:
    asked = pb.FlowFilter(type=pb.FLOW_TYPE_VERDICT, destination_ip=web.ipv6, destination_port=80)
    assert reaches(client, web, 80, ipv6=True)
    eventually(partial(told, observer, asked))
    flow = flows(observer, asked)[-1]
    assert (flow.verdict, flow.rule) == (
        pb.FLOW_VERDICT_FORWARDED,
        "NetworkPolicy shop/observed spec.ingress[0]",
    )


def test_traces_come_to_who_asks_for_as_long_as_they_follow(
    rig: Rig, client: Pod, web: Pod, observer: Observer, eventually: Eventually
) -> None:
    assert node_flags(rig) == 1
    with followed(observer) as plain, followed(observer, trace=True) as traced:
        eventually(lambda: node_flags(rig) == 3)
        assert reaches(client, web, 80, ipv6=True)
        ends = {"new", "closing"}

        def states() -> set[str]:
            return {
                pb.FlowState.Name(flow.state).removeprefix("FLOW_STATE_").lower()
                for flow in traced
                if flow.type == pb.FLOW_TYPE_TRACE and flow.destination.ip == web.ipv6
            }

        eventually(lambda: ends <= states())
    assert not any(flow.type == pb.FLOW_TYPE_TRACE for flow in plain)
    (new, *_) = [flow for flow in traced if flow.state == pb.FLOW_STATE_NEW]
    assert new.trace_point == pb.TRACE_POINT_TO_ENDPOINT
    assert (new.source.pod, new.destination.pod) == ("shop/client", "shop/web")
    eventually(lambda: node_flags(rig) == 1)
    # They are not remembered.
    assert not flows(observer, pb.FlowFilter(type=pb.FLOW_TYPE_TRACE))


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.GetFlowsRequest(trace=True), "TRACE_NEEDS_FOLLOW", "trace"),
        (pb.GetFlowsRequest(allow=[pb.FlowFilter(ip="fd00::/200")]), "REQUEST_INVALID", "allow[0].ip"),
        (pb.GetFlowsRequest(deny=[pb.FlowFilter(family=5)]), "REQUEST_INVALID", "deny[0].family"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    observer: Observer, request_: pb.GetFlowsRequest, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(observer.GetFlows(request_, timeout=10))
    error = error_from_rpc(refused.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert [violation.field for violation in error.violations] == [field]
