"""Into the rooms that an account is to be in: aliases become ids, invitations are answered as the policy says, and
public rooms are joined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.guard.policy import Answer
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import Verdict, judge
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.routing.router import Router

log = get_logger(__name__)

FOREIGN_LOOK = 10.0
"""Seconds that an alias of another server may hold the sync back while our homeserver cannot reach that one."""

REFRESH = 3600.0
"""Seconds after which aliases are looked up again, since they may be moved to another room."""

_AT_ONCE = 8  # look-ups; one at a server that does not answer takes 30 s

Keep = Callable[[str, str], Awaitable[object]]


class Doorman:
    """Keeps one account in the rooms that are granted on it, and answers invitations as `router` decides.

    A room that refuses is asked again after an invite; one that we were put out of, only then. `keep(alias, room_id)`
    stores what an alias names; it raises what the store raises.
    """

    def __init__(
        self,
        client: MatrixClient,
        granted: Granted,
        rooms: Rooms,
        around: Surroundings,
        *,
        keep: Keep,
        router: Router,
    ) -> None:
        self._client = client
        self._granted = granted
        self._rooms = rooms
        self._keep = keep
        self._router = router
        self._pacing = Pacing(around.random, first=1.0, cap=60.0)
        self._start_pacing = Pacing(around.random)
        self._answered: set[str] = set()  # aliases that need no look-up before the next refresh
        self._replaced: frozenset[str] = frozenset()  # rooms of aliases that were found to be replaced
        self._named = False  # whether we know what people call us
        self._tried: dict[str, str | None] = {}

    async def look_up_aliases(self, waiting: Callable[[str], object]) -> None:
        """Return once the room of every granted alias is known, from now or from before, or there is none.

        To be called before the sync: what that brings for a room which is not known to be granted is lost. So this
        waits for a homeserver that is away as long as it takes, and tells `waiting` why; an alias of another server
        that cannot be reached is left to `run` after `FOREIGN_LOOK` seconds.
        """
        patience = trio.current_time() + FOREIGN_LOOK
        while failures := await self._look_up(self._granted.unresolved()):
            trouble = await self._trouble_at_home(failures)
            if trouble is not None and trouble.unknown_token:
                return  # the sync will find out, and end
            if trouble is not None:
                waiting(trouble.reason)
            elif trio.current_time() >= patience:
                for alias, verdict in failures.items():
                    log.warning("going on without the room of an alias", alias=alias, why=verdict.reason)
                return
            await trio.sleep(self._start_pacing.next(trouble.after if trouble else None))

    async def run(self) -> None:
        """Follow changes of the grants and of the account's rooms, and of aliases, until cancelled."""
        refresh_at = trio.current_time() + REFRESH
        while True:
            changed = self._granted.changed
            if trio.current_time() >= refresh_at:
                refresh_at = trio.current_time() + REFRESH
                self._answered.clear()
                self._named = False
            joined = await self._join_all()  # first: a look-up may take long, and what it finds is a change
            self._ask_anew()
            failures = await self._look_up(self._granted.aliases())
            named = self._named or await self._ask_our_name()
            if joined and named and not failures:
                self._pacing.reset()
                again_at = refresh_at
            else:
                again_at = trio.current_time() + self._pacing.next()
            with trio.move_on_at(min(again_at, refresh_at)):
                await changed.wait()

    async def _look_up(self, aliases: Iterable[str]) -> dict[str, Verdict]:
        """Ask the homeserver for each; returns those that may succeed later, with the reason."""
        failures: dict[str, Verdict] = {}
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def ask(alias: str) -> None:
            async with limit:
                try:
                    room_id = await self._client.resolve(alias)
                except MatrixError as error:
                    verdict = judge(error)
                    if verdict.again:
                        failures[alias] = verdict
                    else:
                        self._answered.add(alias)
                        log.warning("granted alias names no room", alias=alias, why=verdict.reason)
                else:
                    await self._note(alias, room_id)

        with one_error():
            async with trio.open_nursery() as nursery:
                for alias in sorted(set(aliases) - self._answered):
                    nursery.start_soon(ask, alias)
        return failures

    async def _note(self, alias: str, room_id: str) -> None:
        self._answered.add(alias)
        before = self._granted.named_by(alias)
        try:
            await self._keep(alias, room_id)
        except ArmorclawError as error:
            if not error.kind.retryable:
                raise
            self._answered.discard(alias)
            log.warning("the store does not take the room of an alias", alias=alias, why=str(error))
        if before == room_id:
            return
        if before is not None:
            log.warning("granted alias names another room now", alias=alias, room=room_id, before=before)
        self._granted.resolved(alias, room_id)

    async def _trouble_at_home(self, failures: Mapping[str, Verdict]) -> Verdict | None:
        """Why our homeserver does not do its part; None if it is the servers of the aliases that do not do theirs."""
        home = str(self._client.mxid).partition(":")[2]
        for alias, verdict in failures.items():
            if verdict.after is not None or alias.partition(":")[2] == home:
                return verdict
        try:
            await self._client.check_login()
        except MatrixError as error:
            verdict = judge(error)
            return verdict if verdict.again else None
        return None

    def _ask_anew(self) -> None:
        """An alias whose room was replaced names another one now, or will soon."""
        named = {alias: self._granted.named_by(alias) for alias in self._granted.aliases()}
        replaced = frozenset(room for room in named.values() if room is not None and self._granted.is_replaced(room))
        self._answered -= {alias for alias, room in named.items() if room in replaced - self._replaced}
        self._replaced = replaced

    async def _ask_our_name(self) -> bool:
        """What people call us, as far as our profile says it; false if the homeserver cannot tell now."""
        try:
            profile = await self._client.profile(str(self._client.mxid))
        except MatrixError as error:
            return not judge(error).again
        name = None if profile is None else profile.get("displayname")
        self._router.display_name = name if isinstance(name, str) and name.strip() else None
        self._named = True
        return True

    async def _join_all(self) -> bool:
        """Try each room once for each membership that we find ourselves in: not yet, and invited."""
        done = True
        wanted = self._granted.room_ids()
        invited = {room: state for room, state in self._rooms.all().items() if state.membership == "invite"}
        for room_id in self._tried.keys() - wanted - invited.keys():
            del self._tried[room_id]
        for room_id in sorted(wanted | invited.keys()):
            known = self._rooms.get(room_id)
            membership = known.membership if known else None
            if membership in ("join", "leave"):
                self._tried.pop(room_id, None)
                continue
            if self._tried.get(room_id, "") == membership:
                continue
            if known is not None and membership == "invite":
                answer = self._router.invited(room_id, known, wanted=wanted)
                if answer == "ignore":
                    continue
            else:
                answer = "accept"
            try:
                await self._answer(room_id, answer, known)
            except MatrixError as error:
                verdict = judge(error)
                if verdict.again:
                    done = False
                    continue
                log.warning("room cannot be entered", room=room_id, membership=membership, why=verdict.reason)
            self._tried[room_id] = membership
        return done

    async def _answer(self, room_id: str, answer: Answer, known: RoomState | None) -> None:
        """Raises what the client raises."""
        inviter = None if known is None else known.inviter
        if answer == "decline":
            await self._client.leave(room_id)
            log.info("invitation declined", room=room_id, invited_by=inviter)
            return
        replaced = self._granted.lineage(room_id)[1:]
        servers = {server for room in replaced if (server := room.partition(":")[2])}
        if servers and inviter is None:  # nobody has told our homeserver of it yet: it has to know whom to ask
            await self._client.join(room_id, sorted(servers))
        else:
            await self._client.enter(room_id)
        log.info("room joined", room=room_id, invited_by=inviter)
        if known is not None and known.direct is not None and not known.listed:
            await self._note_direct(room_id, known.direct)

    async def _note_direct(self, room_id: str, person: str) -> None:
        """Only the invitation says that it is a direct chat: whoever logs in anew would not know."""
        try:
            await self._client.note_direct(room_id, person)
        except MatrixError as error:
            log.warning("direct chat not written down", room=room_id, why=judge(error).reason)
