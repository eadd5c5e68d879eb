"""matrix.upload and matrix.download: files of rooms by stream, for operators and agents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from armorclaw.errors import ArmorclawError
from armorclaw.events.journal import Journal
from armorclaw.events.methods import hears
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.answer import is_id
from armorclaw.matrix.media.attachment import MalformedError
from armorclaw.matrix.media.content import Description, Source, kind_of
from armorclaw.matrix.media.shapes import DownloadParams, MediaDownloaded, MediaUploaded, UploadParams
from armorclaw.matrix.media.transfers import Transfers
from armorclaw.matrix.permission import account_for
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call

_ROLES = frozenset({Role.OPERATOR, Role.AGENT})


class MediaMethods:
    """The handlers; `register` gives them their names."""

    def __init__(self, accounts: Accounts, grants: Grants, journal: Journal, transfers: Transfers) -> None:
        self._accounts = accounts
        self._grants = grants
        self._journal = journal
        self._transfers = transfers

    def register(self, registry: Registry) -> None:
        """Add them to the table."""
        method = registry.method
        method("matrix.upload", params=UploadParams, result=MediaUploaded, roles=_ROLES, upload=bytes)(self.upload)
        method("matrix.download", params=DownloadParams, result=MediaDownloaded, roles=_ROLES, chunk=bytes)(
            self.download
        )

    async def upload(self, call: Call, params: UploadParams) -> MediaUploaded:
        """Have the homeserver keep a file for a room, encrypted if the room is. Nobody sees it before it is sent.

        What is answered as `content` is sent by matrix.send. The bytes come by `$/upload`, pieces at most 30 s apart.
        If they are not as many as `size` says, or the call is cancelled before their end, nothing is kept.
        """
        account = account_for(self._accounts, self._grants, call, params.room_id, params.account)
        facts = self._accounts.facts(account)
        encrypted = await facts.must_encrypt(params.room_id)
        what = Description(
            name=params.name,
            mimetype=params.mimetype,
            size=params.size,
            kind=params.kind or kind_of(params.mimetype),
            caption=params.caption,
            width=params.width,
            height=params.height,
            duration_ms=params.duration_ms,
            waveform=params.waveform,
        )
        pieces = call.uploads()
        uri, key = await self._transfers.upload(account, facts.client, what, pieces, call, encrypted=encrypted)
        return MediaUploaded(uri, params.size, encrypted, what.content(uri, key))

    async def download(self, call: Call, params: DownloadParams) -> MediaDownloaded:
        """The file that a message is about, in pieces of up to 192 KiB, decrypted if it is encrypted.

        An agent may have those of messages it may hear. Use no piece before the answer: only then it is known that
        the file is whole, and what its sender encrypted. Each must be taken within 30 s.
        """
        account, source = await self._source(call, params)
        client = self._accounts.facts(account).client
        size = await self._transfers.download(account, client, source, call.send, call)
        return MediaDownloaded(size, source.name, source.mimetype, source.key is not None)

    async def _source(self, call: Call, params: DownloadParams) -> tuple[str, Source]:
        room_id, event_id = params.room_id, params.event_id
        given = [name for name in ("event_id", "mxc", "file") if getattr(params, name) is not None]
        try:
            if room_id is not None and event_id is not None and given == ["event_id"]:
                account = account_for(self._accounts, self._grants, call, room_id, params.account)
                content = await self._content(call, account, room_id, event_id)
                return account, Source.of_content(content, params.part)
            # an address can hold anything, and is asked of any server it names: an agent's way out
            if call.agent is None and given == ["mxc"] and params.mxc is not None:
                return self._account_of(params), Source.of_uri(params.mxc)
            if call.agent is None and given == ["file"] and params.file is not None:
                return self._account_of(params), Source.of_file(params.file)
        except MalformedError as error:
            why = f"there is no {params.part} to be had: {error}"
            raise ArmorclawError("not_found", event_id or "the file", why=why) from error
        wanted = "room_id and event_id" if call.agent is not None else "room_id and event_id, or mxc, or file"
        raise ArmorclawError("invalid_params", f"{wanted} must be given", fields=given or ["event_id"])

    async def _content(self, call: Call, account: str, room_id: str, event_id: str) -> Mapping[str, Any]:
        if not is_id(event_id):
            raise ArmorclawError("invalid_params", "event_id is no event id", fields=["event_id"])
        event = await self._journal.of_matrix(account, event_id)
        if event is not None and event.room_id != room_id:
            event = None
        # what an agent has not heard is not its business, and whether it is there neither
        if call.agent is not None and (event is None or not hears(self._grants, call.agent, event)):
            raise ArmorclawError("not_found", f"event {event_id[:80]} of {room_id}")
        if event is None or event.erased:
            return await self._accounts.facts(account).content(room_id, event_id)
        content: dict[str, Any] = json.loads(event.content)
        return content

    def _account_of(self, params: DownloadParams) -> str:
        return self._accounts.facts(params.account).account
