"""Figures for monitoring, in the text format of Prometheus: everything that the bridge counts, under one name each.

Whoever counts something keeps it as a plain number; it is read when somebody asks. Labels are few: names of agents,
of which there are at most 256, and words of the bridge's own. docs/operations.md has the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from armorclaw._version import __version__
from armorclaw.containers.agent import Agent
from armorclaw.containers.inspection import health_of
from armorclaw.containers.resources.usage import Reading
from armorclaw.containers.shapes import HealthFacts
from armorclaw.delivery.outbox import Outbox
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.limits import Limits
from armorclaw.lag import BUCKETS, LoopLag
from armorclaw.matrix.cache import CacheCounts
from armorclaw.matrix.shapes import AccountStanding
from armorclaw.shapes import MetricsText
from armorclaw.store import Database

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

PREFIX = "armorclaw_"


@attrs.frozen
class Family:
    """One name with all its values, by the values of its labels. Of a histogram the values are the counts up to each
    of `bounds` and, last, of all; `total` is their sum."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()
    values: Sequence[tuple[tuple[str, ...], float]] = ()
    bounds: tuple[float, ...] = ()
    total: float = 0.0


Source = Callable[[], Iterable[Family]]


class Metrics:
    """All figures of one bridge. `registry` is its own: nothing is in it but what `sources` give, and the process."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._registry: CollectorRegistry | None = None

    @property
    def registry(self) -> CollectorRegistry:
        """Read it on the thread that runs the bridge. Made, and the library imported, when first asked for."""
        if self._registry is None:
            self._registry = _registry(self._families)
        return self._registry

    async def text(self) -> MetricsText:
        """All figures as they are now. The loop reads them; what takes long is done in a thread."""
        await trio.to_thread.run_sync(_library)
        read = list(self.registry.collect())
        return await trio.to_thread.run_sync(_written, read)

    def _families(self) -> Iterator[Family]:
        for source in self._sources:
            yield from source()


# -- what there is


def of_bridge(uptime: Callable[[], float]) -> Source:
    """Which version runs, since when."""

    def read() -> Iterator[Family]:
        yield Family("build_info", "gauge", "Always 1.", ("version",), [((__version__,), 1)])
        yield Family("uptime_seconds", "gauge", "Since the bridge was started.", (), [((), uptime())])

    return read


@attrs.frozen
class _Watched:
    """One agent, and what was last known of it."""

    agent: Agent
    reading: Reading | None
    facts: HealthFacts | None


def of_agents(agents: Callable[[], list[Agent]], last: Callable[[str], Reading | None]) -> Source:
    """How agents stand, what they use, how they ended."""

    def read() -> Iterator[Family]:
        looked = [(agent, last(agent.name)) for agent in agents()]
        known = [_Watched(agent, reading, health_of(agent, reading)) for agent, reading in looked]
        states = [((each.agent.name, each.agent.state.value), 1.0) for each in known]
        yield Family("agent_state", "gauge", "1 for the state that an agent is in.", ("agent", "state"), states)
        ends = [
            ((each.agent.name, cause), float(count))
            for each in known
            for cause, count in sorted(each.agent.ends_by_cause.items())
        ]
        yield Family("agent_ends", "counter", "Ends of containers, by cause.", ("agent", "cause"), ends)
        for name, kind, about, value in _OF_AGENTS:
            found = [((each.agent.name,), value(each)) for each in known]
            values = [(labels, number) for labels, number in found if number is not None]
            yield Family(name, kind, about, ("agent",), values)

    return read


def _used(field: str, scale: float = 1) -> Callable[[_Watched], float | None]:
    def value(each: _Watched) -> float | None:
        number = None if each.reading is None else getattr(each.reading.usage, field)
        return None if number is None else number * scale

    return value


def _fact(field: str, scale: float = 1) -> Callable[[_Watched], float | None]:
    def value(each: _Watched) -> float | None:
        number = None if each.facts is None else getattr(each.facts, field)
        return None if number is None else number * scale

    return value


_OF_AGENTS: tuple[tuple[str, Literal["counter", "gauge"], str, Callable[[_Watched], float | None]], ...] = (
    ("agent_generations", "counter", "Containers that were started.", lambda each: each.agent.generations),
    ("agent_restarts", "counter", "Starts after an end of its own.", lambda each: each.agent.restarts),
    ("agent_cpu_seconds", "counter", "Processor time of its container.", _used("cpu_ns", 1e-9)),
    ("agent_memory_bytes", "gauge", "Memory it uses.", _used("memory_bytes")),
    ("agent_memory_limit_bytes", "gauge", "Memory it may use.", lambda each: each.agent.declared.limits.memory),
    ("agent_pids", "gauge", "Its processes and threads.", _used("pids")),
    (
        "agent_oom_kills",
        "counter",
        "Processes of its container that were killed for want of memory.",
        lambda each: None if each.reading is None else each.reading.oom_kills,
    ),
    ("agent_pings_missed", "gauge", "Pings in a row that it has not answered.", _fact("pings_missed")),
    ("agent_unacknowledged_events", "gauge", "Events that it has not acknowledged.", _fact("unacknowledged")),
    (
        "agent_oldest_unacknowledged_seconds",
        "gauge",
        "For how long the oldest of them has been with it.",
        _fact("oldest_unacknowledged_ms", 1e-3),
    ),
)


def of_egress(counts: Callable[[], Mapping[tuple[str, str], tuple[int, int]]]) -> Source:
    """What agents reached outside: by agent and verdict, how many connections and bytes."""

    def read() -> Iterator[Family]:
        found = sorted(counts().items())
        labels = ("agent", "verdict")
        number = [(key, float(connections)) for key, (connections, _) in found]
        size = [(key, float(count)) for key, (_, count) in found if count]
        yield Family("egress_connections", "counter", "Connections asked for, by verdict.", labels, number)
        yield Family("egress_bytes", "counter", "Bytes of connections, both ways.", labels, size)

    return read


def of_guard(limits: Limits, alerts: Alerts) -> Source:
    """What was refused, and what people were told."""

    def read() -> Iterator[Family]:
        refused = [((role.value,), float(count)) for role, count in sorted(limits.refused.items())]
        yield Family("calls_refused", "counter", "Calls that came too often, by role.", ("role",), refused)
        quotas = limits.quotas
        by_agent = [] if quotas is None else [((name,), float(count)) for name, count in quotas.refused().items()]
        yield Family("quota_refusals", "counter", "Calls that a quota refused.", ("agent",), by_agent)
        raised = [((severity,), float(count)) for severity, count in sorted(alerts.raised.items())]
        yield Family("alerts", "counter", "Alerts, by severity.", ("severity",), raised)

    return read


def of_events(subscriptions: Subscriptions) -> Source:
    """How events get to those who follow."""

    def read() -> Iterator[Family]:
        totals = subscriptions.totals
        yield Family("subscriptions", "gauge", "Being served now.", (), [((), subscriptions.open_count)])
        for name, about, count in (
            ("events_given_again", "Events given once more, as they were not acknowledged.", totals.given_again),
            ("events_expired", "Events given and not answered in time.", totals.expired),
            ("dead_letters", "Events given up.", totals.dead),
            ("event_gaps", "Times a subscriber was told of deleted events that it never had.", totals.gaps),
            ("slow_cuts", "Subscribers cut because they took nothing.", totals.slow),
            ("ephemeral_missed", "Events kept nowhere that found no room with a subscriber.", totals.missed),
            ("event_overflows", "Batches that waited in the journal for a busy listener.", subscriptions.overflows),
        ):
            yield Family(name, "counter", about, (), [((), count)])

    return read


def of_delivery(outbox: Outbox) -> Source:
    """What becomes of messages."""

    def read() -> Iterator[Family]:
        told = [((state,), float(count)) for state, count in sorted(outbox.told.items())]
        yield Family("deliveries", "counter", "Messages that came to a state.", ("state",), told)
        waiting = [((account,), float(count)) for account, count in sorted(outbox.lengths().items())]
        yield Family("outbox_waiting", "gauge", "Messages that wait to be sent.", ("account",), waiting)
        yield Family("outbox_in_flight", "gauge", "Attempts under way.", (), [((), outbox.in_flight())])

    return read


def of_routing(counts: Callable[[], Mapping[tuple[str, bool], int]]) -> Source:
    """What was decided about what people say: by the rule, and whether it was kept."""

    def read() -> Iterator[Family]:
        decided = [
            ((rule, "yes" if kept else "no"), float(count)) for (rule, kept), count in sorted(counts().items())
        ]
        yield Family(
            "events_decided", "counter", "Events of rooms, by the rule that decided.", ("rule", "kept"), decided
        )

    return read


def of_matrix(
    standings: Callable[[], Sequence[AccountStanding]],
    failures: Callable[[], Mapping[str, int]],
    encryption: Callable[[], Mapping[str, Mapping[str, int]]],
    counts: Callable[[], CacheCounts],
) -> Source:
    """How accounts stand, how their encryption fares, and how often something about rooms and people was known
    already."""

    def read() -> Iterator[Family]:
        found_accounts = standings()
        for name, about, value in _OF_ACCOUNTS:
            values = [((each.account,), number) for each in found_accounts if (number := value(each)) is not None]
            yield Family(name, "gauge", about, ("account",), values)
        failed = [((account,), float(count)) for account, count in sorted(failures().items())]
        yield Family("matrix_decrypt_failures", "counter", "Messages that could not be read.", ("account",), failed)
        done: list[tuple[tuple[str, ...], float]] = []
        not_read: list[tuple[tuple[str, ...], float]] = []
        for account, each in sorted(encryption().items()):
            for what, count in sorted(each.items()):
                word, _, reason = what.partition(":")  # failed:<reason>
                if reason:
                    not_read.append(((account, reason), float(count)))
                else:
                    done.append(((account, word), float(count)))
        yield Family("matrix_encryption", "counter", "What encryption did.", ("account", "what"), done)
        about = "Attempts to read a message that failed, by reason."
        yield Family("matrix_decrypt_attempts_failed", "counter", about, ("account", "reason"), not_read)
        found = counts()
        asked = [(("hit",), float(found.hits)), (("miss",), float(found.misses))]
        yield Family("matrix_cache", "counter", "Questions about rooms and people.", ("result",), asked)
        yield Family("matrix_cache_entries", "gauge", "Answers kept.", (), [((), found.entries)])
        yield Family("matrix_cache_bytes", "gauge", "What they take.", (), [((), found.bytes)])

    return read


_OF_ACCOUNTS: tuple[tuple[str, str, Callable[[AccountStanding], float | None]], ...] = (
    ("matrix_connected", "1 while the last sync was answered, and not long ago.", lambda each: each.connected),
    ("matrix_last_sync_seconds", "Since a sync was answered.", lambda each: each.last_sync_s),
    ("matrix_deaf", "1 while it hears and cannot decrypt.", lambda each: each.deaf),
    ("matrix_keys_lost", "1 while its keys are lost.", lambda each: each.encryption == "lost"),
    ("matrix_undecryptable_waiting", "Messages that wait for a key.", lambda each: each.undecryptable_waiting),
    ("matrix_rooms_missing", "Granted rooms it is not in.", lambda each: len(each.rooms_missing)),
)


def of_store(database: Database) -> Source:
    """Whether the store is as it should be."""

    def read() -> Iterator[Family]:
        yield Family("store_full", "gauge", "1 while the disk is full.", (), [((), database.full)])
        aside = float(database.set_aside is not None)
        yield Family("store_set_aside", "gauge", "1 while a damaged database lies there.", (), [((), aside)])

    return read


def of_loop(lag: LoopLag) -> Source:
    """How the event loop fares."""

    def read() -> Iterator[Family]:
        turns = lag.turns
        counts = [turns.count - sum(turns.over), *turns.over[1:]]  # the first bucket, and those over it
        upto = [((), float(count)) for count in itertools.accumulate(counts)]
        yield Family(
            "loop_turn_seconds", "histogram", "Turns of the event loop.", (), upto, BUCKETS, total=turns.seconds
        )
        yield Family("loop_longest_turn_seconds", "gauge", "Since the start.", (), [((), turns.longest)])
        causes = [((cause,), float(count)) for cause, count in sorted(lag.alarms.items())]
        about = "Times the event loop stood still for longer than lag_alarm_ms."
        yield Family("loop_standstills", "counter", about, ("cause",), causes)

    return read


# -- the library, imported when first needed: it costs half a megabyte, and more time than a step may take


def _library() -> None:
    import prometheus_client.core  # noqa: F401


def _registry(families: Callable[[], Iterator[Family]]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.registry import Collector

    class Reader(Collector):
        def describe(self) -> list[Metric]:
            return []  # else it would be asked for everything when it is registered

        def collect(self) -> Iterator[Metric]:
            return map(_metric, families())

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reader())
    ProcessCollector(registry=registry)
    return registry


def _metric(family: Family) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name = PREFIX + family.name
    if family.kind == "histogram":
        bounds = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
        buckets = [(bound, value) for bound, (_, value) in zip(bounds, family.values, strict=True)]
        return HistogramMetricFamily(name, family.about, buckets=buckets, sum_value=family.total)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.about, labels=family.labels)
    for labels, value in family.values:
        metric.add_metric(labels, value)
    return metric


@attrs.frozen
class _Read:
    """What was read of a registry, to be written elsewhere."""

    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        return self.metrics


def _written(read: list[Metric]) -> MetricsText:
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    return MetricsText(CONTENT_TYPE_LATEST, generate_latest(_Read(read)).decode())
