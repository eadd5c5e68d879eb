"""Figures for monitoring: what is counted is what is read, and reading it harms nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from armorclaw import Bridge, open_bridge
from armorclaw.clock import Clock
from armorclaw.config import Agent, BridgeSection, Config
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.limits import Limits
from armorclaw.lag import BUCKETS, LoopLag
from armorclaw.matrix.cache import CacheCounts
from armorclaw.metrics import Family, Metrics, of_egress, of_guard, of_loop, of_matrix, of_routing
from armorclaw.rpc.blocking import call
from armorclaw.rpc.registry import Role

Values = dict[tuple[str, ...], float]


def parsed(text: str) -> dict[str, Values]:
    """By name, what it says for each set of labels."""
    found: dict[str, Values] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def read(*families: Family) -> dict[str, Values]:
    return parsed((await Metrics([lambda: families]).text()).text)


async def test_each_kind() -> None:
    found = await read(
        Family("a", "counter", "Counted.", ("agent",), [(("x",), 3.0), (("y",), 0.0)]),
        Family("b_bytes", "gauge", "Measured.", (), [((), 1.5)]),
        Family("c", "gauge", "Of nobody.", ("agent",), []),
        Family("d_seconds", "histogram", "Timed.", (), [((), 1.0), ((), 3.0), ((), 4.0)], (0.1, 1.0), 2.5),
    )
    assert found["armorclaw_a_total"] == {("x",): 3.0, ("y",): 0.0}
    assert found["armorclaw_b_bytes"] == {(): 1.5}
    assert "armorclaw_c" not in found
    assert found["armorclaw_d_seconds_bucket"] == {("0.1",): 1.0, ("1",): 3.0, ("+Inf",): 4.0}
    assert (found["armorclaw_d_seconds_sum"][()], found["armorclaw_d_seconds_count"][()]) == (2.5, 4.0)


async def test_what_was_decided_about_what_people_say() -> None:
    counts = Counter({("stranger", False): 2, ("route", True): 3, ("route", False): 1})
    found = parsed((await Metrics([of_routing(lambda: counts)]).text()).text)
    assert found["armorclaw_events_decided_total"] == {
        ("no", "stranger"): 2.0,
        ("yes", "route"): 3.0,
        ("no", "route"): 1.0,
    }


async def test_a_label_may_be_any_text() -> None:
    found = await read(Family("a", "gauge", "With \n a line.", ("status",), [(('say "hi"\\\n',), 1.0)]))
    assert found["armorclaw_a"] == {('say "hi"\\\n',): 1.0}


async def test_the_registry_is_its_own() -> None:
    """Two bridges in one program have figures of their own, and leave the library's global registry alone."""
    from prometheus_client import REGISTRY

    before = set(REGISTRY._names_to_collectors)
    one, two = (Metrics([lambda n=n: [Family("n", "gauge", "It.", (), [((), n)])]]) for n in (1.0, 2.0))  # type: ignore[misc]
    assert parsed((await one.text()).text)["armorclaw_n"] == {(): 1.0}
    assert parsed((await two.text()).text)["armorclaw_n"] == {(): 2.0}
    assert set(REGISTRY._names_to_collectors) == before
    assert "process_resident_memory_bytes" in parsed((await one.text()).text)


async def test_the_loop_is_read_where_it_runs() -> None:
    """A source may look at what only the loop's thread may touch."""
    here = trio.lowlevel.current_trio_token()

    def source() -> Iterator[Family]:
        assert trio.lowlevel.current_trio_token() is here
        yield Family("n", "gauge", "It.", (), [((), 1.0)])

    assert parsed((await Metrics([source]).text()).text)["armorclaw_n"] == {(): 1.0}


async def test_turns_of_the_loop() -> None:
    lag = LoopLag(0.02, _nothing)
    lag.turns.count, lag.turns.seconds, lag.turns.longest = 100, 2.5, 1.5
    lag.turns.over = [0, 3, 0, 0, 0, 0, 0, 1, 0]  # three up to 5 ms, one up to 5 s
    lag.alarms = Counter(busy=1)
    found = await read(*of_loop(lag)())
    buckets = found["armorclaw_loop_turn_seconds_bucket"]
    assert buckets[("0.001",)] == 96
    assert buckets[("0.005",)] == buckets[("1",)] == 99
    assert buckets[("5",)] == buckets[("+Inf",)] == 100
    assert len(buckets) == len(BUCKETS) + 1
    assert found["armorclaw_loop_longest_turn_seconds"] == {(): 1.5}
    assert found["armorclaw_loop_standstills_total"] == {("busy",): 1}


async def _nothing(*_: Any, **__: Any) -> None: ...


async def test_what_was_refused_and_told() -> None:
    limits, alerts = Limits(Clock()), Alerts(_nothing, None)  # type: ignore[arg-type]
    with limits.listener(Role.OBSERVER).enter(1) as connection:
        while connection.admit(None) is None:
            pass
        connection.admit(None)
    await alerts.raise_alert("x", "warning", "It is so.")
    found = await read(*of_guard(limits, alerts)())
    assert found["armorclaw_calls_refused_total"] == {("observer",): 2}
    assert found["armorclaw_alerts_total"] == {("warning",): 1}


