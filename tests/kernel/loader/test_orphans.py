"""What belongs to nobody is found, told of, and removed; after a reboot all of the pods of before are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2, identity_pb2_grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc

from services.loader.bpf.layout import PolicyKey, PolicyValue
from services.loader.bpf.maps import open_pinned
from services.loader.bpf.native import lib
from services.loader.bpf.pins import remove_pins
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import REPOSITORY, Node, Rig
from tests.kernel.loader.traffic import reaches

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

GHOST_DEVICE = "lxc0123456789ab"


def collect(node: Node, *, dry_run: bool) -> dict[tuple[str, str], loader_pb2.Orphan]:
    with grpc.insecure_channel(node.target) as channel:
        stub = loader_pb2_grpc.DatapathServiceStub(channel)
        request = loader_pb2.CollectOrphansRequest(dry_run=dry_run)
        answer = stub.CollectOrphans(request, wait_for_ready=True, timeout=20)
        assert answer.skipped == ""
        return {(orphan.kind, orphan.name): orphan for orphan in answer.orphans}


def pin_again(source: Path, target: Path) -> None:
    """One more pin of something that is pinned."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = lib.bpf_obj_get(os.fsencode(source))
    assert fd >= 0
    try:
        assert lib.bpf_obj_pin(fd, os.fsencode(target)) == 0
    finally:
        os.close(fd)


def leave_behind(rig: Rig, node: Node) -> set[tuple[str, str]]:
    """One of each kind that a crash at the worst moment can leave."""
    node.namespace.command("ip", "link", "add", GHOST_DEVICE, "type", "veth", "peer", "name", "ghost")
    with grpc.insecure_channel(rig.target("ipam")) as channel:
        request = ipam_pb2.AllocateRequest(node=node.name, owner="ghost/eth0")
        held = ipam_pb2_grpc.AddressServiceStub(channel).Allocate(request, timeout=10)
    with grpc.insecure_channel(rig.target("identity")) as channel:
        entry = identity_pb2.IpCacheEntry(
            prefix="10.244.77.7/32", identity=4, tunnel_endpoint=node.ipv4, owner="shop/ghost"
        )
        published = identity_pb2.PublishRequest(node=node.name, entries=[entry])
        identity_pb2_grpc.IpCacheServiceStub(channel).Publish(published, timeout=10)
    pins = rig.pins(node)
    pin_again(pins / "progs" / "from_container", pins / "progs" / "ghost")
    pin_again(pins / "progs" / "from_container", pins / "links" / "ghost0" / "from_netdev")
    pin_again(pins / "maps" / "policy", pins / "maps" / "ghost_map")
    pin_again(pins / "maps" / "policy", pins / "pending" / "maps" / "policy")
    policy = open_pinned(str(pins / "maps" / "policy"), "policy")
    assert policy is not None
    policy.put(PolicyKey(999_999, 300, 0, 6, 80, 16).pack(), PolicyValue(False, 1).pack())
    policy.close()
    return {
        ("device", GHOST_DEVICE),
        ("address", held.address),
        ("ipcache-entry", "10.244.77.7/32"),
        ("pin", "progs/ghost"),
        ("pin", "maps/ghost_map"),
        ("link", "links/ghost0/from_netdev"),
        ("map", "pending/maps/policy"),
        ("policy-entries", "999999"),
    }


def test_orphans_are_told_of_and_removed_only_when_asked_to(rig: Rig) -> None:
    node = rig.nodes[0]
    pods = [rig.pod(node, name, app=name) for name in ("one", "two")]
    for pod in pods:
        pod.add()
    with echo_server(pods[0].namespace, 80):
        assert collect(node, dry_run=True) == {}
        wanted = leave_behind(rig, node)
        for _ in range(2):
            told = collect(node, dry_run=True)
            assert told.keys() == wanted
            assert not any(orphan.removed or orphan.error for orphan in told.values())
        removed = collect(node, dry_run=False)
        assert removed.keys() == wanted
        assert all(orphan.removed for orphan in removed.values()), removed
        assert collect(node, dry_run=True) == {}
        assert "ghost/eth0" not in rig.owners()
        assert "10.244.77.7/32" not in rig.published()
        assert GHOST_DEVICE not in node.links()
        assert not (rig.pins(node) / "pending").exists()
        assert reaches(pods[1], pods[0], 80)
    for pod in pods:
        pod.delete()


def test_a_start_finds_the_same(rig: Rig, eventually: Eventually) -> None:
    node = rig.nodes[0]
    node.loader.kill()
    leave_behind(rig, node)
    node.loader.start()
    assert GHOST_DEVICE not in node.links()
    eventually(lambda: "ghost/eth0" not in rig.owners())
    eventually(lambda: "10.244.77.7/32" not in rig.published())
    eventually(lambda: collect(node, dry_run=True) == {})


@pytest.mark.parametrize("devices", ["gone", "there"])
def test_after_a_reboot_the_pods_of_before_are_gone(rig: Rig, eventually: Eventually, devices: str) -> None:
    node, other = rig.nodes
    pods = [rig.pod(node, f"{name}-{devices}", app=name) for name in ("one", "two")]
    for pod in pods:
        pod.add()
    before = {each.id for each in node.endpoints()}
    node.loader.kill()
    for device in node.links() if devices == "gone" else ():
        node.namespace.command("ip", "link", "delete", device)
    if devices == "gone":
        remove_pins(str(rig.pins(node)))
    boot = node.directory / "state" / "boot.json"
    now = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert json.loads(boot.read_text(encoding="utf-8"))["boot_id"] == now
    boot.write_text(json.dumps({"boot_id": "11111111-2222-3333-4444-555555555555"}), encoding="utf-8")
    node.loader.start()
    assert node.endpoints() == []
    # An equal interface index says nothing after a reboot.
    assert node.links() == set()
    eventually(lambda: not {f"{pod.container_id}/eth0" for pod in pods} & rig.owners())
    eventually(lambda: not {f"{pod.ipv4}/32" for pod in pods} & rig.published().keys())
    eventually(lambda: not {f"{pod.ipv4}/32" for pod in pods} & other.ipcache().keys())
    again = rig.pod(node, f"again-{devices}", app="again")
    again.add()
    assert {each.id for each in node.endpoints()}.isdisjoint(before)
    for pod in (*pods, again):
        pod.delete()


def test_the_command_line_tells_of_orphans_and_removes_them(rig: Rig) -> None:
    node = rig.nodes[0]

    def fimbria(*arguments: str) -> str:
        environment = dict(os.environ)
        environment["FIMBRIA_LOADER_TARGETS"] = f"{node.name}={node.target}"
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        return done.stdout

    node.namespace.command("ip", "link", "add", GHOST_DEVICE, "type", "veth", "peer", "name", "ghost")
    (orphan,) = json.loads(fimbria("orphans", "-o", "json"))
    assert (orphan["kind"], orphan["name"], orphan["removed"]) == ("device", GHOST_DEVICE, False)
    assert "device" in fimbria("orphans", "--node", node.name)
    (orphan,) = json.loads(fimbria("orphans", "--remove", "-o", "json"))
    assert orphan["removed"]
    assert json.loads(fimbria("orphans", "-o", "json")) == []
