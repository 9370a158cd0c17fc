"""Labels of identities, as far as this node knows them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from services.chassis.errors import FimbriaError, NotFound
from services.chassis.logs import get_logger
from services.loader.interfaces import IdentityClient

_CAPACITY: Final = 16384

_log = get_logger(__name__)


class IdentityLabels:
    """Remembers labels and asks for those that it does not know, once each, in the background. ``prefixes``
    knows those of prefixes that policies name.
    """

    def __init__(
        self,
        identities: IdentityClient,
        prefixes: Callable[[int], tuple[str, ...]] = lambda identity: (),
    ) -> None:
        self._identities = identities
        self._prefixes = prefixes
        self._known: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._asking: dict[int, asyncio.Task[None]] = {}

    def get(self, identity: int) -> tuple[str, ...]:
        """The labels of an identity; empty when they are not known (yet)."""
        known = self._known.get(identity)
        if known is not None:
            self._known.move_to_end(identity)
            return known
        if prefix := self._prefixes(identity):
            return prefix
        if identity and identity not in self._asking:
            self._asking[identity] = asyncio.create_task(self._ask(identity))
        return ()

    def learn(self, identity: int, labels: tuple[str, ...]) -> None:
        """Remembers the labels of an identity; they never change."""
        self._known[identity] = labels
        self._known.move_to_end(identity)
        if len(self._known) > _CAPACITY:
            self._known.popitem(last=False)

    async def close(self) -> None:
        """Stops asking."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, identity: int) -> None:
        try:
            self.learn(identity, await self._identities.labels(identity))
        except NotFound:
            self.learn(identity, ())
        except FimbriaError as problem:
            # Flows go on without labels; the next one asks again.
            _log.debug("identity.labels_unknown", identity=identity, error=problem.message)
        finally:
            self._asking.pop(identity, None)
