"""A service that answers and does nothing else, on the servers' own stack or on gRPC alone.

Run as `python -m tests.bench.scale_echo` it is a service like any other, settings and interceptor included;
with `--bare` first it is a server of grpc.aio without either. Allocate answers with an address as the ipam
service's does, so that a call's messages are of the same size.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from fimbria.ipam.v1 import ipam_pb2, ipam_pb2_grpc

from services.chassis.service import ServiceContext, run_service, write_ready_file
from services.chassis.settings import CommonSettings, load_settings


class Echo:
    """Allocate without a store; no other method of the service is called here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.Allocate

    async def Allocate(self, request: ipam_pb2.AllocateRequest, context: Any) -> ipam_pb2.Address:
        answer = ipam_pb2.Address(
            node=request.node, owner=request.owner, address="10.0.0.2", cidr="10.0.0.0/16",
            router_ipv4="10.0.0.1", pool="default",
        )  # fmt: skip
        answer.create_time.FromNanoseconds(1_700_000_000_123_456_789)
        return answer


_add: Callable[..., None] = ipam_pb2_grpc.add_AddressServiceServicer_to_server


@asynccontextmanager
async def build(context: ServiceContext[CommonSettings]) -> AsyncIterator[None]:
    """Registers the servicer."""
    context.server.add(_add, Echo(), "fimbria.ipam.v1.AddressService")
    yield


async def bare(settings: CommonSettings) -> None:
    """Serves without the chassis until the process is ended."""
    made = grpc.aio.server()
    _add(Echo(), made)
    local, port = settings.listen
    made.add_insecure_port(local)
    bound = made.add_insecure_port(port)
    await made.start()
    write_ready_file(settings.ready_file, [local, f"127.0.0.1:{bound}"])
    await made.wait_for_termination()


if __name__ == "__main__":
    if "--bare" in sys.argv:
        sys.argv.remove("--bare")
        asyncio.run(bare(load_settings(CommonSettings)))
        os._exit(0)
    raise SystemExit(run_service(CommonSettings, build, service="echo"))
