"""The agent of test_egress.py: fetches what it is asked to, with the client it is asked to."""

from __future__ import annotations

import os
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Any

from armorclaw.agent import Agent

CA = "/agent/ca.pem"
NODE = """
fetch(process.argv[1]).then(async (answer) => console.log(await answer.text()), (error) => {
  for (let each = error; each; each = each.cause) console.error(String(each));
  process.exit(1);
});
"""

agent = Agent()


def with_httpx(url: str) -> str:
    import httpx

    return httpx.get(url, verify=ssl.create_default_context(cafile=CA), timeout=20).text


def with_requests(url: str) -> str:
    import requests

    text: str = requests.get(url, verify=CA, timeout=20).text
    return text


def with_urllib(url: str) -> str:
    with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=CA), timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def with_curl(url: str) -> str:
    return run("curl", "--silent", "--show-error", "--max-time", "20", "--cacert", CA, url)


def with_node(url: str) -> str:
    return run("node", "-e", NODE, url, NODE_EXTRA_CA_CERTS=CA)


def run(*command: str, **env: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env={**os.environ, **env})
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:] or f"status {done.returncode}")
    return done.stdout


CLIENTS: dict[str, Callable[[str], str]] = {
    "httpx": with_httpx,
    "requests": with_requests,
    "urllib": with_urllib,
    "curl": with_curl,
    "node": with_node,
}


@agent.on_call("fetch")
def fetch(call: Any) -> dict[str, str]:
    try:
        return {"text": CLIENTS[call.params["client"]](call.params["url"]).strip()}
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return {"error": f"{type(error).__name__}: {error}"}


agent.run()
