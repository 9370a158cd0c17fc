"""What a collector is told of a node: a real loader, its services, and a real kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.chassis.otlp import EXPORT_SECONDS
from services.chassis.telemetry import SHUTDOWN_SECONDS
from tests.collector import Collector, Received, Span, collecting
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Node, Pod, Rig
from tests.kernel.loader.traffic import reaches
from tests.kernel.netlink.namespaces import Namespaces
from tests.patience import patient

pytestmark = pytest.mark.kernel

FROM_CLIENTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"""


@dataclass
class Watched:
    """A node all of whose processes tell a collector, after a pod's life on it."""

    rig: Rig
    node: Node
    web: Pod
    number: int
    identity: int
    collector: Collector
    revision: int

    @property
    def received(self) -> Received:
        return self.collector.received

    def children(self, parent: Span) -> dict[str, Span]:
        """By name."""
        return {span.name: span for span in self.received.spans if span.parent_id == parent.span_id}

    def steps(self, parent: Span) -> list[Span]:
        """In order."""
        found = [span for span in self.received.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_ns)

    def starts(self) -> list[Span]:
        """Starts of the loader, in order."""
        return sorted(self.received.named("loader.restart"), key=lambda span: span.start_ns)

    def regenerations(self, **attributes: object) -> list[Span]:
        """Those with these attributes, in order."""
        found = [
            span
            for span in self.received.named("endpoint.regenerate")
            if span.attributes.get("endpoint.id") == self.number
            and attributes.items() <= span.attributes.items()
        ]
        return sorted(found, key=lambda span: span.start_ns)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    # A unix socket reaches into every network namespace.
    with Namespaces() as namespaces, collecting(f"unix:{directory}/otlp.sock") as collector:
        rig = Rig(directory, namespaces, nodes=1)
        node = rig.nodes[0]
        for process in (*rig.services.values(), node.loader):
            process.environment = {
                "FIMBRIA_OTLP_ENDPOINT": collector.endpoint,
                "FIMBRIA_INSTANCE": process.name,
            }
        try:
            rig.start()
            web, client = rig.pod(node, "web", app="web"), rig.pod(node, "client", app="client")
            web.add()
            client.add()
            with echo_server(web.namespace, 80):
                assert reaches(client, web, 80)
            revision = rig.apply(FROM_CLIENTS)
            (endpoint,) = [each for each in node.endpoints() if each.pod_name == "web"]
            node.update_labels(
                endpoint.id,
                ["k8s:app=web", "k8s:tier=front", "k8s:io.kubernetes.pod.namespace=shop"],
            )
            # A round of metrics with all that.
            collector.wait(
                lambda received: [
                    point for point in received.points("fimbria.endpoints", state="ready") if point.value == 2
                ]
            )
            client.delete()
            assert node.loader.terminate() == 0
            # What a process has measured is told under its own name.
            node.loader.environment["FIMBRIA_INSTANCE"] = "node-1-again"
            node.loader.start()
            assert node.loader.terminate() == 0
            node.loader.environment["FIMBRIA_INSTANCE"] = "node-1-larger"
            node.loader.environment["FIMBRIA_MAP_SIZES"] = "endpoint_dev=16384"
            node.loader.start()
            assert node.loader.terminate() == 0
            for service in rig.services.values():
                assert service.terminate() == 0
            yield Watched(rig, node, web, endpoint.id, endpoint.identity, collector, revision)
        finally:
            rig.close()


def test_one_trace_leads_from_the_runtime_through_the_services_to_the_kernel(watched: Watched) -> None:
    (add,) = [
        span
        for span in watched.received.named("cni.add")
        if span.attributes["container.id"] == watched.web.container_id
    ]
    assert add.parent_id == "" and not add.failed
    assert add.attributes == {
        "node.name": "node-1",
        "container.id": watched.web.container_id,
        "pod": "shop/web",
        "endpoint.id": watched.number,
        "identity": watched.identity,
    }
    found = watched.children(add)
    assert {
        "ipam.Allocate",
        "identity.Resolve",
        "policy.Subscribe",
        "endpoint.link",
        "endpoint.regenerate",
    } <= (found.keys())
    for name, service in (("ipam.Allocate", "ipam"), ("identity.Resolve", "identity")):
        served = watched.children(found[name])[name]
        assert (found[name].service, served.service) == ("node-1", service)
        assert served.attributes["rpc.response.status_code"] == "OK"


def test_a_regeneration_says_what_was_done_to_which_endpoint_and_why(watched: Watched) -> None:
    (made,) = watched.regenerations(cause="created")
    assert made.attributes["level"] == "reload"
    (labels,) = watched.regenerations(cause="labels")
    assert labels.attributes["identity"] != watched.identity
    assert labels.attributes["policy.revision"] == watched.revision
    assert [span.name for span in watched.received.trace(labels.trace_id)].count("identity.update") == 1
    for span in (made, labels):
        assert {"endpoint.id", "identity", "level", "cause", "node.name", "policy.revision"} == (
            span.attributes.keys()
        )
        steps = watched.children(span)
        assert {"bpf.maps.sync", "bpf.attach", "endpoint.realized"} <= steps.keys()
        for step in steps.values():
            assert span.start_ns <= step.start_ns <= step.end_ns <= span.end_ns


def test_the_trace_of_a_policy_ends_in_the_maps_of_the_node(watched: Watched) -> None:
    (applied,) = watched.received.named("policy.ApplyPolicies")
    (regenerated,) = [
        span for span in watched.regenerations(cause="policy") if span.trace_id == applied.trace_id
    ]
    assert regenerated.attributes["level"] == "policy"
    assert regenerated.attributes["policy.revision"] == watched.revision
    assert watched.children(regenerated)["bpf.maps.sync"].attributes["adds"] >= 1


