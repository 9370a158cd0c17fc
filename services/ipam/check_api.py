"""The gRPC side of the check for leaks: a mixin of the address servicer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, TypeAlias

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.ipam.check import Finding, UsedBy
from services.ipam.check_store import AddressCheck
from services.ipam.cidr import parse_address
from services.ipam.family import address_from_packed
from services.ipam.messages import timestamp
from services.ipam.problems import invalid

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CheckApi(ipam_pb2_grpc.AddressServiceServicer):
    """CheckAddresses of fimbria.ipam.v1.AddressService."""

    _check: AddressCheck

    async def CheckAddresses(
        self, request: ipam_pb2.CheckAddressesRequest, context: Context
    ) -> ipam_pb2.CheckAddressesResponse:
        endpoints = await asyncio.to_thread(endpoints_of, request)
        found, checked = await self._check.findings(request.node, endpoints, request.min_age_seconds)
        return ipam_pb2.CheckAddressesResponse(findings=map(finding_message, found), checked=checked)


def endpoints_of(request: ipam_pb2.CheckAddressesRequest) -> list[UsedBy]:
    """The request's endpoints. Raises InvalidArgument (ADDRESS_INVALID, OWNER_REPEATED) naming the field."""
    endpoints: list[UsedBy] = []
    owners: dict[str, int] = {}
    for index, endpoint in enumerate(request.endpoints):
        first = owners.setdefault(endpoint.owner, index)
        if first != index:
            raise invalid(
                f"endpoints[{index}].owner",
                f"{endpoint.owner!r} is that of endpoints[{first}] as well; expected each owner once",
                reason="OWNER_REPEATED",
                value=endpoint.owner,
            )
        endpoints.append(
            UsedBy(
                endpoint.owner,
                tuple(
                    _packed(text, f"endpoints[{index}].addresses[{position}]")
                    for position, text in enumerate(endpoint.addresses)
                ),
            )
        )
    return endpoints


def finding_message(finding: Finding) -> ipam_pb2.AddressFinding:
    """A finding as the API shows it."""
    message = ipam_pb2.AddressFinding(
        kind=finding.kind.value,  # type: ignore[arg-type]  # the enum's numbers are the API's
        address=str(address_from_packed(finding.address)),
        users=finding.users,
    )
    if finding.holder is not None:
        message.holder = finding.holder.owner
        message.holder_node = finding.holder.node
        message.create_time.CopyFrom(timestamp(finding.holder.created_ns))
    return message


def _packed(text: str, field: str) -> bytes:
    """The address as the database has it; an IPv4 one within IPv6 is that IPv6 address."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return parse_address(text, field).packed
