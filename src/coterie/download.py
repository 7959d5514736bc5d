"""Pictures from the web, within limits of size, time and redirections, and not from the own network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from coterie.data.dataset import StoredImage
from coterie.errors import DataError, counted

SCHEMES = ("http", "https")
UNCHANGED = "/?%:@!$&'()*+,;=~-._"  # in a path or a query; the rest is escaped
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REDIRECTIONS = (301, 302, 303, 307, 308)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Limits:
    """Of one download: bytes, seconds in all, redirections; `private`: whether addresses of the own network
    and of this machine may be asked.
    """

    size: int = 50_000_000
    seconds: float = 30.0
    redirections: int = 5
    private: bool = False


class WebImage(StoredImage):
    """A picture at an address; it is downloaded when it is read."""

    def __init__(self, address: str, limits: Limits) -> None:
        _checked_address(address)
        self.address = address
        self.limits = limits
        self._size = 0

    @property
    def size(self) -> int:
        """In bytes; 0 before it was read."""
        return self._size

    def read(self) -> bytes:
        content = download(self.address, self.limits)
        self._size = len(content)
        return content

    def __str__(self) -> str:
        return self.address


def is_address(word: str) -> bool:
    """Whether a word is an address of the web, not a path."""
    return word.partition("://")[0].lower() in SCHEMES and "://" in word


def download(address: str, limits: Limits) -> bytes:
    """What is at an http or https address; DataError or OSError where it is not there, or beyond a limit."""
    end = time.monotonic() + limits.seconds
    for _ in range(limits.redirections + 1):
        parts = _checked_address(address)
        with closing(_connected(parts, limits, end)) as connected, _ended(connected, limits, end):
            response = _asked(parts, connected)
            location = response.getheader("Location")
            if response.status not in REDIRECTIONS or not location:
                return _content(response, limits)
            address = urljoin(address, location)
    raise DataError(f"it leads on more than {counted(limits.redirections, 'time')}")


def _connected(parts: SplitResult, limits: Limits, end: float) -> socket.socket:
    """A connection to a place that was checked: the name is looked up once, so that nobody answers otherwise
    the second time.
    """
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, place in found:
        if not limits.private and not _is_public(ipaddress.ip_address(str(place[0]).partition("%")[0])):
            raise DataError(f"{host} is in a private network ({place[0]}); --allow-private asks there too")
    problem: OSError | None = None
    for family, kind, protocol, _, place in found:
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(_left(limits, end))
            plain.connect(place)
        except OSError as error:
            plain.close()
            problem = error
        else:
            return _secured(plain, host) if parts.scheme == "https" else plain
    raise problem or OSError(f"{host} has no address")


def _secured(plain: socket.socket, host: str) -> ssl.SSLSocket:
    """With TLS, that is agreed upon later, when the time is watched."""
    try:
        context = ssl.create_default_context()
        return context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        plain.close()
        raise


@contextmanager
def _ended(connected: socket.socket, limits: Limits, end: float) -> Iterator[None]:
    """Cut a connection off when its time is over: a timeout of the socket begins anew with every byte."""

    def cut_off() -> None:
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_left(limits, end), cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
        _left(limits, end)  # an answer that was cut off looks like a whole one
    except (OSError, http.client.HTTPException):
        _left(limits, end)
        raise
    finally:
        timer.cancel()


def _asked(parts: SplitResult, connected: socket.socket) -> http.client.HTTPResponse:
    if isinstance(connected, ssl.SSLSocket):
        connected.do_handshake()
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    connection.sock = connected
    target = quote(parts.path or "/", safe=UNCHANGED)
    if parts.query:
        target += "?" + quote(parts.query, safe=UNCHANGED)
    connection.request("GET", target, headers={"User-Agent": "coterie", "Accept": "image/*"})
    return connection.getresponse()


def _content(response: http.client.HTTPResponse, limits: Limits) -> bytes:
    if response.status != http.client.OK:
        raise DataError(f"the server answers {response.status} {response.reason}".rstrip())
    content = response.read(limits.size + 1)
    if len(content) > limits.size:
        raise DataError(f"it has more than {limits.size:,} bytes")
    return content


def _is_public(address: Address) -> bool:
    """Whether it is of the public internet, also where it wraps an address of the older kind."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _checked_address(address: str) -> SplitResult:
    """The parts of an address; DataError where it is no http or https one, or holds a password."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise DataError(f"{address} is no address: {error}") from None
    if parts.scheme not in SCHEMES or not parts.hostname or port == 0:
        raise DataError(f"{address} is not an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise DataError(f"an address with a user name is not asked: {parts.hostname}")
    return parts


def _left(limits: Limits, end: float) -> float:
    """The seconds that are left; DataError where there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise DataError(f"it takes longer than {limits.seconds:g} seconds")
    return left
