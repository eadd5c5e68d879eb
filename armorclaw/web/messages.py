"""What is asked and answered, as values."""

from __future__ import annotations

from http import HTTPStatus

import attrs

Headers = tuple[tuple[str, str], ...]


class HttpError(Exception):
    """An answer that is a refusal: `text` is a sentence for people, and safe for strangers."""

    def __init__(self, status: int, text: str, *, headers: Headers = ()) -> None:
        self.status = status
        self.text = text
        self.headers = headers
        super().__init__(f"{status} {text}")

    def response(self) -> Response:
        return Response.plain(self.status, f"armorclaw: {self.text}\n", headers=self.headers)


@attrs.frozen
class Request:
    """One request without its body. Names of headers are in lower case, values are as they were sent."""

    method: str
    target: str
    headers: Headers = attrs.field(repr=False)  # credentials may be among them

    @property
    def path(self) -> str:
        """The target up to its query, nothing of it decoded or resolved."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        """The value of that header; None if there is none, or more than one."""
        found = [value for each, value in self.headers if each == name]
        return found[0] if len(found) == 1 else None


@attrs.frozen
class Response:
    """One answer. `reason` stands beside the status instead of its usual words: some clients show nothing else."""

    status: int
    headers: Headers = ()
    body: bytes = attrs.field(default=b"", repr=False)
    close: bool = False
    """Whether the connection is to end with it."""
    reason: str = ""

    @classmethod
    def plain(
        cls, status: int, text: str, *, headers: Headers = (), close: bool = False, reason: str = ""
    ) -> Response:
        """Text for people."""
        kind = ("content-type", "text/plain; charset=utf-8")
        return cls(status, (kind, *headers), text.encode(), close=close, reason=reason)

    @property
    def phrase(self) -> str:
        """What stands beside the status: printable ASCII, on one line."""
        text = self.reason or _phrase(self.status)
        return "".join(each if " " <= each <= "~" else "?" for each in text)[:500]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
