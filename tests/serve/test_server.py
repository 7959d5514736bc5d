"""The socket and `coterie serve`: where it listens, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

import coterie.explain
import coterie.extras
import coterie.serve
from coterie.errors import ConfigError
from coterie.predictor import Predictor, load_classifier
from coterie.serve.server import address, is_loopback, listen
from tests.export.making import save_small
from tests.export.test_onnx import photo_files
from tests.test_cli import Command, assert_refused, coterie_command  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("small") / "student")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[FastAPI]:
    """The applications that the command would serve; it ends at once."""
    applications: list[FastAPI] = []

    def keep(app: FastAPI, listening: socket.socket) -> None:
        listening.close()
        applications.append(app)

    monkeypatch.setattr(coterie.serve, "serve", keep)
    return applications


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address(first) == f"http://127.0.0.1:{port}/"
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1 cannot be listened on: Add"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_this_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"port 0 of 192\.0\.2\.1 cannot be .*--host and --port"):
        listen("192.0.2.1", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_address_of_ipv6_stands_in_brackets() -> None:
    try:
        listening = listen("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 on loopback")
    with listening:
        assert address(listening).startswith("http://[::1]:")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.5", "example.org")),
    ],
)
def test_loopback_is_what_this_machine_alone_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_the_command_serves_until_ctrl_c(checkpoint: Path, tmp_path: Path) -> None:
    photo = photo_files(tmp_path / "photos")[0]
    words = [sys.executable, "-m", "coterie", "serve", str(checkpoint), "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            url = line.split(" at ")[1].split()[0]
            assert line == f"student of {checkpoint} at {url} (Ctrl-C ends it)\n"
            request = urllib.request.Request(f"{url}api/predict", photo.read_bytes())  # as curl sends it
            with urllib.request.urlopen(request, timeout=60) as answer:
                predictions = json.load(answer)["predictions"]
            label = urllib.parse.quote(predictions[0]["label"])
            request = urllib.request.Request(f"{url}api/map?label={label}", photo.read_bytes())
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert Image.open(answer).size == Image.open(photo).size
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    (expected,) = load_classifier(checkpoint).predict([photo])
    assert {one["label"]: one["score"] for one in predictions} == pytest.approx(expected.scores, abs=1e-9)


@pytest.mark.parametrize("reason", [None, "it has no layer that gives a map"])
def test_a_model_without_maps_is_served_without_them(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    served: list[FastAPI],
    monkeypatch: pytest.MonkeyPatch,
    reason: str | None,
) -> None:

    def refuse(_predictor: Predictor) -> None:
        raise ConfigError(str(reason))

    if reason:
        monkeypatch.setattr(coterie.explain, "make_explainer", refuse)
    outcome = coterie_command("serve", checkpoint, "--port", 0)
    assert outcome.status == 0
    assert outcome.error == (f"note: the page shows no maps: {reason}\n" if reason else "")
    described = TestClient(served[0], base_url="http://127.0.0.1").get("/api/model").json()
    assert described["maps"] == (reason is None)


def test_only_loopback_is_without_a_warning_and_answers_to_no_other_name(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    served: list[FastAPI],
) -> None:
    outcome = coterie_command("serve", checkpoint, "--host", "0.0.0.0", "--port", 0, "--max-megabytes", 0.5)
    assert outcome.error == "note: whoever reaches 0.0.0.0 can use this; there is no password\n"
    assert coterie_command("serve", checkpoint, "--port", 0).error == ""
    assert coterie_command("serve", checkpoint, "--host", "127.0.0.3", "--port", 0).error == ""
    assert TestClient(served[2], base_url="http://127.0.0.3").get("/").status_code == 200
    anyone, local, _ = (TestClient(app, base_url="http://box.example") for app in served)
    assert anyone.get("/api/model").json()["max_bytes"] == 500_000
    assert local.get("/").status_code == 421


def test_what_serve_cannot_do_is_one_message(
    coterie_command: Command,  # noqa: F811
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_refused(coterie_command("serve", tmp_path), "there is no run or checkpoint at")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert_refused(coterie_command("serve", checkpoint, "--port", port), f"port {port} of 127.0.0.1")
    monkeypatch.setattr(coterie.extras, "find_spec", lambda _name: None)
    assert_refused(
        coterie_command("serve", checkpoint),
        "coterie serve needs fastapi, uvicorn: pip install 'coterie[serve]'",
    )
