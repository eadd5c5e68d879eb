"""`armorclaw keys`: what agents may be granted. A key's value is typed or piped, never an argument."""

from __future__ import annotations

import click

from armorclaw.cli import show
from armorclaw.cli.options import YES, Bridge, client, confirm, group, names_of, secret

_ID = click.argument("key", metavar="ID", shell_complete=names_of("list_keys", "id"))


@group("keys")
def command() -> None:
    """The keys that agents may be granted."""


@command.command("add")
@click.argument("provider")
@click.option("--id", "key", metavar="ID", help="Its name for grants; by default PROVIDER-default.")
@click.option("--name", "display_name", help="A name for people.")
@click.option("--expires", "expires_at", type=click.IntRange(0), metavar="SECONDS", help="Since the epoch.")
@click.option("--tag", "tags", multiple=True, help="May be given more than once.")
@client
def add(
    bridge: Bridge,
    provider: str,
    key: str | None,
    display_name: str | None,
    expires_at: int | None,
    tags: tuple[str, ...],
) -> None:
    """Store a key, or replace it. Its value is asked for, or is the first line of stdin."""
    stored = bridge.call(
        "store_key",
        provider=provider,
        token=secret("Key"),
        id=key,
        display_name=display_name,
        expires_at=expires_at,
        tags=list(tags) or None,
    )
    bridge.answer(stored, f"stored {stored['id']}")


@command.command("ls")
@click.option("--provider", help="Only its keys.")
@client
def ls(bridge: Bridge, provider: str | None) -> None:
    """List the keys, without their values."""
    keys = bridge.call("list_keys", provider=provider)
    bridge.table(
        keys,
        ["ID", "PROVIDER", "NAME", "CREATED", "EXPIRES", "TAGS"],
        [
            [
                key["id"],
                key["provider"],
                key["display_name"],
                show.seconds(key["created_at"]),
                show.seconds(key["expires_at"]) or "never",
                ", ".join(key["tags"] or ()),
            ]
            for key in keys
        ],
    )


@command.command("rm")
@_ID
@YES
@client
def rm(bridge: Bridge, key: str, yes: bool) -> None:
    """Delete a key."""
    confirm(f"Delete the key {key}?", yes=yes)
    bridge.answer(bridge.call("delete_key", id=key), f"deleted {key}")


@command.command("rotate")
@_ID
@client
def rotate(bridge: Bridge, key: str) -> None:
    """Give a key a new value, which is asked for, or is the first line of stdin."""
    bridge.answer(bridge.call("rotate_key", id=key, token=secret("New key")), f"rotated {key}")
