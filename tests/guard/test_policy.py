from __future__ import annotations

from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.config import AccessSection, Talk
from armorclaw.guard.policy import BRIDGE, Decision, Level, Place, Policy, Routed, Said

BOT, ALICE, BOB, EVE = "@bot:x", "@alice:x", "@bob:x", "@eve:evil"
ROOM = "!r:x"
ECHO = Routed("echo", "always", "agents.echo.rooms")
OPEN = Place("main", [ROOM], BOT, "Claw", None, True, "route", [ECHO], frozenset({"echo"}))


def text(sender: str | None = ALICE, body: str = "hello", **more: Any) -> Said:
    return attrs.evolve(Said(sender, is_text=True, body=body), **more)


def routed(*pairs: tuple[str, str]) -> Place:
    entries = [Routed(agent, respond, f"routes[{at}]") for at, (agent, respond) in enumerate(pairs)]  # type: ignore[arg-type]
    return attrs.evolve(OPEN, routed=entries, hearing=frozenset(agent for agent, _ in pairs))


def decide(place: Place, said: Said, **access: object) -> Decision:
    return Policy(AccessSection(**access)).decide(place, said)  # type: ignore[arg-type]


# --- the rules, in their order ---


def test_without_a_word_of_trust_everybody_is_heard_in_rooms_that_are_granted_by_name() -> None:
    assert decide(OPEN, text(EVE)) == Decision("route", "the room is routed so", "agents.echo.rooms", True, None)
    unnamed = attrs.evolve(OPEN, by_name=False)
    refused = decide(unnamed, text(EVE))
    assert (refused.rule, refused.where, refused.kept) == ("stranger", "access.trusted", False)


def test_an_account_never_hears_itself() -> None:
    assert decide(OPEN, text(BOT), trusted=(BOT,)).rule == "own"


def test_with_trusted_people_nobody_else_is_heard() -> None:
    assert decide(OPEN, text(ALICE), trusted=(ALICE,)).addressed is None
    for sender in (EVE, "@Alice:x", "@alice:X", "@alice:x.", "@alice:x:8448", "@аlice:x"):
        refused = decide(OPEN, text(sender), trusted=(ALICE,))
        assert (refused.rule, refused.kept, refused.addressed, refused.tell) == ("stranger", False, (), False)
    assert decide(OPEN, text(BOB), trusted=("*:x",)).kept


def test_in_other_rooms_than_those_named_nobody_is_heard() -> None:
    refused = decide(OPEN, text(), trusted=(ALICE,), commands=(ALICE,), rooms=("!other:x",))
    assert (refused.rule, refused.where, refused.kept) == ("elsewhere", "access.rooms", False)
    replaced = attrs.evolve(OPEN, lineage=["!new:x", ROOM])
    assert decide(replaced, text(), rooms=(ROOM,)).kept  # a room that replaced one of them counts as it


@pytest.mark.parametrize(
    "program",
    [{"is_notice": True}, {"speaker": "other"}, {"speaker": ""}, {"sender_account": "second"}],
    ids=["notice", "marked", "marked without a name", "account of ours"],
)
def test_programs_are_for_no_agent_by_themselves(program: dict[str, Any]) -> None:
    for trusted in ((), (ALICE,)):
        decision = decide(OPEN, text(**program), trusted=trusted, commands=(ALICE,))
        assert (decision.rule, decision.addressed) == ("program", ())
        assert decision.kept  # for operators to see
    empty = attrs.evolve(OPEN, routed=[], level=None, hearing=frozenset())
    assert not decide(empty, text(**program)).kept


@pytest.mark.parametrize("program", [{"is_notice": True}, {"speaker": "other"}, {"speaker": ""}])
def test_programs_of_strangers_are_strangers(program: dict[str, Any]) -> None:
    """Else whoever is in the room could fill the journal with notices."""
    decision = decide(OPEN, text(EVE, **program), trusted=(ALICE,), commands=(ALICE,))
    assert (decision.rule, decision.kept) == ("stranger", False)
    assert not decide(attrs.evolve(OPEN, by_name=False), text(EVE, **program)).kept
    ours = decide(OPEN, text(EVE, sender_account="second", **program), trusted=(ALICE,))
    assert (ours.rule, ours.kept, ours.addressed) == ("program", True, ())


