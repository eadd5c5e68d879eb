"""`python -m armorclaw.agent exec`: any program becomes an agent.

The wrapper talks to the bridge in the program's stead: takes the secrets and hands them on in a sealed file in
memory, says that the agent is ready, answers pings, passes signals on, reaps orphans, and ends with the program's
status. With --per-message it also receives: the program is run once for each message, reads it from standard input,
and what it prints is the answer. Its end is the end of the answer, whatever it leaves in the background; a program
that does not end in time is killed, with its process group, and the message comes again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from armorclaw.agent.agent import Agent
from armorclaw.agent.base import open_way_out, say, socket_from_environment
from armorclaw.agent.children import Children
from armorclaw.agent.errors import AgentError
from armorclaw.agent.link import Link
from armorclaw.agent.messages import Message
from armorclaw.agent.secrets import Secrets, harden_process, sealed_memfd, secrets_file
from armorclaw.agent.session import Session

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_TIMEOUT = 300.0  # seconds a program has for one message
_WORKING_EVERY = 30.0  # seconds after which the bridge is told that it still runs
_KILLED_WITHIN = 5.0  # seconds that one killed for that gets to be gone, should it be stuck in the kernel

# Bytes of an answer as the JSON string it becomes; the bridge makes some six messages of so many. As no character of
# JSON is shorter than in UTF-8, it bounds what is read, too.
_MAX_ANSWER = 240_000
_MAX_MARKDOWN = 60_000  # characters; the bridge takes no more of it, and what is longer goes as plain text
_CUT = "\n[cut: the rest is too long]"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit status: the program's; 126 or 127 when it cannot be started; 3 without a bridge; 1 when refused."""
    options = _parse(arguments)
    path = socket_from_environment()
    harden_process()
    open_way_out()  # before anything is started: programs look at what it sets when they begin
    try:
        if options.per_message:
            return _PerMessage(path, options).serve()
        return _run_once(path, options.command, options.env_keys)
    except AgentError as error:
        say(str(error))
        return 1
    except FileNotFoundError:
        say(f"{options.command[0]}: no such program")
        return 127
    except PermissionError:
        say(f"{options.command[0]}: may not be run")
        return 126


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m armorclaw.agent", description="Run a program as an agent.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="exec")
    verb = verbs.add_parser("exec", help="run a program as an agent", description=__doc__)
    verb.add_argument("--per-message", action="store_true", help="run it once per message: stdin to stdout")
    verb.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT,
        metavar="SECONDS",
        help="with --per-message: how long it may run, %(default)g by default; then it is killed",
    )
    verb.add_argument("--markdown", action="store_true", help="with --per-message: what it prints is Markdown")
    verb.add_argument("--env-keys", action="store_true", help="also set PROVIDER_API_KEY in its environment")
    verb.add_argument("command", nargs="+", metavar="CMD", help="the program and its arguments, after --")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400 or math.isnan(seconds):
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return seconds


@contextlib.contextmanager
def _secrets_for(secrets: Secrets, env_keys: bool) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """The environment of a child, and the descriptors it inherits, for the time it takes to start it."""
    env = dict(os.environ)
    if secrets.payload is None:
        yield env, ()
        return
    # a file for each child: what inherits one descriptor also shares its position
    fd = sealed_memfd(secrets_file(secrets))
    try:
        env["ARMORCLAW_SECRETS_FD"] = str(fd)
        env["ARMORCLAW_SECRETS_PATH"] = f"/proc/self/fd/{fd}"
        if env_keys:
            for key in secrets.values():
                env.setdefault("ARMORCLAW_PROVIDER", key.provider)
                env.setdefault(key.env_name, key.token)
        yield env, (fd,)
    finally:
        os.close(fd)


# one program for the life of the agent


