"""The modes: CIDRs that are given from outside, and pools that workloads choose."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from ipaddress import IPv4Address

import grpc
import pytest
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc
from fimbria.types.v1 import types_pb2

from services.chassis.channel import open_channel
from services.chassis.errors import (
    FailedPrecondition,
    FimbriaError,
    InvalidArgument,
    ResourceExhausted,
)
from services.ipam.model import AddressPair, Mode, PoolUsage
from tests.service.ipam.stores import World, nets, pair, texts
from tests.service.processes import WATCH_SECONDS, ServiceProcess, start
from tests.service.refusals import refused


@pytest.fixture
async def given(url: str) -> AsyncIterator[World]:
    """The stores in mode kubernetes."""
    async with World.open(url, "kubernetes", hold_seconds=30) as world:
        yield world


async def reason(call: object, error: type[FimbriaError]) -> str:
    """The reason of the error that `call` fails with."""
    with pytest.raises(error) as caught:
        await call  # type: ignore[misc]
    return caught.value.reason


async def test_a_nodes_cidrs_are_the_given_ones(given: World) -> None:
    node = await given.node(1, "default", "10.0.1.0/29", "fd00:1::/64", "10.0.2.0/29")
    assert texts(node) == ["10.0.1.0/29", "fd00:1::/64", "10.0.2.0/29"]
    assert (node.pool, {cidr.pool for cidr in node.cidrs}) == ("kubernetes", {"kubernetes"})
    assert (str(node.router(4)), str(node.router(6))) == ("10.0.1.1", "fd00:1::1")
    assert await given.node(1, "default", "10.0.1.0/29", "fd00:1::/64", "10.0.2.0/29") == node
    held = await given.fill("n1", 10)
    assert {str(one.held[0].cidr) for one in held} == {"10.0.1.0/29", "10.0.2.0/29"}
    with pytest.raises(ResourceExhausted) as caught:
        await given.fill("n1", 1)
    assert caught.value.reason == "CIDR_EXHAUSTED"
    assert caught.value.metadata["transient"] == "false"
    pool = await given.pools.get("kubernetes")
    assert (pool.cidrs, pool.used) == ((), 1)
    assert pool.usage == (
        PoolUsage(4, 0, 2, capacity=10, held=10, on_hold=0, excluded=0),
        PoolUsage(6, 0, 1, capacity=(1 << 64) - 2, held=10, on_hold=0, excluded=0),
    )


async def test_given_cidrs_may_change_while_nothing_of_them_is_held(given: World) -> None:
    node = await given.node(1, "", "10.0.1.0/29", "10.0.2.0/29")
    (held,) = await given.fill("n1", 1)
    with pytest.raises(FailedPrecondition) as caught:
        await given.node(1, "", "10.0.2.0/29", "10.0.3.0/29")
    assert caught.value.reason == "CIDR_IN_USE"
    assert caught.value.metadata == {"cidr": "10.0.1.0/29", "node": "n1", "addresses": "1"}
    assert await given.nodes.get("n1") == node
    changed = await given.node(1, "", "10.0.3.0/29", "10.0.1.0/29", "fd00::/64")
    assert texts(changed) == ["10.0.3.0/29", "10.0.1.0/29", "fd00::/64"]
    assert str(changed.router(4)) == "10.0.3.1"
    assert changed.revision == node.revision + 1
    assert await given.addresses.allocate("n1", held.owner)
    # What is on hold goes with its CIDR.
    await given.addresses.release("n1", held.owner)
    assert texts(await given.node(1, "", "10.0.3.0/29")) == ["10.0.3.0/29"]
    # And what is no longer given to one node may be another's.
    assert texts(await given.node(2, "", "10.0.1.0/29")) == ["10.0.1.0/29"]


@pytest.mark.parametrize(
    ("cidrs", "error", "expected"),
    [
        ([], InvalidArgument, "POD_CIDRS_MISSING"),
        (["10.0.0.0/31"], InvalidArgument, "CIDR_INVALID"),
        (["fd00::/127"], InvalidArgument, "CIDR_INVALID"),
        (["10.9.0.0/24", "10.9.0.0/25"], FailedPrecondition, "CIDR_OVERLAP"),
        (["10.9.0.0/24", "10.9.0.0/24"], FailedPrecondition, "CIDR_OVERLAP"),
        (["10.9.0.0/24", "10.0.1.0/29"], FailedPrecondition, "CIDR_OVERLAP"),
        (["10.0.0.0/16"], FailedPrecondition, "CIDR_OVERLAP"),
        (["10.5.1.0/24"], FailedPrecondition, "CIDR_OVERLAP"),
    ],
)
async def test_given_cidrs_that_cannot_be_are_refused(
    given: World, cidrs: list[str], error: type[FimbriaError], expected: str
) -> None:
    await given.node(1, "", "10.0.1.0/28")
    await given.pool("p", "10.5.0.0/16", mask=24)
    assert await reason(given.node(2, "", *cidrs), error) == expected
    nodes, revision = await given.nodes.list(after="", limit=None)
    assert ([node.name for node in nodes], revision) == (["n1"], 1)


async def test_a_pool_cannot_have_what_was_given_to_a_node(given: World) -> None:
    await given.node(1, "", "10.0.1.0/24")
    with pytest.raises(FailedPrecondition) as caught:
        await given.pool("p", "10.0.0.0/16", mask=24)
    assert caught.value.metadata == {
        "cidr": "10.0.0.0/16",
        "other_cidr": "10.0.1.0/24",
        "pool": "p",
        "other_pool": "kubernetes",
    }
    await given.pool("p", "10.1.0.0/16", mask=24)
    assert await reason(given.update("p", "10.1.0.0/16", "10.0.0.0/17"), FailedPrecondition) == "CIDR_OVERLAP"
    await given.nodes.delete("n1", force=False, trace="")
    await given.update("p", "10.1.0.0/16", "10.0.0.0/17")


async def test_given_cidrs_never_go_back_by_themselves(given: World) -> None:
    await given.node(1, "", "10.0.1.0/29", "10.0.2.0/29")
    for _ in range(3):
        assert await given.give_back.turn() == []
        given.clocks.move(1000)


@pytest.mark.parametrize("mode", ["cluster-pool", "multi-pool"])
async def test_the_other_modes_take_no_cidrs_from_outside(url: str, mode: Mode) -> None:
    async with World.open(url, mode) as world:
        await world.pool("p", "10.0.0.0/28")
        refusal = await reason(world.node(1, "p", "10.0.1.0/24"), InvalidArgument)
        assert refusal == "POD_CIDRS_UNEXPECTED"
        assert await reason(world.node(1, "kubernetes"), InvalidArgument) == "POOL_NAME_RESERVED"


async def test_in_mode_cluster_pool_a_node_has_one_pool(url: str) -> None:
    async with World.open(url, "cluster-pool") as world:
        await world.pool("p", "10.0.0.0/28")
        await world.pool("q", "10.1.0.0/28")
        await world.node(1)
        assert await reason(world.fill("n1", 1, "q"), FailedPrecondition) == "POOL_NOT_ALLOWED"
        assert len(await world.fill("n1", 10, "p")) == 10
        assert texts(await world.nodes.get("n1")) == ["10.0.0.0/29", "10.0.0.8/29"]


async def test_a_node_of_another_mode_has_to_be_deleted_first(url: str) -> None:
    async with World.open(url, "cluster-pool") as world:
        await world.pool("p", "10.0.0.0/28")
        await world.node(1)
        (held,) = await world.fill("n1", 1)
    async with World.open(url, "kubernetes") as world:
        assert await reason(world.node(1, "p", "10.9.0.0/24"), FailedPrecondition) == "NODE_POOL_CONFLICT"
        assert await world.addresses.allocate("n1", held.owner) == held
        await world.nodes.delete("n1", force=True, trace="")
        assert texts(await world.node(1, "p", "10.9.0.0/24")) == ["10.9.0.0/24"]
    async with World.open(url, "multi-pool") as world:
        assert await reason(world.node(1), FailedPrecondition) == "NODE_POOL_CONFLICT"


async def test_fixed_addresses_come_from_any_cidr_of_the_node(given: World) -> None:
    await given.node(1, "", "10.0.1.0/29", "10.0.2.0/29")
    wish = AddressPair(IPv4Address("10.0.2.5"))
    assert pair(await given.addresses.allocate("n1", "fixed", wish)) == wish
    assert nets("10.0.2.0/29")[0] == (await given.addresses.allocate("n1", "fixed")).held[0].cidr


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServiceProcess]]:
    """An ipam process in each mode that has not its own elsewhere."""
    started = {}
    for mode in ("kubernetes", "multi-pool"):
        started[mode] = start(
            "ipam",
            tmp_path_factory.mktemp(mode),
            f"--ipam-mode={mode}",
            "--ipam-default-pool-cidr=10.244.0.0/16",
            "--ipam-cidr-idle-seconds=0",
            "--ipam-hold-seconds=0",
        )
    yield started
    for service in started.values():
        assert service.terminate() == 0


async def test_cidrs_from_outside_over_the_wire(processes: dict[str, ServiceProcess]) -> None:
    service = processes["kubernetes"]
    assert "no pool is made" in service.log
    async with open_channel(service.target) as channel:
        nodes = ipam_pb2_grpc.NodeServiceStub(channel)
        pools = ipam_pb2_grpc.PoolServiceStub(channel)
        assert not (await pools.ListPools(ipam_pb2.ListPoolsRequest())).pools
        request = ipam_pb2.RegisterNodeRequest(name="n1", ipv4="172.31.0.1", pool="default")
        error = await refused(nodes.RegisterNode(request), InvalidArgument, "POD_CIDRS_MISSING")
        assert error.violations[0].field == "pod_cidrs"
        request.pod_cidrs.extend(["10.1.0.0/24", "10.2.0.1/24"])
        error = await refused(nodes.RegisterNode(request), InvalidArgument, "REQUEST_INVALID")
        assert error.violations[0].field == "pod_cidrs[1]"
        request.pod_cidrs[1] = "10.2.0.0/24"
        node = await nodes.RegisterNode(request)
        assert [(one.cidr, one.pool, one.draining) for one in node.cidrs] == [
            ("10.1.0.0/24", "kubernetes", False),
            ("10.2.0.0/24", "kubernetes", False),
        ]
        assert node.pool == "kubernetes"
        addresses = ipam_pb2_grpc.AddressServiceStub(channel)
        held = await addresses.Allocate(ipam_pb2.AllocateRequest(node="n1", owner="c/eth0"))
        assert (held.address, held.pool) == ("10.1.0.2", "kubernetes")


async def next_put(watch: AsyncIterable[ipam_pb2.WatchNodesResponse]) -> ipam_pb2.NodeEvent:
    """The next event of a watch that is of one node and was not there at its start."""
    async for message in watch:
        if message.events:
            (event,) = message.events
            assert event.type == types_pb2.CHANGE_TYPE_PUT
            return event
    raise AssertionError("the watch ended")


async def test_pools_that_workloads_choose_over_the_wire(processes: dict[str, ServiceProcess]) -> None:
    async with open_channel(processes["multi-pool"].target) as channel:
        nodes = ipam_pb2_grpc.NodeServiceStub(channel)
        pools = ipam_pb2_grpc.PoolServiceStub(channel)
        addresses = ipam_pb2_grpc.AddressServiceStub(channel)
        blue = ipam_pb2.LabelSelector(
            match_labels={"color": "blue"},
            match_expressions=[ipam_pb2.LabelRequirement(key="tier", operator="NotIn", values=["db"])],
        )
        request = ipam_pb2.CreatePoolRequest(
            name="blue",
            cidrs=["10.10.0.0/28"],
            node_mask_size=29,
            excluded=["10.10.0.3/32", "10.10.0.4-10.10.0.5"],
            pod_selector=blue,
        )
        made = await pools.CreatePool(request)
        assert list(made.excluded) == ["10.10.0.3", "10.10.0.4-10.10.0.5"]
        assert (made.pod_selector, made.HasField("namespace_selector"), made.revision) == (blue, False, 1)
        assert await pools.CreatePool(request) == made
        node = await nodes.RegisterNode(ipam_pb2.RegisterNodeRequest(name="n1", ipv4="172.31.0.1"))
        watch = nodes.WatchNodes(
            ipam_pb2.WatchNodesRequest(from_revision=node.revision), timeout=WATCH_SECONDS
        )
        held = await addresses.Allocate(
            ipam_pb2.AllocateRequest(
                node="n1", owner="c/eth0", workload=ipam_pb2.Workload(labels={"color": "blue"})
            )
        )
        assert (held.address, held.pool, held.router_ipv4) == ("10.10.0.2", "blue", "10.244.0.1")
        event = await next_put(watch)
        assert [(one.cidr, one.pool) for one in event.node.cidrs] == [
            ("10.244.0.0/24", "default"),
            ("10.10.0.0/29", "blue"),
        ]
        assert event.trace.traceparent.startswith("00-")

        update = ipam_pb2.UpdatePoolRequest(name="blue", cidrs=["10.11.0.0/28"], expected_revision=1)
        changed = await pools.UpdatePool(update)
        assert list(changed.cidrs) == ["10.11.0.0/28"]
        assert changed.draining == [ipam_pb2.DrainingCidr(cidr="10.10.0.0/28", node_cidrs=1, addresses=1)]
        assert (changed.revision, changed.HasField("pod_selector")) == (2, False)
        (usage,) = changed.usage
        assert (usage.family, usage.node_cidrs_total, usage.node_cidrs_used, usage.held) == ("IPv4", 2, 1, 1)
        event = await next_put(watch)
        assert [one.draining for one in event.node.cidrs] == [False, True]
        assert event.trace.traceparent.startswith("00-")
        listed = (await pools.ListPools(ipam_pb2.ListPoolsRequest())).pools
        assert [(pool.name, len(pool.draining), len(pool.usage)) for pool in listed] == [
            ("blue", 1, 0),
            ("default", 0, 0),
        ]

        # The background task takes what is empty, and the pool's CIDR goes with the last part of it.
        await addresses.Release(ipam_pb2.ReleaseRequest(node="n1", owner="c/eth0"))
        event = await next_put(watch)
        assert [one.cidr for one in event.node.cidrs] == ["10.244.0.0/24"]
        assert event.trace.traceparent == ""
        assert not (await pools.GetPool(ipam_pb2.GetPoolRequest(name="blue"))).draining
        watch.cancel()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"excluded": ["10.12.0.0-10.12.0.x"]}, "excluded[0]"),
        ({"excluded": ["10.13.0.0"]}, "excluded"),
        (
            {"pod_selector": {"match_expressions": [{"key": "a", "operator": "Is"}]}},
            "pod_selector.match_expressions[0].operator",
        ),
        (
            {"namespace_selector": {"match_expressions": [{"key": "a", "operator": "In"}]}},
            "namespace_selector.match_expressions[0].values",
        ),
        ({"cidrs": ["10.12.0.0/29"]}, "node_mask_size"),
    ],
)
async def test_bad_content_of_a_pool_names_its_field(
    processes: dict[str, ServiceProcess], change: dict[str, object], field: str
) -> None:
    async with open_channel(processes["multi-pool"].target) as channel:
        pools = ipam_pb2_grpc.PoolServiceStub(channel)
        content: dict[str, object] = {"cidrs": ["10.12.0.0/24"], "node_mask_size": 28, **change}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pools.CreatePool(ipam_pb2.CreatePoolRequest(name="bad", **content))  # type: ignore[arg-type]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(caught.value.details())
