"""The ipam process: what SIGKILL leaves, and starts that must fail."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import grpc
import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.db import Database
from services.chassis.errors import OutOfRange
from services.chassis.feed import Feed
from tests.service.processes import WATCH_SECONDS, run_to_end, start
from tests.service.refusals import refused
from tests.service.watches import next_events

POOL = "--ipam-default-pool-cidr=10.244.0.0/16"
BOTH = "--ipam-default-pool-cidr=10.244.0.0/16,fd00:10:244::/48"


async def test_everything_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    service = start("ipam", tmp_path, POOL)
    acknowledged: dict[str, str] = {}
    try:
        async with open_channel(service.target, retry=False) as channel:
            nodes = ipam_pb2_grpc.NodeServiceStub(channel)
            addresses = ipam_pb2_grpc.AddressServiceStub(channel)
            node = await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name="node-1", ipv4="172.31.0.1"))
            enough = asyncio.Event()

            async def allocate(worker: int) -> None:
                number = 0
                while True:
                    owner = f"w{worker}-{number}"
                    try:
                        granted = await addresses.Allocate(
                            ipam_pb2.AllocateRequest(node="node-1", owner=owner)
                        )
                    except grpc.aio.AioRpcError:
                        return
                    acknowledged[owner] = granted.address
                    number += 1
                    if len(acknowledged) >= 60:
                        enough.set()

            workers = [asyncio.create_task(allocate(number)) for number in range(4)]
            await asyncio.wait_for(enough.wait(), 20)
            service.kill()
            await asyncio.gather(*workers)

        service = start("ipam", tmp_path, POOL)
        async with open_channel(service.target) as channel:
            nodes = ipam_pb2_grpc.NodeServiceStub(channel)
            addresses = ipam_pb2_grpc.AddressServiceStub(channel)
            assert await nodes.GetNode(ipam_pb2.GetNodeRequest(name="node-1")) == node
            listed = await addresses.ListAddresses(ipam_pb2.ListAddressesRequest(page_size=1000))
            held = {one.owner: one.address for one in listed.addresses}
            assert acknowledged.items() <= held.items()
            assert len(set(held.values())) == len(held)
            # A replay of an acknowledged call after the crash gives the same answer.
            owner, address = next(iter(acknowledged.items()))
            again = await addresses.Allocate(ipam_pb2.AllocateRequest(node="node-1", owner=owner))
            assert again.address == address
            watch = nodes.WatchNodes(
                ipam_pb2.WatchNodesRequest(from_revision=node.revision), timeout=WATCH_SECONDS
            )
            await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name="node-2", ipv4="172.31.0.2"))
            message = await next_events(watch)
            assert [event.node.name for event in message.events] == ["node-2"]
            assert message.revision == node.revision + 1
            watch.cancel()
    finally:
        service.kill()


def test_the_store_is_the_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    service = start("ipam", directory)
    service.terminate()
    assert stat.S_IMODE(os.stat(directory / "ipam.db").st_mode) == 0o600


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    service = start("ipam", first)
    try:
        code, output = run_to_end("ipam", second, f"--listen={service.target}")
    finally:
        service.terminate()
    assert code == 1
    assert service.target in output
    assert "in use" in output


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--ipam-default-pool-cidr=10.244.0.1/16"], 1, "FIMBRIA_IPAM_DEFAULT_POOL_CIDR"),
        (["--ipam-default-pool-cidr=ten"], 1, "'ten'"),
        ([POOL, "--ipam-default-pool-mask-size=12"], 1, "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE"),
        ([POOL, "--ipam-default-pool-mask-size=31"], 2, "--ipam-default-pool-mask-size"),
        ([BOTH, "--ipam-default-pool-mask-size-ipv6=113"], 1, "FIMBRIA_IPAM_DEFAULT_POOL_MASK_SIZE_IPV6"),
        (["--ipam-default-pool-cidr=10.244.0.0/16,fd00::1/48"], 1, "'fd00::1/48'"),
        (["--database-url=mysql://db/ipam"], 1, "sqlite:///"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, flags: list[str], code: int, named: str) -> None:
    assert run_to_end("ipam", tmp_path, *flags)[0] == code
    assert named in (tmp_path / "ipam.log").read_text()


def test_a_default_pool_from_other_settings_stops_the_start(tmp_path: Path) -> None:
    start("ipam", tmp_path, POOL).terminate()
    code, output = run_to_end("ipam", tmp_path, "--ipam-default-pool-cidr=10.99.0.0/16")
    assert code == 1
    assert "10.244.0.0/16" in output


@pytest.mark.parametrize(
    ("flags", "cidrs", "masks"),
    [
        ([BOTH], ["10.244.0.0/16", "fd00:10:244::/48"], (24, 112)),
        (
            ["--ipam-default-pool-cidr=fd00:10:244::/48", "--ipam-default-pool-mask-size-ipv6=64"],
            ["fd00:10:244::/48"],
            (0, 64),
        ),
    ],
)
async def test_the_default_pool_may_have_either_family(
    tmp_path: Path, flags: list[str], cidrs: list[str], masks: tuple[int, int]
) -> None:
    for _ in range(2):
        service = start("ipam", tmp_path, *flags)
        async with open_channel(service.target) as channel:
            pools = ipam_pb2_grpc.PoolServiceStub(channel)
            pool = await pools.GetPool(ipam_pb2.GetPoolRequest(name="default"))
        service.terminate()
        assert list(pool.cidrs) == cidrs
        assert (pool.node_mask_size, pool.node_mask_size_ipv6) == masks


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "ipam.db").write_bytes(b"this is no database" * 100)
    code, output = run_to_end("ipam", tmp_path)
    assert code == 1
    assert str(tmp_path / "ipam.db") in output


async def test_a_compacted_revision_says_where_to_start(tmp_path: Path) -> None:
    # Compaction runs once a minute: the store is compacted as the process would, while it is down.
    service = start("ipam", tmp_path, POOL)
    async with open_channel(service.target) as channel:
        nodes = ipam_pb2_grpc.NodeServiceStub(channel)
        for host in range(1, 6):
            await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name="node-1", ipv4=f"172.31.0.{host}"))
    service.terminate()
    async with await Database.open(f"sqlite:///{tmp_path}/ipam.db") as database:
        await Feed(database, "nodes").compact(2)

    service = start("ipam", tmp_path, POOL)
    try:
        async with open_channel(service.target) as channel:
            nodes = ipam_pb2_grpc.NodeServiceStub(channel)
            old = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(from_revision=1), timeout=WATCH_SECONDS)
            error = await refused(anext(aiter(old)), OutOfRange, "REVISION_COMPACTED")
            assert error.metadata["restart_revision"] == "3"
            watch = nodes.WatchNodes(ipam_pb2.WatchNodesRequest(from_revision=3), timeout=WATCH_SECONDS)
            message = await next_events(watch)
            assert [event.node.ipv4 for event in message.events] == ["172.31.0.4", "172.31.0.5"]
            watch.cancel()
    finally:
        service.terminate()
