"""The CNI plugin's calls as the endpoint manager takes them, each in a span that began with the plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

from services.chassis import names
from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.chassis.telemetry import remote_context, span
from services.loader.cni.errors import CniCode, CniError
from services.loader.cni.interface_settings import parse_sysctls
from services.loader.cni.request import AddRequest, CniRequest
from services.loader.cni.result import CniResult
from services.loader.endpoints.endpoint import (
    EndpointRecord,
    EndpointSpec,
    NamedPort,
    Phase,
    State,
    Workload,
    check_container,
    owner_name,
)
from services.loader.endpoints.manager import EndpointManager
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.netlink.links import forget_pod_rules
from services.loader.netlink.pod_sysctls import apply_pod_sysctls, pod_sysctl_problems

_log = get_logger(__name__)

_PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}


class CniCalls:
    """The :class:`~services.loader.cni.server.CniHandler` of a running node."""

    def __init__(self, node: str, manager: EndpointManager, registry: EndpointRegistry) -> None:
        self._node = node
        self._manager = manager
        self._registry = registry

    async def add(self, request: AddRequest) -> CniResult:
        """Makes the endpoint, or returns the one that an equal ADD made before."""
        with self._span(names.CNI_ADD, request) as current:
            check_container(request.container_id, request.ifname)
            spec = spec_of(request)
            current.set_attribute(names.POD, spec.pod)
            record = await self._manager.create(spec, request.netns_fd)
            current.set_attribute(names.ENDPOINT_ID, record.id)
            current.set_attribute(names.IDENTITY, record.identity)
            await self._set_sysctls(request, spec.owner)
            return result_of(record, request.interface.dns)

    async def delete(self, request: CniRequest) -> None:
        """Removes the endpoint; what has to be given back is given back now if possible, else later."""
        with self._span(names.CNI_DEL, request):
            check_container(request.container_id, request.ifname)
            owner = owner_name(request.container_id, request.ifname)
            endpoint = self._registry.by_owner(owner)
            await self._manager.remove(owner)
            if request.netns_fd is not None and endpoint is not None and has_rules(endpoint.record):
                await self._forget_rules(request)

    async def check(self, request: CniRequest) -> CniResult:
        """Compares the endpoint with the kernel. Raises NotFound or CniError (CHECK_FAILED)."""
        with self._span(names.CNI_CHECK, request):
            check_container(request.container_id, request.ifname)
            owner = owner_name(request.container_id, request.ifname)
            record, problems = await self._manager.inspect(owner, request.netns_fd)
            sysctls = parse_sysctls(request.config, request.ifname)
            if sysctls and request.netns_fd is not None:
                problems += await asyncio.to_thread(pod_sysctl_problems, request.netns_fd, sysctls)
            if problems:
                raise CniError(CniCode.CHECK_FAILED, problems[0], "; ".join(problems))
            return result_of(record)

    def attachments(self, network: str) -> list[tuple[str, str]]:
        """What the network has on this node, less what is being made. Endpoints of which it is not known
        whose they are, made before records told, are nobody's.
        """
        records = [endpoint.record for endpoint in self._registry]
        specs = [record.spec for record in records if record.phase is not Phase.CREATING]
        return [(spec.container_id, spec.ifname) for spec in specs if spec.network == network]

    def limited(self) -> bool:
        """Whether some endpoint is not as it should be."""
        return any(endpoint.status.state is State.DEGRADED for endpoint in self._registry)

    async def _set_sysctls(self, request: AddRequest, owner: str) -> None:
        sysctls = request.interface.sysctls
        if not sysctls or request.netns_fd is None:
            return
        try:
            await asyncio.to_thread(apply_pod_sysctls, request.netns_fd, sysctls)
        except FimbriaError:
            await self._manager.remove(owner)
            raise

    async def _forget_rules(self, request: CniRequest) -> None:
        assert request.netns_fd is not None
        try:
            await asyncio.to_thread(forget_pod_rules, request.netns_fd)
        except FimbriaError as problem:
            # They say where an address is routed that the pod no longer has.
            _log.warning("cni.rules_left", container_id=request.container_id, error=problem.message)

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
        rate=request.interface.rate,
        network=request.network,
        mtu=request.interface.mtu,
        mac=request.interface.mac,
        default_route=request.interface.default_route,
        workload=Workload(pod.labels, pod.annotations, pod.namespace_labels, pod.namespace_annotations),
    )


def has_rules(record: EndpointRecord) -> bool:
    """Whether the pod routes by the address of this interface."""
    return any(ip_address(address).version not in record.default_routes for address in record.addresses)


def result_of(record: EndpointRecord, dns: Mapping[str, Any] | None = None) -> CniResult:
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
        dns=dns,
        mtu=record.mtu,
        default_routes=record.default_routes,
    )
