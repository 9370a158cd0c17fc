"""One trace from the cause to the kernel, across all processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from cli import traces
from cli.commands.policy import apply_manifests
from cli.lab.lab import Lab
from cli.traces import Node, StoredSpan, Trace
from tests.cluster.policies import CLIENT_TO_WEB

pytestmark = pytest.mark.cluster


def wait_for(
    lab: Lab, chosen: Callable[[Trace], bool], complete: Callable[[list[StoredSpan]], bool]
) -> Trace:
    """The newest trace that is chosen, as soon as it is complete: processes write with a short delay."""
    deadline = time.monotonic() + 5
    while True:
        found = [trace for trace in traces.traces(traces.read(lab.paths.traces)) if chosen(trace)]
        if found and complete(found[-1].spans):
            return found[-1]
        assert time.monotonic() < deadline, "\n".join(traces.draw(found[-1])) if found else "no such trace"
        time.sleep(0.05)


def parents(trace: Trace) -> dict[str, StoredSpan | None]:
    by_id = {span.span_id: span for span in trace.spans}
    return {span.span_id: by_id.get(span.parent_id) for span in trace.spans}


def named(trace: Trace, name: str, process: str = "") -> list[StoredSpan]:
    return [span for span in trace.spans if span.name == name and process in ("", span.process)]


def below(node: Node) -> set[tuple[str, str]]:
    return {(span.process, span.name) for span in node.walk()}


def test_a_policy_apply_leads_to_the_map_writes_of_both_nodes(shop: Lab) -> None:
    applied = apply_manifests(shop.cluster, CLIENT_TO_WEB)

    def complete(spans: list[StoredSpan]) -> bool:
        synced = {span.process for span in spans if span.name == "bpf.maps.sync"}
        return synced == {"node-1", "node-2"} and any(span.name == "policy.apply" for span in spans)

    trace = wait_for(shop, lambda trace: trace.trace_id == applied["trace_id"], complete)
    assert len(trace.roots) == 1, "\n".join(traces.draw(trace))
    (root,) = trace.roots
    assert (root.span.name, root.span.process, root.span.parent_id) == ("policy.apply", "cli", "")
    parent = parents(trace)
    (server,) = [span for span in named(trace, "policy.ApplyPolicies") if span.kind == "SERVER"]
    (client,) = [span for span in named(trace, "policy.ApplyPolicies") if span.kind == "CLIENT"]
    assert server.process == "policy" and parent[server.span_id] == client
    assert parent[client.span_id] == root.span
    for node in ("node-1", "node-2"):
        (regenerated,) = named(trace, "endpoint.regenerate", node)
        synced = named(trace, "bpf.maps.sync", node)
        assert synced and all(parent[span.span_id] == regenerated for span in synced)
        assert regenerated.attributes["policy.revision"] == applied["revision"]
        assert regenerated.start_ns >= server.start_ns
    assert all(span.status != "ERROR" for span in trace.spans)


def test_a_cni_add_leads_through_all_four_services(shop: Lab) -> None:
    shop.run("shop/traced", node="node-2", labels=["app=traced"])
    wanted = {"ipam", "identity", "policy", "node-2"}

    def chosen(trace: Trace) -> bool:
        return trace.root.name == "cni.add"

    def complete(spans: list[StoredSpan]) -> bool:
        return wanted <= {span.process for span in spans} and any(span.name == "cni.add" for span in spans)

    try:
        trace = wait_for(shop, chosen, complete)
    finally:
        shop.delete("shop/traced")
    own = [node for node in trace.roots if node.span.name == "cni.add"]
    assert len(own) == 1
    tree = below(own[0])
    assert own[0].span.process == "node-2"
    for process, name in [
        ("ipam", "ipam.Allocate"),
        ("node-2", "ipam.Allocate"),
        ("identity", "identity.Resolve"),
        ("node-2", "identity.Resolve"),
        ("node-2", "policy.Subscribe"),
        ("node-2", "bpf.maps.sync"),
        ("node-2", "bpf.attach"),
        ("node-2", "endpoint.realized"),
    ]:
        assert (process, name) in tree, "\n".join(traces.draw(trace))
    parent = parents(trace)
    (allocated,) = named(trace, "ipam.Allocate", "ipam")
    assert allocated.kind == "SERVER"
    asked = parent[allocated.span_id]
    assert asked is not None and asked.kind == "CLIENT" and asked.process == "node-2"
