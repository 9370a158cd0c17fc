"""The options of a lab's network: said once, kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.errors import BadInput, CliError
from cli.lab import network, processes
from cli.lab.network import Asked, Network, choose, of_state, parse_settings
from cli.lab.paths import LabPaths

NATIVE = Network(routing="native", endpoint_routes=True, settings={"FIMBRIA_MTU": "1400"})


def state(chosen: Network) -> dict[str, object]:
    """A state file as it is read again."""
    read: dict[str, object] = json.loads(json.dumps({"nodes": [], "network": chosen.stored()}))
    return read


def test_what_is_not_said_is_the_default() -> None:
    assert choose(None, Asked()) == Network()
    assert choose(None, Asked(ipv6=False, masquerade=False)) == Network(ipv6=False, masquerade=False)


def test_a_lab_keeps_what_it_has() -> None:
    assert of_state(state(NATIVE)) == NATIVE
    assert choose(state(NATIVE), Asked()) == NATIVE
    assert choose(state(NATIVE), Asked(routing="native", settings={"FIMBRIA_MTU": "1400"})) == NATIVE


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(routing="tunnel"), "routing native, not tunnel"),
        (Asked(ipv6=False), "ipv6 on, not off"),
        (Asked(masquerade=False), "masquerade on, not off"),
        (Asked(settings={"FIMBRIA_MTU": "9000"}), "settings FIMBRIA_MTU=1400, not FIMBRIA_MTU=9000"),
    ],
)
def test_a_lab_that_exists_is_not_made_another(asked: Asked, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        choose(state(NATIVE), asked)
    assert caught.value.reason == "NETWORK_DIFFERS"


def test_a_lab_from_before_there_were_options_has_no_ipv6() -> None:
    assert of_state({"nodes": []}) == Network(ipv6=False)


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert of_state({"network": {**NATIVE.stored(), "jumbo": True}}) == NATIVE


def test_without_ipv6_in_the_kernel_a_lab_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_IPV6", tmp_path / "none")
    assert choose(None, Asked()).families == (4,)
    with pytest.raises(CliError, match="no IPv6"):
        choose(None, Asked(ipv6=True))


def test_settings_are_variables_of_the_loader() -> None:
    assert parse_settings([]) is None
    assert parse_settings(["FIMBRIA_MTU=1400", "FIMBRIA_MASQUERADE_EXCLUDE=10.0.0.0/8"]) == {
        "FIMBRIA_MTU": "1400",
        "FIMBRIA_MASQUERADE_EXCLUDE": "10.0.0.0/8",
    }


@pytest.mark.parametrize("text", ["FIMBRIA_MTU", "MTU=1", "=x", "FIMBRIA_mtu=1", "FIMBRIA_MTU X=1"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="FIMBRIA_NAME=VALUE"):
        parse_settings([text])


def test_what_the_lab_sets_itself_is_refused(tmp_path: Path) -> None:
    specs = processes.specs(LabPaths.of(tmp_path), ["node-1"], Network())
    own = {name for name in specs[-1].environ if name not in processes.PASSED_ON}
    for name in own:
        with pytest.raises(BadInput, match="sets FIMBRIA_"):
            parse_settings([f"{name}=x"])


def test_the_loaders_are_told(tmp_path: Path) -> None:
    ipam, *_, loader = processes.specs(LabPaths.of(tmp_path), ["node-1"], NATIVE)
    assert loader.environ["FIMBRIA_ROUTING_MODE"] == "native"
    assert loader.environ["FIMBRIA_ENDPOINT_ROUTES"] == "true"
    assert loader.environ["FIMBRIA_MASQUERADE"] == "true"
    assert loader.environ["FIMBRIA_MTU"] == "1400"
    assert ":" in loader.environ["FIMBRIA_NODE_IPV6"]
    assert "," in ipam.environ["FIMBRIA_IPAM_DEFAULT_POOL_CIDR"]
    ipam, *_, loader = processes.specs(LabPaths.of(tmp_path), ["node-1"], Network(ipv6=False))
    assert "FIMBRIA_NODE_IPV6" not in loader.environ
    assert ":" not in ipam.environ["FIMBRIA_IPAM_DEFAULT_POOL_CIDR"]


def test_a_service_is_told_what_begins_with_its_name(tmp_path: Path) -> None:
    network = Network(settings={"FIMBRIA_IPAM_MODE": "multi-pool", "FIMBRIA_MTU": "1400"})
    ipam, identity, *_ = processes.specs(LabPaths.of(tmp_path), ["node-1"], network)
    assert ipam.environ["FIMBRIA_IPAM_MODE"] == "multi-pool"
    assert "FIMBRIA_MTU" not in ipam.environ and "FIMBRIA_IPAM_MODE" not in identity.environ
