"""What is told of one Matrix account: the section `[accounts.NAME]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from armorclaw.config.access import Invites
from armorclaw.errors import ArmorclawError
from armorclaw.structure import FaultError, Secret

DeviceRule = Literal["yes", "no", "tofu"]

# a name with a dot, not an address; the port that a server name may have is for other homeservers
_SERVER_NAME = re.compile(r"(?=.{4,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{1,62}")


def _homeserver(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if _SERVER_NAME.fullmatch(value):
        _no_placeholder(value)
        return
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
    _no_placeholder(parts.hostname)


def _no_placeholder(host: str) -> None:
    if "example" in host.split(".")[-2:]:
        raise FaultError(f"{host!r} is the placeholder of the example", "write the URL of your own homeserver")


def _days(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value and not 30 <= value <= 36_500:  # a room may speak with one key for weeks
        raise FaultError(f"{value} days", "write a number of days from 30 to 36500, or 0 for ever")


def _room_ids(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
    for room_id in value:
        if not room_id.startswith("!") or len(room_id) > 255:
            raise FaultError(f"{room_id!r} is no room id", 'write it as "!…", as the settings of the room have it')


@attrs.frozen
class Account:
    """A Matrix account: where it lives and how to log in, by password or by token.

    `user` may be `name`, `@name` or `@name:server`. In TOML the secrets are given by `password_file` and
    `access_token_file`; a program may give a Secret. What a login brings is kept in the encrypted store, so
    neither is needed again. With `read_receipts`, people in the room see which messages an agent has acknowledged.

    `homeserver` is its URL, or a server name such as `example.org`, which is asked where its homeserver is. What a
    server name leads to has addresses of the Internet only, unless `allow_private`. Without `encryption` encrypted
    rooms are left alone. Keys with which nothing was read for `keep_room_keys_days` are deleted; 0 keeps them for
    ever. `invites`: which invitations it accepts (`armorclaw.config.access`).

    `unverified_devices` says which devices get keys and are believed, `unverified_devices_in` where that differs, by
    room id: `yes` all, `no` only verified ones, `tofu` those that the identity of their owner has signed that was
    seen first, or whose owner has none. The recovery key of a user who has a cross-signing identity already is in a
    file, or in the keystore under `recovery_key_id`.
    """

    homeserver: str = attrs.field(validator=_homeserver)
    user: str = attrs.field()
    password: Secret | None = None
    access_token: Secret | None = None
    password_file: Path | None = None
    access_token_file: Path | None = None
    device_id: str | None = None
    read_receipts: bool = True
    encryption: bool = True
    keep_room_keys_days: int = attrs.field(default=365, validator=_days)
    allow_private: bool = False
    invites: Invites = "granted"
    unverified_devices: DeviceRule = "tofu"
    unverified_devices_in: Mapping[str, DeviceRule] = attrs.field(factory=dict, validator=_room_ids)
    recovery_key: Secret | None = None
    recovery_key_file: Path | None = None
    recovery_key_id: str | None = None
    name: str = "main"

    @property
    def server_name(self) -> str | None:
        """The server name to ask where the homeserver is; None if `homeserver` is its URL."""
        return None if "://" in self.homeserver else self.homeserver

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

    def find_recovery_key(self) -> Secret | None:
        """The recovery key given, or what its file holds. Raises config_invalid when the file cannot be read."""
        return self.recovery_key or _secret_from(self.recovery_key_file, f"accounts.{self.name}.recovery_key_file")


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
