# SPDX-License-Identifier: Apache-2.0
"""The numbers of prefixes that policies name: from the policies that are there, or the identity service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import grpc
from fimbria.identity.v1 import identity_pb2

from services.chassis.errors import DeadlineExceeded, Unavailable, error_from_rpc
from services.policy import problems

if TYPE_CHECKING:
    from fimbria.identity.v1.identity_pb2_grpc import IdentityServiceAsyncStub

# The numbers that the identity service gives to whole families, without being asked.
RESERVED_PREFIXES = {"0.0.0.0/0": 9, "::/0": 10}
FIRST, LAST = 0xFF0000, 0xFFFFFF

# As what the policy service uses identities, all its replicas together.
HOLDER = "policy"

CALL_SECONDS = 5.0
# As many as one call may name.
CALL_PREFIXES = 65_536


def is_prefix_number(number: int) -> bool:
    """Whether an identity is that of a prefix."""
    return FIRST <= number <= LAST or number in RESERVED_PREFIXES.values()


class PrefixNumbers:
    """Numbers for prefixes in canonical text. `known` has those that stand in policies already, and `owner`
    says which prefix a number is of there. `doubt` is called when the identity service says otherwise.
    """

    def __init__(
        self,
        stub: IdentityServiceAsyncStub,
        known: Callable[[str], int | None],
        owner: Callable[[int], str | None],
        target: str,
        doubt: Callable[[], None] = lambda: None,
    ) -> None:
        self._stub = stub
        self._known = known
        self._owner = owner
        self._target = target
        self._doubt = doubt

    async def of(self, prefixes: Iterable[str]) -> dict[str, int]:
        """A number for each prefix; the identity service is asked for new ones only, and for all at once.

        Raises Unavailable (PREFIXES_UNRESOLVED), or what the identity service refuses them with.
        """
        found: dict[str, int] = {}
        new: list[str] = []
        for prefix in dict.fromkeys(prefixes):
            number = RESERVED_PREFIXES.get(prefix) or self._known(prefix)
            if number is None:
                new.append(prefix)
            else:
                found[prefix] = number
        for start in range(0, len(new), CALL_PREFIXES):
            chunk = new[start : start + CALL_PREFIXES]
            request = identity_pb2.ResolvePrefixesRequest(prefixes=chunk, holder=HOLDER)
            try:
                answer = await self._stub.ResolvePrefixes(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                failure = error_from_rpc(error, self._target)
                if isinstance(failure, Unavailable | DeadlineExceeded):
                    raise problems.prefixes_unresolved(new, str(failure)) from None
                raise failure from None
            for prefix, identity in zip(chunk, answer.identities, strict=True):
                owner = self._owner(identity.id)
                if owner not in (None, prefix):
                    # The lease of the policies' prefixes was over for long, or the service's store is lost.
                    self._doubt()
                    why = f"it gives {identity.id} to {prefix}, which policies have for {owner}"
                    raise problems.prefixes_unresolved(new, f"{why} until those are resolved again")
                found[prefix] = identity.id
        return found
