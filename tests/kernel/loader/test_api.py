"""Every method of the loader's API on a running node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeAlias

import grpc
import pytest
from fimbria.loader.v1 import loader_pb2 as pb
from fimbria.loader.v1 import loader_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.errors import DeadlineExceeded, NotFound, error_from_rpc
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Pod, Rig
from tests.kernel.loader.traffic import connect, reaches, talks

Pods: TypeAlias = "tuple[Pod, Pod]"

pytestmark = pytest.mark.kernel

ONLY_HTTP = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: flows, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 80, protocol: TCP}]}]
"""


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[tuple[Pod, Pod]]:
    """A server and a client on the first node."""
    web, client = rig.pod(rig.nodes[0], "web", app="web"), rig.pod(rig.nodes[0], "client", app="client")
    web.add()
    client.add()
    with echo_server(web.namespace, 80):
        yield web, client


@pytest.fixture(scope="module")
def channel(rig: Rig) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(rig.nodes[0].target) as made:
        yield made


def test_endpoints_are_listed_by_pages_and_got_one_by_one(pods: Pods, channel: grpc.Channel) -> None:
    stub = loader_pb2_grpc.EndpointServiceStub(channel)
    first = stub.ListEndpoints(pb.ListEndpointsRequest(page_size=1))
    second = stub.ListEndpoints(pb.ListEndpointsRequest(page_size=1, page_token=first.next_page_token))
    found = {each.pod_name for each in [*first.endpoints, *second.endpoints]}
    assert found == {"web", "client"}
    assert second.next_page_token == ""
    assert stub.GetEndpoint(pb.GetEndpointRequest(id=first.endpoints[0].id)) == first.endpoints[0]
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetEndpoint(pb.GetEndpointRequest(id=65535))
    error = error_from_rpc(refused.value)
    assert isinstance(error, NotFound)
    assert error.reason == "ENDPOINT_NOT_FOUND"


def test_a_watch_tells_what_is_there_and_what_comes(rig: Rig, pods: Pods, channel: grpc.Channel) -> None:
    stub = loader_pb2_grpc.EndpointServiceStub(channel)
    watch = stub.WatchEndpoints(pb.WatchEndpointsRequest(), timeout=30)
    present: set[str] = set()
    for message in watch:
        if message.snapshot_complete:
            break
        present.update(event.endpoint.pod_name for event in message.events)
    assert present == {"web", "client"}
    pod = rig.pod(rig.nodes[0], "watched", app="watched")
    pod.add()
    states = []
    number = 0
    for message in watch:
        (event,) = message.events
        states.append(event.endpoint.state)
        number = event.endpoint.id
        if event.endpoint.state == pb.ENDPOINT_STATE_READY:
            break
    assert states[0] == pb.ENDPOINT_STATE_CREATING
    stub.DeleteEndpoint(pb.DeleteEndpointRequest(id=number))
    for message in watch:
        (event,) = message.events
        if event.type == types_pb2.CHANGE_TYPE_DELETE:
            assert event.endpoint.id == number
            break
    watch.cancel()
    assert f"{pod.container_id}/eth0" not in rig.owners()


def test_a_regeneration_leaves_everything_as_it_was(pods: Pods, channel: grpc.Channel) -> None:
    web, client = pods
    node = web.node
    (before,) = [each for each in node.endpoints() if each.pod_name == "web"]
    with connect(client, web, 80) as connection:
        after = loader_pb2_grpc.EndpointServiceStub(channel).RegenerateEndpoint(
            pb.RegenerateEndpointRequest(id=before.id), timeout=10
        )
        assert talks(connection)
    newest = after.regenerations[0]
    assert (newest.cause, newest.state) == ("operator", pb.REGENERATION_STATE_DONE)
    del before.regenerations[:], after.regenerations[:]
    assert after == before


def test_connections_are_shown_as_their_initiator_sees_them(pods: Pods, channel: grpc.Channel) -> None:
    web, client = pods
    with connect(client, web, 80) as connection:
        assert talks(connection)
        port = connection.getsockname()[1]
        answer = loader_pb2_grpc.DatapathServiceStub(channel).ListConnections(
            pb.ListConnectionsRequest(limit=1000)
        )
        (found,) = [each for each in answer.connections if each.source_port == port]
    assert (found.source, found.destination, found.destination_port) == (client.ipv4, web.ipv4, 80)
    assert found.protocol == 6
    assert not found.closing
    assert found.expires_in.seconds > 60
    assert answer.total >= len(answer.connections) >= 1


def test_flows_are_followed_and_filtered(rig: Rig, pods: Pods, channel: grpc.Channel) -> None:
    web, client = pods
    rig.apply(ONLY_HTTP)
    try:
        follow = loader_pb2_grpc.ObserverServiceStub(channel).GetFlows(
            pb.GetFlowsRequest(
                follow=True,
                allow=[pb.FlowFilter(destination_pod="shop/web")],
                deny=[pb.FlowFilter(verdict=pb.FLOW_VERDICT_FORWARDED)],
            ),
            timeout=30,
        )
        # The stream is open when its headers are here; a flow before that would be missed.
        threading.Timer(0.3, lambda: (reaches(client, web, 80), reaches(client, web, 81, 0.3))).start()
        flow = next(iter(follow)).flow
        follow.cancel()
    finally:
        rig.remove_policy(ONLY_HTTP)
    assert flow.verdict == pb.FLOW_VERDICT_DROPPED
    assert (flow.source.pod, flow.destination.pod, flow.destination.port) == ("shop/client", "shop/web", 81)
    assert flow.rule == "default deny: NetworkPolicy shop/flows"
    assert flow.direction == "ingress"
    assert flow.node == "node-1"


def test_waiting_for_what_never_comes_tells_how_far_it_is(pods: Pods, channel: grpc.Channel) -> None:
    stub = loader_pb2_grpc.DatapathServiceStub(channel)
    applied = stub.WaitApplied(pb.WaitAppliedRequest(node_revision=1))
    assert applied.node_revision >= 1
    request = pb.WaitAppliedRequest(ipcache_revision=1_000_000)
    request.timeout.FromMilliseconds(50)
    with pytest.raises(grpc.RpcError) as refused:
        stub.WaitApplied(request)
    error = error_from_rpc(refused.value)
    assert isinstance(error, DeadlineExceeded)
    assert error.reason == "REVISION_NOT_APPLIED"
    assert int(error.metadata["node_revision"]) == applied.node_revision
