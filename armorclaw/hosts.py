"""Hosts and ports as people write them, in one form each, and patterns that they match.

    api.example.org:443     that host, and nothing below it
    *.example.org:443       every host below it, at any depth, and not itself
    10.0.0.5:8080           that address; IPv6 in brackets: [2001:db8::5]:8080
    10.0.0.0/8:443          every address of that network; [2001:db8::/32]:443

A name never stands for an address here: what it resolves to is looked at by who resolves it.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import attrs
import idna

from armorclaw.structure import FaultError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SPLIT = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*)):([0-9]{1,5})")
_EXAMPLE = 'write "host:port", such as "api.example.org:443", "*.example.org:443" or "10.0.0.5:8080"'


SPECIAL: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        # the IANA special-purpose registries (RFC 6890 and its updates), and multicast
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata services of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's host agent, in the midst of public addresses
        # of IPv6 only 2000::/3 is global unicast: what is left out before it are loopback, IPv4-mapped and NAT64
        # addresses, which are IPv4 in disguise; behind it unique local, link-local and multicast ones
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "2002::/16",  # 6to4: IPv4 in disguise
        "3fff::/20",
    )
)
"""Networks whose addresses are no ordinary ones of the Internet."""


def is_special(address: Address) -> bool:
    """Whether it is not an ordinary address of the Internet: it may be this host, its networks, or nobody."""
    return any(address in network for network in SPECIAL)


@attrs.frozen
class Target:
    """Where somebody wants to connect."""

    host: str | Address
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """From "host:port". Raises FaultError."""
        host, port, is_bracketed = _split(text)
        return cls(_address(host) if is_bracketed else _host(host), port)

    def __str__(self) -> str:
        return f"{_shown(self.host)}:{self.port}"


@attrs.frozen
class HostPattern:
    """One entry of an allow list: a host, all hosts below a domain, or a network, each with one port."""

    place: str | Network
    port: int
    below: bool = False

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Raises FaultError."""
        place, port, is_bracketed = _split(text)
        if "/" in place:
            try:
                network = ip_network(place)
                if "%" in place:
                    raise ValueError("an address with a zone is one of this link")
            except ValueError as error:
                raise FaultError(f"{text!r} is not a network: {error}", 'write "10.0.0.0/8:443"') from None
            _check_brackets(text, network.version, is_bracketed)
            return cls(network, port)
        if is_bracketed:
            return cls(ip_network(_address(place)), port)
        if place.startswith("*."):
            domain = _host(place[2:])
            if not isinstance(domain, str):
                raise FaultError(f"{text!r}: nothing is below an address", "name a network, such as 10.0.0.0/8:443")
            return cls(domain, port, below=True)
        if "*" in place:
            raise FaultError(f"{text!r}: a star is only for all hosts below a domain", 'write "*.example.org:443"')
        host = _host(place)
        return cls(host if isinstance(host, str) else ip_network(host), port)

    def matches(self, target: Target) -> bool:
        """Names match names, and addresses networks."""
        if target.port != self.port:
            return False
        if not isinstance(self.place, str):
            return not isinstance(target.host, str) and target.host in self.place
        if self.below:
            return isinstance(target.host, str) and target.host.endswith("." + self.place)
        return target.host == self.place

    def __str__(self) -> str:
        if isinstance(self.place, str):
            return f"{'*.' if self.below else ''}{self.place}:{self.port}"
        is_one = self.place.num_addresses == 1
        return f"{_shown(self.place.network_address if is_one else self.place)}:{self.port}"


def _split(text: str) -> tuple[str, int, bool]:
    match = _SPLIT.fullmatch(text)
    if match is None:
        if text == "*":
            raise FaultError("'*' is no allow list", 'name the hosts that are needed, such as "*.example.org:443"')
        if re.fullmatch(r"[^:/\[\]]+", text):
            raise FaultError(f"{text!r} has no port", f'write "{text}:443" for https')
        raise FaultError(f"{text!r} is not a host with a port", _EXAMPLE)
    port = int(match[3])
    if not 0 < port < 65_536:
        raise FaultError(f"{text!r}: {port} is not a port", "give one from 1 to 65535")
    is_bracketed = match[1] is not None
    return match[1] if is_bracketed else match[2], port, is_bracketed


def _check_brackets(text: str, version: int, is_bracketed: bool) -> None:
    if is_bracketed != (version == 6):
        raise FaultError(f"{text!r}: brackets are for IPv6, and needed there", _EXAMPLE)


def _address(text: str) -> IPv6Address:
    """What stood in brackets."""
    try:
        address = IPv6Address(text)
        if address.scope_id is not None:
            raise ValueError("an address with a zone is one of this link")
    except ValueError:
        raise FaultError(f"{text!r} is not an IPv6 address", 'write "[2001:db8::5]:443"') from None
    return address


def _host(text: str) -> str | IPv4Address:
    """A name in lower case, in ASCII and without a dot at its end; or an IPv4 address in its one usual form."""
    name = text
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise FaultError(f"{text!r} is not the name of a host", _EXAMPLE) from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # 127.1, 0x7f000001 and 010.0.0.1 are addresses to some, and not the same ones to all
        try:
            return IPv4Address(name)
        except ValueError:
            raise FaultError(f"{text!r} is not an IPv4 address", 'write four numbers: "10.0.0.5:8080"') from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise FaultError(f"{text!r} is not the name of a host", _EXAMPLE)
    return name


def _shown(place: str | Address | Network) -> str:
    return f"[{place}]" if isinstance(place, IPv6Address | IPv6Network) else str(place)
