"""Time-weighted fills and latency distributions."""

from __future__ import annotations

import pytest

from pipeline.counters import Counters, Gauge, LatencyWindow


def test_a_level_counts_for_as_long_as_it_stood() -> None:
    gauge = Gauge("s", 10.0)
    gauge.set(0.0, 100.0)
    gauge.set(4.0, 109.0)
    gauge.set(1.0, 110.0)
    fill = gauge.fill(112.0)
    assert fill.mean == pytest.approx((0 * 9 + 4 * 1 + 1 * 2) / 12, abs=1e-4)
    assert (fill.now, fill.most, fill.bound, fill.unit) == (1.0, 4.0, 10.0, "s")


def test_two_fills_tell_the_mean_between_them_even_after_weeks() -> None:
    gauge = Gauge("s", 10.0)
    gauge.set(3.3, 100.0)
    gauge.set(1.0, 100.0 + 21 * 86_400)
    before = gauge.fill(110.0 + 21 * 86_400)
    gauge.set(7.0, 114.0 + 21 * 86_400)
    after = gauge.fill(120.0 + 21 * 86_400)
    between = (after.mean * after.over_s - before.mean * before.over_s) / (after.over_s - before.over_s)
    assert after.over_s - before.over_s == pytest.approx(10)
    assert between == pytest.approx((1.0 * 4 + 7.0 * 6) / 10, abs=1e-3)


def test_a_gauge_that_was_never_set_is_empty() -> None:
    assert Gauge("s").fill(5.0).mean == 0.0


def test_percentiles_are_of_the_last_measurements() -> None:
    window = LatencyWindow(size=100)
    for value in range(1000):
        window.add(float(value))
    summary = window.summary()
    assert summary.count == 1000
    assert (summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.last_ms) == (950.0, 990.0, 999.0, 999.0)
    assert LatencyWindow().summary().count == 0


def test_percentiles_follow_every_measurement_and_are_made_once_for_each() -> None:
    window = LatencyWindow(size=2)
    assert window.summary().last_ms == 0.0
    for value in (1.0, 2.0, 3.0):
        window.add(value)
        assert window.summary().last_ms == value
        assert window.summary() is window.summary()
    assert (window.summary().count, window.summary().p50_ms) == (3, 3.0)


def test_every_queue_and_hop_has_its_counter() -> None:
    counters = Counters({"ring": 10.0, "ahead": 4.0})
    assert counters.queues["ring"].bound == 10.0
    assert counters.queues["tokens_waiting"].bound == 4.0
    assert set(counters.latencies) == set(Counters.HOPS)
