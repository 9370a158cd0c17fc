"""The number spaces and garbage collection in numbers, for a metrics collector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis import names
from services.identity.collector import Collector
from services.identity.numbers import Space
from services.identity.status import StatusReader


def observe(meter: Meter, spaces: Sequence[Space], collector: Collector, status: StatusReader) -> None:
    """Registers the service's metrics: of memory alone, for they are read in the exporter's thread."""

    def read(
        values: Callable[[], Iterable[Observation]],
    ) -> list[Callable[[CallbackOptions], list[Observation]]]:
        def callback(_: CallbackOptions) -> list[Observation]:
            try:
                return list(values())
            except RuntimeError:
                # A look at the identities has ended meanwhile; the next round tells.
                return []

        return [callback]

    def utilisation() -> Iterator[Observation]:
        for space in spaces:
            if space.name in status.taken:
                yield Observation(status.taken[space.name] / space.capacity, {names.SPACE: space.name})

    def unused() -> Iterator[Observation]:
        for space in spaces:
            yield Observation(collector.unused(space), {names.SPACE: space.name})

    meter.create_observable_counter(
        names.IDENTITIES_COLLECTED,
        read(lambda: [Observation(collector.status().collected)]),
        "{identity}",
        "Identities that this replica has collected.",
    )
    meter.create_observable_gauge(
        names.IDENTITY_BACKLOG,
        read(lambda: [Observation(collector.status().backlog)]),
        "{identity}",
        "Identities that are past the grace period and not collected yet.",
    )
    meter.create_observable_gauge(
        names.IDENTITY_LAG,
        read(lambda: [Observation(collector.status().lag)]),
        "s",
        "For how long the longest of those has been past it.",
    )
    meter.create_observable_gauge(
        names.IDENTITIES_UNUSED, read(unused), "{identity}", "Identities that nobody uses."
    )
    meter.create_observable_gauge(
        names.IDENTITY_UTILISATION, read(utilisation), "1", "Share of a number space that is taken."
    )