def _run_once(path: str, command: Sequence[str], env_keys: bool) -> int:
    session = Session(subscribe=False, say=say)
    pending: list[int] = []  # signals to pass on
    with Link(path, session) as link, _signals(pending, link):
        while session.secrets is None:
            link.turn()
            if pending:
                return 128 + pending[0]
        children = Children(link.wake)
        with _secrets_for(session.secrets, env_keys) as (env, fds):
            child = children.spawn(command, env, pass_fds=fds)
        told = False
        while child.status is None:
            link.turn()
            if session.stopping and not told:
                told = True
                pending.append(signal.SIGTERM)
            while pending:
                children.signal_all(pending.pop(0))
        return child.status


@contextlib.contextmanager
def _signals(pending: list[int], link: Link) -> Iterator[None]:
    """Note signals for the loop instead of obeying them. The process is ours and ends with the block."""
    signal.set_wakeup_fd(link.wake_fd, warn_on_full_buffer=False)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)


# one program per message


class ProgramError(Exception):
    """The program did not succeed; its own words are on standard error already."""


class _PerMessage(Agent):
    def __init__(self, path: str, options: argparse.Namespace) -> None:
        super().__init__()
        self._path = path
        self._command: Sequence[str] = options.command
        self._env_keys: bool = options.env_keys
        self._timeout: float = options.timeout
        self._markdown: bool = options.markdown
        self._children = Children(lambda: None)
        self.on_message(self._answer)

    def serve(self) -> int:
        try:
            self.run()
        finally:
            self._children.kill_all()  # those that did not finish in time
        return 0

    def _answer(self, message: Message) -> None:
        status, output = self._converse(message)
        if status:
            raise ProgramError(f"{self._command[0]} ended with status {status}")
        text = _fitting(output)
        if text.endswith(_CUT):
            say(f"{self._command[0]} printed more than an answer may have; the answer to {message!r} is cut")
        if text and self._markdown and len(text) <= _MAX_MARKDOWN:
            message.reply(markdown=text)
        elif text:
            message.reply(text)

    def _converse(self, message: Message) -> tuple[int, bytes]:
        """Run the program on the body of a message: its status and what it printed."""
        body = os.memfd_create("message", os.MFD_CLOEXEC)  # a file, not a pipe: nobody has to feed it
        try:
            os.pwrite(body, message.body.encode("utf-8", "surrogatepass"), 0)
            with _secrets_for(self.secrets, self._env_keys) as (env, fds):
                env.update(_facts(message))
                child = self._children.spawn(
                    self._command, env, pass_fds=fds, stdin=body, stdout=subprocess.PIPE, own_group=True
                )
        finally:
            os.close(body)
        with contextlib.closing(child):
            try:
                output = child.output(_MAX_ANSWER + 1, self._timeout, running=message.working, every=_WORKING_EVERY)
            except TimeoutError:
                self._children.kill(child)  # before its output is closed, which might end it, but not its group
                child.wait(_KILLED_WITHIN)
                why = f"{self._command[0]} did not end within {self._timeout:g} s and was killed"
                raise ProgramError(why) from None
        status = child.wait()
        assert status is not None
        return status, output

    def _failed(self, event: Any, error: BaseException) -> None:
        if isinstance(error, (ProgramError, OSError, AgentError)):
            say(f"{error}; {event!r} will come again")
            self._report_failed(event, error)
        else:
            super()._failed(event, error)


def _fitting(output: bytes) -> str:
    """What the program printed as the text of a message, without its last line ends; too much ends with _CUT."""
    text = output.decode("utf-8", "replace")
    stripped = text.rstrip("\n")
    if len(output) <= _MAX_ANSWER and len(json.dumps(stripped)) <= _MAX_ANSWER:
        return stripped
    low, high = 0, len(text)  # the longest beginning that fits: bisect takes no key before Python 3.10
    while low < high:
        middle = (low + high + 1) // 2
        if len(json.dumps(text[:middle] + _CUT)) <= _MAX_ANSWER:
            low = middle
        else:
            high = middle - 1
    return text[:low] + _CUT


def _facts(message: Message) -> Mapping[str, str]:
    """What a program may want to know of a message beside its body."""
    return {
        "ARMORCLAW_ROOM_ID": message.room_id,
        "ARMORCLAW_SENDER": message.sender,
        "ARMORCLAW_EVENT_ID": message.event_id,
    }
