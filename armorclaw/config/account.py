"""What is told of one Matrix account: the section `[accounts.NAME]`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.structure import FaultError, Secret


def _homeserver(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        parts = urlsplit(value)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        raise FaultError(f"{value!r} is not a URL", 'write it as "https://matrix.example.org"') from None
    if parts.username or parts.password:
        raise FaultError("a user or a password in a URL is no secret any more", "remove it, and name a password_file")
    plain = not (parts.query or parts.fragment or parts.path.strip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or not plain:
        raise FaultError(f"{value!r} is not the URL of a homeserver", 'write it as "https://matrix.example.org"')
    if "example" in parts.hostname.split(".")[-2:]:
        raise FaultError(f"{value!r} is the placeholder of the example", "write the URL of your own homeserver")


@attrs.frozen
class Account:
    """A Matrix account: where it lives and how to log in, by password or by token.

    `user` may be `name`, `@name` or `@name:server`. In TOML the secrets are given by `password_file` and
    `access_token_file`; a program may give a Secret. What a login brings is kept in the encrypted store, so
    neither is needed again. With `read_receipts`, people in the room see which messages an agent has acknowledged.
    """

    homeserver: str = attrs.field(validator=_homeserver)
    user: str = attrs.field()
    password: Secret | None = None
    access_token: Secret | None = None
    password_file: Path | None = None
    access_token_file: Path | None = None
    device_id: str | None = None
    read_receipts: bool = True
    name: str = "main"

    @user.validator
    def _check_user(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not re.fullmatch(r"@?[^\s@:/]{1,255}(:[^\s@/]{1,255})?", value):
            raise FaultError(f"{value!r} is not a Matrix user", 'write "name" or "@name:server"')

    def find_password(self) -> Secret | None:
        """The password given, or what its file holds. Raises config_invalid when the file cannot be read."""
        return self.password or _secret_from(self.password_file, f"accounts.{self.name}.password_file")

    def find_access_token(self) -> Secret | None:
        """The access token given, or what its file holds. Raises config_invalid when the file cannot be read."""
        return self.access_token or _secret_from(self.access_token_file, f"accounts.{self.name}.access_token_file")


def _secret_from(path: Path | None, place: str) -> Secret | None:
    if path is None:
        return None
    try:
        return Secret(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ArmorclawError(
            "config_invalid", f"{place}: cannot read {path}", why=reason or "", hint=f"chmod 0400 {path} and own it"
        ) from error
