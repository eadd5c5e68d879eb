"""What a homeserver speaks, as it says itself. Pure but for `ask`.

Specification: Client-Server API, "GET /_matrix/client/versions".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs
from mautrix.api import Method, PathBuilder
from mautrix.errors import MatrixResponseError

from armorclaw.matrix.transport import TrioHTTPAPI

PATH = PathBuilder("_matrix/client/versions")

_MAX_NAMES = 1000  # versions and features that are looked at


@attrs.frozen
class Versions:
    """Versions of the specification, as (1, 11), and unstable features. Old ones, called r0.x, are (0, x)."""

    spoken: frozenset[tuple[int, int]] = frozenset()
    features: frozenset[str] = frozenset()

    def at_least(self, version: tuple[int, int]) -> bool:
        """Whether it speaks this version or a later one."""
        return any(each >= version for each in self.spoken)

    @property
    def authenticated_media(self) -> bool:
        """Whether media are behind the access token (`/_matrix/client/v1/media`): from 1.11 on."""
        return self.at_least((1, 11)) or "org.matrix.msc3916.stable" in self.features

    @property
    def usable(self) -> bool:
        """Whether it has the paths that we use, which begin with `/_matrix/client/v3`: from 1.1 on."""
        return self.at_least((1, 1))


def read_versions(answer: Mapping[str, Any]) -> Versions | None:
    """None if it is not the answer of a homeserver. What has not the expected shape in it is left out."""
    versions, features = answer.get("versions"), answer.get("unstable_features")
    if not isinstance(versions, list):
        return None
    found = (_number(each) for each in versions[:_MAX_NAMES])
    named = features if isinstance(features, dict) else {}
    on = frozenset(name for name, value in list(named.items())[:_MAX_NAMES] if value is True)
    return Versions(frozenset(each for each in found if each is not None), on)


async def ask(api: TrioHTTPAPI) -> Versions:
    """Ask a homeserver, without saying who we are. Raises MatrixError."""
    found = read_versions(await api.request(Method.GET, PATH, authorized=False))
    if found is None:
        raise MatrixResponseError("the answer to /versions names none")
    return found


def _number(text: object) -> tuple[int, int] | None:
    if isinstance(text, str) and (found := re.fullmatch(r"v([0-9]{1,4})\.([0-9]{1,4})", text, re.ASCII)):
        return int(found[1]), int(found[2])
    if isinstance(text, str) and (found := re.fullmatch(r"r0\.([0-9]{1,4})\.[0-9]{1,4}", text, re.ASCII)):
        return 0, int(found[1])
    return None
