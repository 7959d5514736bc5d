"""Trainings on a Ray cluster: the weights of those on one machine, also when nodes are killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import cluster as disturbance

from coterie.config import load_config
from coterie.engine import make_engine
from coterie.errors import ConfigError
from coterie.models.factory import make_factory
from coterie.pipeline import run
from coterie.ray_engine import connect, stay_on_this_machine
from coterie.runfolder import RunFolder
from tests.tiny import RUN_WORDS, write_table

stay_on_this_machine()
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two nodes on this machine; skips where Ray cannot start here."""
    nodes = disturbance.two_nodes()
    try:
        cluster = nodes.__enter__()
    except Exception as error:  # a sandbox without shared memory or sockets, a machine that is too slow
        pytest.skip(f"Ray does not start here: {type(error).__name__}: {error}".splitlines()[0])
    try:
        yield cluster
    finally:
        nodes.__exit__(None, None, None)


def test_nodes_that_are_killed_change_no_weights(cluster: Any, tmp_path: Path) -> None:
    storage = f"storage=file://{tmp_path}/storage"
    found, printed = disturbance.disturbed(
        cluster, tmp_path / "run", storage, f"ray.work_dir={tmp_path}/nodes"
    )
    assert found == disturbance.undisturbed(tmp_path / "undisturbed")
    for name in disturbance.VICTIMS:
        assert f"{name}: its process or its node died; it is started once more" in printed
    # each node worked in a folder of its own, and the second student went on behind the first one's epoch,
    # whose seconds no other has to the last digit
    logs = [path.read_text().splitlines() for path in (tmp_path / "nodes").glob("*/student/log.jsonl")]
    assert sorted(map(len, logs)) == [1, 4]
    assert logs[0][0] == logs[1][0]


def test_nodes_share_the_run_folder_where_there_is_no_storage(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)  # paths are those of the driver, wherever a node was started
    words = [*RUN_WORDS, "data=photos/labels.csv", "k=1"]
    on_ray = ["engine=ray", f"ray.address={cluster.address}"]
    hashes = []
    for name, more in (("here", []), ("there", on_ray)):
        with disturbance.one_thread():
            made = run(load_config([*words, *more, f"out={name}"]), only=("baseline",))
        (baseline, *_) = RunFolder(made.folder).trainings()
        hashes.append((baseline.state, baseline.weights_sha256))
    assert hashes[0][0] == "done"
    assert hashes[0] == hashes[1]


def test_a_training_that_no_node_can_hold_is_refused_before_any_work(cluster: Any, tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]
    words += ["engine=ray", f"ray.address={cluster.address}", "ray.gpus=0.5"]
    with pytest.raises(ConfigError, match=r"no node of the Ray cluster has 1 CPU and 0\.5 GPU"):
        run(load_config(words))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_model_that_cannot_be_sent_is_refused_before_any_work() -> None:
    config = load_config(["engine=ray", "ray.address=auto"])

    class Unsendable:
        def __call__(self, num_classes: int) -> Any: ...

        def __reduce__(self) -> Any:
            raise TypeError("it stays here")

    with pytest.raises(ConfigError, match=r"a model builder that can be sent .* it stays here"):
        make_engine(config).prepare(make_factory(config.model, Unsendable()))


def test_an_address_where_no_cluster_is_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(
            ConfigError, match=rf"ray\.address={address}: .*`ray start --head` starts a cluster"
        ):
            connect(address)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ray.address=ray://head:10001", "must be the address of a cluster that this machine is in"),
        ("ray.gpus=1.5", "must be a part of one GPU, or whole GPUs"),
        ("retries=-1", "'retries' must be"),
    ],
)
def test_settings_of_a_cluster_are_checked(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([word])
