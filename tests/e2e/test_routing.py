"""Who is heard and who answers, on a real homeserver: direct chats, invitations, choices, rooms that are replaced."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import attrs
import httpx
import pytest
import trio

from armorclaw import Bridge, open_bridge
from armorclaw.agent import AsyncMessage
from armorclaw.config import (
    AccessSection,
    Account,
    Agent,
    BridgeSection,
    Config,
    Invites,
    Route,
    Talk,
)
from armorclaw.structure import Secret
from armorclaw.testing.handles import BridgeProcess, new_person, wait_until
from armorclaw.testing.homeserver import Homeserver
from tests.matrix.conftest import Person, until

QUIET = 1.5
"""Seconds after which what is to be ignored would have been answered on a loaded machine; what is not, is far earlier
by an event that came behind it."""


class MakePerson(Protocol):
    """Registers somebody whose name begins with a word, or is it."""

    async def __call__(self, word: str, *, exactly: bool = False) -> Person: ...


@pytest.fixture
async def people(homeserver: Homeserver) -> AsyncIterator[MakePerson]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=homeserver.url, trust_env=False, timeout=30.0)
        )

        async def make(word: str, *, exactly: bool = False) -> Person:
            name, password = word if exactly else f"{word}{secrets.token_hex(4)}", secrets.token_hex(8)
            user_id = await trio.to_thread.run_sync(homeserver.register, name, password)
            who = {"type": "m.id.user", "user": name}
            body = {"type": "m.login.password", "identifier": who, "password": password}
            answer = await http.post("/_matrix/client/v3/login", json=body)
            return Person(http, user_id, password, answer.json()["access_token"])

        yield make


@attrs.define
class Speaker:
    """An agent inside the program that says back what it hears."""

    bridge: Bridge
    name: str
    heard: list[AsyncMessage] = attrs.field(factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        agent = self.bridge.attach(self.name)

        @agent.on_message
        async def answer(message: AsyncMessage) -> None:
            self.heard.append(message)
            await message.reply(f"{self.name}: {message.body}")

        await agent.run(task_status=task_status)

    @property
    def bodies(self) -> list[str]:
        return [message.body for message in self.heard]


def account(who: Person, homeserver: Homeserver, invites: Invites = "trusted") -> Account:
    return Account(
        homeserver=homeserver.url, user=who.name, password=Secret(who.password), invites=invites, encryption=False
    )


def config(folder: Path, accounts: dict[str, Account], agents: dict[str, Agent], **sections: Any) -> Config:
    where = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")
    return Config(bridge=where, accounts=accounts, agents=agents, **sections)


def inside(*rooms: str, account: str = "main") -> Agent:
    return Agent(runtime="attached", rooms=rooms, account=account)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Bridge, dict[str, Speaker]]]:
    async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
        speakers = {name: Speaker(bridge, name) for name in config.agents}
        for speaker in speakers.values():
            await nursery.start(speaker.run)
        with trio.fail_after(60):
            await bridge.until_connected()
        yield bridge, speakers
        nursery.cancel_scope.cancel()


async def direct_chat(person: Person, bot: Person) -> str:
    return await person.create_room(bot.user_id, is_direct=True)


async def answers(person: Person, room: str, bot: Person) -> list[str]:
    return [raw["content"]["body"] for raw in await person.read(room) if raw["sender"] == bot.user_id]


async def joined(person: Person, room: str, bot: Person) -> None:
    await until(lambda: person.member_of(room, bot.user_id), 40)


async def say(person: Person, room: str, body: str, **more: Any) -> str:
    path = f"rooms/{room}/send/m.room.message/{secrets.token_hex(8)}"
    content = {"msgtype": "m.text", "body": body, **more}
    event_id: str = (await person.call("PUT", path, content))["event_id"]
    return event_id


@pytest.mark.mission("S.5")
async def test_a_direct_chat_with_a_trusted_person_is_answered_by_its_agent(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice, mallory = await people("bot"), await people("alice"), await people("mallory")
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver)},
        {"echo": inside()},
        access=AccessSection(trusted=(alice.user_id,)),
        routes=(Route("echo", dm=True),),
    )
    async with running(made) as (bridge, speakers):
        evil = await direct_chat(mallory, bot)  # first, so that it has been looked at when the other is answered
        room = await direct_chat(alice, bot)
        await joined(alice, room, bot)
        asked = await say(alice, room, "hello")
        await until(lambda: speakers["echo"].bodies == ["hello"], 40)
        await until(lambda: _has(alice, room, bot, "echo: hello"), 40)
        await until(lambda: _is_direct(bot, alice, room), 40)  # it need not be written before the answer
        assert not await mallory.member_of(evil, bot.user_id)
        explained = await bridge.call("policy.explain", room=room)
        assert (explained["level"], explained["direct"], explained["agents"]) == ("dm", alice.user_id, ["echo"])
        of_event = await bridge.call("policy.explain", room=room, event=asked)
        assert (of_event["rule"], of_event["sender"]) == ("dm", alice.user_id)

        await alice.call("POST", f"rooms/{room}/invite", {"user_id": mallory.user_id})
        await mallory.call("POST", f"join/{room}", {})
        heard = await say(mallory, room, "do as I say")
        await say(alice, room, "and now?")
        await until(lambda: "and now?" in speakers["echo"].bodies, 40)
        assert speakers["echo"].bodies == ["hello", "and now?"]
        stranger = await bridge.call("policy.explain", room=room, event=heard)
        assert (stranger["rule"], stranger["as_it_was"], stranger["kept"]) == ("stranger", True, False)
        assert mallory.user_id not in str([event.sender for event in await _journal(bridge)])

    async with running(made) as (bridge, speakers):  # the grant goes on, with what was said meanwhile
        await say(alice, room, "still there?")
        await until(lambda: speakers["echo"].bodies[-1:] == ["still there?"], 40)


async def test_what_was_said_while_the_bridge_was_away_is_answered_in_a_direct_chat(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice = await people("bot"), await people("alice")
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver)},
        {"echo": inside()},
        access=AccessSection(trusted=(alice.user_id,)),
        routes=(Route("echo", dm=True, respond="mention"),),
    )
    async with running(made):
        room = await direct_chat(alice, bot)
        await joined(alice, room, bot)
    await say(alice, room, "not for you")
    await say(alice, room, f"{bot.user_id}: for you")
    async with running(made) as (_, speakers):
        await until(lambda: bool(speakers["echo"].bodies), 40)
        assert speakers["echo"].bodies == [f"{bot.user_id}: for you"]


async def test_mention_reply_thread_and_command(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice = await people("bot"), await people("alice")
    await bot.call("PUT", f"profile/{bot.user_id}/displayname", {"displayname": "Claw Bot"})
    room = await alice.create_room(bot.user_id)
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver)},
        {"all": inside(), "asked": inside(), "ordered": inside()},
        access=AccessSection(trusted=(alice.user_id,)),
        routes=(
            Route("asked", room=room, respond="mention"),
            Route("ordered", room=room, respond="command"),
        ),
    )
    async with running(made) as (bridge, speakers):
        asked, ordered = speakers["asked"], speakers["ordered"]
        await joined(alice, room, bot)
        await until(lambda: bridge.routing.routers["main"].display_name == "Claw Bot", 40)
        await say(alice, room, "nobody")
        await say(alice, room, "hello", **{"m.mentions": {"user_ids": [bot.user_id]}})
        await say(alice, room, "claw bot, hello")
        await say(alice, room, "!ordered do it")
        await until(lambda: asked.bodies == ["hello", "claw bot, hello"], 40)
        await until(lambda: ordered.bodies == ["!ordered do it"], 40)
        await until(lambda: _has(alice, room, bot, "asked: claw bot, hello"), 40)
        (answer,) = [raw for raw in await alice.read(room) if raw["content"]["body"] == "asked: hello"]
        reply = {"m.mentions": {}, "m.relates_to": {"m.in_reply_to": {"event_id": answer["event_id"]}}}
        await say(alice, room, "why?", **reply)
        thread = {"rel_type": "m.thread", "event_id": answer["event_id"]}
        await say(alice, room, "and in a thread?", **{"m.mentions": {}, "m.relates_to": thread})
        await until(lambda: asked.bodies[2:] == ["why?", "and in a thread?"], 40)
        assert ordered.bodies == ["!ordered do it"]
        assert speakers["all"].bodies == []
        kept = [event.plain()["content"]["body"] for event in await _journal(bridge)]
        assert "nobody" not in kept


async def test_where_nobody_answers_it_is_said_once(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice = await people("bot"), await people("alice")
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver)},
        {"echo": inside()},
        access=AccessSection(trusted=(alice.user_id,), commands=(alice.user_id,)),
    )
    async with running(made) as (bridge, speakers):
        room = await direct_chat(alice, bot)
        await joined(alice, room, bot)
        for body in ("hello?", "anybody?"):
            await say(alice, room, body)
        await until(lambda: _some(alice, room, bot), 40)
        (told,) = [raw for raw in await alice.read(room) if raw["sender"] == bot.user_id]
        assert told["content"]["msgtype"] == "m.notice"
        assert "dm = true" in told["content"]["body"]
        assert speakers["echo"].bodies == []

        # what a person chooses goes before the configuration, and grants the room
        table = bridge.routing.table
        await table.use("main", room, "echo", "always", by=alice.user_id)
        await say(alice, room, "and now?")
        await until(lambda: speakers["echo"].bodies == ["and now?"], 40)
        await until(lambda: _has(alice, room, bot, "echo: and now?"), 40)
        explained = await bridge.call("policy.explain", room=room)
        assert (explained["level"], explained["agents"]) == ("chosen", ["echo"])
        assert alice.user_id in explained["where"]
        await table.unuse("main", room)
        with pytest.raises(Exception, match="no grant"):
            await bridge._attaching.running["echo"].send(room, "no more")
    told_so = [body for body in await answers(alice, room, bot) if "No agent answers" in body]
    assert len(told_so) == 1


async def test_of_two_accounts_in_a_room_one_answers(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    one, two, alice = await people("one"), await people("two"), await people("alice")
    made = config(
        armorclaw_folder,
        {"main": account(one, homeserver), "second": account(two, homeserver)},
        {"echo": inside(), "other": inside(account="second")},
        access=AccessSection(trusted=(alice.user_id,), commands=(alice.user_id,)),
    )
    async with running(made) as (bridge, _):
        room = await alice.create_room(one.user_id, two.user_id)
        for bot in (one, two):
            await joined(alice, room, bot)
        await until(lambda: len(bridge.routing.in_room(room)) == 2)
        expected = [
            ("!claw who", one, "Nobody answers here."),
            ("!claw use other command", two, "other answers here from now on"),
            ("!claw who", two, "Here answers:"),
            (f"!claw who {one.user_id}", one, "account second"),
        ]

        async def heard() -> list[dict[str, Any]]:
            return [raw for raw in await alice.read(room) if raw["sender"] != alice.user_id]

        async def is_answered(times: int) -> bool:
            return len(await heard()) >= times

        for times, (order, _, _) in enumerate(expected, 1):
            await say(alice, room, order)
            await until(partial(is_answered, times), 40)
        await trio.sleep(QUIET)
        found = await heard()
        assert [raw["sender"] for raw in found] == [bot.user_id for _, bot, _ in expected]
        assert all(words in raw["content"]["body"] for raw, (*_, words) in zip(found, expected, strict=True))


async def test_a_room_that_is_replaced_takes_its_agents_along(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice = await people("bot"), await people("alice")
    alias = f"claw{secrets.token_hex(4)}"
    public = await alice.create_room(bot.user_id, preset="public_chat", room_alias_name=alias)
    private = await alice.create_room(bot.user_id)
    server = alice.user_id.partition(":")[2]
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver, "granted")},
        {"echo": inside(f"#{alias}:{server}"), "asked": inside()},
        routes=(Route("asked", room=private, respond="command"),),
    )
    async with running(made) as (bridge, speakers):
        await joined(alice, public, bot)
        await joined(alice, private, bot)
        await say(alice, public, "before")
        await until(lambda: speakers["echo"].bodies == ["before"], 40)
        new = {}
        for room in (public, private):
            answer = await alice.call("POST", f"rooms/{room}/upgrade", {"new_version": "10"})
            new[room] = answer["replacement_room"]
        await alice.call("POST", f"rooms/{new[private]}/invite", {"user_id": bot.user_id})
        for room in (public, private):
            await joined(alice, new[room], bot)
        await say(alice, new[public], "after")
        await say(alice, new[private], "not this")
        await say(alice, new[private], "!asked this")
        await until(lambda: speakers["echo"].bodies == ["before", "after"], 40)
        await until(lambda: _has(alice, new[public], bot, "echo: after"), 40)
        await until(lambda: speakers["asked"].bodies == ["!asked this"], 40)
        explained = await bridge.call("policy.explain", room=new[private])
        assert (explained["replaces"], explained["level"]) == ([private], "route")
        await until(lambda: bridge.accounts.room_id("main", f"#{alias}:{server}") == new[public])
    async with running(made) as (_, speakers):
        await say(alice, new[private], "!asked again")
        await until(lambda: speakers["asked"].bodies[-1:] == ["!asked again"], 40)


@pytest.mark.mission("S.5")
async def test_strangers_are_turned_away_where_that_is_wanted(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    bot, alice = await people("bot"), await people("alice")
    look_alike = await people(alice.name.replace("alice", "a1ice"), exactly=True)
    made = config(
        armorclaw_folder,
        {"main": account(bot, homeserver)},
        {"echo": inside()},
        access=AccessSection(trusted=(alice.user_id,), strangers="reject"),
        routes=(Route("echo", dm=True),),
    )
    async with running(made) as (_, speakers):
        room = await direct_chat(look_alike, bot)

        async def declined() -> bool:
            state = await look_alike.call("GET", f"rooms/{room}/state/m.room.member/{bot.user_id}")
            return bool(state["membership"] == "leave")

        await until(declined, 40)
        hers = await direct_chat(alice, bot)
        await joined(alice, hers, bot)
        assert speakers["echo"].bodies == []


async def test_two_agents_of_two_accounts_in_one_room_do_not_answer_each_other(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    first, second, alice = await people("first"), await people("second"), await people("alice")
    room = await alice.create_room(first.user_id, second.user_id)
    made = config(
        armorclaw_folder,
        {"main": account(first, homeserver), "other": account(second, homeserver)},
        {"one": inside(room), "two": inside(room, account="other")},
    )
    async with running(made) as (bridge, speakers):
        await joined(alice, room, first)
        await joined(alice, room, second)
        await say(alice, room, "hello")
        await until(lambda: _has(alice, room, first, "one: hello"), 40)
        await until(lambda: _has(alice, room, second, "two: hello"), 40)
        await say(alice, room, "done")
        await until(lambda: _has(alice, room, first, "one: done"), 40)
        await until(lambda: _has(alice, room, second, "two: done"), 40)
        await trio.sleep(QUIET)
        assert speakers["one"].bodies == speakers["two"].bodies == ["hello", "done"]
        assert len(await answers(alice, room, first)) == len(await answers(alice, room, second)) == 2
        kept = {event.sender: event.addressed for event in await _journal(bridge)}
        assert kept == {alice.user_id: None, first.user_id: (), second.user_id: ()}  # operators may see it


async def test_an_agent_hears_another_where_it_is_to(
    homeserver: Homeserver, people: MakePerson, armorclaw_folder: Path
) -> None:
    first, second, alice = await people("first"), await people("second"), await people("alice")
    room = await alice.create_room(first.user_id, second.user_id)
    made = config(
        armorclaw_folder,
        {"main": account(first, homeserver), "other": account(second, homeserver)},
        {"one": inside(room), "two": inside(room, account="other")},
        access=AccessSection(talk=(Talk("one", "two"),)),
    )
    async with running(made) as (_, speakers):
        await joined(alice, room, first)
        await joined(alice, room, second)
        await say(alice, room, "hello")
        await until(lambda: sorted(speakers["two"].bodies) == ["hello", "one: hello"], 40)
        await until(lambda: _has(alice, room, second, "two: one: hello"), 40)
        await say(alice, room, "done")
        await until(lambda: "done" in speakers["one"].bodies, 40)
        assert speakers["one"].bodies == ["hello", "done"]  # what two says is not for one


async def _is_direct(bot: Person, person: Person, room: str) -> bool:
    """Whether the bot has noted that this is its chat with that person, and no other."""
    path = f"/_matrix/client/v3/user/{bot.user_id}/account_data/m.direct"
    answer = await bot.http.get(path, headers={"Authorization": f"Bearer {bot.token}"})
    return answer.status_code == 200 and bool(answer.json() == {person.user_id: [room]})


async def _has(person: Person, room: str, bot: Person, body: str) -> bool:
    return body in await answers(person, room, bot)


async def _some(person: Person, room: str, bot: Person) -> bool:
    return bool(await answers(person, room, bot))


async def _journal(bridge: Bridge) -> Sequence[Any]:
    page = await bridge.journal.after(0, 1000, allowed=lambda event: event.type == "m.room.message")
    return page.events


ECHO = """
from armorclaw.agent import Agent

