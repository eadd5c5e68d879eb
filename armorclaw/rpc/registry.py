"""Every method there is: its handler, its shapes, and who may call it.

One table serves dispatch, discovery, the documentation and the generated parts of clients. A method that names no
role can be called by nobody.
"""

from __future__ import annotations

import enum
import inspect
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from armorclaw.rpc.admission import Rate
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.plain import text_reader, text_writer
from armorclaw.rpc.structure import piece_reader, reader, writer

if TYPE_CHECKING:
    from armorclaw.errors import ArmorclawError
    from armorclaw.rpc.call import Call

_encode = MsgspecCodec().encode

H = TypeVar("H", bound=Callable[..., Any])

Counted = Literal["calls", "messages", "events", "nothing"]


class Role(enum.StrEnum):
    """What a connection may do. It follows from where the connection came in, never from what it says."""

    OPERATOR = "operator"  # the bridge's own socket, its uid checked
    OBSERVER = "observer"  # may look at health and figures; never at keys or messages
    AGENT = "agent"  # the socket of one container
    REMOTE = "remote"  # a WebSocket with a token


EVERYONE = frozenset(Role)


@attrs.frozen
class NoParams:
    """The params of a method that takes none."""


@attrs.frozen
class Method:
    """One row of the table.

    `handler(call, params)` is plain or async. Plain ones run inside the reader, between two messages, and so must not
    take long (a millisecond). It returns an instance of `result`, a list of them, a dict of JSON values, or None,
    which is sent as an empty object. `open`: unknown params are ignored, for methods that field clients call with
    params of other versions. `rate`: how often each caller may call it, beside what holds for all its calls. `quota`:
    what of an agent's quotas it uses up beside its calls; "nothing" is for what an agent must say to run at all.

    A method with `chunk` or `upload` is a streaming one, its handler async and without a deadline. `chunk` is what
    pieces of the result are that it sends (`call.send`), `upload` what it reads from its caller (`call.uploads`):
    `bytes`, which is base64 on the wire, an attrs class, or a type of JSON values.

    `quick`: a plain function beside an async handler, asked first on a connection: what it returns is the answer, and
    a task is saved; None leaves the call to the handler, which must be able to answer all.

    `raw`: for a handler that hands its params on. It gets their JSON text unread (`codec.Text`), "{}" if there were
    none, and `params` only documents them. It may answer with such a text as a `msgspec.Raw`.
    """

    name: str
    handler: Callable[[Call, Any], Any]
    params: type = NoParams
    result: Any = None
    roles: frozenset[Role] = frozenset()
    doc: str = ""
    open: bool = False
    rate: Rate | None = None
    chunk: Any = None
    upload: Any = None
    raw: bool = False
    quota: Counted = "calls"
    quick: Callable[[Call, Any], Any] | None = None
    is_async: bool = attrs.field(init=False)
    streams: bool = attrs.field(init=False)
    read: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)
    """Params as the handler wants them, from decoded JSON. Raises `invalid_params`."""
    read_text: Callable[[bytes | None], Any] = attrs.field(init=False, repr=False, eq=False)
    """The same from JSON text; raises `parse_error`, too."""
    write: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)
    """A result as JSON values."""
    write_text: Callable[[Any], bytes] = attrs.field(init=False, repr=False, eq=False)
    """The same as JSON text. Raises ValueError or TypeError for what is no JSON."""
    write_chunk: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)
    """What a piece is as JSON; bytes stay bytes, as the codec makes base64 of them."""
    read_upload: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)
    """A piece of decoded JSON; not for bytes. Raises `invalid_params`."""

    @is_async.default
    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.handler)

    @streams.default
    def _streams(self) -> bool:
        streams = self.chunk is not None or self.upload is not None
        if streams and not self.is_async:
            raise TypeError(f"the handler of {self.name}, which streams, is not async")
        return streams

    @read.default
    def _read(self) -> Callable[[Any], Any]:
        if self.raw:  # by who has them decoded
            return lambda params: _encode({} if params is None else params)
        return reader(self.params, open=self.open)

    @read_text.default
    def _read_text(self) -> Callable[[bytes | None], Any]:
        if self.raw:
            return lambda text: text or b"{}"
        return text_reader(self.params, self.read, open=self.open)

    @write_text.default
    def _write_text(self) -> Callable[[Any], bytes]:
        return text_writer(self.result, self.write)

    @write.default
    def _write(self) -> Callable[[Any], Any]:
        return writer(self.result)

    @write_chunk.default
    def _write_chunk(self) -> Callable[[Any], Any]:
        return writer(Any if self.chunk is bytes else self.chunk)

    @read_upload.default
    def _read_upload(self) -> Callable[[Any], Any]:
        return piece_reader(Any if self.upload is bytes else self.upload)


class Registry:
    """The methods of one kind of listener."""

    def __init__(self, methods: Iterable[Method] = ()) -> None:
        self._methods: dict[str, Method] = {}
        self._tables: dict[Role, dict[str, Method]] = {role: {} for role in Role}
        self.answering: Counter[str] = Counter()
        """How many calls of each async method are being answered now, whoever made them."""
        for method in methods:
            self.add(method)

    def add(self, method: Method) -> None:
        """A name can be added once. Names beginning with "rpc." are the protocol's own, such as `rpc.discover`."""
        if method.name in self._methods:
            raise ValueError(f"the method {method.name} is there already")
        self._methods[method.name] = method
        for role in method.roles:
            self._tables[role][method.name] = method

    def method(
        self,
        name: str,
        *,
        params: type = NoParams,
        result: Any = None,
        roles: Iterable[Role],
        doc: str = "",
        open: bool = False,  # noqa: A002
        rate: Rate | None = None,
        chunk: Any = None,
        upload: Any = None,
        raw: bool = False,
        quota: Counted = "calls",
        quick: Callable[[Call, Any], Any] | None = None,
    ) -> Callable[[H], H]:
        """Decorator: add the function as the handler of `name`; its docstring is the doc unless one is given."""

        def register(handler: H) -> H:
            text = doc or inspect.getdoc(handler) or ""
            shapes = (params, result, frozenset(roles), text, open, rate, chunk, upload, raw, quota, quick)
            self.add(Method(name, handler, *shapes))
            return handler

        return register

    def get(self, name: str) -> Method | None:
        return self._methods.get(name)

    def table(self, role: Role) -> Mapping[str, Method]:
        """What `role` may call, by name; it grows with the registry."""
        return self._tables[role]

    def close(self, role: Role, *, but: Container[str], error: Callable[[str], ArmorclawError]) -> None:
        """From now on every call of `role`, except of the methods `but`, is answered with `error(name)`.

        Here and not where calls are taken: so it costs nothing before, and holds on every connection at once.
        """
        table = self._tables[role]
        for name in [name for name in table if name not in but]:
            table[name] = _refusing(name, error)

    def names(self, role: Role | None = None) -> list[str]:
        """The names that `role` may call, or all, sorted."""
        return sorted(self._methods if role is None else self._tables[role])

    def __iter__(self) -> Iterator[Method]:
        return iter(sorted(self._methods.values(), key=lambda method: method.name))


def _refusing(name: str, error: Callable[[str], ArmorclawError]) -> Method:
    def refuse(call: Call, params: Any) -> None:
        raise error(name)

    return Method(name, refuse, raw=True)
