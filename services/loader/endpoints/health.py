"""What is wrong with endpoints, by cause, so that one cause that is mended does not hide another."""

from __future__ import annotations

from typing import Any, Final

from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import Phase, State
from services.loader.endpoints.registry import EndpointRegistry

POLICY: Final = "policy"
DATAPATH: Final = "datapath"
PUBLICATION: Final = "publication"

_log = get_logger(__name__)


class EndpointHealth:
    """Keeps the state of ready endpoints: READY when nothing is wrong, else DEGRADED with what is."""

    def __init__(self, registry: EndpointRegistry) -> None:
        self._registry = registry
        self._problems: dict[int, dict[str, str]] = {}

    def failed(self, number: int, cause: str, problem: str) -> None:
        """Something is wrong."""
        if self._problems.setdefault(number, {}).get(cause) != problem:
            _log.error("endpoint.degraded", endpoint=number, cause=cause, error=problem)
        self._problems[number][cause] = problem
        self.settle(number)

    def mended(self, number: int, *causes: str, **status: Any) -> None:
        """These causes are gone; ``status`` are other fields of the endpoint's status to change."""
        problems = self._problems.get(number, {})
        for cause in causes:
            problems.pop(cause, None)
        self.settle(number, **status)

    def settle(self, number: int, **status: Any) -> None:
        """Puts the endpoint into the state that its problems ask for."""
        endpoint = self._registry.find(number)
        if endpoint is None or endpoint.record.phase is not Phase.READY:
            self._problems.pop(number, None)
            return
        problems = self._problems.get(number)
        state = State.DEGRADED if problems else State.READY
        self._registry.set_status(
            number, state=state, last_error="; ".join((problems or {}).values()), **status
        )
