"""The node in numbers, for a metrics collector: read when the collector's interval comes round, never
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis import names
from services.loader.endpoints.endpoint import State
from services.loader.messages import direction_name

if TYPE_CHECKING:
    from services.loader.node import NodeRuntime


def observe(meter: Meter, node: Callable[[], NodeRuntime | None]) -> None:
    """Registers the node's metrics. ``node`` gives the running node, or None while there is none yet.

    The callbacks run in the exporter's thread; they only read.
    """

    def traffic(value: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            running = node()
            for count in running.kernel.traffic() if running else ():
                attributes = {names.REASON: count.reason, names.DIRECTION: direction_name(count.direction)}
                yield Observation(getattr(count, value), attributes)

        return read

    def endpoints(_: CallbackOptions) -> Iterable[Observation]:
        running = node()
        if running is None:
            return []
        found = Counter(endpoint.status.state for endpoint in running.registry)
        # Every state every time: a gauge that stops being told keeps its last value.
        return [Observation(found[state], {names.STATE: state.name.lower()}) for state in State]

    def lost(_: CallbackOptions) -> Iterable[Observation]:
        running = node()
        return [Observation(running.kernel.lost_events())] if running else []

    meter.create_observable_counter(
        names.DATAPATH_PACKETS, [traffic("packets")], "{packet}", "Packets forwarded and dropped."
    )
    meter.create_observable_counter(
        names.DATAPATH_BYTES, [traffic("bytes")], "By", "Bytes of packets forwarded and dropped."
    )
    meter.create_observable_gauge(names.ENDPOINTS, [endpoints], "{endpoint}", "Endpoints of the node.")
    meter.create_observable_counter(
        names.FLOWS_LOST, [lost], "{event}", "Flow events lost before they were read."
    )
