"""What homeservers say they speak, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Clock
from armorclaw.matrix.client import VERSIONS_KEPT, MatrixClient
from armorclaw.matrix.transport import TrioHTTPAPI
from armorclaw.matrix.versions import Versions, read_versions
from armorclaw.testing.homeserver import Homeserver
from tests.faults.town import Town
from tests.faults.wire import Wire
from tests.matrix.fake_homeserver import Asked, Raw, Reply


def test_versions_are_numbers_and_features_those_that_are_on() -> None:
    found = read_versions(
        {
            "versions": ["r0.0.1", "r0.6.1", "v1.1", "v1.10", "v1.9", "", "v1", "v1.2.3", "v1.x", 5, None, "v٣.1"],
            "unstable_features": {"a": True, "b": False, "c": "yes", "d": 1},
        }
    )
    assert found == Versions(frozenset({(0, 0), (0, 6), (1, 1), (1, 10), (1, 9)}), frozenset({"a"}))


@pytest.mark.parametrize(
    "versions, features, authenticated, usable",
    [
        ([], [], False, False),
        (["r0.6.1"], [], False, False),
        (["v1.1"], [], False, True),
        (["v1.10"], [], False, True),
        (["v1.2", "v1.11"], [], True, True),
        (["v1.10"], ["org.matrix.msc3916.stable"], True, True),
        (["v2.0"], [], True, True),
    ],
)
def test_what_follows_from_them(versions: list[str], features: list[str], authenticated: bool, usable: bool) -> None:
    found = read_versions({"versions": versions, "unstable_features": dict.fromkeys(features, True)})
    assert found is not None
    assert (found.authenticated_media, found.usable) == (authenticated, usable)


@pytest.mark.parametrize("answer", [{}, {"versions": None}, {"versions": "v1.1"}, {"versions": {"v1.1": True}}])
def test_what_is_no_answer_of_a_homeserver(answer: dict[str, Any]) -> None:
    assert read_versions(answer) is None


def test_a_million_of_them_are_not_all_looked_at() -> None:
    found = read_versions({"versions": [f"v1.{n}" for n in range(5000)], "unstable_features": {}})
    assert found is not None
    assert len(found.spoken) == 1000


async def test_they_are_asked_for_once_an_hour_and_kept_while_nobody_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    town = Town()
    wire = Wire(town)
    client = MatrixClient(TrioHTTPAPI("http://town", wire, Clock()))
    client.api.token = "canary"
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(client.negotiated)
    assert (await client.negotiated()).authenticated_media
    assert wire.log == ["GET versions"]
    assert not wire.tokens, "nobody needs to know who asks"
    down = True

    async def meddle(asked: Asked) -> Reply | Raw | None:
        await trio.lowlevel.checkpoint()
        return Reply(b"<html>", 502) if down else Reply({"versions": ["v1.5"]})

    town.meddle = meddle
    await trio.sleep(VERSIONS_KEPT + 1)
    assert (await client.negotiated()).authenticated_media
    down = False
    await trio.sleep(VERSIONS_KEPT + 1)
    assert not (await client.negotiated()).authenticated_media


async def test_a_first_question_that_fails_is_an_error_and_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    town = Town()
    town.lose_next("GET versions")
    client = MatrixClient(TrioHTTPAPI("http://town", Wire(town), Clock()))
    with pytest.raises(MatrixError):
        await client.negotiated()
    assert (await client.negotiated()).usable


async def test_what_synapse_speaks(homeserver: Homeserver) -> None:
    from armorclaw.matrix.transport import open_api

    async with open_api(homeserver.url, Clock()) as api:
        found = await MatrixClient(api).negotiated()
    assert found.usable
    assert found.authenticated_media
