# SPDX-License-Identifier: Apache-2.0
"""What keeps the numbers of prefixes in policies in use, without which the identity service collects them.

Every replica reports the prefixes of all stored policies, soon after they have changed and three times within
the lease. A number that is gone nevertheless (the service was away for longer than the lease, or the identity
service has lost its store) is resolved again, and the policies get the new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, NoReturn

import grpc
from fimbria.identity.v1 import identity_pb2

from services.chassis.errors import FimbriaError, error_from_rpc
from services.chassis.logs import get_logger
from services.policy.prefix_numbers import CALL_PREFIXES, CALL_SECONDS, FIRST, HOLDER, RESERVED_PREFIXES

if TYPE_CHECKING:
    from fimbria.identity.v1.identity_pb2_grpc import IdentityServiceAsyncStub

# How soon after a change of policies it is reported.
LOOK_SECONDS = 0.5
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 15.0

log = get_logger(__name__)


class PrefixLeases:
    """`held` gives the prefixes of all policies with their numbers, `revision` changes with them, and
    `renumber` puts other numbers in their place.
    """

    def __init__(
        self,
        stub: IdentityServiceAsyncStub,
        held: Callable[[], Mapping[str, int]],
        revision: Callable[[], int],
        renumber: Callable[[Mapping[str, int]], Awaitable[object]],
        target: str,
    ) -> None:
        self._stub = stub
        self._held = held
        self._revision = revision
        self._renumber = renumber
        self._target = target
        self._doubted = True

    def doubt(self) -> None:
        """The numbers of policies may be wrong: all of them are asked for again, soon."""
        self._doubted = True

    async def run(self) -> NoReturn:
        """Keeps the numbers in use for ever."""
        failures = 0
        while True:
            revision = self._revision()
            try:
                if self._doubted:
                    self._doubted = False
                    await self._resolve(self._held())
                pause = await self._report() / 3
                failures = 0
            except (grpc.RpcError, FimbriaError) as error:
                failure = error_from_rpc(error, self._target) if isinstance(error, grpc.RpcError) else error
                # Whatever it was about, it has not come to its end.
                self._doubted = True
                level = log.warning if failures == 0 else log.debug
                level("use of prefixes not reported", reason=failure.reason, error=str(failure))
                pause = min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS)
                failures = min(failures + 1, 10)
            until = time.monotonic() + pause
            while time.monotonic() < until:
                await asyncio.sleep(min(LOOK_SECONDS, pause))
                if failures == 0 and (self._doubted or self._revision() != revision):
                    break

    async def _report(self) -> float:
        """Returns the lease, in seconds."""
        numbers = sorted({number for number in self._held().values() if number >= FIRST})
        request = identity_pb2.ReportUseRequest(holder=HOLDER, identities=numbers)
        answer = await self._stub.ReportUse(request, timeout=CALL_SECONDS)
        if answer.unknown:
            unknown = {*answer.unknown}
            await self._resolve([cidr for cidr, number in self._held().items() if number in unknown])
        return float(answer.lease_seconds)

    async def _resolve(self, cidrs: Collection[str]) -> None:
        """Asks for the numbers of prefixes, and corrects those that policies have otherwise."""
        wanted = [cidr for cidr in cidrs if cidr not in RESERVED_PREFIXES]
        right: dict[str, int] = {}
        for start in range(0, len(wanted), CALL_PREFIXES):
            chunk = wanted[start : start + CALL_PREFIXES]
            request = identity_pb2.ResolvePrefixesRequest(prefixes=chunk, holder=HOLDER)
            answer = await self._stub.ResolvePrefixes(request, timeout=4 * CALL_SECONDS)
            right.update((cidr, identity.id) for cidr, identity in zip(chunk, answer.identities, strict=True))
        held = self._held()
        wrong = {cidr: number for cidr, number in right.items() if held.get(cidr, number) != number}
        if wrong:
            log.warning("prefixes have other numbers", prefixes=len(wrong), example=next(iter(wrong)))
            await self._renumber(wrong)
