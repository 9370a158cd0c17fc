"""Nodes tell which identities they use: what that keeps, and what happens to running pods when labels resolve
to something else.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from fimbria.identity.v1 import identity_pb2 as pb
from fimbria.identity.v1 import identity_pb2_grpc

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import ONLY_CLIENT, Node, Pod, Rig, running_rig
from tests.kernel.loader.traffic import connect, datagrams, reaches, talks
from tests.patience import patient

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

IDENTITY = ["--identity-lease-seconds=3", "--identity-grace-seconds=0.5"]
VERSION = "k8s:version"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig"), service_flags={"identity": IDENTITY}) as made:
        yield made


@pytest.fixture(scope="module")
def pods(rig: Rig) -> dict[str, Pod]:
    """web on the first node, client and stranger on the second."""
    first, second = rig.nodes
    made = {
        "web": rig.pod(first, "web", app="web", version="1"),
        "client": rig.pod(second, "client", app="client", version="1"),
        "stranger": rig.pod(second, "stranger", app="stranger", version="1"),
    }
    for pod in made.values():
        pod.add()
    return made


@contextmanager
def identities(rig: Rig) -> Iterator[Any]:
    with grpc.insecure_channel(rig.target("identity")) as channel:
        yield identity_pb2_grpc.IdentityServiceStub(channel)


def holders(rig: Rig) -> dict[str, int]:
    """How many identities each holder uses."""
    with identities(rig) as stub:
        answer = stub.ListHolders(pb.ListHoldersRequest(), wait_for_ready=True, timeout=patient(10))
    return {holder.name: holder.identities for holder in answer.holders}


def exists(rig: Rig, number: int) -> bool:
    with identities(rig) as stub:
        try:
            stub.GetIdentity(pb.GetIdentityRequest(id=number), timeout=patient(10))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            return False
        return True


def identity(node: Node, pod: str) -> int:
    return int(node.endpoint(pod).identity)


def test_each_node_reports_what_its_endpoints_have(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    eventually(lambda: holders(rig).get("node/node-1") == 1 and holders(rig).get("node/node-2") == 2)
    assert not [problem for node in rig.nodes for problem in node.status().problems]


def test_another_filter_moves_running_pods_and_breaks_nothing(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    web, client, stranger = (pods[name] for name in ("web", "client", "stranger"))
    second = rig.nodes[1]
    before = {name: identity(pods[name].node, name) for name in pods}
    rig.apply(ONLY_CLIENT)
    with echo_server(web.namespace, 80), datagrams(client, web, 81) as stream:
        eventually(partial(reaches, client, web, 80))
        with connect(client, web, 80) as open_before, identities(rig) as stub:
            assert talks(open_before)
            found = stub.SetLabelFilter(
                pb.SetLabelFilterRequest(patterns=[f"!{VERSION}$"]), timeout=patient(10)
            )
            assert found.changed == len(pods)
            eventually(
                lambda: all(identity(pods[name].node, name) != number for name, number in before.items())
            )
            assert not reaches(stranger, web, 80, 0.3)
            assert talks(open_before)
            # One that comes now has the same as one that was there.
            late = rig.pod(second, "late", app="client", version="2")
            late.add()
            assert identity(second, "late") == identity(second, "client")
            eventually(partial(reaches, late, web, 80))
            late.delete()
    assert stream.sent and not stream.lost
    assert not reaches(stranger, web, 80, 0.3)
    rig.remove_policy(ONLY_CLIENT)
    # Nobody has the numbers of before, and they are collected.
    eventually(lambda: not any(exists(rig, number) for number in before.values()))


def test_an_identity_that_was_collected_is_resolved_again(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    node, web = rig.nodes[0], pods["web"]
    before = identity(node, "web")
    assert node.loader.running is not None
    node.loader.running.send_signal(signal.SIGSTOP)
    try:
        with grpc.insecure_channel(rig.target("identity")) as channel:
            ipcache = identity_pb2_grpc.IpCacheServiceStub(channel)
            ipcache.Withdraw(
                pb.WithdrawRequest(node=node.name, prefixes=[f"{web.ipv4}/32"]), timeout=patient(10)
            )
        with identities(rig) as stub:
            stub.EndUse(pb.EndUseRequest(holder=f"node/{node.name}"), timeout=patient(10))
        eventually(lambda: not exists(rig, before))
    finally:
        node.loader.running.send_signal(signal.SIGCONT)
    eventually(lambda: identity(node, "web") != before)
    eventually(lambda: f"{web.ipv4}/32" in rig.published())
    assert rig.published()[f"{web.ipv4}/32"].identity == identity(node, "web")
    with echo_server(web.namespace, 80):
        eventually(partial(reaches, pods["client"], web, 80))


def test_without_the_service_nothing_changes(rig: Rig, pods: dict[str, Pod], eventually: Eventually) -> None:
    node = rig.nodes[1]
    before = identity(node, "client")
    rig.services["identity"].kill()
    eventually(lambda: any("identities in use" in problem for problem in node.status().problems))
    assert identity(node, "client") == before
    rig.services["identity"].start()
    eventually(lambda: not node.status().problems)
    assert identity(node, "client") == before


def test_a_service_that_has_lost_its_store_is_told_all_again(
    rig: Rig, pods: dict[str, Pod], eventually: Eventually
) -> None:
    web, client = pods["web"], pods["client"]
    with echo_server(web.namespace, 80):
        rig.services["identity"].kill()
        for path in rig.directory.glob("identity.db*"):
            path.unlink()
        rig.services["identity"].start()
        prefixes = {f"{pod.ipv4}/32" for pod in pods.values()}
        eventually(lambda: rig.published().keys() >= prefixes)
        eventually(partial(reaches, client, web, 80))
        for pod in pods.values():
            assert rig.published()[f"{pod.ipv4}/32"].identity == identity(pod.node, pod.name)