def test_an_agent_hears_the_agents_that_it_may() -> None:
    talk = (Talk("planner", "echo"), Talk("@helper:other", "echo"))
    place = attrs.evolve(routed(("echo", "always"), ("other", "always")), user_id="@second:x")
    heard = decide(place, text(BOT, speaker="planner", sender_account="main"), talk=talk)
    assert (heard.rule, heard.where, heard.addressed) == ("talk", "access.talk[0]", ("echo",))
    bot = decide(place, text("@helper:other", is_notice=True), talk=talk, trusted=(ALICE,))
    assert (bot.rule, bot.where, bot.addressed) == ("talk", "access.talk[1]", ("echo",))
    plain = decide(place, text("@helper:other"), talk=talk, trusted=(ALICE,))  # it need not be trusted beside that
    assert (plain.rule, plain.addressed) == ("talk", ("echo",))


def test_the_name_of_an_agent_is_only_believed_from_an_account_of_ours() -> None:
    talk = (Talk("planner", "echo"),)
    forged = decide(OPEN, text(EVE, speaker="planner"), talk=talk, trusted=(EVE,))
    assert (forged.rule, forged.addressed) == ("program", ())
    other = decide(OPEN, text(BOB, speaker="somebody", sender_account="second"), talk=talk)
    assert (other.rule, other.addressed) == ("program", ())


def test_what_an_agent_responds_to_counts_for_agents_too() -> None:
    place, talk = routed(("echo", "mention")), (Talk("planner", "echo"),)
    said = text(BOB, speaker="planner", sender_account="second")
    quiet = decide(place, said, talk=talk)
    assert (quiet.rule, quiet.kept) == ("talk", False)
    asked = decide(place, attrs.evolve(said, mentions=frozenset({BOT})), talk=talk)
    assert (asked.rule, asked.addressed) == ("talk", ("echo",))


@pytest.mark.parametrize("body", ["!claw", "!claw help", "!CLAW status", "!claw\nuse echo", "  !claw help"])
def test_orders_are_for_the_bridge(body: str) -> None:
    decision = decide(OPEN, text(body=body), commands=(ALICE,))
    assert (decision.rule, decision.where, decision.addressed) == ("order", "access.commands", (BRIDGE,))
    assert decide(OPEN, text(EVE, body=body), commands=(ALICE,)).addressed is None  # from others they are just words
    assert decide(OPEN, text(body=body)).addressed is None


@pytest.mark.parametrize("body", ["!clawhelp", "claw help", "say !claw help", "! claw", "!clаw help"])
def test_what_is_no_order(body: str) -> None:
    assert decide(OPEN, text(body=body), commands=(ALICE,)).rule == "route"


def test_an_edit_gives_no_order() -> None:
    edit = attrs.evolve(text(body="!claw stop echo"), is_text=False)
    assert decide(OPEN, edit, commands=(ALICE,)).rule == "route"


def test_reactions_to_what_the_bridge_said_are_orders_too() -> None:
    reaction = Said(ALICE, is_reaction=True, answers=frozenset({BRIDGE}))
    assert decide(OPEN, reaction, commands=(ALICE,)).addressed == (BRIDGE,)
    assert decide(OPEN, reaction, commands=(BOB,)).addressed is None
    assert decide(OPEN, attrs.evolve(reaction, answers=frozenset({"echo"})), commands=(ALICE,)).addressed is None


def test_who_may_give_orders_is_trusted() -> None:
    assert decide(attrs.evolve(OPEN, by_name=False), text(), commands=(ALICE,)).kept
    assert decide(OPEN, text(), trusted=(BOB,), commands=(ALICE,)).kept


