"""`armorclaw containers inspect` for people: one page of all that is known of an agent.

What a bridge of another version leaves out is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from armorclaw.cli import show

_ENDS = 10  # the last so many are shown; --json has all


def page(agent: Mapping[str, Any]) -> None:
    """Show it."""
    show.line(_headline(agent))
    _section("What runs", _runs(agent))
    _section("Health", _health(agent.get("health") or {}))
    _usage(agent)
    _section("Policy", _policy(agent))
    _ends(agent.get("ends") or [], agent.get("last_end"))


def _headline(agent: Mapping[str, Any]) -> str:
    words = [f"{agent['name']}: {agent['state']}"]
    if agent.get("since_ms"):
        words.append(f"container started {show.ago(agent['since_ms'])} ago")
    words.append(f"generation {agent.get('generation', 0)}")
    words.append(show.count(agent.get("restarts", 0), "restart"))
    if agent.get("status"):
        words.append(f"it says: {agent['status']}")
    if not agent.get("wanted", True):
        words.append("stopped by hand")
    return ", ".join(words)


def _section(title: str, rows: Iterator[tuple[str, Any]]) -> None:
    """Names and values below a title; nothing without any."""
    shown = [(name, value) for name, value in rows if value not in (None, "", [], {})]
    if shown:
        show.text(f"\n{title}")
        for name, value in shown:
            show.line(f"  {name:<20} {_words(value)}")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items() if each is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _runs(agent: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    declared, found = agent.get("runtime"), agent.get("runs_on")
    yield "runtime", found if found in (declared, None) else f"{found} (declared: {declared})"
    if found is None:
        yield "runtime", f"{declared} (nothing runs)"
    for name in ("image", "command", "code", "python", "uid", "account", "rooms", "keys", "env", "egress"):
        yield name, agent.get(name)
    yield "container", agent.get("container_id") and f"{_id(agent['container_id'])} {agent.get('container_name', '')}"
    yield "adopted", agent.get("adopted") or None
    yield "socket", agent.get("socket")


def _id(container: str) -> str:
    """What an engine calls it by 12 digits is enough of; names of sandboxes differ at their end."""
    return container[:12] if set(container) <= set("0123456789abcdef") else container


def _health(health: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    def aged(name: str) -> str | None:
        value, age = health.get(name), health.get(f"{name}_age_ms")
        return None if value is None else f"{_words(value)}{_age(age)}"

    yield "engine", aged("engine")
    yield "session", aged("session")
    if health.get("ping_ms") is not None:
        yield "ping", f"answered in {health['ping_ms']:g} ms{_age(health.get('ping_age_ms'))}"
    yield "pings missed", health.get("pings_missed")
    if health.get("unacknowledged") is not None:
        oldest = health.get("oldest_unacknowledged_ms")
        yield (
            "unacknowledged",
            show.count(health["unacknowledged"], "event")
            + ("" if oldest is None else f", the oldest for {show.span(oldest / 1000)}"),
        )
    for name, title in (("work_age_ms", "last work"), ("reading_age_ms", "last reading")):
        if health.get(name) is not None:
            yield title, f"{show.span(health[name] / 1000)} ago"


def _age(age_ms: float | None) -> str:
    return "" if age_ms is None else f", {show.span(age_ms / 1000)} ago"


_FIGURES = (
    ("cpu_percent", "processor", None),
    ("memory_bytes", "memory", "memory"),
    ("pids", "processes", "pids"),
    ("tmp_bytes", "/tmp", "tmp"),  # noqa: S108 - its own
    ("data_bytes", "/data", None),
)


def _usage(agent: Mapping[str, Any]) -> None:
    """What it uses, the most it used, and what it may, each in a column."""
    now, peaks, limits = (agent.get(name) or {} for name in ("usage", "peaks", "limits"))
    rows = []
    for figure, title, limit in _FIGURES:
        most = limits.get(limit) if limit else None
        if figure == "cpu_percent" and limits.get("cpus"):
            most = limits["cpus"] * 100
        if figure == "data_bytes":
            most = (agent.get("data") or {}).get("hard")
        cells = [_figure(figure, value) for value in (now.get(figure), peaks.get(figure), most)]
        if any(cells):
            rows.append([f"  {title}", *cells])
    if limits.get("files"):
        rows.append(["  open files", "", "", f"{limits['files']} each"])
    if rows:
        show.text("")
        show.table(["Use", "now", "peak", "limit"], rows)


def _figure(figure: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} %" if figure == "cpu_percent" else f"{value}" if figure == "pids" else show.size(value)


def _policy(agent: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "restart", agent.get("restart_policy")
    yield "patience", agent.get("patience")
    yield "after the bridge", agent.get("on_restart")
    yield "ready within", f"{agent['ready_timeout']:g} s" if agent.get("ready_timeout") else "never demanded"
    yield "lifetime", f"{agent['lifetime']:g} s" if agent.get("lifetime") else None
    if agent.get("idle_timeout"):
        yield "when idle", f"{agent.get('on_idle')} after {agent['idle_timeout']:g} s"
    quota = agent.get("quota") or {}
    sizes = {kind: show.size(quota[kind]) for kind in ("bytes", "media") if quota.get(kind)}
    yield "quota a minute", quota | sizes


def _ends(ends: list[Mapping[str, Any]], last_end: str | None) -> None:
    """Why it ended; `last_end` is more than those if it could not even be started."""
    newest = sorted(ends, key=lambda end: end["at_ms"], reverse=True)[:_ENDS]
    if last_end and (not newest or last_end != newest[0]["text"]):
        show.text("\nWhy it ended last")
        show.line(f"  {last_end}")
    if newest:
        show.text("\nLast ends")
        show.table(
            ["  GENERATION", "AGO", "RAN", "CAUSE", "HOW"],
            [
                [
                    f"  {end['generation']}",
                    show.ago(end["at_ms"]),
                    show.span(end["ran_ms"] / 1000),
                    end["cause"],
                    end["text"],
                ]
                for end in newest
            ],
        )
