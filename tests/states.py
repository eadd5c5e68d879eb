"""The diagram and the table in docs/health.md, from the table of states that the code goes by.

`python -m tests.states` writes them; a test fails when they are stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from armorclaw.containers.states import TRANSITIONS, Fact, State

PAGE = Path(__file__).parent.parent / "docs" / "health.md"
BEGIN = "<!-- from armorclaw/containers/states.py by `python -m tests.states`; do not edit -->\n"
END = "<!-- end of what is generated -->\n"


def page(text: str) -> str:
    """The page with what is generated as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert rest, "the first mark is missing"
    assert after, "the last mark is missing"
    return before + BEGIN + "".join(generated()) + END + after


def generated() -> Iterator[str]:
    yield "\n```mermaid\nstateDiagram-v2\n    [*] --> stopped\n"
    for state, row in TRANSITIONS.items():
        for to in State:
            facts = [fact for fact, leads_to in row.items() if leads_to is to is not state]
            if facts and to is not State.STOPPING:
                yield f"    {state} --> {to} : {', '.join(facts)}\n"
    yield "```\n\n"
    ordered = [state for state, row in TRANSITIONS.items() if Fact.TOLD_TO_END in row]
    left = ", ".join(state for state in State if state not in ordered)
    yield f"Not drawn: *told to end* leads to stopping from every state{f' but {left}' if left else ''}.\n\n"
    yield "| state | facts, and where they lead | facts that change nothing |\n|---|---|---|\n"
    for state in State:
        row = TRANSITIONS[state]
        moves = [f"{fact} → {to}" for fact, to in row.items() if to is not state]
        stays = [fact.value for fact, to in row.items() if to is state]
        yield f"| `{state}` | {'; '.join(moves)} | {', '.join(stays)} |\n"
    yield "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