def test_words_of_the_bridge_are_for_all_unless_they_are_about_a_stranger() -> None:
    place = routed(("echo", "mention"))
    assert decide(place, Said(None, is_own_word=True)) == Decision(
        "bridge", "the bridge says it to all who hear the room", "", True, None
    )
    about = decide(place, Said(EVE, is_own_word=True), trusted=(ALICE,))
    assert (about.rule, about.kept, about.addressed) == ("stranger", True, ())
    elsewhere = decide(place, Said(None, is_own_word=True), rooms=("!other:x",))
    assert (elsewhere.rule, elsewhere.kept, elsewhere.addressed) == ("elsewhere", True, ())


# --- in the clear ---


@pytest.mark.mission("S.5")
@pytest.mark.parametrize(
    ("said", "more"),
    [
        (text(), {}),
        (text(), {"trusted": (ALICE,)}),
        (text(body="!claw stop echo"), {"commands": (ALICE,)}),
        (text(EVE, is_notice=True), {"talk": (Talk(EVE, "echo"),)}),
    ],
    ids=["anybody", "trusted", "order", "talk"],
)
def test_what_is_in_the_clear_where_it_should_not_be_is_kept_for_operators(said: Said, more: dict[str, Any]) -> None:
    assert decide(OPEN, said, **more).addressed != ()
    decision = decide(OPEN, attrs.evolve(said, in_clear=True), **more)
    assert (decision.rule, decision.kept, decision.addressed) == ("clear", True, ())


def test_in_the_clear_or_not_a_stranger_is_one_and_nobody_is_told_how_to_route() -> None:
    stranger = decide(OPEN, text(EVE, in_clear=True), trusted=(ALICE,))
    assert (stranger.rule, stranger.kept) == ("stranger", False)
    direct = attrs.evolve(OPEN, level=None, routed=[], hearing=frozenset(), direct=ALICE)
    asked = decide(direct, text(in_clear=True), trusted=(ALICE,))
    assert (asked.rule, asked.kept, asked.tell) == ("clear", False, False)


# --- what an agent responds to ---


@pytest.mark.parametrize(
    "said, responds",
    [
        (text(), "always"),
        (text(body="!echo do it"), "always mention reply command"),
        (text(body="!ECHO"), "always mention reply command"),
        (text(body="!echoes"), "always"),
        (text(body="do !echo"), "always"),
        (text(answers=frozenset({"echo"})), "always mention reply"),
        (text(answers=frozenset({"other"})), "always"),
        (Said(ALICE, is_reaction=True, answers=frozenset({"echo"})), "always mention reply"),
        (Said(ALICE, follows=frozenset({"echo"})), "always mention reply command"),
        (text(mentions=frozenset({BOT})), "always mention"),
        (text(mentions=frozenset({BOB})), "always"),
        (text(body=f"ask {BOT}: when?", mentions=frozenset()), "always"),  # it says that it mentions nobody
        (text(body=f"ask {BOT}: when?"), "always mention"),
        (text(body="claw, when?"), "always mention"),
        (text(body="CLAW"), "always mention"),
        (text(body="clawing clawed outclaw"), "always"),
        (Said(ALICE), "always"),
    ],
)
def test_what_an_agent_hears_by_what_it_responds_to(said: Said, responds: str) -> None:
    for respond in ("always", "mention", "reply", "command"):
        decision = decide(routed(("echo", respond)), said)
        assert decision.rule == "route"
        assert decision.kept is (respond in responds.split()), respond
        assert decision.addressed == (() if not decision.kept else None if respond == "always" else ("echo",))


def test_without_a_name_nothing_is_a_mention() -> None:
    nameless = attrs.evolve(routed(("echo", "mention")), user_id=None, display_name=None)
    assert not decide(nameless, text(body="None ")).kept
    assert not decide(attrs.evolve(nameless, display_name=""), text()).kept


