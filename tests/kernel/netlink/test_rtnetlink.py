"""The hand-packed messages against another decoder, and the thread that enters namespaces."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from services.chassis.errors import Unavailable
from services.loader.netlink import namespace, rtnetlink
from services.loader.netlink.namespace import NamespaceThread
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel


def decoded(kind: type, message: rtnetlink.Message) -> dict[str, object]:
    """The message as pyroute2 reads it."""
    header = (16 + len(message.body)).to_bytes(4, "little") + message.kind.to_bytes(2, "little")
    read = kind(header + message.flags.to_bytes(2, "little") + bytes(8) + message.body)
    read.decode()
    plain: dict[str, object] = read.dump() if hasattr(read, "dump") else read
    return plain


def attribute(message: object, *path: str) -> object:
    at: object = message
    for name in path:
        assert isinstance(at, dict)
        at = dict(at["attrs"])[name]
    return at


def test_another_decoder_reads_a_veth_pair() -> None:
    message = rtnetlink.create_veth("lxc1", "02:00:00:00:00:01", 1400, "eth0", "02:00:00:00:00:02", 7)
    read = decoded(ifinfmsg, message)
    assert attribute(read, "IFLA_IFNAME") == "lxc1"
    assert attribute(read, "IFLA_ADDRESS") == "02:00:00:00:00:01"
    assert attribute(read, "IFLA_MTU") == 1400
    assert attribute(read, "IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth"
    peer = attribute(read, "IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert attribute(peer, "IFLA_IFNAME") == "eth0"
    assert attribute(peer, "IFLA_ADDRESS") == "02:00:00:00:00:02"
    assert attribute(peer, "IFLA_MTU") == 1400
    assert attribute(peer, "IFLA_NET_NS_FD") == 7


def test_another_decoder_reads_addresses_and_routes() -> None:
    address = decoded(ifaddrmsg, rtnetlink.add_address(9, "10.1.0.7"))
    assert (address["prefixlen"], address["index"]) == (32, 9)
    assert attribute(address, "IFA_LOCAL") == "10.1.0.7"
    route = decoded(rtmsg, rtnetlink.add_default_route(9, "10.1.0.1", 1350))
    assert (route["dst_len"], route["table"], route["scope"]) == (0, 254, 0)
    assert attribute(route, "RTA_GATEWAY") == "10.1.0.1"
    assert attribute(route, "RTA_OIF") == 9
    assert attribute(route, "RTA_METRICS", "RTAX_MTU") == 1350
    host = decoded(rtmsg, rtnetlink.add_link_route(9, "10.1.0.1"))
    assert (host["dst_len"], host["scope"]) == (32, 253)
    assert attribute(host, "RTA_DST") == "10.1.0.1"


@given(st.lists(st.tuples(st.sampled_from([16, 20, 24]), st.binary(min_size=16, max_size=120))))
def test_no_answer_breaks_the_parsers(payloads: list[tuple[int, bytes]]) -> None:
    assert len(rtnetlink.links(payloads)) == sum(kind == 16 for kind, _ in payloads)
    assert len(rtnetlink.routes(payloads)) <= sum(kind == 24 for kind, _ in payloads)
    assert len(rtnetlink.addresses(payloads)) <= sum(kind == 20 for kind, _ in payloads)


@pytest.mark.parametrize("mac", ["", "02:00", "02:00:00:00:00:00:00", "zz:00:00:00:00:00"])
def test_what_is_no_mac_address_is_refused(mac: str) -> None:
    with pytest.raises(ValueError):
        rtnetlink.mac_bytes(mac)


def test_a_refusal_names_the_operation_and_the_kernels_words(node: Namespace) -> None:
    with node.run(rtnetlink.RouteSocket) as route_socket:
        with pytest.raises(rtnetlink.NetlinkError) as caught:
            route_socket.request([rtnetlink.add_default_route(1, "203.0.113.1", 1400)])
    assert caught.value.errno == errno.ENETUNREACH
    assert "add default route via 203.0.113.1" in str(caught.value)
    assert "Nexthop" in caught.value.kernel_message


def test_messages_behind_a_refused_one_are_carried_out_and_the_socket_stays_usable(node: Namespace) -> None:
    with node.run(rtnetlink.RouteSocket) as route_socket:
        with pytest.raises(rtnetlink.NetlinkError) as caught:
            route_socket.request(
                [
                    rtnetlink.get_link("none"),
                    rtnetlink.set_up("underlay", up=False),
                    rtnetlink.delete_link("gone"),
                ]
            )
        assert caught.value.operation == "look up none"
        ((underlay,),) = [rtnetlink.links(route_socket.request([rtnetlink.get_link("underlay")])[0])]
    assert not underlay.up


def test_a_long_listing_arrives_whole(node: Namespace) -> None:
    batch = "".join(f"link add many{n} type veth peer name peer{n}\n" for n in range(150))
    node.command("bash", "-c", f"ip -batch - <<'END'\n{batch}END")
    with node.run(rtnetlink.RouteSocket) as route_socket:
        found = {link.name for link in rtnetlink.links(route_socket.request([rtnetlink.dump_links()])[0])}
    assert {f"{side}{n}" for n in range(150) for side in ("many", "peer")} <= found


def test_long_listings_and_other_things_are_asked_for_together(node: Namespace) -> None:
    many = [rtnetlink.add_address(1, f"10.9.{n // 250}.{n % 250 + 1}") for n in range(600)]
    listing = rtnetlink.dump_addresses(socket.AF_INET)
    with node.run(rtnetlink.RouteSocket) as route_socket:
        for begin in range(0, len(many), 50):
            route_socket.request(many[begin : begin + 50])
        before, links, added, after = route_socket.request(
            [listing, rtnetlink.dump_links(), rtnetlink.add_address(1, "10.9.9.9"), listing]
        )
    assert len(rtnetlink.addresses(before)) >= 600
    assert len(rtnetlink.addresses(after)) == len(rtnetlink.addresses(before)) + 1
    assert "lo" in [link.name for link in rtnetlink.links(links)]
    assert added == []


def test_a_socket_belongs_to_the_namespace_it_was_made_in(pod: Namespace) -> None:
    with NamespaceThread().open_socket(pod.fd) as route_socket:
        (answer,) = route_socket.request([rtnetlink.dump_links()])
    assert [link.name for link in rtnetlink.links(answer)] == ["lo"]


def test_a_thread_that_cannot_get_home_is_discarded(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def netns_threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "netns"]

    visitor = NamespaceThread()
    before = set(netns_threads())
    visitor.open_socket(pod.fd).__exit__()
    (first,) = set(netns_threads()) - before
    real = namespace.enter

    def enter(descriptor: int) -> None:
        if descriptor != pod.fd:
            raise OSError(errno.EPERM, "not allowed")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(namespace, "enter", enter)
        visitor.open_socket(pod.fd).__exit__()
        first.join(5)
    assert not first.is_alive()
    visitor.open_socket(pod.fd).__exit__()
    (second,) = set(netns_threads()) - before
    home = os.stat("/proc/self/ns/net").st_ino
    assert os.stat(f"/proc/self/task/{second.native_id}/ns/net").st_ino == home


def test_a_thread_that_does_not_answer_is_told(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(namespace, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(namespace, "enter", lambda _: release.wait(5))
    with pytest.raises(Unavailable) as caught:
        NamespaceThread().open_socket(pod.fd)
    release.set()
    assert caught.value.reason == "NAMESPACE_THREAD_STUCK"


def test_a_descriptor_that_is_not_open_is_an_error() -> None:
    with pytest.raises(OSError) as caught:
        NamespaceThread().open_socket(-1)
    assert caught.value.errno == errno.EBADF


def test_the_parsers_agree_with_the_kernel_about_the_loopback(pod: Namespace) -> None:
    pod.command("ip", "link", "set", "lo", "up")
    with NamespaceThread().open_socket(pod.fd) as route_socket:
        (link,) = rtnetlink.links(route_socket.request([rtnetlink.get_link("lo")])[0])
        found = rtnetlink.addresses(route_socket.request([rtnetlink.dump_addresses()])[0])
    assert (link.ifindex, link.mtu, link.up, link.kind) == (1, 65536, True, "")
    assert found == [(1, "127.0.0.1/8")]
    assert socket.if_nametoindex("lo") == 1