async def test_egress() -> None:
    found = await read(*of_egress(lambda: {("a", "opened"): (3, 500), ("a", "refused"): (2, 0)})())
    assert found["armorclaw_egress_connections_total"] == {("a", "opened"): 3, ("a", "refused"): 2}
    assert found["armorclaw_egress_bytes_total"] == {("a", "opened"): 500}


async def test_encryption() -> None:
    counts = {
        "main": Counter({"decrypted": 3, "withheld": 2, "failed:no_key": 4, "failed:withheld": 1}),
        "side": Counter({"decrypted": 1}),
        "idle": Counter(),
    }
    found = await read(*of_matrix(list, dict, lambda: counts, lambda: CacheCounts(0, 0, 0, 0))())
    assert found["armorclaw_matrix_encryption_total"] == {
        ("main", "decrypted"): 3,
        ("main", "withheld"): 2,
        ("side", "decrypted"): 1,
    }
    assert found["armorclaw_matrix_decrypt_attempts_failed_total"] == {("main", "no_key"): 4, ("main", "withheld"): 1}


async def test_the_cache() -> None:
    found = await read(*of_matrix(list, dict, dict, lambda: CacheCounts(hits=3, misses=1, entries=2, bytes=500))())
    assert found["armorclaw_matrix_cache_total"] == {("hit",): 3, ("miss",): 1}
    assert found["armorclaw_matrix_cache_entries"] == {(): 2}
    assert found["armorclaw_matrix_cache_bytes"] == {(): 500}


# -- of a bridge


@pytest.fixture
async def bridge(armorclaw_folder: Path) -> AsyncIterator[Bridge]:
    agents = {
        "sleeper": Agent(command=("sleep", "60"), runtime="process", ready_timeout=0),
        "dier": Agent(command=("false",), runtime="process", ready_timeout=0),
    }
    section = BridgeSection(state_dir=armorclaw_folder / "state", runtime_dir=armorclaw_folder / "run")
    async with open_bridge(Config(bridge=section, agents=agents)) as opened:
        yield opened


@pytest.mark.mission("P0.1", "P0.4")
async def test_agents(bridge: Bridge) -> None:
    """From over the socket, as a monitor asks."""
    with trio.fail_after(30):
        while True:
            answer = await trio.to_thread.run_sync(call, bridge.config.bridge.socket, "metrics")
            found = parsed(answer["text"])
            if found["armorclaw_agent_restarts_total"].get(("dier",), 0) >= 2 and (
                ("sleeper",) in found.get("armorclaw_agent_memory_bytes", {})
            ):
                break
            await trio.sleep(0.1)
    assert answer["content_type"].startswith("text/plain")
    assert ("sleeper", "running") in found["armorclaw_agent_state"]
    assert len(found["armorclaw_agent_state"]) == 2
    assert found["armorclaw_agent_ends_total"]["dier", "exit"] >= 2
    assert ("sleeper", "exit") not in found["armorclaw_agent_ends_total"]
    assert found["armorclaw_agent_generations_total"]["sleeper",] == 1
    assert found["armorclaw_agent_memory_limit_bytes"]["sleeper",] == 512 * 2**20
    assert found["armorclaw_agent_pids"]["sleeper",] >= 1
    assert found["armorclaw_uptime_seconds"][()] > 0
    assert found["armorclaw_loop_turn_seconds_count"][()] > 10


@pytest.mark.mission("P3.1")
async def test_events_messages_and_the_store(bridge: Bridge) -> None:
    bridge.subscriptions.totals.given_again = 2
    bridge.subscriptions.totals.slow = 1
    bridge.outbox.told.update(sent=3, failed=1)
    found = parsed((await bridge.metrics.text()).text)
    assert found["armorclaw_events_given_again_total"] == {(): 2}
    assert found["armorclaw_slow_cuts_total"] == {(): 1}
    assert found["armorclaw_dead_letters_total"] == {(): 0}
    assert found["armorclaw_deliveries_total"] == {("failed",): 1, ("sent",): 3}
    assert found["armorclaw_outbox_in_flight"] == found["armorclaw_subscriptions"] == {(): 0}
    assert found["armorclaw_store_full"] == found["armorclaw_store_set_aside"] == {(): 0}


async def test_every_figure_is_in_the_handbook(bridge: Bridge) -> None:
    page = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    text = (await bridge.metrics.text()).text
    names = [family.name for family in text_string_to_metric_families(text) if family.name.startswith("armorclaw_")]
    assert len(names) > 15
    assert [name for name in names if f"`{name}" not in page] == []


async def test_a_standstill_is_an_event(bridge: Bridge) -> None:
    with trio.fail_after(20):
        while not bridge.lag.alarms:
            time.sleep(0.1)  # noqa: ASYNC251 - the fault itself
            await trio.sleep(0.05)
        events: list[Any] = []
        while not events:
            await trio.sleep(0.05)
            page = await bridge.journal.after(0, limit=1000)
            events = [event for event in page.events if event.type == "bridge.lag"]
    assert json.loads(events[0].content)["ms"] >= 20
    assert events[0].agent is None


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, armorclaw.bridge, armorclaw.cli.daemon; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