def test_only_agents_of_the_room_s_rule_are_addressed() -> None:
    place = routed(("echo", "always"), ("helper", "mention"))
    assert decide(place, text()).addressed == ("echo",)
    both = decide(place, text(mentions=frozenset({BOT})))
    assert (both.addressed, both.where) == (("echo", "helper"), "routes[0], routes[1]")
    guest = attrs.evolve(OPEN, hearing=frozenset({"echo", "guest"}))
    assert decide(guest, text()).addressed == ("echo",)


def test_where_nobody_answers_people_may_be_told() -> None:
    nobody = attrs.evolve(OPEN, level=None, routed=[], hearing=frozenset())
    assert not decide(nobody, text(), trusted=(ALICE,)).tell
    direct = attrs.evolve(nobody, direct=ALICE)
    asked = decide(direct, text(), trusted=(ALICE,))
    assert (asked.rule, asked.kept, asked.tell) == ("unrouted", False, True)
    assert decide(nobody, text(mentions=frozenset({BOT})), trusted=(ALICE,)).tell
    assert not decide(direct, Said(ALICE), trusted=(ALICE,)).tell  # such as a change of the topic
    for quiet in (text(EVE), text(is_notice=True), text(BOT)):
        assert not decide(direct, quiet, trusted=(ALICE,)).tell


# --- invitations ---


@pytest.mark.parametrize("invites", ["granted", "trusted", "none"])
@pytest.mark.parametrize("strangers", ["ignore", "reject"])
@pytest.mark.parametrize("inviter", [ALICE, EVE, None])
@pytest.mark.parametrize("granted", [True, False])
def test_invitations(invites: str, strangers: str, inviter: str | None, granted: bool) -> None:
    policy = Policy(AccessSection(trusted=(ALICE,), strangers=strangers))  # type: ignore[arg-type]
    answer = policy.invited(invites, inviter, [ROOM], granted=granted)  # type: ignore[arg-type]
    if invites != "none" and (granted or (invites == "trusted" and inviter == ALICE)):
        assert answer == "accept"
    elif strangers == "reject" and inviter != ALICE and not granted:
        assert answer == "decline"
    else:
        assert answer == "ignore"


def test_an_invitation_needs_trust_by_name() -> None:
    assert Policy(AccessSection()).invited("trusted", ALICE, [ROOM], granted=False) == "ignore"
    only = Policy(AccessSection(trusted=(ALICE,), rooms=("!other:x",)))
    assert only.invited("trusted", ALICE, [ROOM], granted=False) == "ignore"
    assert only.invited("trusted", ALICE, ["!other:x"], granted=False) == "accept"


# --- whatever is said ---

people = st.sampled_from([BOT, ALICE, BOB, EVE, "@second:x", "@Alice:x", "@alice:x.", "@аlice:x", "alice", ""])
agents = st.sampled_from(["echo", "helper", "planner"])
patterns = st.sampled_from([ALICE, BOB, "*:x", "*:evil"])
words = st.sampled_from(["hello", "!claw help", "!echo hi", "Claw?", BOT, ""])
said_by_any = st.builds(
    Said,
    st.none() | people,
    is_text=st.booleans(),
    is_reaction=st.booleans(),
    body=words,
    mentions=st.none() | st.frozensets(people),
    is_notice=st.booleans(),
    speaker=st.none() | agents | st.just(""),
    sender_account=st.none() | st.just("second"),
    answers=st.frozensets(agents | st.just(BRIDGE)),
    follows=st.frozensets(agents | st.just(BRIDGE)),
    is_own_word=st.booleans(),
    in_clear=st.booleans(),
)
rows = st.builds(Routed, agents, st.sampled_from(["always", "mention", "reply", "command"]), st.just("routes[0]"))


@st.composite
def places(draw: st.DrawFn) -> Place:
    entries = draw(st.lists(rows, max_size=3, unique_by=lambda row: row.agent))
    level: Level | None = draw(st.sampled_from(get_args(Level))) if entries else None
    extra = draw(st.frozensets(agents))
    names = frozenset(row.agent for row in entries)
    direct, by_name = draw(st.none() | people), draw(st.booleans())
    return Place("main", [ROOM], BOT, "Claw", direct, by_name, level, entries, names | extra)


