from __future__ import annotations

from ipaddress import ip_address

import pytest
import trio
import trio.testing

from armorclaw.egress import addresses
from armorclaw.egress.addresses import LOOKUPS, Resolver, is_allowed
from armorclaw.hosts import HostPattern, is_special

SPECIAL = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 169.254.169.254 172.16.0.1
172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 100.100.100.200 168.63.129.16
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1
2001::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1 3fff::1
5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 ffff::1 4000::1
"""
ORDINARY = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255
168.63.129.17 2001:4860:4860::8888 2606:4700::1111 2a00:1450::1 2400:cb00::1 3ffe::1
"""


@pytest.mark.parametrize("text", SPECIAL.split())
def test_special(text: str) -> None:
    assert is_special(ip_address(text))
    assert not is_allowed(ip_address(text), 443, [HostPattern.parse("*.example:443")])


@pytest.mark.parametrize("text", ORDINARY.split())
def test_ordinary(text: str) -> None:
    assert not is_special(ip_address(text))
    assert is_allowed(ip_address(text), 443, [])


@pytest.mark.parametrize(
    "pattern, address, allowed",
    [
        ("10.0.0.5:443", "10.0.0.5", True),
        ("10.0.0.5:80", "10.0.0.5", False),
        ("10.0.0.0/8:443", "10.0.0.5", True),
        ("10.0.0.0/24:443", "10.0.1.5", False),
        ("127.0.0.1:443", "127.0.0.1", True),
        ("[::1]:443", "::1", True),
        ("[fd00::/8]:443", "fd00::5", True),
        # "everything" is not meant to be this host and its cloud's metadata
        ("0.0.0.0/0:443", "169.254.169.254", False),
        ("0.0.0.0/0:443", "127.0.0.1", False),
        ("[::/0]:443", "::1", False),
        ("10.0.0.0/7:443", "10.0.0.5", False),
        # nor is an address in the disguise of another kind the one that was named
        ("10.0.0.5:443", "::ffff:10.0.0.5", False),
        ("[::ffff:10.0.0.5]:443", "::ffff:10.0.0.5", True),
        ("[::ffff:10.0.0.5]:443", "10.0.0.5", False),
    ],
)
def test_named(pattern: str, address: str, allowed: bool) -> None:
    assert is_allowed(ip_address(address), 443, [HostPattern.parse(pattern)]) is allowed


async def test_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    places = trio.CapacityLimiter(1)
    assert ip_address("127.0.0.1") in await Resolver()("localhost", 443, places)
    with pytest.raises(OSError):
        await Resolver()("no-such-host.invalid", 443, places)
    many = [(2, 1, 6, "", (f"8.8.8.{number % 12}", 443)) for number in range(100)]
    monkeypatch.setattr(addresses, "_look_up", lambda host, port: many)
    assert await Resolver()("many.example", 443, places) == [ip_address(f"8.8.8.{number}") for number in range(8)]


async def test_a_lookup_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(addresses, "_look_up", lambda host, port: release.wait(10))
    with trio.move_on_after(0.01) as scope:
        await Resolver()("slow.example", 443, trio.CapacityLimiter(1))
    assert scope.cancelled_caught
    release.set()


async def test_given_up_lookups_of_one_agent_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their threads go on: so they count as the agent's until they end."""
    import threading

    began, release = threading.Semaphore(0), threading.Event()

    def look_up(host: str, port: int) -> list[object]:
        if host.startswith("slow"):
            began.release()
            release.wait(60)
        return [(2, 1, 6, "", ("8.8.8.8", port))]

    monkeypatch.setattr(addresses, "_look_up", look_up)
    resolver, hasty, other = Resolver(), trio.CapacityLimiter(2), trio.CapacityLimiter(2)
    try:
        for number in range(LOOKUPS + 1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(resolver, f"slow{number}.example", 443, hasty)
                if number < hasty.total_tokens:
                    assert await trio.to_thread.run_sync(began.acquire, True, 20)
                else:
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert hasty.borrowed_tokens == 2
        with trio.fail_after(20):
            assert await resolver("other.example", 443, other) == [ip_address("8.8.8.8")]
    finally:
        release.set()
    with trio.fail_after(20):
        assert await resolver("again.example", 443, hasty) == [ip_address("8.8.8.8")]


async def test_who_waits_for_a_thread_can_give_up() -> None:
    resolver, places = Resolver(), trio.CapacityLimiter(1)
    resolver._threads.total_tokens = 1
    async with resolver._threads:
        with trio.move_on_after(0.01) as scope:
            await resolver("localhost", 443, places)
        assert scope.cancelled_caught
    assert places.borrowed_tokens == 0
