"""Downloads stay within their limits. The servers are on this machine."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from coterie.data.dataset import UnreadableImage, open_image
from coterie.download import Limits, WebImage, _is_public, download, is_address
from coterie.errors import DataError
from tests.tiny import make_dataset

HERE = Limits(private=True)


class Handler(BaseHTTPRequestHandler):
    """/bytes/N: that many; /again/N: that many redirections; /slow: a byte now and then; /picture: a PNG."""

    picture = b""
    elsewhere = ""
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        _, kind, *rest = self.path.split("/")
        if kind == "bytes":
            self._answer(b"x" * int(rest[0]))
        elif kind == "again" and rest[0] != "0":
            self._redirect(f"/again/{int(rest[0]) - 1}")
        elif kind == "elsewhere":
            self._redirect(self.elsewhere)
        elif kind in ("again", "picture"):
            self._answer(self.picture)
        elif kind == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(3000):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.send_error(404)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("web") / "a.png"
    make_dataset().load_image(0).save(path)
    Handler.picture = path.read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_picture_is_what_the_server_gives(server: str) -> None:
    image = WebImage(f"{server}/picture/ä b.png?x=1 2&y=%20", HERE)
    assert image.size == 0
    assert open_image(image).tobytes() == make_dataset().load_image(0).tobytes()
    assert image.size == len(Handler.picture)
    assert str(image) == f"{server}/picture/ä b.png?x=1 2&y=%20"
    assert Handler.asked[-1] == "/picture/%C3%A4%20b.png?x=1%202&y=%20"


def test_what_is_too_large_is_not_taken(server: str) -> None:
    assert download(f"{server}/bytes/1000", Limits(size=1000, private=True)) == b"x" * 1000
    with pytest.raises(DataError, match="it has more than 999 bytes"):
        download(f"{server}/bytes/1000", Limits(size=999, private=True))


def test_what_takes_too_long_is_cut_off_whatever_comes_in_between(server: str) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"it takes longer than 0\.3 seconds"):
        download(f"{server}/slow", Limits(seconds=0.3, private=True))
    assert time.monotonic() - begun < 30


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(DataError, match=r"longer than 0\.2 seconds"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png", Limits(seconds=0.2, private=True))
        with pytest.raises(DataError, match=r"longer than 0\.2 seconds"):
            download(f"https://127.0.0.1:{silent.getsockname()[1]}/a.png", Limits(seconds=0.2, private=True))


def test_redirections_are_followed_up_to_a_limit(server: str) -> None:
    assert download(f"{server}/again/2", Limits(redirections=2, private=True)) == Handler.picture
    with pytest.raises(DataError, match="it leads on more than 2 times"):
        download(f"{server}/again/3", Limits(redirections=2, private=True))


def test_what_is_not_there_is_said(server: str) -> None:
    with pytest.raises(UnreadableImage, match="the server answers 404 Not Found"):
        open_image(WebImage(f"{server}/nothing", HERE))
    with pytest.raises(UnreadableImage, match="it is not a picture of a known format"):
        open_image(WebImage(f"{server}/bytes/7", HERE))
    with pytest.raises(UnreadableImage, match="the file is empty"):
        open_image(WebImage(f"{server}/bytes/0", HERE))


def test_this_machine_is_not_asked_unless_that_is_allowed(server: str) -> None:
    before = len(Handler.asked)
    for place in (server, server.replace("127.0.0.1", "localhost"), server.replace("127.0.0.1", "0x7f.1")):
        with pytest.raises(DataError, match=r"is in a private network .*--allow-private asks there too"):
            download(f"{place}/picture", Limits())
    assert len(Handler.asked) == before


def test_a_redirection_into_a_private_network_is_not_followed(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.download._is_public", lambda address: str(address) == "127.0.0.1")
    Handler.elsewhere = server.replace("127.0.0.1", "127.0.0.2") + "/picture"
    with pytest.raises(DataError, match=r"private network \(127\.0\.0\.2\)"):
        download(f"{server}/elsewhere", Limits())
    Handler.elsewhere = "file:///etc/hostname"
    with pytest.raises(DataError, match="file:///etc/hostname is not an http"):
        download(f"{server}/elsewhere", Limits())


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert _is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ftp://example.org/a.png", "is not an http:// or https:// address"),
        ("http:///a.png", "is not an http:// or https:// address"),
        ("http://example.org:99999/", "is no address"),
        ("http://[::1/", "is no address"),
        ("https://me:secret@example.org/", "an address with a user name is not asked: example.org"),
    ],
)
def test_what_is_no_address_of_the_web_is_refused(address: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        WebImage(address, HERE)


def test_paths_are_no_addresses() -> None:
    assert is_address("HTTP://example.org")
    assert not any(map(is_address, ("http", "photos/http.png", "http:/x", "C:/x", "file:///x")))
