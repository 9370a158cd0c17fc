"""Mode kubernetes: a node's pod CIDRs are given to its loader, and there are no others when they are full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import Rig, running_rig
from tests.kernel.loader.traffic import reaches

pytestmark = pytest.mark.kernel

Eventually = Callable[[Callable[[], bool]], None]

# Of the IPv4 CIDR's eight addresses.
FULL = 5
MODE = {"ipam": ["--ipam-mode=kubernetes"]}


def given(number: int) -> list[str]:
    return [f"--pod-cidr=10.99.{number}.0/29,fd00:99::{number}:0/125"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("rig")
    with running_rig(directory, nodes=1, cidrs="", ipv6=True, service_flags=MODE, node_flags=given) as made:
        yield made


def test_pods_have_addresses_of_what_was_given(rig: Rig, eventually: Eventually) -> None:
    (node,) = rig.nodes
    assert list(node.status().pod_cidrs) == ["10.99.1.0/29", "fd00:99::1:0/125"]
    web, client = rig.pod(node, "web", app="web"), rig.pod(node, "client", app="client")
    web.add()
    client.add()
    assert (web.ipv4[:8], client.ipv6[:11]) == ("10.99.1.", "fd00:99::1:")
    with echo_server(web.namespace, 80):
        for ipv6 in (False, True):
            for source in (client, node):
                eventually(partial(reaches, source, web, 80, ipv6=ipv6))


def test_a_full_node_says_so_for_good(rig: Rig) -> None:
    (node,) = rig.nodes
    code, answer = 0, dict[str, Any]()
    for number in range(6):
        code, answer = rig.pod(node, f"more-{number}").call("ADD")
        if code:
            break
    assert (code, answer["code"]) == (1, 106), answer
    assert "CIDR_EXHAUSTED" in answer["details"] and "transient=false" in answer["details"]


def test_a_restart_without_ipam_goes_by_what_it_knows(rig: Rig) -> None:
    (node,) = rig.nodes
    rig.services["ipam"].kill()
    node.loader.kill()
    node.loader.start()
    assert list(node.status().pod_cidrs) == ["10.99.1.0/29", "fd00:99::1:0/125"]
    rig.services["ipam"].start()


def test_a_loader_that_is_given_none_says_what_is_expected(rig: Rig) -> None:
    (node,) = rig.nodes
    node.loader.kill()
    arguments = [each for each in node.loader.arguments if not each.startswith("--pod-cidr")]
    loader = type(node.loader)("bare", arguments, node.loader.ready, node.directory / "bare.log")
    with pytest.raises(AssertionError, match="ended with"):
        loader.start()
    # What it has started with stays as it was.
    assert len(node.links()) == FULL
    told = loader.log.read_text()
    assert "FIMBRIA_POD_CIDR is ''; ipam runs in mode kubernetes and expects the node's pod CIDRs" in told
