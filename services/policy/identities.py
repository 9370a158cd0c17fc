# SPDX-License-Identifier: Apache-2.0
"""The identities of the cluster, followed over the identity service's watch.

The watch is resumed after whatever breaks it. While the service is away the last known identities stay in
force.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
from fimbria.identity.v1 import identity_pb2
from fimbria.types.v1 import types_pb2

from services.chassis.errors import OutOfRange, error_from_rpc
from services.chassis.logs import get_logger
from services.chassis.telemetry import TraceContext
from services.policy.distribution import Distributor
from services.policy.names import RESERVED_NAMES
from services.policy.prefix_numbers import is_prefix_number
from services.policy.selector import RESERVED, Labels

if TYPE_CHECKING:
    from fimbria.identity.v1.identity_pb2_grpc import IdentityServiceAsyncStub

FIRST_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 1.0

RESERVED_IDENTITIES = {
    number: Labels([f"{RESERVED}:{name}"])
    for number, name in enumerate(
        ("host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress"), 1
    )
}
# world-ipv4 and world-ipv6 are the identities of 0.0.0.0/0 and ::/0: like those of all prefixes, they are
# known by the policies that name them.
_OF_PREFIXES = ("world-ipv4", "world-ipv6")
assert {*RESERVED_NAMES} - {*_OF_PREFIXES} == {
    next(iter(v.strings)).split(":")[1] for v in RESERVED_IDENTITIES.values()
}

log = get_logger(__name__)


class IdentityFollower:
    """Feeds a distributor with the identities; `run` never returns. `broken` is called when a watch ends:
    what answers next may be another store.
    """

    def __init__(
        self,
        stub: IdentityServiceAsyncStub,
        distributor: Distributor,
        target: str,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._stub = stub
        self._distributor = distributor
        self._target = target
        self._broken = broken
        self._resume_from = 0
        self._failures = 0

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
                problem = "the identity service ended the watch"
            except grpc.RpcError as error:
                failure = error_from_rpc(error, self._target)
                problem = str(failure)
                if isinstance(failure, OutOfRange):
                    self._resume_from = 0
            self._broken()
            # Once a fault is enough: the log line of a service that stays away says nothing new.
            level = log.warning if self._failures == 0 else log.debug
            level("identity watch broke", error=problem, resume_from=self._resume_from)
            pause = min(FIRST_BACKOFF_SECONDS * 2**self._failures, MAX_BACKOFF_SECONDS)
            self._failures = min(self._failures + 1, 10)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _follow(self) -> None:
        request = identity_pb2.WatchIdentitiesRequest(from_revision=self._resume_from)
        # A watch from 0 starts with the whole state; it counts only once it is complete.
        whole: dict[int, Labels] | None = {} if self._resume_from == 0 else None
        async for response in self._stub.WatchIdentities(request):
            if self._failures:
                log.info("identity watch resumed", revision=response.revision)
                self._failures = 0
            if whole is None:
                self._take(response)
                self._resume_from = response.revision
                continue
            for event in response.events:
                if is_prefix_number(event.identity.id):
                    continue
                if event.type == types_pb2.CHANGE_TYPE_DELETE:
                    whole.pop(event.identity.id, None)
                else:
                    whole[event.identity.id] = Labels(event.identity.labels)
            if response.snapshot_complete:
                self._distributor.take_all_identities({**whole, **RESERVED_IDENTITIES}, response.revision)
                self._resume_from = response.revision
                whole = None

    def _take(self, response: identity_pb2.WatchIdentitiesResponse) -> None:
        """Hand a batch over, cut where its trace changes: what a change leads to is traced to its writer."""
        batch: list[tuple[int, Labels | None]] = []
        trace = TraceContext()
        for event in response.events:
            number = event.identity.id
            # Prefixes are known by the policies that name them.
            if number in RESERVED_IDENTITIES or is_prefix_number(number):
                continue
            carried = TraceContext(event.trace.traceparent, event.trace.tracestate)
            if batch and carried != trace:
                self._distributor.take_identities(batch, self._distributor.revision.identity, trace)
                batch = []
            trace = carried
            gone = event.type == types_pb2.CHANGE_TYPE_DELETE
            batch.append((number, None if gone else Labels(event.identity.labels)))
        self._distributor.take_identities(batch, response.revision, trace)