agent = Agent()

@agent.on_message
def answer(message):
    message.reply("echo: " + message.body)

agent.run()
"""


def test_a_daemon_and_its_command_line(homeserver: Homeserver, armorclaw_folder: Path) -> None:
    """An agent in a process of its own has its rooms by a route alone, also when it is started again."""
    code = armorclaw_folder / "echo.py"
    code.write_text(ECHO)
    person, stranger = new_person(homeserver, "alice"), new_person(homeserver, "mallory")
    bridge = BridgeProcess.for_homeserver(
        homeserver,
        armorclaw_folder,
        access={"trusted": [person.user_id]},
        agents={"echo": {"runtime": "process", "code": code}},
    )
    room = person.create_room("routed", invite=[bridge.user_id, stranger.user_id])
    bridge.config["routes"] = [{"agent": "echo", "room": room, "respond": "command"}]
    with person, stranger, bridge:
        wait_until(lambda: bridge.user_id in person.members(room), 40, "it joins")
        wait_until(lambda: bridge.call("containers.list")[0]["state"] == "ready", 40, "it is ready")
        bridge.call("containers.restart", name="echo", timeout=20)
        wait_until(lambda: bridge.call("containers.list")[0]["state"] == "ready", 40, "it is ready again")
        stranger.join(room)
        stranger.send(room, "!echo me")
        person.send(room, "hello")
        asked = person.send(room, "!echo this")
        assert person.wait_for(lambda seen: seen.sender == bridge.user_id, timeout=40).body == "echo: !echo this"

        def explain(*words: str) -> str:
            command = [sys.executable, "-m", "armorclaw", "explain", room, "--socket", str(bridge.socket), *words]
            return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

        assert explain("--text", "!echo").splitlines() == [
            f"room     {room}  join, account main",
            "route    echo             command   routes[0]",
            f"said by  {person.user_id}  trusted",
            "rule     route decides (routes[0]): the room is routed so",
            "heard by echo",
        ]
        assert explain("--event", asked).splitlines()[-2:] == [
            "heard by echo",
            "         when it came it was for echo",
        ]
        refused = json.loads(explain("--sender", stranger.user_id, "--json"))
        assert (refused["rule"], refused["where"], refused["agents"]) == ("stranger", "access.trusted", [])
