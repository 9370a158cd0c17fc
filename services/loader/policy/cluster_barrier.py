"""Waits until every node's policy maps know an identity.

Packets carry their sender's identity to other nodes at once. Where the sender gets a new one, it must not
carry it before the others know it: they would drop what was allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
from fimbria.policy.v1 import policy_pb2 as pb

from services.chassis.errors import error_from_rpc
from services.chassis.logs import get_logger
from services.loader.streams.backoff import Backoff

PAGE: Final = 1000

ListEnforcement = Callable[[pb.ListEnforcementRequest], Awaitable[pb.ListEnforcementResponse]]

_log = get_logger(__name__)


class ClusterBarrier:
    """Asks the policy service how far the nodes have come."""

    def __init__(self, list_enforcement: ListEnforcement, target: str = "") -> None:
        self._list = list_enforcement
        self._target = target

    async def wait(self, identity_revision: int, seconds: float) -> bool:
        """Whether every connected node has realized the identities of this revision within so many seconds.

        A node that is not connected keeps what it has and cannot be waited for. When the service cannot
        say, nobody is waited for.
        """
        backoff = Backoff(first=0.004, most=0.1)
        behind: list[str] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    behind = await self._behind(identity_revision)
                    if not behind:
                        return True
                    await asyncio.sleep(backoff.next())
        except TimeoutError:
            _log.warning("cluster.identity_not_known_everywhere", revision=identity_revision, nodes=behind)
        except grpc.RpcError as error:
            problem = error_from_rpc(error, self._target)
            _log.warning("cluster.enforcement_unknown", reason=problem.reason, error=problem.message)
        return False

    async def _behind(self, identity_revision: int) -> list[str]:
        behind: list[str] = []
        token = ""
        while True:
            answer = await self._list(pb.ListEnforcementRequest(page_size=PAGE, page_token=token))
            behind += [
                node.node
                for node in answer.nodes
                if node.subscribed and node.acknowledged.identity < identity_revision
            ]
            token = answer.next_page_token
            if not token:
                return behind
