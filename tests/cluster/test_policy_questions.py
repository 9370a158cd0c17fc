"""What policies decide, would change and how far they have come, asked of a real lab by its user."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB, DENY_ALL
from tests.cluster.test_policy import Cli

pytestmark = pytest.mark.cluster

BLOCK = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: block, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: %s}}]
"""
AUDITED = DENY_ALL.replace("name: deny-all,", 'name: deny-all, annotations: {fimbria.io/audit: "true"},')
ADMIN = """\
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: no-strangers}
spec:
  priority: 7
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: stranger}}}}]}
"""


OFFICE = """\
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: office}
spec: {externalCIDRs: [192.0.2.0/24]}
"""


@pytest.fixture
def fimbria(shop: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(shop, capsys, tmp_path)
    yield cli
    for policy in cli.json("policy", "list"):
        cli("policy", "delete", f"{policy['kind']}/{policy['namespace']}/{policy['name']}")


def write(directory: Path, name: str, text: str) -> str:
    file = directory / name
    file.write_text(text)
    return str(file)


def poll(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.05)


def test_explain_names_file_line_and_remedy(fimbria: Cli, tmp_path: Path) -> None:
    file = write(tmp_path, "web.yaml", CLIENT_TO_WEB)
    fimbria("policy", "apply", "-f", file)
    told = fimbria.json("policy", "explain", CLIENT, WEB, "80/TCP")
    (rule,) = told["ingress"]["contributing"]
    line = CLIENT_TO_WEB.splitlines()[rule["line"] - 1]
    assert (rule["source"], rule["action"]) == (file, "allow") and "fromEndpoints" in line
    assert told["ingress"]["entry"]["port"] == 80
    shown = fimbria("policy", "explain", STRANGER, WEB, "80/TCP", code=4)
    assert "DENIED" in shown and "to allow it:" in shown and "a rule that allows it in the ingress" in shown
    assert f"({file}:{rule['line']})" in fimbria("policy", "explain", CLIENT, WEB, "80/TCP")
    assert fimbria.json("policy", "explain", "world", WEB, "80/TCP", code=4)["egress"]["allowed"]
    assert not fimbria.json("policy", "explain", CLIENT, WEB, "8/ICMP", code=4)["ingress"]["allowed"]


def test_addresses_decide_alike_in_explain_and_in_the_kernel(shop: Lab, fimbria: Cli) -> None:
    address = {str(row["name"]): row["ips"][0] for row in shop.pods()}["client"]
    fimbria.apply(BLOCK % f"{address}/32")
    for sender, code in ((CLIENT, 0), (STRANGER, 4)):
        told = fimbria.json("lab", "probe", sender, WEB, "80/TCP", code=code)
        assert told["explain"]["allowed"] is told["allowed"] is (code == 0) and not told["notes"]
        assert fimbria.json("policy", "explain", sender, WEB, "80/TCP", code=code)["allowed"] is (code == 0)
    assert fimbria.json("policy", "explain", address, WEB, "80/TCP")["ingress"]["entry"]["by_address"]
    fimbria("policy", "explain", "192.0.2.1", WEB, "80/TCP", code=4)


def test_diff_says_who_would_lose_what_and_changes_nothing(fimbria: Cli, tmp_path: Path) -> None:
    file = write(tmp_path, "web.yaml", CLIENT_TO_WEB)
    told = fimbria.json("policy", "diff", "-f", file)
    web = [item for item in told["changes"] if "k8s:app=web" in item["subject_labels"]]
    assert {item["direction"] for item in web} == {"ingress"} and {item["nodes"] for item in web} == {1}
    assert {(i["protocol"], i["last_port"], i["allowed_after"]) for i in web if i["every_other_peer"]} == {
        ("", 65535, False)
    }
    assert fimbria.json("policy", "list") == []
    fimbria("policy", "diff", "-f", file, "--exit-code", code=5)
    fimbria("policy", "apply", "-f", file)
    assert "no verdict changes" in fimbria("policy", "diff", "-f", file, "--exit-code")
    wider = fimbria("policy", "diff", "--delete", "shop/client-to-web")
    assert "would be deleted" in wider and "+ allowed" in wider
    assert "POLICY_NOT_FOUND" in fimbria("policy", "diff", "--delete", "shop/nothing", code=1)
    assert "nothing was given" in fimbria("policy", "diff", code=2)


def test_diff_knows_the_flows_that_would_change(shop: Lab, fimbria: Cli, tmp_path: Path) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    fimbria("lab", "probe", CLIENT, WEB, "80/TCP")
    fimbria("lab", "probe", STRANGER, WEB, "80/TCP", code=4)
    changes = fimbria.json("policy", "diff", "--delete", "shop/client-to-web", "--flows", "1m")["flows"][
        "changes"
    ]
    opened = [item for item in changes if (item["from"], item["to"], item["port"]) == (STRANGER, WEB, 80)]
    assert [item["allowed_after"] for item in opened] == [True] and opened[0]["count"] >= 1
    file = write(tmp_path, "deny.yaml", ADMIN.replace("app: stranger", "app: client"))
    shown = fimbria("policy", "diff", "-f", file, "--flows", "1m")
    assert f"- {CLIENT} → {WEB} 80/TCP" in shown and "AdminNetworkPolicy no-strangers" in shown
    assert "number and s, m or h" in fimbria("policy", "diff", "-f", file, "--flows", "soon", code=2)


def test_status_and_wait_say_who_is_late_and_why(shop: Lab, fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    status = fimbria.json("policy", "status", "shop/client-to-web")
    assert status["enforced"] and {n["node"] for s in status["subjects"] for n in s["nodes"]} == {
        "node-1",
        "node-2",
    }
    victim = shop.process("node-2")
    os.kill(victim.pid, signal.SIGKILL)
    poll(lambda: not victim.alive)
    try:
        told = fimbria.apply(DENY_ALL, "--timeout", "0.5", code=1)
        assert "NODES_BEHIND" in told
        assert "NetworkPolicy shop/deny-all on node-2: its loader is not subscribed" in told
        assert "NetworkPolicy shop/deny-all on node-1" not in told
        status = fimbria.json("policy", "status", "netpol/shop/deny-all")
        late = [n for s in status["subjects"] for n in s["nodes"] if not n["enforced"]]
        assert not status["enforced"] and {node["node"] for node in late} == {"node-2"}
        assert late[0]["late_seconds"] > 0
        shown = fimbria("policy", "status")
        assert "late: node-2" in shown and "its loader is not subscribed" in shown
    finally:
        shop.up()
    poll(lambda: fimbria.json("policy", "status", "netpol/shop/deny-all")["enforced"])


def test_an_audited_probe_passes_and_says_so(fimbria: Cli) -> None:
    fimbria.apply(AUDITED)
    told = fimbria.json("lab", "probe", STRANGER, WEB, "80/TCP")
    assert told["allowed"] and any(note.startswith("audit: ") for note in told["notes"])
    explained = fimbria.json("policy", "explain", STRANGER, WEB, "80/TCP")
    assert explained["ingress"]["audited"] and explained["ingress"]["audited_by"] == [
        "NetworkPolicy shop/deny-all"
    ]
    assert "in audit mode" in fimbria("policy", "status")
    (listed,) = fimbria.json("policy", "list")
    assert listed["audit"]


def test_kinds_without_a_namespace(fimbria: Cli) -> None:
    fimbria.apply(ADMIN)
    assert "admin 7" in fimbria("policy", "list")
    assert fimbria.json("policy", "get", "anp/no-strangers")["rules"][0]["verdict"] == "deny"
    told = fimbria.json("policy", "explain", STRANGER, WEB, "80/TCP", code=4)
    assert told["ingress"]["entry"]["tier"] == "admin"
    fimbria.apply(OFFICE)
    assert "holds 192.0.2.0/24" in fimbria("policy", "get", "cidrgroup/office")
    assert "no policy names it" in fimbria("policy", "status", "office")
    assert "AdminNetworkPolicy no-strangers deleted" in fimbria("policy", "delete", "anp/no-strangers")


def test_several_files_all_or_none(fimbria: Cli, tmp_path: Path) -> None:
    good = write(tmp_path, "a.yaml", CLIENT_TO_WEB)
    bad = write(tmp_path, "b.yaml", DENY_ALL.replace("podSelector: {}", "podSelector: 7"))
    told = fimbria("policy", "apply", "-f", good, "-f", bad, code=2)
    assert f"{bad}: spec.podSelector" in told
    assert fimbria.json("policy", "list") == []
    Path(bad).write_text(DENY_ALL)
    applied: Any = json.loads(fimbria("policy", "apply", "-f", str(tmp_path), "-o", "json"))
    assert [item["name"] for item in applied["policies"]] == ["client-to-web", "deny-all"]
    assert [item["source"] for item in applied["policies"]] == [good, bad]
