"""Attached files on the wire."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import trio

from armorclaw.configs.library import FILE_LIMIT, Config, Configs, Label, too_large
from armorclaw.configs.shapes import AttachConfig, ConfigAttached, ConfigListed, ListConfigs
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role

FIRST_PIECE = 3.0
"""Seconds in which an upload must begin. A call without content that nothing follows has just forgotten it, and its
client waits 5 s for the answer."""


def register(registry: Registry, configs: Configs) -> None:
    """Adds attach_config for operators, and list_configs, where an agent sees what it can read."""

    @registry.method("attach_config", params=AttachConfig, result=ConfigAttached, upload=bytes, roles={Role.OPERATOR})
    async def attach_config(call: Call, params: AttachConfig) -> ConfigAttached:
        """Give agents a file to read, at once and while they run.

        It is kept over restarts, in place of one of the same name. Up to 16 MiB by `$/upload`, in pieces of base64,
        of which the first must come within 3 s; for an empty file the end alone, `{"id":…,"seq":0,"end":true}`. As
        `content` what fits into one message, about 740 KiB as base64.
        """
        label = Label(params.name, params.agent, params.type, params.encoding, params.metadata)
        pieces = _uploaded(call) if params.content is None else _inline(params)
        config = await configs.attach(label, pieces, by=f"uid {call.uid}")
        return ConfigAttached(
            config_id=config.config_id,
            name=label.name,
            path=config.path,
            size=config.entry.size,
            type=label.type,
            encoding=label.encoding,
            agent=label.agent,
            metadata=params.metadata,
        )

    @registry.method("list_configs", params=ListConfigs, result=list[ConfigListed], roles={Role.OPERATOR, Role.AGENT})
    async def list_configs(call: Call, params: ListConfigs) -> list[ConfigListed]:
        """The files that are attached."""
        if call.agent is not None and params.agent not in (None, call.agent):
            raise ArmorclawError("denied", "the configs of another agent")
        return [_listed(config) for config in await configs.list(call.agent or params.agent)]


async def _inline(params: AttachConfig) -> AsyncIterator[bytes]:
    content = params.content or ""
    if params.encoding == "raw":
        try:
            yield content.encode()
        except UnicodeEncodeError:
            raise _invalid("text, without half of a pair of surrogates") from None
        return
    if len(content) // 4 * 3 > FILE_LIMIT + 3:  # before it is decoded
        raise too_large(params.name)
    try:
        yield base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("base64, as encoding says") from None


async def _uploaded(call: Call) -> AsyncIterator[bytes]:
    pieces = call.uploads()
    first = None
    with trio.move_on_after(FIRST_PIECE) as scope:
        first = await anext(pieces, None)
    if scope.cancelled_caught:
        hint = "give content, or send it by $/upload, which must begin at once"
        raise ArmorclawError("invalid_params", "content is missing", hint=hint, fields=["content"])
    if first is None:
        return  # an empty file
    yield first
    async for piece in pieces:
        yield piece


def _listed(config: Config) -> ConfigListed:
    label, entry = config.label, config.entry
    modified = datetime.fromtimestamp(entry.modified_ns // 1_000_000_000, UTC)
    return ConfigListed(
        name=label.name,
        path=config.path,
        size=entry.size,
        modified=modified.strftime("%Y-%m-%dT%H:%M:%SZ"),
        config_id=config.config_id,
        type=label.type,
        encoding=label.encoding,
        agent=label.agent,
        metadata=None if label.metadata is None else dict(label.metadata),
    )


def _invalid(rule: str) -> ArmorclawError:
    return ArmorclawError("invalid_params", "content is not valid", why=f"it must be {rule}", fields=["content"])
