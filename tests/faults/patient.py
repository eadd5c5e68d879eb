"""An agent that comes to harm when it is told to. It runs inside, with the agent library alone.

What ends or hangs it begins when the call that asks for it has been answered; all else is answered when it is done.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, NoReturn

from armorclaw.agent import AsyncAgent

if os.environ.get("BORN") == "dead":
    sys.exit(3)
if os.environ.get("BORN") == "mute":
    time.sleep(3600)

agent = AsyncAgent()
handled: list[tuple[Any, int, float]] = []
children: list[int] = []
files: list[int] = []
may_go = asyncio.Event()


def after_the_answer(function: Any, *args: Any) -> None:
    asyncio.get_running_loop().call_later(0.05, function, *args)


def spin() -> None:
    while True:
        pass


def sleep() -> NoReturn:
    time.sleep(3600)
    os._exit(0)


def reap(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def eat() -> NoReturn:
    """Use memory until it is refused (status 70) or the kernel ends this process."""
    meal = []
    try:
        while True:
            meal.append(b"\1" * 4_000_000)
    except MemoryError:
        os._exit(70)


@agent.on_event("test.work")
async def work(event: Any) -> None:
    if event.content.get("hold") and not event.redelivered:
        await may_go.wait()
    handled.append((event.content["n"], event.redelivered, time.monotonic()))


@agent.on_message
async def hear(message: Any) -> None:
    if message.body == "hold" and not message.redelivered:
        await may_go.wait()
    await message.reply(f"{message.body} {'again' if message.redelivered else 'at first'}")


@agent.on_call("echo")
async def echo(call: Any) -> Any:
    return call.params


@agent.on_call("handled")
async def tell_handled(call: Any) -> Any:
    return handled


@agent.on_call("handled_at")
async def tell_when(call: Any) -> Any:
    return next((at for number, _, at in reversed(handled) if number == call.params["n"]), None)


@agent.on_call("let_go")
async def let_go(call: Any) -> None:
    may_go.set()


@agent.on_call("exit")
async def leave(call: Any) -> None:
    after_the_answer(os._exit, call.params["status"])


@agent.on_call("spin")
async def start_spinning(call: Any) -> None:
    after_the_answer(spin)


@agent.on_call("eat")
async def start_eating(call: Any) -> None:
    after_the_answer(eat)


@agent.on_call("eat_in_child")
async def eat_in_child(call: Any) -> int:
    """How the child ended: its exit status, or minus the signal."""
    child = os.fork()
    if child == 0:
        eat()
    return await asyncio.get_running_loop().run_in_executor(None, reap, child)


@agent.on_call("eat_together")
async def eat_together(call: Any) -> list[int]:
    """Children that take so many bytes each and keep them for a second; how each ended."""
    for _ in range(call.params["count"]):
        child = os.fork()
        if child == 0:
            meal = b"\1" * call.params["bytes"]
            time.sleep(1.0)  # noqa: ASYNC251 - a process of its own
            os._exit(0 if meal else 1)
        children.append(child)
    loop = asyncio.get_running_loop()
    return [await loop.run_in_executor(None, reap, children.pop()) for _ in range(call.params["count"])]


@agent.on_call("fork")
async def fork(call: Any) -> int:
    """Children that sleep, until no more are to be had; how many there are."""
    try:
        while True:
            child = os.fork()
            if child == 0:
                sleep()
            children.append(child)
    except OSError:
        return len(children)


@agent.on_call("open")
async def open_files(call: Any) -> int:
    """Files, until no more are to be had; how many there are."""
    try:
        while True:
            files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(files)


@agent.on_call("release")
async def release(call: Any) -> None:
    """Give back what `fork` and `open` took."""
    while files:
        os.close(files.pop())
    while children:
        child = children.pop()
        os.kill(child, 9)
        reap(child)


@agent.on_call("print")
async def print_line(call: Any) -> None:
    """One line of so many bytes."""
    left = call.params["bytes"]
    while left > 0:
        left -= os.write(1, b"x" * min(left, 65_536))
    os.write(1, b"\nand on\n")


def count_dead() -> int:
    dead = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                dead += file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
    return dead


@agent.on_call("zombies")
async def zombies(call: Any) -> int:
    """So many children that end and are not waited for, and as many orphans; how many are dead, but there."""
    for _ in range(call.params["count"]):
        if os.fork() == 0:
            os._exit(0)
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        reap(child)
    for _ in range(1000):
        if (dead := count_dead()) >= call.params["count"]:
            break
        await asyncio.sleep(0.01)
    return dead


agent.run()