def test_a_start_says_what_was_compiled_loaded_and_attached(watched: Watched) -> None:
    steps = watched.steps(watched.starts()[0])
    compiled = {span.attributes["source"] for span in steps if span.name == "bpf.compile"}
    assert "bpf_lxc.c" in compiled
    assert all("cache.hit" in span.attributes for span in steps if span.name == "bpf.compile")
    loaded = {span.attributes["source"]: span for span in steps if span.name == "bpf.load"}
    assert loaded["bpf_lxc.c"].attributes["insns"] > 1000
    assert loaded["bpf_lxc.c"].attributes["verifier.time"] > 0
    (attached,) = [span for span in steps if span.name == "bpf.attach"]
    assert attached.attributes == {"endpoints": 0, "adopted": False}


def test_a_start_over_what_is_in_force_says_so(watched: Watched) -> None:
    again = watched.starts()[1]
    assert again.attributes["endpoints"] == 1
    steps = watched.steps(again)
    assert not [span for span in steps if span.name == "bpf.load"]
    (attached,) = [span for span in steps if span.name == "bpf.attach"]
    assert attached.attributes["adopted"] is True


def test_what_is_carried_over_into_a_larger_map_is_told(watched: Watched) -> None:
    steps = watched.steps(watched.starts()[2])
    (migrated,) = [span for span in steps if span.name == "bpf.migrate"]
    assert (migrated.attributes["map"], migrated.attributes["entries"]) == ("endpoint_dev", 1)
    assert "max_entries" in migrated.attributes["cause"]
    (attached,) = [span for span in steps if span.name == "bpf.attach"]
    assert attached.attributes == {"endpoints": 1, "adopted": False}
    phases = watched.received.metrics["node-1-larger", "fimbria.bpf.phase.duration"]
    assert [point.count for point in phases.points if point.attributes["phase"] == "migrate"] == [1]


def test_lines_of_the_log_have_the_ids_of_their_spans(watched: Watched) -> None:
    (created,) = [
        line
        for line in watched.received.lines
        if line.body == "endpoint.created" and line.attributes["endpoint"] == watched.number
    ]
    (add,) = [
        span
        for span in watched.received.named("cni.add")
        if span.attributes["container.id"] == watched.web.container_id
    ]
    assert (created.trace_id, created.span_id) == (add.trace_id, add.span_id)
    assert (created.severity, created.attributes["pod"]) == ("info", "shop/web")
    # The same line is on standard error.
    assert created.trace_id in watched.node.loader.log.read_text()
    known = {(span.trace_id, span.span_id) for span in watched.received.spans}
    assert {(line.trace_id, line.span_id) for line in watched.received.lines if line.span_id} <= known


def test_regenerations_are_told_by_level_and_phase(watched: Watched) -> None:
    metric = watched.received.metrics["node-1", "fimbria.endpoint.regeneration.duration"]
    assert (metric.kind, metric.unit) == ("histogram", "s")
    assert metric.points[0].bounds[0] < 0.001
    counts = {(point.attributes["level"], point.attributes["phase"]): point.count for point in metric.points}
    assert counts["reload", "attach"] >= 2
    assert counts["policy", "policy"] >= 2
    assert {level for level, phase in counts if phase == "total"} == {"reload", "policy"}
    assert {point.attributes["outcome"] for point in metric.points} == {"success"}
    phases = watched.received.metrics["node-1", "fimbria.bpf.phase.duration"]
    assert phases.unit == "s"
    assert {"compile", "load", "attach", "maps.sync"} <= {
        point.attributes["phase"] for point in phases.points
    }


def test_gauges_tell_of_maps_programs_endpoints_and_watches(watched: Watched) -> None:
    received = watched.received
    units = {name: metric.unit for (service, name), metric in received.metrics.items() if service == "node-1"}
    assert units["fimbria.map.pressure"] == "1"
    pressures = received.points("fimbria.map.pressure")
    assert len(pressures) >= 5
    assert all(0 <= point.value <= 1 for point in pressures)
    assert {point.attributes["map"] for point in pressures} == {
        point.attributes["map"] for point in received.points("fimbria.map.entries")
    }
    attached = received.points("fimbria.programs.attached", program="from_container")
    assert sum(point.value for point in attached) == 2
    assert units["fimbria.watch.sync.age"] == "s"
    assert {point.attributes["watch"] for point in received.points("fimbria.watch.sync.age")} == {
        "nodes",
        "ipcache",
        "policy",
    }
    assert all(point.value < 60 for point in received.points("fimbria.watch.sync.age"))
    assert received.points("fimbria.endpoint.regenerations", state="running")
    assert received.points("fimbria.flows.lost")
    assert received.points("fimbria.datapath.packets", reason="Forwarded")


def test_pods_come_and_go_as_ever_while_the_collector_does_not_answer(tmp_path: Path) -> None:
    with Namespaces() as namespaces:
        rig = Rig(tmp_path, namespaces, nodes=1)
        (node,) = rig.nodes
        # An address of the node's own network that nobody has: packets to it vanish.
        node.loader.environment = {"FIMBRIA_OTLP_ENDPOINT": "http://172.31.200.200:4317"}
        try:
            rig.start()
            took = []
            for number in range(8):
                pod = rig.pod(node, f"web-{number}", app="web")
                began = time.perf_counter()
                pod.add()
                took.append(time.perf_counter() - began)
                pod.delete()
            # Whoever waits for a collector waits for that long.
            assert sorted(took)[4] < patient(EXPORT_SECONDS / 2)
            began = time.monotonic()
            assert node.loader.terminate() == 0
            assert time.monotonic() - began < patient(SHUTDOWN_SECONDS + 8)
        finally:
            rig.close()
