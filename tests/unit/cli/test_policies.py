"""Naming policies, reading their files, and showing what the service says about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fimbria.loader.v1 import loader_pb2
from fimbria.policy.v1 import policy_pb2

from cli import explain, policy_diff, policy_status, recent_flows
from cli.errors import BadInput
from cli.policy_files import read_files
from cli.policy_names import parse_ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop/web", ("", "shop", "web")),
        ("cnp/shop/web", ("CiliumNetworkPolicy", "shop", "web")),
        ("anp/first", ("AdminNetworkPolicy", "", "first")),
        ("banp/default", ("BaselineAdminNetworkPolicy", "", "default")),
        ("policy/shop/own", ("Policy", "shop", "own")),
        ("policy/own", ("Policy", "", "own")),
        ("cidrgroup/office", ("CiliumCIDRGroup", "", "office")),
        ("CCNP/all", ("CiliumClusterwideNetworkPolicy", "", "all")),
        ("all", ("", "", "all")),
    ],
)
def test_names(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize("text", ["anp/shop/x", "a/b/c", "cnp/shop/web/more", "shop/"])
def test_no_names(text: str) -> None:
    with pytest.raises(BadInput, match="expected"):
        parse_ref(text)


def test_files_and_directories(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "notes.txt"):
        (tmp_path / name).write_text("kind: x\n")
    (tmp_path / "deeper").mkdir()
    again = str(tmp_path / "b.yaml")
    found = read_files([again, str(tmp_path), again])
    assert [Path(file.name).name for file in found] == ["b.yaml", "a.yml", "c.json"]
    with pytest.raises(BadInput, match="has no manifest"):
        read_files([str(tmp_path / "deeper")])
    with pytest.raises(BadInput, match="cannot read"):
        read_files([str(tmp_path / "missing.yaml")])
    (tmp_path / "empty.yaml").write_text(" \n")
    with pytest.raises(BadInput, match="is empty"):
        read_files([str(tmp_path / "empty.yaml")])


def change(**fields: Any) -> policy_pb2.VerdictChange:
    usual: dict[str, Any] = {
        "subject": 300,
        "subject_labels": ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"],
        "direction": policy_pb2.DIRECTION_INGRESS,
        "last_port": 65535,
        "allowed_before": True,
        "nodes": 1,
    }
    return policy_pb2.VerdictChange(**(usual | fields))


def test_a_diff_in_lines() -> None:
    client: dict[str, Any] = {
        "peers": [301],
        "peer_names": ["k8s:app=client,k8s:io.kubernetes.pod.namespace=shop"],
    }
    answer = policy_pb2.DiffPoliciesResponse(
        changes=[
            change(every_other_peer=True),
            change(**client),
            change(**client, protocol=6, first_port=81),
            change(**client, protocol=6, last_port=79),
            change(**client, protocol=1, first_port=8, last_port=8, allowed_before=False, allowed_after=True),
            change(
                peers=[0],
                peer_names=["10.0.0.0/8 except 10.1.0.0/16 outside the cluster"],
                allowed_after=True,
            ),
            change(**client, protocol=17, first_port=53, last_port=53, audit_only=True),
        ],
        omitted=2,
    )
    answer.policies.add(outcome=policy_pb2.AppliedPolicy.OUTCOME_CREATED).policy.key.CopyFrom(
        policy_pb2.PolicyKey(kind="NetworkPolicy", namespace="shop", name="web")
    )
    told = policy_diff.document(answer)
    assert policy_diff.differs(told)
    assert policy_diff.lines(told) == [
        "NetworkPolicy shop/web would be created",
        "ingress of app=web in shop (identity 300, on 1 node):",
        "  - denied  everything: every other peer",
        "  - denied  everything but TCP 80, ICMP, UDP: app=client in shop (301)",
        "  + allowed  ICMP type 8: app=client in shop (301)",
        "  audited  UDP 53: app=client in shop (301)",
        "  stays allowed  everything: 10.0.0.0/8 except 10.1.0.0/16 outside the cluster",
        "and 2 more changes; --max, or less at once, shows more",
    ]
    nothing = policy_diff.document(policy_pb2.DiffPoliciesResponse())
    assert not policy_diff.differs(nothing) and policy_diff.lines(nothing) == ["no verdict changes"]


def test_status_in_lines() -> None:
    item = policy_pb2.PolicyStatus(
        key=policy_pb2.PolicyKey(kind="NetworkPolicy", namespace="shop", name="web"),
        revision=7,
        tier=policy_pb2.TIER_NORMAL,
        notes=["it is odd"],
    )
    subject = item.subjects.add(identity=300, labels=["k8s:app=web"])
    subject.nodes.add(node="node-1", enforced=True, acknowledged=policy_pb2.Revision(policy=7))
    late = subject.nodes.add(node="node-2", late="its loader is not subscribed")
    late.late_for.FromSeconds(90)
    told = policy_status.document(item)
    lines = policy_status.overview([told])
    assert lines[1].split() == ["NetworkPolicy", "shop", "web", "normal", "enforce", "7", "no", "1", "1/2"]
    assert lines[2:] == ["  late: node-2 (90 s): its loader is not subscribed", "  note: it is odd"]
    shown = policy_status.details(told)
    assert shown[0].startswith("NetworkPolicy shop/web: revision 7, not enforced everywhere yet")
    assert "late for 90 s" in shown[3] and shown[-1] == "  note: it is odd"


def test_an_explanation_in_lines() -> None:
    key = policy_pb2.PolicyKey(kind="NetworkPolicy", namespace="shop", name="web")
    rule = policy_pb2.RuleRef(
        cookie=4,
        policy=key,
        path="spec.ingress[0]",
        action=policy_pb2.ACTION_ALLOW,
        source="web.yaml",
        line=9,
    )
    verdict = policy_pb2.Verdict(
        allowed=True,
        reason="allowed by it",
        rule=rule,
        contributing=[rule],
        entry=policy_pb2.PolicyEntry(identity=301, protocol=6, port=80, port_prefix_length=12),
    )
    answer = {
        "allowed": True,
        "egress": explain.verdict(policy_pb2.Verdict(allowed=True, reason="allowed: nobody asks")),
        "ingress": explain.verdict(verdict),
        "remedies": ["do something"],
    }
    assert explain.lines(answer) == [
        "  egress   allowed: nobody asks",
        "  ingress  allowed by it",
        "             rule   allow NetworkPolicy shop/web spec.ingress[0] (web.yaml:9)",
        "             entry  identity 301, TCP ports 80-95: allow",
        "  to deny it:",
        "    - do something",
    ]


def test_ages_of_flows() -> None:
    assert [recent_flows.parse_age(text) for text in ("30s", "5m", "2h")] == [30, 300, 7200]
    for text in ("", "5", "m", "0m", "-1s", "1d"):
        with pytest.raises(BadInput, match="--flows"):
            recent_flows.parse_age(text)


def flow(source: dict[str, Any], target: dict[str, Any], **more: Any) -> loader_pb2.Flow:
    usual = {"protocol": 6, "verdict": loader_pb2.FLOW_VERDICT_FORWARDED}
    return loader_pb2.Flow(
        source=loader_pb2.FlowEnd(**source), destination=loader_pb2.FlowEnd(**target), **(usual | more)
    )


def test_flows_become_connections() -> None:
    pod = loader_pb2.Endpoint(pod_namespace="shop", pod_name="web", labels=["k8s:app=web"], ipv4="10.0.0.1")
    seen = recent_flows._Seen({300, 301}, {"10.0.0.1": pod}, {"172.31.1.1"})
    web = {"ip": "10.0.0.1", "port": 80, "identity": 300, "pod": "shop/web", "labels": ["k8s:app=web"]}
    outside = {"ip": "192.0.2.1", "port": 999, "identity": 0xFF0001}
    for _ in range(2):
        seen.flow(flow(outside, web))
    seen.flow(flow({"ip": "10.0.0.9", "identity": 999}, web))
    seen.flow(flow(outside, web, verdict=loader_pb2.FLOW_VERDICT_DROPPED, reason="No tunnel"))
    seen.flow(flow(outside, web, protocol=1))
    for address in ("192.0.2.1", "172.31.1.1"):
        seen.tracked(
            loader_pb2.Connection(source=address, destination="10.0.0.1", destination_port=80, protocol=6)
        )
    (connection,) = seen.found.values()
    assert connection.document["count"] == 2 and connection.document["open"]
    assert getattr(connection.message, "from").address == "192.0.2.1"
    assert list(connection.message.to.labels) == ["k8s:app=web"] and connection.message.port == 80
    assert (seen.gone, seen.without_port) == (1, 1)
