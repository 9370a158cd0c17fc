"""What the kernel says of devices, taken from datagrams as it sends them."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import suppress

import pytest

from services.loader.netlink.monitor import DeviceMonitor, News, take
from tests.unit.loader.node_under_test import NodeUnderTest, add, only
from tests.unit.loader.waiting import until

DELLINK, NEWLINK, NEWADDR, DELQDISC, DELTFILTER = 17, 16, 20, 37, 45


def message(kind: int, ifindex: int) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_messages_are_sorted_by_what_they_say() -> None:
    news = News()
    assert not news
    data = b"".join(
        message(kind, ifindex)
        for kind, ifindex in ((DELLINK, 3), (NEWLINK, 4), (DELQDISC, 5), (DELTFILTER, 6), (NEWADDR, 7))
    )
    take(news, data)
    assert (news.gone, news.changed, news.unhooked, news.addresses) == ({3}, {4}, {5, 6}, True)


@pytest.mark.parametrize("data", [b"", b"\0" * 40, message(DELLINK, 3)[:-4], b"\xff" * 64])
def test_what_is_cut_short_or_makes_no_sense_is_passed_over(data: bytes) -> None:
    news = News()
    take(news, data)
    assert not news


class FullSocket:
    """Says once that messages were lost."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.lost = 1

    def fileno(self) -> int:
        return self.real.fileno()

    def recv(self, size: int) -> bytes:
        if self.lost:
            self.lost -= 1
            raise OSError(errno.ENOBUFS, "no buffer space")
        return self.real.recv(size)

    def close(self) -> None:
        self.real.close()


async def test_lost_messages_have_everything_looked_at(node: NodeUnderTest) -> None:
    for name in ("c1", "c2"):
        await node.cni.add(add(name, netns=f"/run/netns/{name}"))
    first, second = [each.record for each in node.registry]
    monitor = DeviceMonitor()
    monitor._socket = FullSocket(monitor._socket)  # type: ignore[assignment]
    node.watch._open_monitor = lambda: monitor
    running = asyncio.create_task(node.watch.run())
    await until(lambda: node.links.listed > 0)
    del node.links.devices[first.spec.host_device]
    monitor._read()
    await until(lambda: node.registry.find(first.id) is None)
    assert only(node).record == second
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_device_that_lost_its_programs_gets_them_back(node: NodeUnderTest) -> None:
    await node.cni.add(add())
    record = only(node).record
    monitor = DeviceMonitor()
    node.watch._open_monitor = lambda: monitor
    running = asyncio.create_task(node.watch.run())
    await until(lambda: node.links.listed > 0)
    node.kernel.hooked.clear()
    take(monitor._news, message(DELQDISC, record.ifindex))
    monitor._heard.set()
    await until(lambda: node.kernel.hooked == {record.ifindex})
    assert node.registry.histories.of(record.id)[0].cause == "device"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
