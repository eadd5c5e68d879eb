"""What is generated says what the registry says; and the page can be relied on by whoever has nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from armorclaw.errors import ERRORS
from armorclaw.rpc.discover import document
from armorclaw.rpc.registry import Registry, Role
from tests.protocol import PAGE, ROOT, pages, registry
from tests.rpc.openrpc import Promises

Json = dict[str, Any]


@pytest.fixture(scope="module")
def methods() -> Registry:
    return registry()


def test_generated_files_are_fresh() -> None:
    stale = [
        str(path.relative_to(ROOT)) for path, text in pages().items() if path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run: python -m tests.protocol"


def test_every_method_is_on_the_page_with_its_doc(methods: Registry) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for method in methods:
        assert f"\n### `{method.name}`\n" in text
        assert method.doc, f"{method.name} says nothing of itself"
    for kind in ERRORS.values():
        assert f"| {kind.code} | {kind.name} |" in text


def test_links_lead_somewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    places = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ ([\w ]+)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in places


TRANSCRIPT = [json.loads(each) for each in re.findall("^[→←] (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]
STREAMING = {
    "$/chunk": ({"id", "seq", "data"}, set()),
    "$/progress": ({"id", "done"}, {"total", "message"}),
    "$/uploadCredit": ({"id", "chunks"}, set()),
    "$/upload": ({"id", "seq"}, {"data", "end"}),
    "$/credit": ({"id", "chunks"}, set()),
    "$/cancelRequest": ({"id"}, set()),
}


def test_transcripts_keep_to_the_table() -> None:
    """What is shown is what is said: envelopes, names of notifications, numbers of chunks, codes of errors."""
    assert len(TRANSCRIPT) > 20
    seen = set()
    for message in TRANSCRIPT:
        assert message["jsonrpc"] == "2.0"
        assert len({"method", "result", "error"} & set(message)) == 1
        if message.get("method", "").startswith("$/"):
            seen.add(message["method"])
            required, optional = STREAMING[message["method"]]
            assert required <= set(message["params"]) <= required | optional
            assert "id" not in message
        if "error" in message:
            kind = ERRORS[message["error"]["data"]["name"]]
            assert message["error"]["code"] == kind.code
            assert message["error"]["data"]["retryable"] is kind.retryable
    assert seen >= {"$/chunk", "$/progress", "$/upload", "$/credit", "$/cancelRequest"}


def test_transcripts_call_methods_as_they_are(methods: Registry) -> None:
    doc = document(methods, Role.OPERATOR)
    open_calls: dict[Any, Promises] = {}
    for message in TRANSCRIPT:
        if "method" in message and "id" in message:
            promises = open_calls[message["id"]] = Promises(doc, message["method"])
            if message["params"]:  # one is an example of a mistake
                promises.params(message["params"])
        elif message.get("method") in ("$/chunk", "$/upload"):
            part = message["method"].removeprefix("$/")
            open_calls[message["params"]["id"]].piece(part, message["params"]["data"])
        elif "result" in message:
            open_calls.pop(message["id"]).result(message["result"])
