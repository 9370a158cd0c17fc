"""Growth and forecast of a number space: honest where little is known."""

from __future__ import annotations

import pytest

from services.identity.forecast import HOUR_NS, SECOND_NS, Forecast, Sample, forecast

NOW = 1_000 * HOUR_NS
MINUTE = 60 * SECOND_NS


def ago(nanoseconds: int, taken: int) -> Sample:
    return Sample(NOW - nanoseconds, taken)


def test_growth_is_that_of_the_time_that_is_known() -> None:
    found = forecast([ago(30 * MINUTE, 100), ago(10 * MINUTE, 900)], Sample(NOW, 200), 1200)
    assert found.growth_per_hour == pytest.approx(200)
    assert found.exhausted_ns == NOW + 5 * HOUR_NS


def test_only_the_last_hour_counts() -> None:
    found = forecast([ago(3 * HOUR_NS, 0), ago(HOUR_NS, 100)], Sample(NOW, 110), 1200)
    assert found.growth_per_hour == pytest.approx(10)


@pytest.mark.parametrize(
    "samples",
    [[], [ago(0, 5)], [ago(59 * SECOND_NS, 1)], [ago(2 * HOUR_NS, 1)], [ago(-10 * MINUTE, 1)]],
)
def test_little_knowledge_foretells_nothing(samples: list[Sample]) -> None:
    assert forecast(samples, Sample(NOW, 500), 1200) == Forecast(0.0, None)


def test_shrinking_and_standing_still_never_end() -> None:
    assert forecast([ago(HOUR_NS, 300)], Sample(NOW, 200), 1200) == Forecast(-100.0, None)
    assert forecast([ago(HOUR_NS, 200)], Sample(NOW, 200), 1200) == Forecast(0.0, None)


def test_a_full_space_is_exhausted_now() -> None:
    assert forecast([], Sample(NOW, 1200), 1200) == Forecast(0.0, NOW)
    assert forecast([ago(HOUR_NS, 1300)], Sample(NOW, 1200), 1200) == Forecast(-100.0, NOW)


def test_the_far_future_is_not_foretold() -> None:
    assert forecast([ago(HOUR_NS, 0)], Sample(NOW, 1), 10**9).exhausted_ns is None
