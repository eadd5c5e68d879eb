"""Who may call what, and what nobody may learn from an error."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from armorclaw import Bridge, open_bridge
from armorclaw.clock import Surroundings
from armorclaw.config import Account, Agent, BridgeSection, Config
from armorclaw.errors import ERRORS
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Method, NoParams, Registry, Role
from armorclaw.rpc.shape import wire_name
from tests.rpc.conftest import Raw, call

# Operators may do everything but what is said by an agent itself. A method for anybody else must be named here too.
OF_AGENTS_ALONE = {"agent.error", "agent.event", "agent.progress", "agent.ready", "agent.status", "secrets.take"}
ALLOWED = {
    Role.OBSERVER: {
        "containers.inspect",
        "containers.list",
        "containers.stats",
        "health",
        "matrix.status",
        "metrics",
        "rpc.discover",
        "status",
        "webrtc.list",
    },
    Role.AGENT: OF_AGENTS_ALONE
    | {
        "delivery.list",
        "delivery.status",
        "events.ack",
        "events.dead_letters",
        "events.drop",
        "events.forget",
        "events.publish",
        "events.redrive",
        "events.stats",
        "events.subscribe",
        "events.unsubscribe",
        "health",
        "list_configs",
        "matrix.download",
        "matrix.edit",
        "matrix.members",
        "matrix.profile",
        "matrix.react",
        "matrix.read",
        "matrix.receive",
        "matrix.redact",
        "matrix.rooms",
        "matrix.send",
        "matrix.state",
        "matrix.status",
        "matrix.typing",
        "matrix.upload",
        "rpc.discover",
    },
    Role.REMOTE: {"rpc.discover"},
}


def config_in(folder: Path, **sections: Any) -> Config:
    return Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"), **sections)


def hollow(method: Method) -> Method:
    """The same row with nothing behind it."""

    async def nothing(call: Call, params: object) -> None: ...

    bare = attrs.evolve(method, handler=nothing, params=NoParams, result=None, open=True, chunk=None, upload=None)
    return attrs.evolve(bare, quick=None)


def registry_of(folder: Path) -> Registry:
    return Bridge(config_in(folder), Surroundings()).registry


@pytest.mark.parametrize("role", Role)
async def test_every_method_has_an_answer_for_every_role(role: Role, tmp_path: Path) -> None:
    """Those a role may not call are denied, those that are not there are not there; the rest is carried out."""
    registry = registry_of(tmp_path)
    names = registry.names()
    ours, theirs = trio.testing.memory_stream_pair()
    peer = Peer(ours, Registry(hollow(method) for method in registry), role=role, around=Surroundings())
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.serve)
        raw = Raw(theirs)
        answers = {name: await raw.ask(name) for name in [*names, "get_keys", "rpc.none", "__class__", "status "]}
        nursery.cancel_scope.cancel()
    allowed = {name for name, answer in answers.items() if "result" in answer}
    refused = {name: answer["error"]["data"]["name"] for name, answer in answers.items() if "error" in answer}
    assert allowed == set(registry.names(role))
    assert refused == {name: "denied" if name in names else "method_not_found" for name in answers.keys() - allowed}
    if role is Role.OPERATOR:
        assert allowed == set(names) - OF_AGENTS_ALONE
    else:
        assert allowed <= ALLOWED[role]


def test_a_method_that_names_no_role_is_for_nobody() -> None:
    registry = Registry([Method("m", lambda call, params: None)])
    assert all(registry.names(role) == [] for role in Role)


@pytest.mark.parametrize("name", ["get_key", "list_keys", "store_key", "rotate_key", "delete_key", "attach_config"])
def test_keys_are_the_operators_alone(name: str, tmp_path: Path) -> None:
    method = registry_of(tmp_path).get(name)
    assert method is not None
    assert method.roles == {Role.OPERATOR}


def test_who_is_asked_for_a_token_is_not_asked_without_end(tmp_path: Path) -> None:
    registry = registry_of(tmp_path)
    limited = {method.name for method in registry if method.rate is not None}
    assert {"matrix.login", "store_key", "get_key", "rotate_key"} <= limited


# what an error may say

CANARY = "canary-7f3a9d51c2"

_PATH = re.compile(r"(?<![\w.~#/-])/[\w.-]+(?:/[\w.-]+)+")


def leaks(answer: str, sent: str) -> list[str]:
    """What an agent should not have been told: paths it has not named itself, traces, secrets."""
    text = answer.replace("\\/", "/")
    found = [path for path in _PATH.findall(text) if path not in sent]
    return found + [word for word in ("Traceback", 'File \\"', ".py", CANARY, " line ") if word in text]


def test_a_leak_would_be_seen() -> None:
    for text in (
        "cannot read /var/lib/armorclaw/armorclaw.key",
        '{"message":"no /tmp/x/y"}',
        "Traceback (most recent call last)",
        f"key {CANARY}",
    ):
        assert leaks(json.dumps(text), "{}")
    assert not leaks('there is no method "/a/b"', '{"method":"/a/b"}')
    assert not leaks("wait and/or call events/methods", "")


_TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "main",
            "k",
            "../../etc/shadow",
            "/proc/self/environ",
            "a\0b",
            "\ud800",
            "!r:x",
            "#r:x",
            "@x:y",
            "x" * 5_000,
        ]
    ),
)
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.sampled_from([2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 1e18, 0.1]),
        _TEXTS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=5,
)


def _calls_of(method: Method) -> st.SearchStrategy[tuple[str, Any]]:
    """Params that are nearly right, and some that are nothing like it."""
    fields = [wire_name(field.name) for field in attrs.fields(method.params)]
    of_shape = st.fixed_dictionaries({}, optional={name: _VALUES for name in fields if name != "timeout"})
    odd = st.builds(lambda params, name, value: {**params, name: value}, of_shape, _TEXTS, _VALUES)
    return st.tuples(st.just(method.name), st.one_of(of_shape, odd, _VALUES))


def answers_to(sock: socket.socket, messages: list[str]) -> list[str]:
    """In the order they come, for a thread beside the bridge; fewer if the bridge has had enough of nonsense."""
    sock.settimeout(30)
    with sock, sock.makefile("rb") as lines:
        sock.sendall("".join(f"{message}\n" for message in messages).encode("ascii"))
        answers = (line.decode("ascii") for line in lines if b'"method":' not in line)
        return list(islice(answers, len(messages)))


async def test_no_error_tells_an_agent_more_than_it_may_know(armorclaw_folder: Path) -> None:
    """Every method it has, with params that are wrong in every way."""
    account = Account(homeserver="http://127.0.0.1:9", user="@bot:x")
    ada = Agent(runtime="attached", rooms=("!r:x",), keys=("k",))
    config = config_in(armorclaw_folder, accounts={"main": account}, agents={"ada": ada})
    seen: Counter[str] = Counter()
    async with open_bridge(config) as bridge:
        await bridge.call("store_key", id="k", provider="openai", token=CANARY)
        registry = bridge.registry
        methods = [registry.table(Role.AGENT)[name] for name in registry.names(Role.AGENT)]
        nearly = st.one_of([_calls_of(method) for method in methods])
        strangers = st.tuples(st.one_of(_TEXTS, st.sampled_from(registry.names())), _VALUES)

        @settings(max_examples=150, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.one_of(nearly, nearly, strangers), min_size=1, max_size=12))
        @example([(method.name, None) for method in methods])
        @example([("matrix.send", {"room_id": "!other:x", "message": "m"}), ("no.such", {})])
        @example(
            [("get_key", {"id": "k"}), ("store_key", {"token": CANARY[:6]}), ("attach_config", {"name": "../x"})]
        )
        def check(wanted: list[tuple[str, Any]]) -> None:
            messages = [
                json.dumps(call(name, id=number) | ({} if params is None else {"params": params}))
                for number, (name, params) in enumerate(wanted)
            ]
            sent = json.dumps(messages)
            for answer in answers_to(trio.from_thread.run(connect), messages):
                assert leaks(answer, sent) == []
                error = json.loads(answer).get("error")
                if error is None:
                    continue
                assert error.keys() == {"code", "message", "data"}
                kind = ERRORS[error["data"]["name"]]
                assert (error["code"], error["data"]["retryable"]) == (kind.code, kind.retryable)
                assert type(error["data"]["hint"]) is str
                assert kind.name != "internal", messages
                seen[kind.name] += 1

        async with trio.open_nursery() as nursery:

            async def connect() -> socket.socket:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
                await nursery.start(Peer(stream, registry, role=Role.AGENT, agent="ada", around=bridge.around).serve)
                return theirs

            await trio.to_thread.run_sync(check)
    assert {"invalid_params", "denied", "method_not_found", "room_denied"} <= seen.keys()
