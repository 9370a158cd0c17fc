"""Whatever dies, traffic goes on, nothing is left over, and what was promised is kept."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fimbria.loader.v1 import loader_pb2

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import ONLY_CLIENT, Node, Pod, Rig
from tests.kernel.loader.traffic import connect, datagrams, reaches, talks

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def web(rig: Rig) -> Iterator[Pod]:
    made = rig.pod(rig.nodes[0], "web", app="web")
    made.add()
    with echo_server(made.namespace, 80):
        yield made


@pytest.fixture(scope="module")
def client(rig: Rig) -> Pod:
    made = rig.pod(rig.nodes[1], "client", app="client")
    made.add()
    return made


def _owns(rig: Rig, owner: str, wanted: bool) -> bool:
    return (owner in rig.owners()) == wanted


def states(node: Node) -> set[int]:
    return {endpoint.state for endpoint in node.endpoints()}


def test_killing_and_starting_a_loader_loses_no_packet(
    rig: Rig, web: Pod, client: Pod, eventually: Eventually
) -> None:
    rig.apply(ONLY_CLIENT)
    node = web.node
    eventually(lambda: reaches(client, web, 80))
    before = {endpoint.id: node.policy(endpoint.id) for endpoint in node.endpoints()}
    with connect(client, web, 80) as open_connection, datagrams(client, web, 9000) as stream:
        node.loader.kill()
        assert talks(open_connection)
        assert reaches(client, web, 80)
        node.loader.start()
        eventually(lambda: states(node) == {loader_pb2.ENDPOINT_STATE_READY})
        node.wait_applied(policy_revision=before[node.endpoints()[0].id].revision)
        assert talks(open_connection)
        time.sleep(0.2)
    assert stream.sent > 50
    assert stream.lost == 0
    after = {endpoint.id: node.policy(endpoint.id) for endpoint in node.endpoints()}
    assert {number: (policy.instance, policy.epoch) for number, policy in after.items()} == {
        number: (policy.instance, policy.epoch) for number, policy in before.items()
    }, "what is right is not written"
    rig.remove_policy(ONLY_CLIENT)


def test_without_any_service_traffic_goes_on_and_enforcement_too(rig: Rig, web: Pod, client: Pod) -> None:
    stranger = rig.pod(client.node, "stranger", app="stranger")
    stranger.add()
    rig.apply(ONLY_CLIENT)
    processes = [*rig.services.values(), *(node.loader for node in rig.nodes)]
    for process in processes:
        process.kill()
    try:
        assert reaches(client, web, 80)
        assert not reaches(stranger, web, 80)
        # The nodes come back before the services do.
        for node in rig.nodes:
            node.loader.start()
        assert reaches(client, web, 80)
        assert not reaches(stranger, web, 80)
        pod = rig.pod(web.node, "late", app="late")
        code, answer = pod.call("ADD")
        assert (code, answer["code"]) == (1, 11)
    finally:
        for service in rig.services.values():
            service.start()
    pod.add()
    assert reaches(client, web, 80)
    rig.remove_policy(ONLY_CLIENT)
    assert reaches(stranger, web, 80)
    pod.delete()
    stranger.delete()


def test_a_delete_succeeds_while_everything_is_down_and_is_made_up_for(
    rig: Rig, web: Pod, eventually: Eventually
) -> None:
    node = web.node
    first, second = (rig.pod(node, name, app="short") for name in ("down-1", "down-2"))
    first.add()
    second.add()
    rig.services["ipam"].kill()
    first.delete()
    assert first.call("DEL", netns="")[0] == 0
    node.loader.kill()
    second.delete()
    rig.services["ipam"].start()
    node.loader.start()
    wanted = {f"{pod.container_id}/eth0" for pod in (first, second)}
    eventually(lambda: not wanted & rig.owners())
    eventually(lambda: not {f"{pod.ipv4}/32" for pod in (first, second)} & rig.published().keys())
    eventually(lambda: not any(endpoint.pod_name.startswith("down-") for endpoint in node.endpoints()))


def test_a_pod_whose_device_vanished_while_the_loader_was_away_is_forgotten(
    rig: Rig, web: Pod, eventually: Eventually
) -> None:
    node = web.node
    pod = rig.pod(node, "vanished", app="vanished")
    pod.add()
    (found,) = [endpoint for endpoint in node.endpoints() if endpoint.pod_name == "vanished"]
    node.loader.kill()
    node.namespace.command("ip", "link", "delete", found.host_device)
    node.loader.start()
    assert "vanished" not in {endpoint.pod_name for endpoint in node.endpoints()}
    eventually(lambda: f"{pod.container_id}/eth0" not in rig.owners())
    eventually(lambda: f"{pod.ipv4}/32" not in rig.published())


def test_a_loader_killed_at_any_time_of_an_add_leaves_the_pod_whole_or_nothing(
    rig: Rig, web: Pod, client: Pod, eventually: Eventually
) -> None:
    node = web.node
    chance = random.Random(7)
    for turn in range(6):
        pod = rig.pod(node, f"torn-{turn}", app="torn")
        killer = threading.Timer(chance.uniform(0, 0.03), node.loader.kill)
        killer.start()
        code, answer = pod.call("ADD")
        killer.join()
        node.loader.start()
        owner = f"{pod.container_id}/eth0"
        if code == 0:
            pod.ipv4 = answer["ips"][0]["address"].partition("/")[0]
            with echo_server(pod.namespace, 80):
                eventually(partial(reaches, client, pod, 80))
        else:
            # It may have been done, only the answer was lost; else nothing is left of it.
            whole = any(endpoint.pod_name == pod.name for endpoint in node.endpoints())
            eventually(partial(_owns, rig, owner, whole))
        pod.delete()
        eventually(partial(_owns, rig, owner, False))
    names = {endpoint.pod_name for endpoint in node.endpoints()}
    assert not any(name.startswith("torn-") for name in names)
    assert len(node.links()) == len(names)
    entries = {entry.name: entry.entries for entry in node.status().maps}
    assert entries["endpoint_dev"] == entries["endpoint_ip4"] == len(names)
    assert reaches(client, web, 80)


def test_a_second_loader_of_the_same_node_refuses_to_start(rig: Rig, web: Pod) -> None:
    node = web.node
    log = node.loader.log.read_text()
    ready = node.loader.ready.read_text()
    first = node.loader.running
    node.loader.start(wait=False)
    second, node.loader.running = node.loader.running, first
    assert second is not None
    assert second.wait(timeout=30) == 1
    assert "another loader uses the state directory" in node.loader.log.read_text()[len(log) :]
    node.loader.ready.write_text(ready)


def test_a_loader_that_is_told_to_stop_does_so_and_leaves_traffic_alone(
    rig: Rig, web: Pod, client: Pod
) -> None:
    node = client.node
    with datagrams(client, web, 9001) as stream:
        assert node.loader.terminate() == 0
        node.loader.start()
    assert stream.lost == 0
