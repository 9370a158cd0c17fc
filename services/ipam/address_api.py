"""The gRPC side of addresses: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import get_current_span

from services.chassis.paging import PageRequest
from services.ipam.address_release import Holding
from services.ipam.address_store import AddressStore
from services.ipam.address_take import ANY
from services.ipam.check_api import CheckApi
from services.ipam.check_store import AddressCheck
from services.ipam.cidr import parse_address, parse_ipv4, parse_ipv6
from services.ipam.family import Address, Network
from services.ipam.holds import HeldBack
from services.ipam.messages import text, timestamp, workload_of
from services.ipam.model import AddressPair, Allocation

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AddressApi(CheckApi):
    """fimbria.ipam.v1.AddressService."""

    def __init__(self, store: AddressStore, check: AddressCheck) -> None:
        self._store = store
        self._check = check

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Context) -> ipam_pb2.Address:
        wanted = ANY
        if request.address or request.ipv6:
            wanted = AddressPair(
                parse_ipv4(request.address, "address") if request.address else None,
                parse_ipv6(request.ipv6, "ipv6") if request.ipv6 else None,
            )
        workload = None
        if self._store.workloads_matter and request.HasField("workload"):
            workload = workload_of(request.workload)
        allocation = await self._store.allocate(
            request.node,
            request.owner,
            wanted,
            pool=request.pool,
            workload=workload,
            trace=get_current_span(),
        )
        return address_message(allocation)

    async def AllocateBatch(
        self, request: ipam_pb2.AllocateBatchRequest, context: Context
    ) -> ipam_pb2.AllocateBatchResponse:
        allocations = await self._store.allocate_batch(
            request.node, request.owners, pool=request.pool, trace=get_current_span()
        )
        return ipam_pb2.AllocateBatchResponse(addresses=map(address_message, allocations))

    async def Release(self, request: ipam_pb2.ReleaseRequest, context: Context) -> ipam_pb2.ReleaseResponse:
        created_ns = request.if_create_time.ToNanoseconds() if request.HasField("if_create_time") else None
        released = await self._store.release(request.node, request.owner, created_ns)
        return ipam_pb2.ReleaseResponse(address=text(released.ipv4), ipv6=text(released.ipv6))

    async def ReleaseBatch(
        self, request: ipam_pb2.ReleaseBatchRequest, context: Context
    ) -> ipam_pb2.ReleaseBatchResponse:
        holdings = [
            Holding(one.owner, one.if_create_time.ToNanoseconds() if one.HasField("if_create_time") else None)
            for one in request.holdings
        ]
        released = await self._store.release_batch(request.node, holdings)
        return ipam_pb2.ReleaseBatchResponse(
            released=released.released, absent=released.absent, changed=released.changed
        )

    async def ListAddresses(
        self, request: ipam_pb2.ListAddressesRequest, context: Context
    ) -> ipam_pb2.ListAddressesResponse:
        address = parse_address(request.address, "address") if request.address else None
        what = "holds" if request.on_hold else "addresses"
        scope = f"{what}\0{request.node}\0{request.owner}\0{text(address)}"
        wanted = PageRequest.parse(request.page_size, request.page_token, scope=scope)
        after = None
        if wanted.after:
            after = (str(wanted.after[0]), parse_address(str(wanted.after[1]), "page_token"))
        node, owner, limit = request.node, request.owner, wanted.limit
        if request.on_hold:
            holds = await self._store.list_on_hold(
                node=node, owner=owner, address=address, after=after, limit=limit
            )
            held_back = wanted.page(holds, lambda hold: (hold.node, str(hold.address)))
            return ipam_pb2.ListAddressesResponse(
                addresses=map(hold_message, held_back.items), next_page_token=held_back.next_page_token
            )
        found = await self._store.list(node=node, owner=owner, address=address, after=after, limit=limit)
        page = wanted.page(found, lambda allocation: (allocation.node, str(allocation.held[0].address)))
        return ipam_pb2.ListAddressesResponse(
            addresses=map(address_message, page.items), next_page_token=page.next_page_token
        )


def address_message(allocation: Allocation) -> ipam_pb2.Address:
    """What an owner has, as the API shows it."""
    message = ipam_pb2.Address(
        node=allocation.node,
        owner=allocation.owner,
        create_time=_timestamp(allocation.created_ns),
        pool=allocation.pool,
    )
    for held in allocation.held:
        if held.address.version == 4:
            message.address = str(held.address)
            message.cidr, message.router_ipv4 = _text(held.cidr), _text(held.router)
        else:
            message.ipv6 = str(held.address)
            message.cidr_ipv6, message.router_ipv6 = _text(held.cidr), _text(held.router)
    return message


def hold_message(hold: HeldBack) -> ipam_pb2.Address:
    """An address on hold, as the API shows it."""
    message = ipam_pb2.Address(
        node=hold.node, owner=hold.owner, pool=hold.pool, hold_until=timestamp(hold.until_ns)
    )
    if hold.address.version == 4:
        message.address, message.cidr = str(hold.address), str(hold.cidr)
    else:
        message.ipv6, message.cidr_ipv6 = str(hold.address), str(hold.cidr)
    return message


# All addresses of a batch have one creation time, and few CIDRs and routers between them.
@lru_cache(maxsize=64)
def _timestamp(nanoseconds: int) -> Timestamp:
    return timestamp(nanoseconds)


@lru_cache(maxsize=4096)
def _text(value: Address | Network) -> str:
    return str(value)