accesses = st.builds(
    AccessSection,
    trusted=st.lists(patterns, max_size=2).map(tuple),
    rooms=st.sampled_from([(), (ROOM,), ("!other:x",)]),
    commands=st.lists(patterns, max_size=1).map(tuple),
    talk=st.lists(st.builds(Talk, agents | patterns, agents), max_size=2).map(tuple),
)


def known(access: AccessSection, place: Place, sender: str) -> bool:
    """Said again in other words: by name, or because nobody is named and the room is granted by name."""

    def named(entries: tuple[str, ...]) -> bool:
        return any(
            entry == sender or (entry[0] == "*" and sender.startswith("@") and sender.endswith(entry[1:]))
            for entry in entries
        )

    return named(access.trusted) or named(access.commands) or (not access.trusted and place.by_name)


@pytest.mark.mission("S.5")
@given(accesses, places(), said_by_any)
def test_nobody_untrusted_is_ever_heard(access: AccessSection, place: Place, said: Said) -> None:
    policy = Policy(access)
    decision = policy.decide(place, said)
    reaches = decision.kept and decision.addressed != ()
    assert not (said.in_clear and (reaches or decision.tell))
    if reaches and said.sender is not None and said.sender_account is None:
        assert policy.listens(place, said.sender)
    if reaches and said.sender is not None and not known(access, place, said.sender):
        assert decision.rule == "talk"
    if reaches and access.rooms == ("!other:x",):
        raise AssertionError("somebody is heard where nobody is to be")
    assert not (decision.tell and not known(access, place, said.sender or ""))


@given(accesses, places(), said_by_any)
def test_nothing_of_our_own_ever_loops(access: AccessSection, place: Place, said: Said) -> None:
    """What a program said reaches only an agent that is to hear that very program, and never its own account."""
    decision = Policy(access).decide(place, said)
    if said.is_own_word or not decision.kept or decision.addressed == ():
        return
    assert said.sender is None or said.sender != place.user_id
    if said.sender is not None and (said.is_notice or said.speaker is not None or said.sender_account is not None):
        assert decision.rule == "talk"
        assert decision.addressed
        for agent in decision.addressed:
            speakers = [each.from_ for each in access.talk if each.to == agent]
            by_name = said.sender_account is not None and said.speaker in speakers
            assert by_name or any(each[0] in "@*" for each in speakers)
    assert not (decision.tell and said.is_notice)


@given(accesses, places(), said_by_any)
def test_one_rule_decides_and_says_so(access: AccessSection, place: Place, said: Said) -> None:
    policy = Policy(access)
    decision = policy.decide(place, said)
    assert decision == policy.decide(place, said)
    assert decision.why
    assert decision.where or decision.rule in ("own", "bridge", "clear")
    if decision.kept and decision.addressed is None:
        assert decision.rule == "bridge" or place.hearing <= {each.agent for each in place.routed}
    for name in decision.addressed or ():
        assert name in {each.agent for each in place.routed} or (name, decision.rule) == (BRIDGE, "order")
    assert decision.kept or decision.addressed == ()


@given(places(), said_by_any)
def test_an_empty_configuration_hears_what_it_always_has(place: Place, said: Said) -> None:
    """Rooms that are granted by name and nothing else: all that people say there is for all who may hear it."""
    routed = [attrs.evolve(each, respond="always") for each in place.routed]
    named = attrs.evolve(place, by_name=bool(routed), level="route" if routed else None, routed=routed,
                         hearing=frozenset(each.agent for each in routed))  # fmt: skip
    person = attrs.evolve(said, is_notice=False, speaker=None, sender_account=None, in_clear=False)
    decision = Policy(AccessSection()).decide(named, person)
    if routed and (person.is_own_word or person.sender not in (None, BOT)):
        assert (decision.kept, decision.addressed) == (True, None)
    assert not decision.tell
