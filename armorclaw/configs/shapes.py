"""What the methods of attached files take and answer."""

from __future__ import annotations

from typing import Literal

import attrs

from armorclaw.rpc.shape import omit_none


@attrs.frozen
class AttachConfig:
    """`name` is a file name without a folder: 1 to 255 bytes, printable, no slash or backslash, no - . ~ or space at
    its beginning and no space at its end; for one agent, `shared` is taken. `agent` is who may read it; without one,
    all agents may. It need not be declared yet, as its files may be there before it.

    `content` is text, or with `encoding` "base64" any bytes. Without `content` the bytes come by `$/upload`, which is
    the way for what does not fit into one message. `type`, up to 64 characters on one line, and `metadata`,
    up to 1024 bytes as JSON, are yours: they are kept and listed.
    """

    name: str
    content: str | None = attrs.field(default=None, repr=False)
    encoding: Literal["raw", "base64"] = "raw"
    type: str = ""
    metadata: dict[str, str] | None = None
    agent: str | None = None


@omit_none
@attrs.frozen
class ConfigAttached:
    """`path` is where agents find it; `size` is bytes. `agent` and `metadata` are there if they were given."""

    config_id: str
    name: str
    path: str
    size: int
    type: str
    encoding: str
    agent: str | None = None
    metadata: dict[str, str] | None = None


@attrs.frozen
class ListConfigs:
    """`agent`: what that one can read, its own and what is for all; without it everything there is."""

    agent: str | None = None


@omit_none
@attrs.frozen
class ConfigListed:
    """As `attach_config` answered; `modified` is in the form of RFC 3339, in UTC."""

    name: str
    path: str
    size: int
    modified: str
    config_id: str
    type: str
    encoding: str
    agent: str | None = None
    metadata: dict[str, str] | None = None
