"""What is on disk survives whoever wrote it, and what cannot be read is set aside."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec, NamedPort, Phase
from services.loader.endpoints.records import NodeRecord, PendingRelease, StateDirectory


def record(number: int = 7, phase: Phase = Phase.READY) -> EndpointRecord:
    spec = EndpointSpec(
        container_id=f"c{number}",
        ifname="eth0",
        netns="/run/netns/x",
        pod_namespace="shop",
        pod_name="web",
        labels=("k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"),
        named_ports=(NamedPort("http", 80, 6),),
        rate=1_250_000,
    )
    return EndpointRecord(
        id=number,
        spec=spec,
        phase=phase,
        create_time=1.5,
        ipv4="10.244.1.7",
        router_ipv4="10.244.1.1",
        identity=256,
        identity_revision=3,
        subject=1,
        ifindex=12,
        host_mac="02:00:00:00:00:01",
        pod_mac="02:00:00:00:00:02",
        mtu=1500,
        ipv6="fd00:10:244::1:7",
        router_ipv6="fd00:10:244::1:1",
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record())
    state.sync_endpoint(7)
    assert StateDirectory(tmp_path).load_endpoints() == [record()]
    state.delete_endpoint(7)
    state.delete_endpoint(7)
    state.sync_endpoint(7)
    assert StateDirectory(tmp_path).load_endpoints() == []


def test_only_root_reads_a_record(tmp_path: Path) -> None:
    StateDirectory(tmp_path).save_endpoint(record())
    path = tmp_path / "endpoints" / "7.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_damaged_record_is_set_aside_and_told_of(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record(7))
    state.save_endpoint(record(8))
    state.save_endpoint(record(9))
    (tmp_path / "endpoints" / "7.json").write_text("{")
    os.truncate(tmp_path / "endpoints" / "8.json", 0)
    again = StateDirectory(tmp_path)
    assert [each.id for each in again.load_endpoints()] == [9]
    assert {each.path.name for each in again.damaged} == {"7.json.damaged", "8.json.damaged"}
    assert all(each.problem and each.path.exists() for each in again.damaged)
    later = StateDirectory(tmp_path)
    assert [each.id for each in later.load_endpoints()] == [9]
    assert {each.path.name for each in later.damaged} == {"7.json.damaged", "8.json.damaged"}


def test_a_write_that_was_interrupted_never_counted(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record())
    left = tmp_path / "endpoints" / "8.json.tmp"
    left.write_text('{"version"')
    assert StateDirectory(tmp_path).load_endpoints() == [record()]
    assert not left.exists()


def test_a_record_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record())
    path = tmp_path / "endpoints" / "7.json"
    path.write_text(path.read_text().replace('"version":3', '"version":99'))
    again = StateDirectory(tmp_path)
    assert again.load_endpoints() == []
    assert "reads 1, 2, 3" in again.damaged[0].problem


def test_a_record_from_before_ipv6_is_read(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record())
    path = tmp_path / "endpoints" / "7.json"
    document = json.loads(path.read_text())
    document["version"] = 1
    del document["ipv6"], document["router_ipv6"], document["spec"]["rate"]
    path.write_text(json.dumps(document))
    (read,) = StateDirectory(tmp_path).load_endpoints()
    assert read == replace(record(), ipv6="", router_ipv6="", spec=replace(record().spec, rate=0))
    assert read.prefixes == ("10.244.1.7/32",)


def test_a_record_from_before_a_pod_could_have_several_interfaces_is_read(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save_endpoint(record())
    path = tmp_path / "endpoints" / "7.json"
    document = json.loads(path.read_text())
    document["version"] = 2
    del document["default_routes"]
    for name in ("network", "mtu", "mac", "default_route"):
        del document["spec"][name]
    path.write_text(json.dumps(document))
    assert StateDirectory(tmp_path).load_endpoints() == [record()]


def test_what_a_network_asked_for_is_kept(tmp_path: Path) -> None:
    spec = replace(record().spec, network="second", mtu=1400, mac="02:00:00:00:00:07", default_route=False)
    stored = replace(record(), spec=spec, default_routes=(6,))
    StateDirectory(tmp_path).save_endpoint(stored)
    assert StateDirectory(tmp_path).load_endpoints() == [stored]


def test_releases_and_registrations_from_before_ipv6_are_read(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    for owner in ("c7/eth0", "c8/eth0"):
        state.save_release(PendingRelease(owner, ()))
    for path in (tmp_path / "releases").iterdir():
        owner = json.loads(path.read_text())["owner"]
        prefix = "10.244.1.7/32" if owner == "c7/eth0" else ""
        path.write_text(json.dumps({"owner": owner, "prefix": prefix}))
    assert {each.owner: each.prefixes for each in state.load_releases()} == {
        "c7/eth0": ("10.244.1.7/32",),
        "c8/eth0": (),
    }
    node = NodeRecord("node-1", "172.31.1.1", "default", ("10.244.1.0/24",), "10.244.1.1")
    state.save_node(node)
    document = json.loads((tmp_path / "node.json").read_text())
    del document["ipv6"], document["router_ipv6"]
    (tmp_path / "node.json").write_text(json.dumps(document))
    assert state.load_node() == node


def test_a_pending_release_is_kept_until_it_is_made(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    release = PendingRelease("c7/eth0", ("10.244.1.7/32", "fd00:10:244::1:7/128"))
    state.save_release(release)
    state.sync_release("c7/eth0")
    assert StateDirectory(tmp_path).load_releases() == [release]
    state.delete_release("c7/eth0")
    assert StateDirectory(tmp_path).load_releases() == []


def test_the_nodes_registration_is_kept(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert state.load_node() is None
    cidrs = ("10.244.1.0/24", "fd00:10:244::1:0/112")
    node = NodeRecord(
        "node-1", "172.31.1.1", "default", cidrs, "10.244.1.1", "2001:db8::1", "fd00:10:244::1:1"
    )
    state.save_node(node)
    assert StateDirectory(tmp_path).load_node() == node


def test_a_number_is_never_given_out_twice_whatever_dies(tmp_path: Path) -> None:
    taken: list[int] = []
    for _ in range(5):
        numbers = StateDirectory(tmp_path).numbers("epochs", ahead=3)
        taken += [numbers.take() for _ in range(4)]
    assert len(set(taken)) == len(taken)
    assert taken == sorted(taken)


def test_numbers_begin_above_what_is_in_use(tmp_path: Path) -> None:
    assert StateDirectory(tmp_path).numbers("instances", at_least=900).take() == 900
    assert StateDirectory(tmp_path).numbers("instances", at_least=5).take() > 900
