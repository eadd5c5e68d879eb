"""Calls with a type: what the generated methods of clients (armorclaw/typed.py) stand on.

Whatever can make a call by name is a `Caller`: a connection to a bridge, or the bridge itself in its own program.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.shape import wire_name
from armorclaw.rpc.structure import piece_reader, writer

Chunk = TypeVar("Chunk")
Upload = TypeVar("Upload")
Result = TypeVar("Result")

OnProgress = Callable[[float, float | None, str], object]
"""Called with how much is done, of how much in all (None: nobody knows), and what is being done."""


NOTHING: Mapping[str, Any] = MappingProxyType({})
"""An object without members, as a default."""


class RawStream(Protocol):
    """An open call of a streaming method, in JSON values."""

    async def send(self, value: Any, /) -> None: ...
    async def end(self) -> None: ...
    async def __anext__(self) -> Any: ...
    async def result(self) -> Any: ...


class Caller(Protocol):
    """Who makes calls by name, with params as the wire has them."""

    async def call(self, method: str, /, **params: Any) -> Any: ...

    def stream(
        self, method: str, /, *, on_progress: OnProgress | None = None, **params: Any
    ) -> AbstractAsyncContextManager[RawStream]: ...


class Stream(Generic[Chunk, Upload, Result]):
    """An open call: its chunks by `async for`, its result once they have ended. Leaving the block cancels it."""

    def __init__(self, raw: RawStream, method: str, chunk: Any, result: Any) -> None:
        self._raw = raw
        self._method = method
        self._chunk = chunk
        self._result = result

    async def send(self, value: Upload) -> None:
        """Send one piece of the upload; waits until the other side takes more."""
        await self._raw.send(value if isinstance(value, bytes) else _plain(value))

    async def end(self) -> None:
        """The upload is complete."""
        await self._raw.end()

    def __aiter__(self) -> Stream[Chunk, Upload, Result]:
        return self

    async def __anext__(self) -> Chunk:
        value = await self._raw.__anext__()
        if self._chunk is bytes:
            value = base64.b64decode(value)
        else:
            value = _taken(self._method, self._chunk, value)
        made: Chunk = value
        return made

    async def result(self) -> Result:
        """What the call ended with. Raises the error that it was answered with."""
        made: Result = _taken(self._method, self._result, await self._raw.result())
        return made


async def ask(caller: Caller, method: str, result: type[Result] | None, params: dict[str, Any]) -> Result:
    """Make a call: its result in the shape `result`. Raises `remote_failed` for one that has another shape."""
    made: Result = _taken(method, result, await caller.call(method, **params))
    return made


@asynccontextmanager
async def open_stream(
    caller: Caller,
    method: str,
    params: dict[str, Any],
    on_progress: OnProgress | None,
    *,
    chunk: Any,
    result: Any,
) -> AsyncIterator[Stream[Any, Any, Any]]:
    """Call a streaming method, for the length of the block."""
    async with caller.stream(method, on_progress=on_progress, **params) as raw:
        yield Stream(raw, method, chunk, result)


def given(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """These params of the class `cls` as the wire has them, without those that are as by default.

    So a bridge that does not know a param yet refuses it only when it is used.
    """
    params: dict[str, Any] = {}
    for field in attrs.fields(cls):
        value = _plain(values[field.name])
        factory = getattr(field.default, "factory", None)
        default = field.default if factory is None else factory()
        if type(value) is not type(default) or value != default:
            params[wire_name(field.name)] = value
    return params


def _taken(method: str, shape: Any, value: Any) -> Any:
    if shape is None:  # an empty object says nothing
        return None
    try:
        return _reader(shape)(value)
    except ArmorclawError as error:
        what, hint = f"the answer to {method} has not its shape", "are both sides of one version?"
        raise ArmorclawError("remote_failed", what, why=str(error), hint=hint) from None


@lru_cache(maxsize=256)
def _reader(shape: Any) -> Callable[[Any], Any]:
    return piece_reader(shape, open=True)


_unstructure = writer(Any)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return _unstructure(value)
