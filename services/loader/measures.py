"""The node in numbers, for a metrics collector: read when the collector's interval comes round, never
before, in the exporter's thread, which nothing waits for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis import names
from services.loader.bpf.errors import BpfError
from services.loader.endpoints.endpoint import State
from services.loader.interfaces import DatapathError
from services.loader.measures_maps import MapFills
from services.loader.messages import direction_name
from services.loader.streams.watch import WatchState

if TYPE_CHECKING:
    from services.loader.node import NodeRuntime

_Read: TypeAlias = "Callable[[NodeRuntime], Iterable[Observation]]"


def observe(meter: Meter, node: Callable[[], NodeRuntime | None]) -> None:
    """Registers the node's metrics. ``node`` gives the running node, or None while there is none yet."""

    def when_running(read: _Read) -> list[Callable[[CallbackOptions], list[Observation]]]:
        def callback(_: CallbackOptions) -> list[Observation]:
            running = node()
            if running is None:
                return []
            try:
                return list(read(running))
            except (BpfError, DatapathError, OSError, LookupError, RuntimeError):
                # Programs and maps are being exchanged or let go of meanwhile; the next round tells.
                return []

        return [callback]

    def gauge(name: str, read: _Read, unit: str, description: str) -> None:
        meter.create_observable_gauge(name, when_running(read), unit, description)

    def counter(name: str, read: _Read, unit: str, description: str) -> None:
        meter.create_observable_counter(name, when_running(read), unit, description)

    fills = MapFills()

    def pressure(running: NodeRuntime) -> Iterator[Observation]:
        for fill in fills.fullest(running.kernel.maps(count=False)):
            yield Observation(fill.pressure, {names.MAP: fill.name})

    def entries(running: NodeRuntime) -> Iterator[Observation]:
        for fill in fills.fullest(running.kernel.maps(count=False)):
            yield Observation(fill.entries, {names.MAP: fill.name})

    counter(names.DATAPATH_PACKETS, _packets, "{packet}", "Packets forwarded and dropped.")
    counter(names.DATAPATH_BYTES, _bytes, "By", "Bytes of packets forwarded and dropped.")
    gauge(names.ENDPOINTS, _endpoints, "{endpoint}", "Endpoints of the node.")
    gauge(names.REGENERATIONS, _regenerations, "{regeneration}", "Regenerations that are under way or wait.")
    gauge(names.PROGRAMS_ATTACHED, _attached, "{attachment}", "Places where the node's programs run.")
    gauge(names.MAP_PRESSURE, pressure, "1", "Share of a map's entries that is taken, of the fullest maps.")
    gauge(names.MAP_ENTRIES, entries, "{entry}", "Entries of the fullest maps.")
    gauge(names.WATCH_SYNC_AGE, _sync_age, "s", "Time since a watch last said something that is in force.")
    gauge(names.WATCH_CONNECTED, _connected, "{connection}", "Whether a watch's stream is open, 1 or 0.")
    counter(names.FLOWS_LOST, _lost, "{event}", "Flow events lost before they were read.")


def _packets(running: NodeRuntime) -> Iterator[Observation]:
    for count in running.kernel.traffic():
        attributes = {names.REASON: count.reason, names.DIRECTION: direction_name(count.direction)}
        yield Observation(count.packets, attributes)


def _bytes(running: NodeRuntime) -> Iterator[Observation]:
    for count in running.kernel.traffic():
        attributes = {names.REASON: count.reason, names.DIRECTION: direction_name(count.direction)}
        yield Observation(count.bytes, attributes)


def _endpoints(running: NodeRuntime) -> Iterator[Observation]:
    found = Counter(endpoint.status.state for endpoint in running.registry)
    # Every state every time: a gauge that stops being told keeps its last value.
    for state in State:
        yield Observation(found[state], {names.STATE: state.name.lower()})


def _regenerations(running: NodeRuntime) -> Iterator[Observation]:
    load = running.manager.regenerator.load()
    for state, count in (("queued", load.queued), ("running", load.running), ("retrying", load.retrying)):
        yield Observation(count, {names.STATE: state})


def _attached(running: NodeRuntime) -> Iterator[Observation]:
    for program in running.kernel.programs():
        kinds = Counter(place.kind for place in program.attachments)
        for kind, count in kinds.items():
            yield Observation(count, {names.PROGRAM: program.name, names.KIND: kind})
        if not kinds:
            yield Observation(len(program.devices), {names.PROGRAM: program.name})


def _watches(running: NodeRuntime) -> tuple[WatchState, ...]:
    return running.nodes.state, running.ipcache.state, running.policy.state


def _sync_age(running: NodeRuntime) -> Iterator[Observation]:
    now = time.time()
    for state in _watches(running):
        # Until there is something to count from, the time without anything counts.
        since = state.sync_time or running.start_time
        yield Observation(max(now - since, 0.0), {names.WATCH: state.name})


def _connected(running: NodeRuntime) -> Iterator[Observation]:
    # The reports are no watch, yet it is the same question whether the last one was taken.
    for state in (*_watches(running), running.uses.state):
        yield Observation(int(state.connected), {names.WATCH: state.name})


def _lost(running: NodeRuntime) -> Iterator[Observation]:
    yield Observation(running.kernel.lost_events())
