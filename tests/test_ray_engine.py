"""Trainings on a Ray cluster: the weights of those on one machine, also when nodes are killed."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import cluster as disturbance
from rich.console import Console
from safetensors.torch import load_file

from coterie.checkpoint import WEIGHTS_FILE
from coterie.config import TrainConfig, load_config
from coterie.engine import make_engine
from coterie.errors import ConfigError, RunError
from coterie.models.factory import make_factory
from coterie.pipeline import run
from coterie.progress import Bars
from coterie.ray_engine import (
    RayEngine,
    _how,
    _Parts,
    _Tasks,
    connect,
    own_temporary_folder,
    stay_on_this_machine,
)
from coterie.runfolder import RunFolder, Training
from coterie.training import Job
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
    *stopped, finished = sorted(logs, key=len)
    assert len(finished) == 4
    assert finished[0] in [lines[0] for lines in stopped]
    # what a training has kept to go on from is removed when it is finished
    (place,) = (tmp_path / "nodes").glob("*/student/checkpoint.json")
    assert not list(place.parent.glob("state-*"))


def test_two_nodes_do_a_training_together(cluster: Any, tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    words = [*RUN_WORDS, f"data={table}", "k=1", "model=tests.tiny:Steady"]
    on_ray = ["engine=ray", f"ray.address={cluster.address}", "processes=2", "retries=5"]
    on_ray += [f"storage=file://{tmp_path}/storage", f"ray.work_dir={tmp_path}/nodes"]
    printed = Console(file=io.StringIO(), width=200)
    run(load_config([*words, *on_ray, f"out={tmp_path / 'together'}"]), only=("baseline",), console=printed)
    run(load_config([*words, f"out={tmp_path / 'alone'}"]), only=("baseline",))
    assert isinstance(printed.file, io.StringIO)
    nodes = re.findall(r"baseline \([12] of 2\): on .*, node (\w+)", printed.file.getvalue())
    assert len(set(nodes)) == 2
    paths = (tmp_path / name / "baseline" / WEIGHTS_FILE for name in ("together", "alone"))
    together, alone = map(load_file, paths)
    assert together.keys() == alone.keys()
    for name, weights in alone.items():
        torch.testing.assert_close(together[name], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cluster")  # where Ray does not start, that has skipped
def test_a_cluster_for_the_run_alone_is_reached_from_nowhere_else_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)  # paths are those of the driver, wherever a task works
    words = [*RUN_WORDS, "data=photos/labels.csv", "k=1"]
    on_ray = load_config([*words, "engine=ray", "out=there"])
    with make_engine(on_ray):
        assert listening() == {"127.0.0.1"}
        run(on_ray, only=("baseline",))
    assert not ray.is_initialized()
    with disturbance.one_thread():
        run(load_config([*words, "out=here"]), only=("baseline",))
    baselines = [RunFolder(tmp_path / name).trainings()[0] for name in ("here", "there")]
    assert [each.state for each in baselines] == ["done", "done"]
    assert baselines[0].weights_sha256 == baselines[1].weights_sha256


def listening() -> set[str]:
    """The addresses at which this process and those that it has started listen."""
    psutil: Any = import_module("psutil")  # Ray brings it
    this = psutil.Process()
    addresses = set()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            tcp = process.net_connections("tcp")
            addresses |= {each.laddr.ip for each in tcp if each.status == psutil.CONN_LISTEN}
    return {address.removeprefix("::ffff:") for address in addresses}


def test_a_training_that_no_node_can_hold_is_refused_before_any_work(cluster: Any, tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    words = [*RUN_WORDS, f"data={table}", f"out={tmp_path / 'run'}"]
    words += ["engine=ray", f"ray.address={cluster.address}", "ray.gpus=0.5"]
    with pytest.raises(ConfigError, match=r"nodes of the Ray cluster have not 1 CPU and 0\.5 GPU"):
        run(load_config(words))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_node_that_does_not_see_the_run_folder_says_what_to_do(tmp_path: Path) -> None:
    workshop: Any = SimpleNamespace(images=None, config=load_config(), folder=tmp_path / "run", mirror=None)
    with pytest.raises(RunError, match=r"there is no .*/run on node 0cf3: .* or keep the run at storage=…"):
        _Parts(workshop).unpacked("0cf3")


def test_trainings_of_half_a_gpu_go_to_the_node_that_has_one(cluster: Any, tmp_path: Path) -> None:
    table = write_table(tmp_path / "photos")
    both = ("baseline", "teachers/co-occurrence-0")
    words = [*RUN_WORDS, f"data={table}", "k=1"]
    on_ray = ["engine=ray", f"ray.address={cluster.address}", "ray.gpus=0.5", "retries=5"]
    printed = Console(file=io.StringIO(), width=200)
    # Ray counts what a node says that it has; on a CPU nobody looks for the device
    node = cluster.add_node(
        num_cpus=2, num_gpus=1, node_ip_address=disturbance.HERE, object_store_memory=disturbance.MEMORY
    )
    try:
        run(load_config([*words, *on_ray, f"out={tmp_path / 'there'}"]), only=both, console=printed)
    finally:
        cluster.remove_node(node)
    with disturbance.one_thread():
        run(load_config([*words, f"out={tmp_path / 'here'}"]), only=both)
    assert isinstance(printed.file, io.StringIO)
    nodes = re.findall(r": on .*, node (\w+)", printed.file.getvalue())
    assert set(nodes) == {node.node_id[:8]}
    assert disturbance.hashes(tmp_path / "there") == disturbance.hashes(tmp_path / "here")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("OutOfMemoryError", "Ray ended it, as the memory of its node ran out"),
        ("WorkerCrashedError", "its process or its node died"),
        ("NodeDiedError", "its process or its node died"),
    ],
)
def test_the_end_of_a_task_is_told_in_words(error: str, told: str) -> None:
    kind = getattr(ray.exceptions, error)
    assert _how(kind() if error == "WorkerCrashedError" else kind("many lines")) == told


def test_two_trainings_of_half_a_gpu_fit_on_one() -> None:
    engine = make_engine(load_config(["engine=ray", "ray.address=auto", "ray.cpus=2", "ray.gpus=0.5"]))
    assert isinstance(engine, RayEngine)
    engine.gpus = 0.5
    assert engine._room({"CPU": 16, "GPU": 1}) == 2
    assert engine._room({"CPU": 3, "GPU": 1}) == 1
    assert engine._room({"CPU": 16}) == 0


STATED, CRASH, DEATH = ("failed", "the disk is full", None), ("failed", "KeyError: 1", "trace"), "it died"


@pytest.mark.parametrize(
    ("failures", "deaths", "told", "again"),
    [
        ([CRASH, STATED], [DEATH], "the disk is full", False),
        ([CRASH], [DEATH], "it died", True),
        ([CRASH], [], "KeyError: 1 (all of it in ", True),
        ([], [], "its task ended early", True),
    ],
)
def test_of_tasks_that_end_together_the_one_that_says_what_is_wrong_is_believed(
    failures: list[Any], deaths: list[str], told: str, again: bool, tmp_path: Path
) -> None:
    job = Job(Training("baseline", ("a",)), TrainConfig(), "key")
    workshop: Any = SimpleNamespace(folder=tmp_path)
    tasks = _Tasks([], [job], workshop, Bars(Console(quiet=True)))
    tasks._failures, tasks._deaths = failures, deaths
    tasks.listen()
    assert tasks.ended
    assert tasks.failure.startswith(told)
    assert tasks.crashed == again


def test_half_a_gpu_is_not_enough_for_one_of_several_processes() -> None:
    config = load_config(["engine=ray", "ray.address=auto", "processes=2", "ray.gpus=0.5"])
    with pytest.raises(ConfigError, match=r"each needs a GPU of its own; set ray\.gpus=1, or processes=1"):
        make_engine(config).prepare(make_factory(config.model))


def test_a_temporary_folder_that_is_not_ones_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = own_temporary_folder()
    assert folder.stat().st_mode & 0o077 == 0
    assert own_temporary_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(RunError, match="not a folder of yours alone"):
        own_temporary_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(RunError, match="not a folder of yours alone"):
        own_temporary_folder()


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


def test_a_ray_that_starts_too_slowly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.\nSee its log.")  # no class of its own

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(
        ConfigError, match=r"^ray\.address=local: The current node timed out during startup\. `ray "
    ):
        connect("local")


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
