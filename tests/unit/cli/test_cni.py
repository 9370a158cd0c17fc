"""The CNI plugin as the lab calls it, and its errors as the user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.lab import cni
from cli.lab.cni import Attachment
from cli.lab.syntax import NamedPort, PodRef


@pytest.fixture
def attachment(tmp_path: Path) -> Attachment:
    return Attachment(
        pod=PodRef("shop", "web"),
        container_id="c1",
        netns=Path("/run/netns/x"),
        socket=tmp_path / "cni.sock",
        queue=tmp_path / "deletes",
        labels={"tier": "front", "app": "web"},
        namespace_labels={"kubernetes.io/metadata.name": "shop"},
        ports=(NamedPort("http", 80, "TCP"),),
        service_account="front",
        annotations={"fimbria.io/ip-pool": "blue"},
        namespace_annotations={"owner": "a b"},
    )


def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the plugin's place."""
    path = tmp_path / "fimbria-cni"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(cni, "CNI_PLUGIN", path)


def test_the_plugin_gets_what_a_runtime_would_give(
    attachment: Attachment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    answer = '{"ips": [{"address": "10.244.1.7/32"}]}'
    plugin(tmp_path, monkeypatch, f"cat > {told}; env >> {told}.env; echo '{answer}'")
    assert cni.add(attachment)["ips"][0]["address"] == "10.244.1.7/32"
    config = json.loads(told.read_text())
    assert config["cniVersion"] == "1.0.0" and config["socket"] == str(attachment.socket)
    assert config["args"]["cni"]["labels"] == [
        {"key": "app", "value": "web"},
        {"key": "tier", "value": "front"},
    ]
    assert config["args"]["cni"]["ports"] == [{"name": "http", "port": 80, "protocol": "TCP"}]
    assert config["args"]["cni"]["serviceAccount"] == "front"
    assert config["args"]["cni"]["annotations"] == [{"key": "fimbria.io/ip-pool", "value": "blue"}]
    assert config["args"]["cni"]["namespaceAnnotations"] == [{"key": "owner", "value": "a b"}]
    environ = Path(f"{told}.env").read_text().splitlines()
    assert {"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/x"} <= set(
        environ
    )
    (arguments,) = [line for line in environ if line.startswith("CNI_ARGS=")]
    assert "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web" in arguments


@pytest.mark.parametrize(
    ("code", "kind"), [(11, ServiceUnavailable), (7, BadInput), (4, BadInput), (100, CliError)]
)
def test_an_error_of_the_plugin_keeps_code_and_words(
    attachment: Attachment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[CliError]
) -> None:
    answer = json.dumps({"code": code, "msg": "it went wrong", "details": "here"})
    plugin(tmp_path, monkeypatch, f"echo '{answer}'; exit 1")
    with pytest.raises(kind) as caught:
        cni.add(attachment)
    assert f"code {code}: it went wrong: here" in caught.value.message
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo garbage; exit 1", "CNI_FAILED"),
        ("echo lost >&2; exit 3", "CNI_FAILED"),
        ("echo '{}'", "CNI_RESULT_INVALID"),
        ("true", "CNI_RESULT_INVALID"),
    ],
)
def test_a_plugin_that_breaks_the_rules_is_an_error(
    attachment: Attachment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    plugin(tmp_path, monkeypatch, script)
    with pytest.raises(CliError) as caught:
        cni.add(attachment)
    assert caught.value.reason == reason


def test_a_plugin_that_is_not_built_is_named(
    attachment: Attachment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "CNI_PLUGIN", tmp_path / "none")
    with pytest.raises(CliError) as caught:
        cni.delete(attachment)
    assert caught.value.hint == "run `make build`"
