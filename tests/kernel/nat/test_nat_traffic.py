"""Real packets from pods to a world that knows none of them."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from services.loader.bpf.nat import Kind
from tests.kernel.bpf.namespaces import Namespace, Namespaces
from tests.kernel.nat.frames import Family
from tests.kernel.nat.network import ROUTER, Network, build_network, open_socket, path_mtu, ping
from tests.kernel.nat.translator import Translator

pytestmark = pytest.mark.kernel

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO = 10, 23, 2


@pytest.fixture
def translator(open_translator: Callable[..., Translator]) -> Translator:
    return open_translator()


@pytest.fixture(params=["whole", "finished"])
def network(request: pytest.FixtureRequest, namespaces: Namespaces, translator: Translator) -> Network:
    """``whole``: large segments, checksums left to the next device, as veth does; ``finished``: neither."""
    made = build_network(namespaces, translator)
    if request.param == "finished":
        made.finish_checksums()
    return made


@contextmanager
def serving(network: Network, family: Family, port: int = 80) -> Iterator[socket.socket]:
    with open_socket(network.world, family) as server:
        server.bind((family.peer, port))
        server.listen()
        yield server


def exchange(source: Namespace, family: Family, server: socket.socket, port: int = 0) -> tuple[str, int]:
    """A connection with a byte each way. Returns whom the server saw."""
    with open_socket(source, family) as client:
        client.bind(("", port))
        client.connect(server.getsockname())
        accepted, peer = server.accept()
        with accepted:
            client.sendall(b"?")
            assert accepted.recv(1) == b"?"
            accepted.sendall(b"!")
            assert client.recv(1) == b"!"
    return peer[0], peer[1]


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """``size`` bytes, all of which arrive as they were."""
    data = bytes(range(251)) * (size // 251)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    got = bytearray()
    while len(got) < len(data):
        piece = receiver.recv(1 << 20)
        assert piece
        got += piece
    thread.join()
    assert got == data


def test_connections_come_from_the_node(network: Network, family: Family) -> None:
    with serving(network, family) as server:
        seen = [exchange(each, family, server, 61000) for each in (network.pod, network.other)]
    assert {address for address, _ in seen} == {family.node}
    ports = [port for _, port in seen]
    assert ports[0] == 61000 != ports[1] and 61000 <= ports[1] <= 65535


def test_the_nodes_own_connections_stay_as_they_are(network: Network, family: Family) -> None:
    with serving(network, family) as server:
        assert exchange(network.node, family, server, 50000) == (family.node, 50000)
    assert "1 received" in ping(network.node, family.peer)
    assert "1 received" in ping(network.world, family.node)


def test_much_data_goes_both_ways(network: Network, family: Family) -> None:
    with serving(network, family) as server, open_socket(network.pod, family) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            transfer(client, accepted, 8 << 20)
            transfer(accepted, client, 8 << 20)


@pytest.mark.parametrize("size", [0, 1, 1400, 4000, 30000])
def test_datagrams_of_any_size_are_answered(network: Network, family: Family, size: int) -> None:
    with (
        open_socket(network.world, family, socket.SOCK_DGRAM) as server,
        open_socket(network.pod, family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((family.peer, 53))
        for data in (b"a" * size, b"b" * size):
            client.sendto(data, (family.peer, 53))
            got, peer = server.recvfrom(65535)
            assert got == data and peer[0] == family.node
            server.sendto(data[::-1], peer)
            assert client.recv(65535) == data[::-1]


def test_pings_are_answered(network: Network, family: Family) -> None:
    for each in (network.pod, network.other):
        for size in ("0", "56", "1400", "4000"):
            assert "1 received" in ping(each, family.peer, "-s", size), size


def test_a_refusal_reaches_the_pod(network: Network, family: Family) -> None:
    with open_socket(network.pod, family, socket.SOCK_DGRAM) as client:
        client.connect((family.peer, 9))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    with open_socket(network.pod, family) as client, pytest.raises(ConnectionRefusedError):
        client.connect((family.peer, 9))


def test_a_refusal_of_the_pod_reaches_the_peer(network: Network, family: Family) -> None:
    """An answer to a socket that is closed by then."""
    with open_socket(network.world, family, socket.SOCK_DGRAM) as server:
        server.bind((family.peer, 53))
        with open_socket(network.pod, family, socket.SOCK_DGRAM) as client:
            client.sendto(b"?", (family.peer, 53))
            _, peer = server.recvfrom(1)
        server.connect(peer)
        server.send(b"!")
        with pytest.raises(ConnectionRefusedError):
            server.recv(1)


def offender(client: socket.socket, family: Family) -> tuple[str, str]:
    """Who complained about what a socket sent, and to whom that was: from its error queue."""
    deadline = time.monotonic() + 10
    while True:
        try:
            _, ancillary, _, destination = client.recvmsg(1500, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            continue
        ((_, _, data),) = [each for each in ancillary if each[1] in (_IP_RECVERR, _IPV6_RECVERR)]
        # struct sock_extended_err, then the offender's sockaddr.
        address = data[24:40] if family.v6 else data[20:24]
        return family.text(address), destination[0]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_hops_that_run_out_are_told_as_to_traceroute(
    network: Network, family: Family, kind: socket.SocketKind
) -> None:
    with serving(network, family), open_socket(network.pod, family, kind) as client:
        client.setblocking(False)
        if family.v6:
            client.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 2)
        else:
            client.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        if kind == socket.SOCK_DGRAM:
            client.sendto(b"?", (family.peer, 33434))
        else:
            assert client.connect_ex((family.peer, 80)) == errno.EINPROGRESS
        assert offender(client, family) == (ROUTER[family.v6], family.peer)


def test_ping_hears_of_the_hop_that_ran_out(network: Network, family: Family) -> None:
    said = ping(network.pod, family.peer, "-t", "2")
    assert f"From {ROUTER[family.v6]}" in said and "exceeded" in said
    assert "1 received" in ping(network.pod, family.peer, "-t", "3")


def test_a_narrow_path_is_found_by_the_pod(network: Network, family: Family) -> None:
    network.router.command("ip", "link", "set", "eth1", "mtu", "1400")
    network.world.command("ip", "link", "set", "eth0", "mtu", "1500")
    with serving(network, family) as server, open_socket(network.pod, family) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            transfer(client, accepted, 1 << 20)
    assert path_mtu(network.pod, family.peer) == 1400


def test_a_narrow_pod_is_found_by_the_peer(network: Network, family: Family) -> None:
    """The node's stack complains, to the peer and of what the peer sent: not of the pod's address."""
    network.node.command("ip", "link", "set", "lxcpod", "mtu", "1300")
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER) if family.v6 else (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
    )
    with (
        open_socket(network.world, family, socket.SOCK_DGRAM) as server,
        open_socket(network.pod, family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((family.peer, 53))
        client.sendto(b"?", (family.peer, 53))
        _, peer = server.recvfrom(1)
        server.setsockopt(level, option, _PMTUDISC_DO)
        server.connect(peer)
        server.send(bytes(1400))
        with pytest.raises(OSError) as refused:
            server.recv(1)
        assert refused.value.errno == errno.EMSGSIZE
        assert path_mtu(network.world, family.node) == 1300
        server.send(bytes(1200))
        assert client.recv(2000) == bytes(1200)


def test_no_checksum_in_udp_is_none_on_the_way(network: Network, family: Family) -> None:
    so_no_check, no_check6_tx, no_check6_rx = 11, 101, 102
    with (
        open_socket(network.world, family, socket.SOCK_DGRAM) as server,
        open_socket(network.pod, family, socket.SOCK_DGRAM) as client,
    ):
        if family.v6:
            client.setsockopt(socket.IPPROTO_UDP, no_check6_tx, 1)
            server.setsockopt(socket.IPPROTO_UDP, no_check6_rx, 1)
        else:
            client.setsockopt(socket.SOL_SOCKET, so_no_check, 1)
        server.bind((family.peer, 53))
        client.sendto(b"unsummed", (family.peer, 53))
        got, peer = server.recvfrom(100)
        assert (got, peer[0]) == (b"unsummed", family.node)


def test_many_connections_at_once_have_ports_of_their_own(
    network: Network, family: Family, translator: Translator
) -> None:
    with serving(network, family) as server:
        server.listen(200)
        clients = []
        for index in range(100):
            client = open_socket((network.pod, network.other)[index % 2], family)
            client.connect(server.getsockname())
            client.sendall(struct.pack("!I", index))
            clients.append(client)
        seen = set()
        for _ in clients:
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(accepted.recv(4))
                seen.add(peer[:2])
        assert len(seen) == 100
        for index, client in enumerate(clients):
            with client:
                assert client.recv(4) == struct.pack("!I", index)
    assert len(translator.entries(Kind.ORIGINAL)) == 100
