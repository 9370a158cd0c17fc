"""What somebody else has taken out of the kernel is back after the next periodic refresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fimbria.loader.v1 import loader_pb2

from services.loader.bpf.layout import PolicyKey, ipv4_bytes
from services.loader.bpf.maps import Map, open_pinned
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import ONLY_CLIENT, REPOSITORY, Pod, Rig, running_rig
from tests.kernel.loader.traffic import reaches

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig"), nodes=1, flags=["--refresh-seconds=0.3"]) as made:
        yield made


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[tuple[Pod, Pod]]:
    web, client = (rig.pod(rig.nodes[0], name, app=name) for name in ("web", "client"))
    web.add()
    client.add()
    with echo_server(web.namespace, 80):
        rig.apply(ONLY_CLIENT)
        yield web, client


def pinned(rig: Rig, name: str) -> Map:
    found = open_pinned(str(rig.pins(rig.nodes[0]) / "maps" / name), name)
    assert found is not None
    return found


def test_a_policy_entry_comes_back(rig: Rig, pods: tuple[Pod, Pod], eventually: Eventually) -> None:
    web, client = pods
    eventually(lambda: reaches(client, web, 80))
    policy = pinned(rig, "policy")
    instance = rig.nodes[0].policy(web.node.endpoint("web").id).instance
    keys = [key for key, _ in policy.items() if PolicyKey.unpack(key).instance == instance]
    assert keys
    for key in keys:
        policy.delete(key)
    eventually(lambda: all(policy.get(key) is not None for key in keys))
    policy.close()
    eventually(lambda: reaches(client, web, 80))
    eventually(lambda: "refresh" in {each.cause for each in web.node.endpoint("web").regenerations})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ipcache4", lambda found: ipv4_bytes(found.ipv4)),
        ("endpoint_ip4", lambda found: ipv4_bytes(found.ipv4)),
        ("endpoint_dev", lambda found: found.ifindex.to_bytes(4, sys.byteorder)),
    ],
)
def test_what_leads_to_an_endpoint_comes_back(
    rig: Rig,
    pods: tuple[Pod, Pod],
    eventually: Eventually,
    name: str,
    key: Callable[[loader_pb2.Endpoint], bytes],
) -> None:
    web, client = pods
    eventually(lambda: reaches(client, web, 80))
    table, where = pinned(rig, name), key(web.node.endpoint("web"))
    assert table.delete(where)
    eventually(lambda: table.get(where) is not None)
    table.close()
    eventually(lambda: reaches(client, web, 80))


def test_the_node_devices_get_their_programs_back(
    rig: Rig, pods: tuple[Pod, Pod], eventually: Eventually
) -> None:
    node = rig.nodes[0]

    def running() -> set[str]:
        return {program.name for program in node.status().programs if "eth0" in program.devices}

    before = running()
    assert before
    links = rig.pins(node) / "links" / "eth0"
    for link in links.iterdir() if links.is_dir() else ():
        link.unlink()
    eventually(lambda: running() == before)


def test_the_command_line_shows_an_endpoint_and_regenerates_it(rig: Rig, pods: tuple[Pod, Pod]) -> None:
    node = rig.nodes[0]

    def fimbria(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"FIMBRIA_LOADER_TARGETS": f"{node.name}={node.target}"},
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    number = node.endpoint("web").id
    for level in ("policy", "reload", "rebuild"):
        (row,) = json.loads(fimbria("endpoint", "regenerate", "shop/web", "--level", level, "-o", "json"))
        assert (row["level"], row["state"], row["id"]) == (level, "done", number)
    found = json.loads(fimbria("endpoint", "get", str(number), "-o", "json"))
    assert found["pod"] == "shop/web"
    assert [each["level"] for each in found["regenerations"] if each["cause"] == "operator"] == [
        "rebuild", "reload", "policy"
    ]  # fmt: skip
    shown = fimbria("endpoint", "get", "shop/web")
    assert "host device" in shown
    assert "operator" in shown
    assert "created" in shown
    assert "no endpoint 'shop/nobody'" in fimbria("endpoint", "get", "shop/nobody", code=2)
