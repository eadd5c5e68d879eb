from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from armorclaw.containers.local import output
from armorclaw.containers.local.log_file import FILE_BYTES, LogFile
from armorclaw.containers.local.output import captured
from armorclaw.errors import ArmorclawError


async def test_captures_to_the_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    async with captured(LogFile(path)) as got:
        os.write(got.fd, b"one\ntwo\n")
        await trio.testing.wait_all_tasks_blocked()
        os.write(got.fd, b"three\nlast words")
    assert path.read_bytes() == b"one\ntwo\nthree\nlast words"


async def test_appends_to_what_earlier_generations_said(tmp_path: Path) -> None:
    for word in (b"first\n", b"second\n"):
        async with captured(LogFile(tmp_path / "a.log")) as got:
            os.write(got.fd, word)
    assert (tmp_path / "a.log").read_bytes() == b"first\nsecond\n"


async def test_a_chatterbox_is_bounded_and_slowed_down(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    line = b"x" * 1023 + b"\n"
    began = trio.current_time()
    async with captured(LogFile(tmp_path / "a.log")) as got:
        stream = trio.lowlevel.FdStream(os.dup(got.fd))
        got.handed_over()
        async with stream:
            for number in range(8 * 1024):
                await stream.send_all(b"%07d" % number + line[7:])
        while not (await got.last_line()).startswith("0008191"):
            pass  # the disk's thread keeps real time: the clock of the test runs ahead of it
    assert trio.current_time() - began >= 8 * 1024 * 1024 / output.BYTES_PER_SECOND - 0.1
    assert sorted(os.listdir(tmp_path)) == ["a.log", "a.log.1"]
    assert all(os.stat(tmp_path / name).st_size <= FILE_BYTES for name in os.listdir(tmp_path))
    assert (tmp_path / "a.log").read_bytes()[-1024:].startswith(b"0008191")


async def test_somebody_who_keeps_the_pipe_does_not_keep_us(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with captured(LogFile(tmp_path / "a.log")) as got:
        kept = os.dup(got.fd)
        os.write(kept, b"hi")
    os.close(kept)
    assert (tmp_path / "a.log").read_bytes() == b"hi"
    assert trio.current_time() == pytest.approx(output.DRAIN_SECONDS, abs=0.2)


async def test_last_line() -> None:
    async with captured(None) as got:
        os.write(got.fd, b"first\n\xff\nbwrap: no\n\n")
        got.handed_over()
        assert await got.last_line() == "bwrap: no"
    async with captured(None) as got:
        got.handed_over()
        assert await got.last_line() == ""


async def test_a_full_disk_costs_the_output_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LogFile, "write", full)
    async with captured(LogFile(tmp_path / "a.log")) as got:
        async with trio.lowlevel.FdStream(os.dup(got.fd)) as stream:
            with trio.fail_after(30):
                await stream.send_all(b"x" * 200_000)  # more than a pipe holds: somebody still reads


async def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.log").symlink_to("/etc/passwd")
    with pytest.raises(ArmorclawError) as caught:
        async with captured(LogFile(tmp_path / "a.log")):
            pass
    assert caught.value.name == "storage_failed"


async def test_errors_and_cancellation_pass_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with captured(LogFile(tmp_path / "a.log")) as got:
            os.write(got.fd, b"said before")
            raise ZeroDivisionError
    with trio.CancelScope() as scope:
        async with captured(LogFile(tmp_path / "a.log")) as got:
            os.write(got.fd, b", and then")
            scope.cancel(reason="the test says so")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert (tmp_path / "a.log").read_bytes() == b"said before, and then"


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with captured(LogFile(tmp_path / "a.log")):
        pass
    assert set(os.listdir("/proc/self/fd")) == before
