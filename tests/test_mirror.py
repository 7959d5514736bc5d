"""A run at a URL: what another machine finds there, whole or not at all; on the disk and on a server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from coterie.checkpoint import INFO_FILE, WEIGHTS_FILE
from coterie.config import load_config
from coterie.data.loading import Views
from coterie.errors import ConfigError, RunError
from coterie.mirror import Mirror
from coterie.pipeline import Run, run
from coterie.runfolder import Inputs, RunFolder, Training
from coterie.states import PATTERN as STATES
from coterie.trainer import LOG_FILE, Trainer
from tests.tiny import RUN_WORDS, write_table

if TYPE_CHECKING:
    from tests.sftp_server import SftpServer

STATE_FILE = "state-00000003.pt"
NAME = "teachers/co-occurrence-0"
SHA256 = hashlib.sha256(b"weights").hexdigest()
DONE = Training(NAME, ("red", "blue"), "co-occurrence", 0, "done", "key", SHA256, 1, 50.0, 2.0)
BASELINE = ("baseline",)


@pytest.fixture(scope="session")
def running_server() -> Iterator[SftpServer]:
    pytest.importorskip("paramiko")
    server = pytest.importorskip("tests.sftp_server").SftpServer()
    yield server
    server.stop()


@pytest.fixture
def sftp_server(running_server: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SftpServer:
    """An SFTP server that this machine knows, and with it the password."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_text(running_server.known_host)
    monkeypatch.setenv("HOME", str(home))
    # as the environment variable FSSPEC_SFTP_PASSWORD does it
    monkeypatch.setitem(fsspec.config.conf, "sftp", {"password": "secret"})
    return running_server


