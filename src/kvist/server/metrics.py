"""What Prometheus reads at `/metrics`: names as in vLLM, with `kvist:` before them.

Counters and gauges of the engine are read when somebody asks; only times are noted as requests go through, in the
engine's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvist.cache.ages import PageAges
from kvist.cache.stats import CacheCounters, CacheStats
from kvist.engine.params import RequestMetrics, TokenOutput
from kvist.llm import LLM
from kvist.outputs import RequestOutput
from kvist.server.mailbox import Ended

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
LONG = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """How an engine stands, read between two steps."""

    running: int
    waiting: int
    preemptions: int
    counters: CacheCounters
    stats: CacheStats

    @classmethod
    def of(cls, llm: LLM) -> EngineNumbers:
        """Of this model's engine; for the engine's thread."""
        engine = llm.engine
        return cls(
            len(engine.scheduler.running), len(engine.scheduler.waiting), engine.scheduler.preemptions,
            engine.manager.counters, engine.manager.stats(),
        )  # fmt: skip


class _Now(Collector):
    """The engine's numbers as metrics."""

    def __init__(self) -> None:
        self.numbers: EngineNumbers | None = None

    def collect(self) -> Iterable[Metric]:
        """All of them; nothing while the model loads."""
        return [] if self.numbers is None else self._metrics(self.numbers)

    def _metrics(self, now: EngineNumbers) -> Iterator[Metric]:
        def gauge(name: str, help_: str, value: float) -> Metric:
            return GaugeMetricFamily(f"kvist:{name}", help_, value=value)

        def counter(name: str, help_: str, value: float) -> Metric:
            return CounterMetricFamily(f"kvist:{name}", help_, value=value)

        stats, counts = now.stats, now.counters
        yield gauge("num_requests_running", "Sequences that run.", now.running)
        yield gauge("num_requests_waiting", "Sequences that wait.", now.waiting)
        yield gauge("kv_cache_usage_perc", "Live part of the pages, 0 to 1.", stats.live / max(stats.total, 1))
        yield counter("prefix_cache_queries", "Prompt tokens that were looked up.", counts.prefix_queries)
        yield counter("prefix_cache_hits", "Of them those that were found.", counts.prefix_hits)
        yield counter("num_preemptions", "Sequences that had to give their pages up.", now.preemptions)
        for name in ("allocated", "shared", "sealed", "copied", "evicted", "freed"):
            yield counter(f"kv_pages_{name}", f"Pages {name}.", getattr(counts, f"pages_{name}"))
        pages = GaugeMetricFamily("kvist:kv_tier_pages", "Pages of a tier, by state.", labels=["tier", "state"])
        size = GaugeMetricFamily("kvist:kv_tier_bytes", "Bytes of a tier, by state.", labels=["tier", "state"])
        for state in ("free", "cached", "live"):
            pages.add_metric(["memory", state], getattr(stats, state))
            size.add_metric(["memory", state], sum(getattr(pool, state) * pool.page_bytes for pool in stats.pools))
        yield pages
        yield size
        hits = CounterMetricFamily("kvist:kv_tier_hits", "Prompt tokens found in a tier.", labels=["tier"])
        hits.add_metric(["memory"], counts.prefix_hits)
        yield hits


class ServerMetrics:
    """Of one server."""

    def __init__(self) -> None:
        self.registry, self._now = CollectorRegistry(), _Now()
        self.registry.register(self._now)
        self._first = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN)
        self._between = self._histogram("inter_token_latency_seconds", "From a token to the next.", BETWEEN)
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival to the end.", WHOLE)
        self._queued = self._histogram("request_queue_time_seconds", "From arrival to the first step.", WHOLE)
        self._lifetime = self._histogram("kv_page_lifetime_seconds", "From a page's sealing to its eviction.", LONG)
        self._gap = self._histogram("kv_page_reuse_gap_seconds", "From a page's last owner to its next one.", LONG)
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self._made = self._counter("generation_tokens", "Tokens generated.")
        self._source = self._counter("prompt_tokens_by_source", "Where prompt tokens came from.", "source")
        self._success = self._counter("request_success", "Requests that ended, by reason.", "finished_reason")
        self._last: dict[tuple[str, int], float] = {}

    def watch(self, llm: LLM) -> None:
        """Be told how long the pages of this engine live (engine's thread)."""
        for ledger in llm.engine.manager.ledgers:
            ledger.ages = PageAges(self._lifetime.observe, self._gap.observe)

    def token(self, token: TokenOutput) -> None:
        """A token went out (engine's thread)."""
        self._made.inc()
        key, now = (token.request_id, token.index), time.monotonic()
        before = self._last.pop(key, None)
        if before is not None:
            self._between.observe(now - before)
        if token.finish_reason is None:
            self._last[key] = now

    def ended(self, request_id: str, metrics: RequestMetrics | None, ended: Ended) -> None:
        """An order ended, whole, cancelled or by an error (engine's thread)."""
        for key in [key for key in self._last if key[0] == request_id]:
            del self._last[key]
        if metrics is None:
            return
        for reason in _reasons(ended):
            self._success.labels(reason or "abort").inc()
        now = metrics.finished_time or time.monotonic()
        self._whole.observe(now - metrics.arrival_time)
        if metrics.time_to_first_token is not None:
            self._first.observe(metrics.time_to_first_token)
        if metrics.started_time is not None:
            self._queued.observe(metrics.started_time - metrics.arrival_time)
        self._prompt.inc(metrics.prompt_tokens)
        if metrics.reuse is not None:
            self._source.labels("computed").inc(metrics.reuse.computed)
            for tier, count in metrics.reuse.cached.items():
                self._source.labels(tier).inc(count)

    def text(self, numbers: EngineNumbers | None) -> bytes:
        """All of it, in Prometheus's text format."""
        self._now.numbers = numbers
        return generate_latest(self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"kvist:{name}", help_, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"kvist:{name}", help_, labels, registry=self.registry)


def _reasons(ended: Ended) -> list[str | None]:
    """Why each answer of an order ended."""
    if isinstance(ended.output, RequestOutput):
        return [answer.finish_reason for answer in ended.output.outputs]
    return [None] if ended.output is None else [answer.finish_reason for answer in ended.output.sequences]
