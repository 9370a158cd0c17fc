"""`python -m services.loader`: the wiring of a node's loader process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fimbria.loader.v1 import loader_pb2_grpc

from services.chassis.channel import open_channel
from services.chassis.logs import get_logger
from services.chassis.service import ServiceContext, run_service
from services.loader import measure_points
from services.loader.api import DatapathApi, EndpointApi, ObserverApi
from services.loader.cni.server import CniServer
from services.loader.loader import Loader, StateLock
from services.loader.measures import observe
from services.loader.node import Channels
from services.loader.settings import LoaderSettings

QUEUE_SECONDS = 10.0
# The name that health is asked for: unlike the process itself, which lives from its start on, the node is
# ready when it is registered and restored and every watch has brought its first full state into force.
READINESS = "fimbria.loader.v1.readiness"

log = get_logger(__name__)


@asynccontextmanager
async def build(context: ServiceContext[LoaderSettings]) -> AsyncIterator[None]:
    """Puts the node into service, then opens the CNI socket and the APIs."""
    settings = context.settings
    lock = StateLock(Path(settings.state_dir))
    context.stack.callback(lock.release)
    channels = Channels(
        ipam=await context.stack.enter_async_context(open_channel(settings.ipam_target)),
        identity=await context.stack.enter_async_context(open_channel(settings.identity_target)),
        policy=await context.stack.enter_async_context(open_channel(settings.policy_target)),
    )
    context.server.set_serving(READINESS, False)
    loader = Loader(
        settings,
        channels,
        context.background,
        ready=lambda: context.server.set_serving(READINESS, True),
    )
    context.stack.push_async_callback(loader.close)
    if context.telemetry.measures:
        measure_points.use(context.telemetry.meter)
        observe(context.telemetry.meter, loader.running)
    await loader.start()
    cni = CniServer(loader, socket_path=settings.cni_socket, queue_dir=settings.cni_queue)
    await cni.start()
    context.stack.push_async_callback(cni.close)
    context.background(drain(cni), "cni-queue")
    server = context.server
    server.add(
        loader_pb2_grpc.add_EndpointServiceServicer_to_server,
        EndpointApi(loader),
        "fimbria.loader.v1.EndpointService",
    )
    server.add(
        loader_pb2_grpc.add_DatapathServiceServicer_to_server,
        DatapathApi(loader),
        "fimbria.loader.v1.DatapathService",
    )
    server.add(
        loader_pb2_grpc.add_ObserverServiceServicer_to_server,
        ObserverApi(loader),
        "fimbria.loader.v1.ObserverService",
    )
    yield


async def drain(cni: CniServer) -> None:
    """Does the DELs that found no loader: at start, and those that a service's absence has held up from
    time to time.
    """
    while True:
        try:
            await cni.drain_queue()
        except OSError as problem:
            log.error("cni.queue_unreadable", error=str(problem))
        await asyncio.sleep(QUEUE_SECONDS)


if __name__ == "__main__":
    raise SystemExit(run_service(LoaderSettings, build))