@pytest.fixture(params=["file", "sftp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of its own, on the disk and on the server."""
    if request.param == "file":
        return f"file://{tmp_path}/storage"
    server: SftpServer = request.getfixturevalue("sftp_server")
    return server.url(tmp_path / "served")


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = {"weights": WEIGHTS_FILE, "info": INFO_FILE, "log": LOG_FILE, "state": STATE_FILE}
    for name, content in files.items():
        (folder / names[name]).write_text(content)
    return folder


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def stored(url: str, part: str) -> set[str]:
    """The names of the files of a part."""
    fs, path = fsspec.core.url_to_fs(url)
    return {found.rpartition("/")[2] for found in fs.ls(f"{path}/{part}.files", detail=False)}


def test_a_finished_training_is_found_by_its_key_and_brought_whole(url: str, tmp_path: Path) -> None:
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    write(here.folder / NAME, weights="weights", info="{}", log="1\n", state="s")
    here.keep(DONE)
    assert there.take(DONE, "another key") is None
    assert not there.folder.exists()
    assert there.take(DONE, "key") == DONE
    assert contents(there.folder / NAME) == {WEIGHTS_FILE: "weights", INFO_FILE: "{}", LOG_FILE: "1\n"}
    assert there.take(replace(DONE, name="student"), "key") is None
    assert there.take(replace(DONE, class_names=("red", "green")), "key") is None


def test_a_state_is_taken_up_where_it_has_come_further(url: str, tmp_path: Path) -> None:
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    for epochs in (1, 2):
        write(here.folder / NAME, state=f"after {epochs}", log="line\n" * epochs)
        here.keep_state(NAME, "key")
    write(here.folder / NAME, log="line\n" * 2)
    (here.folder / NAME / "state-00000002.pt").write_text("the one before")
    here.keep_state(NAME, "key")
    assert len(stored(url, NAME)) == 2  # the newest state and the log: of the first epoch nothing is left
    assert not there.fetch_state(NAME, "another key")
    write(there.folder / NAME, state="newer", log="line\n" * 3)
    assert not there.fetch_state(NAME, "key")
    write(there.folder / NAME, state="older", log="line\n")
    assert there.fetch_state(NAME, "key")
    assert contents(there.folder / NAME) == {STATE_FILE: "after 2", LOG_FILE: "line\nline\n"}
    here.keep(replace(DONE))  # no weights yet, so that only the log is kept
    assert not there.fetch_state(NAME, "key")


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_what_is_not_as_it_was_written_is_not_there(damage: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/storage"
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    write(here.folder / NAME, weights="weights", info="{}")
    here.keep(DONE)
    for path in (tmp_path / "storage" / f"{NAME}.files").iterdir():
        if path.read_text() == "weights":
            path.write_text("wei") if damage == "cut" else path.unlink()
    assert there.take(DONE, "key") is None
    assert not (there.folder / NAME / WEIGHTS_FILE).exists()
    here.keep(DONE)
    assert there.take(DONE, "key") == DONE


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"schema_version": 2, "key": "key", "files": {}}', "[" * 100_000]
)
def test_a_list_that_is_none_counts_as_missing(text: str, tmp_path: Path) -> None:
    here = Mirror(f"file://{tmp_path}/storage", tmp_path / "here")
    write(here.folder / NAME, weights="weights")
    here.keep(DONE)
    (tmp_path / "storage" / f"{NAME}.json").write_text(text)
    assert here.take(DONE, "key") is None


def test_what_is_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/storage"
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    write(here.folder / NAME, state="first", log="line\n")
    here.keep_state(NAME, "key")
    get_file = LocalFileSystem.get_file

    def replaced(self: LocalFileSystem, *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        write(here.folder / NAME, state="second", log="line\nline\n")
        here.keep_state(NAME, "key")
        get_file(self, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "get_file", replaced)
    assert there.fetch_state(NAME, "key")
    assert contents(there.folder / NAME) == {STATE_FILE: "second", LOG_FILE: "line\nline\n"}


def test_a_kill_before_the_list_is_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/storage"
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    write(here.folder / NAME, state="first", log="line\n")
    here.keep_state(NAME, "key")
    moved = LocalFileSystem.mv
    moves: list[str] = []

    def killed(self: LocalFileSystem, old: str, new: str, **options: Any) -> None:
        moves.append(new)
        if new.endswith(".json"):
            raise KeyboardInterrupt
        moved(self, old, new, **options)

    write(here.folder / NAME, state="second", log="line\nline\n")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "mv", killed)
        with pytest.raises(KeyboardInterrupt):
            here.keep_state(NAME, "key")
    assert len(moves) == 3  # both files, and then their list
    assert there.fetch_state(NAME, "key")
    assert contents(there.folder / NAME) == {STATE_FILE: "first", LOG_FILE: "line\n"}


@pytest.mark.parametrize(
    "name", ["../../outside", "/outside", "below/../../outside", ".lock", "below/.lock", ""]
)
def test_a_list_that_names_what_is_no_file_of_its_part_counts_as_missing(name: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/storage"
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    write(here.folder / NAME, weights="weights")
    here.keep(DONE)
    path = tmp_path / "storage" / f"{NAME}.json"
    content = json.loads(path.read_text())
    content["files"][name] = content["files"][WEIGHTS_FILE]
    path.write_text(json.dumps(content))
    assert there.take(DONE, "key") is None
    assert not there.folder.exists()


def test_a_manifest_that_names_a_training_outside_of_the_run_leads_nowhere(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/storage/run"
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    outside = replace(DONE, name="../outside")
    folder = RunFolder(here.folder)
    folder.write_manifest(Inputs("fingerprint"), [outside, DONE])
    folder.save_config(load_config())
    write(here.folder / NAME, weights="weights")
    here.keep(DONE)
    here.keep_run("key")
    above = Mirror(f"file://{tmp_path}/storage", tmp_path / "above")
    write(above.folder / "outside", weights="weights")
    above.keep(replace(DONE, name="outside"))
    there.fetch_run()
    assert (there.folder / NAME / WEIGHTS_FILE).exists()
    assert not (tmp_path / "outside").exists()


def test_a_connection_that_was_cut_is_made_anew(sftp_server: SftpServer, tmp_path: Path) -> None:
    mirror = Mirror(sftp_server.url(tmp_path / "served"), tmp_path / "here")
    write(mirror.folder / NAME, weights="weights")
    mirror.check()
    sftp_server.cut_connections()
    mirror.keep(DONE)
    sftp_server.cut_connections()
    (mirror.folder / NAME / WEIGHTS_FILE).unlink()
    assert mirror.take(DONE, "key") == DONE
    assert contents(mirror.folder / NAME) == {WEIGHTS_FILE: "weights"}


def test_a_link_that_is_dead_is_given_up_and_made_anew(sftp_server: SftpServer, tmp_path: Path) -> None:
    from coterie.sftp import SECONDS_TO_ANSWER

    mirror = Mirror(sftp_server.url(tmp_path / "served"), tmp_path / "here")
    write(mirror.folder / NAME, weights="weights")
    mirror.check()
    silent = mirror._fs.fs
    channel = silent.ftp.get_channel()
    assert channel.gettimeout() == SECONDS_TO_ANSWER
    transport = channel.get_transport()
    assert transport.banner_timeout == transport.auth_timeout == SECONDS_TO_ANSWER
    channel.settimeout(0.1)
    sftp_server.silence_connections()
    mirror.keep(DONE)
    assert mirror._fs.fs is not silent
    silent.client.close()
    assert Mirror(mirror.url, tmp_path / "there").take(DONE, "key") == DONE


def test_a_server_whose_key_is_not_known_is_refused(sftp_server: SftpServer, tmp_path: Path) -> None:
    (tmp_path / "home" / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(RunError, match=r"storage=sftp://.*127\.0\.0\.1.* not found in known_hosts"):
        Mirror(sftp_server.url(tmp_path / "served"), tmp_path).check()


def test_another_process_gets_neither_the_connection_nor_the_password(
    sftp_server: SftpServer, tmp_path: Path
) -> None:
    mirror = Mirror(sftp_server.url(tmp_path / "served"), tmp_path / "here")
    mirror.check()
    sent = pickle.dumps(mirror)
    assert b"secret" not in sent
    assert pickle.loads(sent) == mirror


def test_a_storage_that_cannot_be_used_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"storage=file://.*the same command goes on"):
        Mirror(f"file://{tmp_path}/file/below", tmp_path).check()
    with pytest.raises(ConfigError, match=r"storage=nosuch://place: .*nosuch"):
        Mirror("nosuch://place", tmp_path).check()
    with pytest.raises(ConfigError, match=r"must hold no password: docs/cluster\.md says where"):
        load_config(["storage=sftp://me:secret@host/path"])


def start(folder: Path, url: str, *words: str, only: tuple[str, ...] | None = None) -> tuple[Run, str]:
    """A run that is kept at `url`, with its folder in `folder`, and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    table = folder.parent / "photos" / "labels.csv"
    config = load_config([*RUN_WORDS, f"data={table}", f"out={folder}", f"storage={url}", *words])
    made = run(config, only=only, console=console)
    assert isinstance(console.file, io.StringIO)
    return made, console.file.getvalue()


def test_another_machine_goes_on_with_a_run(url: str, tmp_path: Path) -> None:
    write_table(tmp_path / "photos")
    start(tmp_path / "here", url, only=BASELINE)
    made, printed = start(tmp_path / "there", url)
    assert "baseline: done before" in printed
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "here" / "manifest.json").unlink()  # as of a machine that has lost it
    again, printed = start(tmp_path / "here", url)
    assert again.metrics == made.metrics
    assert "student: brought from" in printed
    assert {training.state for training in RunFolder(again.folder).trainings()} == {"done"}


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    """A storage beside the photographs of a run."""
    write_table(tmp_path / "photos")
    return f"file://{tmp_path}/storage"


def breaking(patch: pytest.MonkeyPatch, pattern: str) -> None:
    """Let the link to the storage be dead for files of such a name."""
    put_file = LocalFileSystem.put_file

    def dead(self: LocalFileSystem, path: str, *arguments: Any, **options: Any) -> None:
        if Path(path).match(pattern):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        put_file(self, path, *arguments, **options)

    patch.setattr(LocalFileSystem, "put_file", dead)


def baseline_of(folder: Path) -> str:
    return RunFolder(folder).trainings()[0].weights_sha256


def test_a_link_that_is_dead_after_an_epoch_stops_no_training(
    finished_run: Run, tmp_path: Path, folder_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, STATES)
        _, printed = start(tmp_path / "here", folder_url, only=BASELINE)
    lines = [line for line in printed.splitlines() if "Network is unreachable" in line]
    assert [line.split(": ")[:2] for line in lines] == [
        ["baseline", f"epoch {epoch} is kept on its machine only"] for epoch in (1, 2)
    ]
    assert baseline_of(tmp_path / "here") == baseline_of(finished_run.folder)
    _, printed = start(tmp_path / "there", folder_url, only=BASELINE)
    assert "baseline: done before" in printed


def test_a_link_that_is_dead_when_a_training_is_finished_is_one_message_and_nothing_is_lost(
    finished_run: Run, tmp_path: Path, folder_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, WEIGHTS_FILE)
        with pytest.raises(RunError, match=r"Network is unreachable\. When that is put right, the same comm"):
            start(tmp_path / "here", folder_url, only=BASELINE)
    steps: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, batch: Any, number: int, *rest: Any) -> None:
        steps.append(number)
        step(self, batch, number, *rest)

    monkeypatch.setattr(Trainer, "step", counted)
    start(tmp_path / "here", folder_url, only=BASELINE)
    assert steps == []
    assert baseline_of(tmp_path / "here") == baseline_of(finished_run.folder)
    start(tmp_path / "there", folder_url, only=BASELINE)
    assert baseline_of(tmp_path / "there") == baseline_of(finished_run.folder)


def test_two_runs_on_one_storage_do_no_harm(
    finished_run: Run, tmp_path: Path, folder_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    getitems, others = Views.__getitems__, [tmp_path / "there"]

    def meanwhile(self: Views, keys: Any) -> Any:
        if keys[0][0] == 1 and others:  # the second epoch of the one, all of the other
            start(others.pop(), folder_url, only=BASELINE)
        return getitems(self, keys)

    monkeypatch.setattr(Views, "__getitems__", meanwhile)
    start(tmp_path / "here", folder_url, only=BASELINE)
    start(tmp_path / "third", folder_url, only=BASELINE)
    for name in ("here", "there", "third"):
        assert baseline_of(tmp_path / name) == baseline_of(finished_run.folder)


def test_a_storage_of_another_run_is_refused(tmp_path: Path, folder_url: str) -> None:
    start(tmp_path / "here", folder_url, only=BASELINE)
    with pytest.raises(RunError, match="is a run of other settings"):
        start(tmp_path / "there", folder_url, "seed=1", only=BASELINE)
    shutil.rmtree(tmp_path / "there")
    other = tmp_path / "elsewhere"
    start(other, f"file://{tmp_path}/other", "seed=1", only=BASELINE)
    with pytest.raises(RunError, match="holds a run of other settings or data; choose another"):
        start(other, folder_url, "seed=1", only=BASELINE)
