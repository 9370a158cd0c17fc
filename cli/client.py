"""Calls of the cluster's services: synchronous stubs, traced, with errors as the user should see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from cli import tracing
from cli.errors import BadInput, CliError, ServiceUnavailable
from cli.targets import Targets
from services.chassis import names
from services.chassis.errors import FimbriaError, error_from_rpc
from services.chassis.retry import service_config

if TYPE_CHECKING:
    from fimbria.identity.v1.identity_pb2_grpc import IdentityServiceStub, IpCacheServiceStub
    from fimbria.ipam.v1.ipam_pb2_grpc import AddressServiceStub, NodeServiceStub, PoolServiceStub
    from fimbria.loader.v1.loader_pb2_grpc import (
        DatapathServiceStub,
        EndpointServiceStub,
        ObserverServiceStub,
    )
    from fimbria.policy.v1.policy_pb2_grpc import PolicyServiceStub

R = TypeVar("R")
DEFAULT_TIMEOUT = 10.0
_MESSAGE_LIMIT = 64 * 1024 * 1024


class Cluster:
    """The services of a cluster. Close it, or use it as a context manager."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self._channels: dict[str, grpc.Channel] = {}
        tracing.use_store(targets.trace_file)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def channel(self, target: str) -> grpc.Channel:
        """The channel to a target, made at first use."""
        if target not in self._channels:
            plain = grpc.insecure_channel(
                target,
                options=[
                    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                    # A lab's services answer at once or are down: a long pause after a failure helps nobody.
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.min_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 500),
                    ("grpc.enable_http_proxy", 0),
                    # A channel that outlived a service notices at the next call; that call is then repeated.
                    ("grpc.service_config", service_config()),
                ],
            )
            self._channels[target] = grpc.intercept_channel(plain, _Interceptor(target))
        return self._channels[target]

    @cached_property
    def nodes(self) -> NodeServiceStub:
        from fimbria.ipam.v1 import ipam_pb2_grpc

        return ipam_pb2_grpc.NodeServiceStub(self.channel(self.targets.service("ipam")))

    @cached_property
    def pools(self) -> PoolServiceStub:
        from fimbria.ipam.v1 import ipam_pb2_grpc

        return ipam_pb2_grpc.PoolServiceStub(self.channel(self.targets.service("ipam")))

    @cached_property
    def addresses(self) -> AddressServiceStub:
        from fimbria.ipam.v1 import ipam_pb2_grpc

        return ipam_pb2_grpc.AddressServiceStub(self.channel(self.targets.service("ipam")))

    @cached_property
    def identities(self) -> IdentityServiceStub:
        from fimbria.identity.v1 import identity_pb2_grpc

        return identity_pb2_grpc.IdentityServiceStub(self.channel(self.targets.service("identity")))

    @cached_property
    def ipcache(self) -> IpCacheServiceStub:
        from fimbria.identity.v1 import identity_pb2_grpc

        return identity_pb2_grpc.IpCacheServiceStub(self.channel(self.targets.service("identity")))

    @cached_property
    def policies(self) -> PolicyServiceStub:
        from fimbria.policy.v1 import policy_pb2_grpc

        return policy_pb2_grpc.PolicyServiceStub(self.channel(self.targets.service("policy")))

    def endpoints(self, node: str) -> EndpointServiceStub:
        from fimbria.loader.v1 import loader_pb2_grpc

        return loader_pb2_grpc.EndpointServiceStub(self.channel(self.targets.loader(node)))

    def datapath(self, node: str) -> DatapathServiceStub:
        from fimbria.loader.v1 import loader_pb2_grpc

        return loader_pb2_grpc.DatapathServiceStub(self.channel(self.targets.loader(node)))

    def observer(self, node: str) -> ObserverServiceStub:
        from fimbria.loader.v1 import loader_pb2_grpc

        return loader_pb2_grpc.ObserverServiceStub(self.channel(self.targets.loader(node)))


def call(method: Callable[..., R], request: Any, *, timeout: float = DEFAULT_TIMEOUT) -> R:
    """Call a unary method. Raises BadInput, ServiceUnavailable or CliError with what the service said."""
    with shown_errors():
        return method(request, timeout=timeout)


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Turn RPC errors of the block into those that the user is shown."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_service(error_from_rpc(error)) from None


def from_service(error: FimbriaError) -> CliError:
    """A service's error as the CLI's."""
    violations = [(violation.field, violation.description) for violation in error.violations]
    kinds: dict[grpc.StatusCode, type[CliError]] = {
        grpc.StatusCode.INVALID_ARGUMENT: BadInput,
        grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    }
    message, hint = error.message, error.metadata.get("help", "")
    if error.reason == "SERVICE_UNAVAILABLE":
        message = f"cannot reach {error.metadata.get('target', 'the service')}: {cause(message)}"
        hint = "`fimbria status` shows what runs; in a lab, `fimbria lab up` starts what does not"
    return kinds.get(error.code, CliError)(message, reason=error.reason, violations=violations, hint=hint)


def cause(message: str) -> str:
    """The end of gRPC's account of a failed connection: what the system said."""
    return message.rpartition(": ")[2]


def pages(
    method: Callable[..., Any], request: Any, field: str, *, timeout: float = DEFAULT_TIMEOUT
) -> Sequence[Any]:
    """All items of a paged list: `request` is sent again with each page's token."""
    items: list[Any] = []
    request.page_size = 1000
    while True:
        answer = call(method, request, timeout=timeout)
        items.extend(getattr(answer, field))
        if not answer.next_page_token:
            return items
        request.page_token = answer.next_page_token


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Gives unary calls a span below the current one, passes the context on, names the target in errors."""

    def __init__(self, target: str) -> None:
        self._target = target

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        if tracing.current() is None:
            return self._named(continuation(details, request))
        attributes = {names.RPC_SYSTEM: names.RPC_SYSTEM_GRPC, names.RPC_METHOD: details.method.lstrip("/")}
        with tracing.span(names.rpc_span_name(details.method), kind="CLIENT", **attributes) as span:
            answer = self._named(continuation(_with_context(details, span), request))
            code = answer.code()
            span.attributes[names.RPC_STATUS] = code.name
            return answer

    def _named(self, answer: Any) -> Any:
        error = answer.exception()
        if isinstance(error, grpc.RpcError):
            error.target = self._target  # type: ignore[attr-defined]
        return answer

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        span = tracing.current()
        stream = continuation(_with_context(details, span) if span else details, request)
        # A stream raises itself when it breaks.
        stream.target = self._target
        return stream


class _Details(grpc.ClientCallDetails):
    """A call's details with other metadata."""

    def __init__(self, original: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self.method = original.method
        self.timeout = original.timeout
        self.credentials = original.credentials
        self.wait_for_ready = original.wait_for_ready
        self.compression = original.compression
        self.metadata = metadata


def _with_context(details: Any, span: tracing.Span) -> _Details:
    return _Details(details, (*(details.metadata or ()), (names.TRACEPARENT, span.traceparent)))
