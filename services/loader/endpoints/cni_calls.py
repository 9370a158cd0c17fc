"""The CNI plugin's calls as the endpoint manager takes them, each in a span that began with the plugin."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final

from services.chassis import names
from services.chassis.telemetry import remote_context, span
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.cni.result import CniResult
from services.loader.endpoints.endpoint import (
    EndpointRecord,
    EndpointSpec,
    NamedPort,
    check_container,
    owner_name,
)
from services.loader.endpoints.manager import EndpointManager

_PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}


class CniCalls:
    """The :class:`~services.loader.cni.server.CniHandler` of a running node."""

    def __init__(self, node: str, manager: EndpointManager) -> None:
        self._node = node
        self._manager = manager

    async def add(self, request: AddRequest) -> CniResult:
        """Makes the endpoint, or returns the one that an equal ADD made before."""
        with self._span(names.CNI_ADD, request) as current:
            check_container(request.container_id, request.ifname)
            spec = spec_of(request)
            current.set_attribute(names.POD, spec.pod)
            record = await self._manager.create(spec, request.netns_fd)
            current.set_attribute(names.ENDPOINT_ID, record.id)
            current.set_attribute(names.IDENTITY, record.identity)
            return result_of(record)

    async def delete(self, request: CniRequest) -> None:
        """Removes the endpoint; what has to be given back is given back now if possible, else later."""
        with self._span(names.CNI_DEL, request):
            check_container(request.container_id, request.ifname)
            await self._manager.remove(owner_name(request.container_id, request.ifname))

    async def check(self, request: CniRequest) -> CniResult:
        """Compares the endpoint with the kernel. Raises NotFound or CniError (CHECK_FAILED)."""
        with self._span(names.CNI_CHECK, request):
            check_container(request.container_id, request.ifname)
            owner = owner_name(request.container_id, request.ifname)
            record, problems = await self._manager.inspect(owner, request.netns_fd)
            if problems:
                raise CniError(CniCode.CHECK_FAILED, problems[0], "; ".join(problems))
            return result_of(record)

    def _span(self, name: str, request: CniRequest) -> Any:
        attributes: dict[str, Any] = {names.NODE_NAME: self._node, names.CONTAINER_ID: request.container_id}
        return span(
            name,
            parent=remote_context(request.traceparent),
            # The plugin's own start: what it costs to get here belongs to the call.
            start_time=request.started_ns or None,
            **attributes,
        )


def spec_of(request: AddRequest) -> EndpointSpec:
    """What an ADD asks for."""
    pod = request.pod
    ports = [NamedPort(port.name, port.port, _PROTOCOLS[port.protocol]) for port in pod.ports]
    return EndpointSpec(
        container_id=request.container_id,
        ifname=request.ifname,
        netns=request.netns_path,
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        labels=tuple(pod.label_set()),
        named_ports=tuple(sorted(ports)),
        rate=request.rate,
    )


def result_of(record: EndpointRecord) -> CniResult:
    """What a runtime is told of an endpoint."""
    return CniResult.for_link(
        host_name=record.spec.host_device,
        host_mac=record.host_mac,
        ifname=record.spec.ifname,
        pod_mac=record.pod_mac,
        netns_path=record.spec.netns,
        addresses=[
            (ip_address(address), ip_address(router))
            for address, router in ((record.ipv4, record.router_ipv4), (record.ipv6, record.router_ipv6))
            if address
        ],
    )
