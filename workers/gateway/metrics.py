"""What is counted, for Prometheus: this process's own figures, and the pipeline's as it reports them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ipc.messages import StatusReport

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second figure for each counter, which nobody looks at

FIRST_SOUND_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
BETWEEN_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0)


class Metrics:
    """The figures of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self._requests = Counter("chatterline_requests", "Requests answered", ["door", "status"], registry=own)
        self._speeches = Counter("chatterline_speeches", "Utterances begun", ["door"], registry=own)
        self._abandoned = Counter(
            "chatterline_abandoned", "Utterances cancelled because their listener left", ["door"], registry=own
        )
        self._refused = Counter("chatterline_refused", "Requests beyond a bound", ["bound"], registry=own)
        self._in_flight = Gauge("chatterline_in_flight", "Utterances spoken or waiting", registry=own)
        self._tasks = Gauge("chatterline_gateway_tasks", "Tasks of the gateway's event loop", registry=own)
        self._first_sound = Histogram(
            "chatterline_first_sound_seconds", "Request to first sound", ["door"], buckets=FIRST_SOUND_S, registry=own
        )
        self._between = Histogram(
            "chatterline_between_sounds_seconds", "From one piece of sound to the next", ["door"], buckets=BETWEEN_S,
            registry=own,
        )  # fmt: skip

    def answered(self, door: str, status: int) -> None:
        """A request is over."""
        self._requests.labels(door, str(status)).inc()

    def began(self, door: str) -> None:
        """An utterance was accepted."""
        self._speeches.labels(door).inc()

    def abandoned(self, door: str) -> None:
        """An utterance was cancelled, as nobody listens any more."""
        self._abandoned.labels(door).inc()

    def refused(self, bound: str) -> None:
        """Too much was under way."""
        self._refused.labels(bound).inc()

    def first_sound(self, door: str, seconds: float) -> None:
        """From the request to its first sound."""
        self._first_sound.labels(door).observe(seconds)

    def between_sounds(self, door: str, seconds: float) -> None:
        """From one piece of sound to the next, as they came from the pipeline."""
        self._between.labels(door).observe(seconds)

    def page(self, in_flight: int, report: StatusReport | None) -> bytes:
        """Everything, in Prometheus' text format. ``report`` is None while the pipeline does not answer."""
        self._in_flight.set(in_flight)
        self._tasks.set(len(asyncio.all_tasks()))
        pipeline = CollectorRegistry()
        pipeline.register(_Pipeline(report))
        return bytes(generate_latest(self._registry)) + bytes(generate_latest(pipeline))


class _Pipeline(Collector):
    """The pipeline's own report."""

    def __init__(self, report: StatusReport | None) -> None:
        self._report = report

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: what there is depends on the report."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        report = self._report
        up = GaugeMetricFamily("chatterline_pipeline_up", "Whether the pipeline answers")
        up.add_metric([], float(report is not None))
        yield up
        if report is not None:
            yield from _stages(report)
            yield from _queues(report)
            yield from _events(report)


def _stages(report: StatusReport) -> Iterator[Metric]:
    share = GaugeMetricFamily(
        "chatterline_stage_share", "Share of its time that a stage spends so", labels=["stage", "doing"]
    )
    streams = GaugeMetricFamily("chatterline_stage_streams", "Streams that a stage holds", labels=["stage"])
    running = GaugeMetricFamily("chatterline_stage_running", "Whether a stage works", labels=["stage"])
    restarts = CounterMetricFamily("chatterline_restarts", "Restarts of a process", labels=["stage"])
    memory = GaugeMetricFamily("chatterline_stage_memory_bytes", "Resident memory", labels=["stage"])
    for stage in report.stages:
        for doing in ("busy", "starved", "blocked"):
            share.add_metric([stage.worker, doing], getattr(stage, doing))
        streams.add_metric([stage.worker], stage.streams)
        running.add_metric([stage.worker], float(stage.state == "RUNNING"))
        restarts.add_metric([stage.worker], stage.restarts)
        memory.add_metric([stage.worker], stage.rss_bytes)
    yield from (share, streams, running, restarts, memory)


def _queues(report: StatusReport) -> Iterator[Metric]:
    fill = GaugeMetricFamily("chatterline_queue_fill", "What waits in a queue", labels=["queue", "unit"])
    bound = GaugeMetricFamily("chatterline_queue_bound", "What a queue can hold", labels=["queue", "unit"])
    for name, queue in report.queues.items():
        fill.add_metric([name, queue.unit], queue.now)
        if queue.bound is not None:
            bound.add_metric([name, queue.unit], queue.bound)
    yield from (fill, bound)


def _events(report: StatusReport) -> Iterator[Metric]:
    latency = GaugeMetricFamily(
        "chatterline_latency_seconds", "Latency of a hop over the last utterances", labels=["hop", "quantile"]
    )
    for hop, figures in report.latencies.items():
        for quantile, ms in (("0.5", figures.p50_ms), ("0.9", figures.p90_ms), ("0.99", figures.p99_ms)):
            latency.add_metric([hop, quantile], ms / 1000)
    underruns = CounterMetricFamily("chatterline_underruns", "Times that the loudspeaker ran dry")
    underruns.add_metric([], float(report.player.get("starvations", 0)))
    cancelled = CounterMetricFamily("chatterline_cancelled", "Utterances cancelled, whoever asked for it")
    cancelled.add_metric([], report.counters.get("cancelled", 0))
    events = CounterMetricFamily("chatterline_events", "What has happened in the pipeline", labels=["event"])
    for name, count in report.counters.items():
        events.add_metric([name], count)
    queued = GaugeMetricFamily("chatterline_utterances", "Utterances of all programs that are not over")
    queued.add_metric([], report.queued)
    yield from (latency, underruns, cancelled, events, queued)
