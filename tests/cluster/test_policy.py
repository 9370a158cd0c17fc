"""Policies in force: applied, explained, changed with labels, deleted — as the CLI's user sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.__main__ import run
from cli.lab.lab import Lab
from tests.cluster.conftest import CLIENT, STRANGER, WEB
from tests.cluster.policies import CLIENT_TO_WEB, DENY_ALL, FROM_TEAM_A

pytestmark = pytest.mark.cluster


class Cli:
    """The command line against one lab."""

    def __init__(self, lab: Lab, capsys: pytest.CaptureFixture[str], files: Path) -> None:
        self._where = ["--dir", str(lab.paths.directory)]
        self._capsys = capsys
        self._files = files

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run; what was printed. The exit code has to be `code`."""
        self._capsys.readouterr()
        got = run([*self._where, *arguments])
        told = self._capsys.readouterr()
        assert got == code, told.out + told.err
        return told.out if code in (0, 4) else told.err

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "-o", "json", code=code))

    def apply(self, manifest: str, *options: str, code: int = 0) -> Any:
        file = self._files / "policy.yaml"
        file.write_text(manifest)
        if code:
            return self("policy", "apply", "-f", str(file), *options, code=code)
        return self.json("policy", "apply", "-f", str(file), *options)


@pytest.fixture
def fimbria(shop: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(shop, capsys, tmp_path)
    yield cli
    for policy in cli.json("policy", "list"):
        cli("policy", "delete", f"{policy['kind']}/{policy['namespace']}/{policy['name']}")


def allowed(lab: Lab, *probes: tuple[str, str, int, str]) -> list[bool]:
    return [result.allowed for result in lab.probe_many(probes)]


def test_a_policy_allows_one_and_denies_the_other(shop: Lab, fimbria: Cli) -> None:
    applied = fimbria.apply(CLIENT_TO_WEB)
    assert [node["node"] for node in applied["enforced"]] == ["node-1", "node-2"]
    assert all(node["policy_revision"] >= applied["revision"] for node in applied["enforced"])
    probes = [
        (CLIENT, WEB, 80, "TCP"),
        (STRANGER, WEB, 80, "TCP"),
        (CLIENT, WEB, 81, "TCP"),
        (CLIENT, WEB, 80, "UDP"),
    ]
    assert allowed(shop, *probes) == [True, False, False, False]
    fimbria("policy", "delete", "cnp/shop/client-to-web")
    assert allowed(shop, *probes) == [True, True, True, True]


def test_a_denied_probe_says_reason_and_policy(fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    denied = fimbria.json("lab", "probe", STRANGER, WEB, "80/TCP", code=4)
    assert denied["verdict"] == "denied" and denied["node"] == "node-1" and denied["direction"] == "ingress"
    assert "policy denied" in denied["reason"].lower()
    assert "client-to-web" in denied["rule"]
    assert denied["explain"]["allowed"] is False
    allowed = fimbria.json("lab", "probe", CLIENT, WEB, "80/TCP")
    assert allowed["verdict"] == "allowed"
    assert "specs[0].ingress[0]" in allowed["explain"]["ingress"]["rule"]
    # A user sees the same in words.
    shown = fimbria("lab", "probe", STRANGER, WEB, "80/TCP", code=4)
    assert "DENIED" in shown and "client-to-web" in shown


def test_explain_agrees_with_the_kernel_without_a_packet(fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    assert fimbria.json("policy", "explain", CLIENT, WEB, "80/TCP")["allowed"]
    told = fimbria.json("policy", "explain", STRANGER, WEB, "80/TCP", code=4)
    assert told["egress"]["allowed"] and not told["ingress"]["allowed"]
    assert told["ingress"]["enforced_by"] == ["CiliumNetworkPolicy shop/client-to-web"]
    by_labels = "app=client,k8s:io.kubernetes.pod.namespace=shop"
    assert fimbria.json("policy", "explain", by_labels, WEB, "80/TCP")["ingress"]["allowed"]


def test_flows_show_the_drop(fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    fimbria("lab", "probe", STRANGER, WEB, "80/TCP", code=4)
    flows = fimbria.json("flows", "--verdict", "denied", "--from", STRANGER, "--to", WEB, "--port", "80/TCP")
    assert flows[-1]["verdict"] == "dropped" and flows[-1]["node"] == "node-1"
    assert flows[-1]["source"]["pod"] == STRANGER
    assert not fimbria.json("flows", "--verdict", "denied", "--from", CLIENT, "--to", WEB, "--port", "80/TCP")


def test_a_dry_run_changes_nothing(shop: Lab, fimbria: Cli) -> None:
    answer = fimbria.apply(DENY_ALL, "--dry-run")
    assert answer["policies"][0]["outcome"] == "created" and "enforced" not in answer
    assert fimbria.json("policy", "list") == []
    assert allowed(shop, (CLIENT, WEB, 80, "TCP")) == [True]


def test_applying_again_changes_nothing(fimbria: Cli) -> None:
    first = fimbria.apply(CLIENT_TO_WEB)
    second = fimbria.apply(CLIENT_TO_WEB)
    assert [first["policies"][0]["outcome"], second["policies"][0]["outcome"]] == ["created", "unchanged"]
    assert second["policies"][0]["revision"] == first["policies"][0]["revision"]
    assert fimbria.json("policy", "get", "shop/client-to-web")["rules"] == first["policies"][0]["rules"]


def test_a_relabelled_pod_is_under_its_new_policy_at_once(shop: Lab, fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    before = shop.label(STRANGER, ["app=client"])
    assert allowed(shop, (STRANGER, WEB, 80, "TCP")) == [True]
    after = shop.label(STRANGER, ["app=stranger"])
    assert allowed(shop, (STRANGER, WEB, 80, "TCP")) == [False]
    assert before["identity"] != after["identity"]


def test_a_relabelled_namespace_is_under_its_new_policy_at_once(shop: Lab, fimbria: Cli) -> None:
    shop.run("guests/visitor", node="node-2")
    try:
        fimbria.apply(FROM_TEAM_A)
        probe = ("guests/visitor", WEB, 80, "TCP")
        assert allowed(shop, probe) == [False]
        assert json.loads(fimbria("lab", "namespace", "set", "guests", "team=a", "-o", "json"))[0][
            "labels"
        ] == {
            "kubernetes.io/metadata.name": "guests",
            "team": "a",
        }
        assert allowed(shop, probe) == [True]
        shop.set_namespace("guests", ["team-"])
        assert allowed(shop, probe) == [False]
    finally:
        shop.delete("guests/visitor")


def test_a_pod_that_comes_later_is_under_policy_from_its_first_packet(shop: Lab, fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB)
    for labels, expected in ((["app=client"], True), (["app=other"], False)):
        shop.run("shop/late", labels=labels, node="node-1")
        assert allowed(shop, ("shop/late", WEB, 80, "TCP")) == [expected]
        shop.delete("shop/late")


def test_deny_all_denies_all_but_the_host(shop: Lab, fimbria: Cli) -> None:
    fimbria.apply(DENY_ALL)
    probes = [(CLIENT, WEB, 80, "TCP"), (STRANGER, CLIENT, 80, "UDP"), ("@host", WEB, 80, "TCP")]
    assert allowed(shop, *probes) == [False, False, True]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("not: [a policy", "error:"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "kind"),
        (DENY_ALL.replace("podSelector: {}", "podSelektor: {}"), "podSelektor"),
        (FROM_TEAM_A.replace("http", "70000"), "ports[0].port"),
        (DENY_ALL.replace("deny-all", "Deny_All"), "metadata.name"),
        (
            CLIENT_TO_WEB.replace(
                "fromEndpoints: [{matchLabels: {app: client}}]", "fromEntities: [nonsense]"
            ),
            "fromEntities",
        ),
    ],
)
def test_a_bad_manifest_is_refused_with_the_fields_path(fimbria: Cli, manifest: str, said: str) -> None:
    told = fimbria.apply(manifest, code=2)
    assert told.startswith("error: ") and said in told
    assert fimbria.json("policy", "list") == []


def test_all_of_a_file_or_none(fimbria: Cli) -> None:
    fimbria.apply(CLIENT_TO_WEB + "---\n" + DENY_ALL.replace("podSelector: {}", "podSelector: 7"), code=2)
    assert fimbria.json("policy", "list") == []
