"""What the service says about itself in numbers: Prometheus metrics, none of which knows a user id."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

import lurm
from lurm.cache import CachedEmbedding, Miss
from lurm.jobs import Job, State
from lurm.live import Status
from lurm.release import Release

NO_ROUTE = "(none)"
_RELEASE = "lurm_release_info"
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every first one, which says when it began
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_JOB_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Telemetry:
    """The counters of one process; where ``lurm serve`` runs several workers, they add up on reading.

    Args:
        shared: the folder the processes of one server share; it must also stand in PROMETHEUS_MULTIPROC_DIR
            before the process starts, as ``lurm serve`` sees to. None: this process is alone.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        registry = self._registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        # Of what worker processes say: the sum, the highest, the newest.
        added = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        highest = partial(Gauge, multiprocess_mode="livemax", registry=registry)
        newest = partial(Gauge, multiprocess_mode="livemostrecent", registry=registry)
        self._requests = counter(
            "lurm_http_requests", "Requests answered, by route template and status.", ["route", "status"]
        )
        self._request_seconds = histogram(
            "lurm_http_request_seconds",
            "From the request's head to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
        )
        self._refusals = counter(
            "lurm_http_refusals",
            "Requests refused by their API key, by its name: no known key, not its scope, past its rate.",
            ["key", "reason"],
        )
        self._lookups = counter(
            "lurm_cache_lookups", "Embeddings looked up in the cache: hit, or why not.", ["outcome"]
        )
        self._put_failures = counter("lurm_cache_put_failures", "Embeddings the cache refused or failed to keep.")
        self._batch_users = histogram("lurm_embed_batch_users", "Users embedded by one encoder call.", buckets=_USERS)
        self._batch_seconds = histogram(
            "lurm_embed_batch_seconds", "Time of one encoder call, reading the histories included.", buckets=_SECONDS
        )
        self._queue_users = added("lurm_embed_queue_users", "Users waiting for the encoder.")
        self._release = highest(_RELEASE, "1 for the release being served.", ["release_id", "space_id", "version"])
        self._release_users = highest("lurm_release_users", "Users in the release.")
        self._release_events = highest("lurm_release_events", "Events in the release.")
        self._arrivals = counter("lurm_live_events", "Events that were sent, by what became of them.", ["status"])
        self._live_up = newest(
            "lurm_live_up",
            "1 where live events are taken and in answers; 0: their store does not answer or cannot be written to, or "
            "its disk is full.",
        )
        self._erasures = counter("lurm_erasures", "Users erased.")
        self._jobs_open = added("lurm_jobs_open", "Jobs that wait or run, by how they stand.", ["kind", "state"])
        self._jobs_ended = counter("lurm_jobs_ended", "Jobs that came to an end, by which.", ["kind", "state"])
        self._job_seconds = histogram(
            "lurm_job_seconds", "From accepting a job to its end, whichever it was.", ["kind"], buckets=_JOB_SECONDS
        )
        self._job_rows = counter("lurm_job_rows", "Users in the results of jobs.", ["kind"])
        self._swaps = counter("lurm_release_swaps", "Releases that took the place of another, in each worker.")
        self._swap_failures = counter(
            "lurm_release_swap_failures",
            "Releases pointed at that could not be served, in each worker; the old one went on.",
        )
        self._served: Gauge | None = None
        self._outcomes = {outcome: self._lookups.labels(outcome) for outcome in ("hit", *Miss)}
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        counted = self._routes.get((route, status))
        if counted is None:
            counted = self._requests.labels(route, str(status)), self._request_seconds.labels(route)
            self._routes[route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def refused(self, key: str, reason: str) -> None:
        """Count one request that was refused because of its key, which goes by its name."""
        self._refusals.labels(key, reason).inc()

    def hit(self, n: int) -> None:
        """Count embeddings the cache had at hand."""
        if n:
            self._outcomes["hit"].inc(n)

    def looked_up(self, found: Iterable[CachedEmbedding | Miss]) -> None:
        """Count what a lookup brought."""
        for outcome, n in collections.Counter(one if isinstance(one, Miss) else "hit" for one in found).items():
            self._outcomes[outcome].inc(n)

    def put_failed(self, n: int) -> None:
        """Count embeddings that could not be kept."""
        self._put_failures.inc(n)

    def embedded(self, n_users: int, seconds: float) -> None:
        """Count one encoder call."""
        self._batch_users.observe(n_users)
        self._batch_seconds.observe(seconds)

    def arrived(self, counts: Mapping[Status, int]) -> None:
        """Count events that were sent, by what became of them."""
        for status, n in counts.items():
            self._arrivals.labels(status).inc(n)

    def live_up(self, *, is_up: bool) -> None:
        """Note whether the store of live events answers."""
        self._live_up.set(is_up)

    def erased(self) -> None:
        """Count one erasure."""
        self._erasures.inc()

    def job_changed(self, before: State | None, job: Job) -> None:
        """Note that a job of this process stands otherwise than before; None: it was just accepted."""
        if before is not None:
            self._jobs_open.labels(job.kind, before).dec()
        if job.is_open:
            self._jobs_open.labels(job.kind, job.state).inc()
            return
        self._jobs_ended.labels(job.kind, job.state).inc()
        if job.finished_at is not None:
            self._job_seconds.labels(job.kind).observe((job.finished_at - job.created_at) / 1000)
        self._job_rows.labels(job.kind).inc(job.facts.get("n_users", 0))

    def queued(self, n_users: int) -> None:
        """Note how many users wait now."""
        self._queue_users.set(n_users)

    def serving(self, release: Release) -> None:
        """Note which release answers from now on."""
        if self._served is not None:
            self._served.set(0)  # processes that share their metrics cannot take a label back; see exposition
        self._served = self._release.labels(release.release_id, release.space_id, lurm.__version__)
        self._served.set(1)
        self._release_users.set(len(release.history))
        self._release_events.set(release.history.n_events)

    def swapped(self) -> None:
        """Count a release that took another's place."""
        self._swaps.inc()

    def swap_failed(self, n: int = 1) -> None:
        """Count releases that could not."""
        self._swap_failures.inc(n)

    def exposition(self) -> bytes:
        """All metrics of all processes, as Prometheus reads them."""
        everyone: Collector = self._registry
        if self._shared is not None:
            _forget_the_dead(self._shared)
            everyone = MultiProcessCollector(None, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(_Current(everyone))

    def close(self) -> None:
        """Take this process's gauges out of the sum; what it counted stays."""
        if self._shared is not None:
            mark_process_dead(os.getpid(), str(self._shared))  # type: ignore[no-untyped-call]


class _Current:
    """The metrics of a collector, without releases that are served no more."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        """One metric after another."""
        for metric in self._collector.collect():
            if metric.name == _RELEASE:
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


def _forget_the_dead(shared: Path) -> None:
    """Take out the gauges of processes that were killed: they would name their release for ever."""
    for file in shared.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another process took it out
                mark_process_dead(pid, str(shared))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # alive, though not one of ours any longer
