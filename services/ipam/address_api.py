"""The gRPC side of addresses: requests into domain values and back; nothing is decided here."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.paging import PageRequest
from services.ipam.address_store import AddressStore
from services.ipam.cidr import parse_address, parse_ipv4, parse_ipv6
from services.ipam.messages import text, timestamp
from services.ipam.model import AddressPair, Allocation

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AddressApi(ipam_pb2_grpc.AddressServiceServicer):
    """fimbria.ipam.v1.AddressService."""

    def __init__(self, store: AddressStore) -> None:
        self._store = store

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Context) -> ipam_pb2.Address:
        wanted = AddressPair(
            parse_ipv4(request.address, "address") if request.address else None,
            parse_ipv6(request.ipv6, "ipv6") if request.ipv6 else None,
        )
        return address_message(await self._store.allocate(request.node, request.owner, wanted))

    async def Release(self, request: ipam_pb2.ReleaseRequest, context: Context) -> ipam_pb2.ReleaseResponse:
        released = await self._store.release(request.node, request.owner)
        return ipam_pb2.ReleaseResponse(address=text(released.ipv4), ipv6=text(released.ipv6))

    async def ListAddresses(
        self, request: ipam_pb2.ListAddressesRequest, context: Context
    ) -> ipam_pb2.ListAddressesResponse:
        held = parse_address(request.address, "address") if request.address else None
        scope = f"addresses\0{request.node}\0{request.owner}\0{text(held)}"
        wanted = PageRequest.parse(request.page_size, request.page_token, scope=scope)
        after = None
        if wanted.after:
            after = (str(wanted.after[0]), parse_address(str(wanted.after[1]), "page_token"))
        found = await self._store.list(
            node=request.node, owner=request.owner, address=held, after=after, limit=wanted.limit
        )
        page = wanted.page(found, lambda allocation: (allocation.node, str(allocation.held[0].address)))
        return ipam_pb2.ListAddressesResponse(
            addresses=map(address_message, page.items), next_page_token=page.next_page_token
        )


def address_message(allocation: Allocation) -> ipam_pb2.Address:
    """What an owner has, as the API shows it."""
    message = ipam_pb2.Address(
        node=allocation.node, owner=allocation.owner, create_time=timestamp(allocation.created_ns)
    )
    for held in allocation.held:
        address, cidr, router = str(held.address), str(held.cidr), str(held.router)
        if held.address.version == 4:
            message.address, message.cidr, message.router_ipv4 = address, cidr, router
        else:
            message.ipv6, message.cidr_ipv6, message.router_ipv6 = address, cidr, router
    return message
