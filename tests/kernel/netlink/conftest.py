"""Namespaces for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.netlink.namespaces import Namespace, Namespaces


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


@pytest.fixture
def node(namespaces: Namespaces) -> Namespace:
    """A namespace with an address on an underlay device, as a node has."""
    made = namespaces.make()
    made.command("ip", "link", "add", "underlay", "mtu", "1400", "type", "veth", "peer", "name", "wire")
    for device in ("lo", "underlay", "wire"):
        made.command("ip", "link", "set", device, "up")
    # A distribution's default, which must not get in the way.
    made.command("sysctl", "-q", "-w", "net.ipv4.conf.default.rp_filter=1")
    made.command("ip", "address", "add", "192.0.2.1/24", "dev", "underlay")
    return made


@pytest.fixture
def pod(namespaces: Namespaces) -> Namespace:
    return namespaces.make()
