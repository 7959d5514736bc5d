"""Trainings as tasks of a Ray cluster (`engine=ray`)."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coterie.config import Config
from coterie.data.loading import ResizedImages
from coterie.dispatch import Message, Send, Worker, dispatch, do_group, sending_failures
from coterie.errors import ConfigError, RunError
from coterie.extras import need_extra
from coterie.files import content_hash
from coterie.mirror import Mirror
from coterie.models.factory import ModelFactory
from coterie.progress import Bars
from coterie.ranks import Meeting, ranks_in
from coterie.runfolder import Training, reset
from coterie.training import Failed, Job, Workshop, grouped

LOCAL = "local"
HERE = "127.0.0.1"
# How long to wait for a word of a task before looking whether a node is left that could do it.
SECONDS_BETWEEN_LOOKS = 10.0
SECONDS_TO_CONNECT = 30.0


class RayEngine:
    """A task for each group of trainings, with the resources that it needs (`ray.cpus`, `ray.gpus`), or
    several that share its batches (`processes`).

    Ray decides where and when a task runs. The tasks see the images and the files of weights at the paths
    that they have here, and so the run folder; with a `storage` each node has a folder of its own.
    """

    def __init__(self, config: Config) -> None:
        need_extra("ray", "engine=ray", "ray")
        if config.ray.address == LOCAL:
            stay_on_this_machine()
        self.config = config
        self.gpus = 0.0
        self._parts: tuple[Workshop, Any] | None = None
        self._started = False

    def prepare(self, factory: ModelFactory) -> None:
        if self.config.processes > 1 and self.config.ray.cpus == 0:
            raise ConfigError("ray.cpus=0, but processes of 2 and more have to take some; set ray.cpus=1")
        if self.config.processes > 1 and 0 < (self.config.ray.gpus or 0) < 1:
            raise ConfigError(
                f"ray.gpus={self.config.ray.gpus:g}, but of processes={self.config.processes} each needs a "
                "GPU of its own; set ray.gpus=1, or processes=1"
            )
        from ray import cloudpickle

        try:
            cloudpickle.dumps(factory)
        except Exception as error:  # pickle raises nearly anything
            raise ConfigError(
                "engine=ray needs a model builder that can be sent to another machine, such as a function of "
                f"a module that is installed there: {error}"
            ) from None

    def __enter__(self) -> Self:
        import ray

        if not ray.is_initialized():
            connect(self.config.ray.address)
            self._started = True
        try:
            self._check_needs()
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def train(
        self, workshop: Workshop, jobs: Sequence[Job], manifest: Sequence[Training], bars: Bars
    ) -> Iterator[Training | Failed]:
        at_once = sum(map(self._room, _nodes())) // self.config.processes
        groups = grouped(jobs, self.config.together, at_once or 1)
        results = dispatch(
            groups,
            len(jobs),  # Ray keeps those for which there is no room yet
            self.config.retries,
            bars,
            lambda group, _: self._start(workshop, group, manifest, bars),
            self._wait,
        )
        for result in results:
            yield result if workshop.mirror is None else _brought(result, workshop.mirror)

    def _start(
        self, workshop: Workshop, jobs: Sequence[Job], manifest: Sequence[Training], bars: Bars
    ) -> _Tasks:
        import ray
        from ray import cloudpickle
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if self._parts is None or self._parts[0] is not workshop:
            # as bytes: arrays that Ray unpacks cannot be written to, and modules are found by the task alone
            self._parts = workshop, ray.put(cloudpickle.dumps(_Parts.of(workshop, self.gpus > 0)))
        options: dict[str, Any] = {
            "num_cpus": self.config.ray.cpus,
            "num_gpus": self.gpus,
            "max_retries": 0,  # `dispatch` counts, and says so
            "name": ", ".join(job.training.name for job in jobs),
        }
        threads = max(1, int(self.config.ray.cpus))
        places = [str(Path(place).absolute()) for place in (".", *sys.path)]
        # in a list a reference is fetched only where the task asks for it
        work = [self._parts[1]], places, jobs, manifest, threads
        if self.config.processes == 1:
            task = ray.remote(**options, scheduling_strategy="SPREAD")(_work)
            return _Tasks([task.remote(*work, {})], jobs, workshop, bars)
        together = _Together(self.config.processes, self.config.ray.cpus, self.gpus)
        streams = []
        for rank in range(self.config.processes):
            place = PlacementGroupSchedulingStrategy(together.placement, placement_group_bundle_index=rank)
            # a process that has failed may be in the middle of what it did with the others
            task = ray.remote(**options, scheduling_strategy=place, max_calls=1)(_work)
            streams.append(task.remote(*work, together.meeting.environment(rank, 0)))
        return _Tasks(streams, jobs, workshop, bars, together)

    def _wait(self, groups: Sequence[_Tasks]) -> None:
        """Return when one of the tasks has something to say, or after a while; RunError where none of them
        can begin.
        """
        import ray

        streams = [stream for tasks in groups for stream in tasks.streams]
        if ray.wait(streams, timeout=SECONDS_BETWEEN_LOOKS, fetch_local=False)[0]:
            return
        if not any(tasks.has_begun for tasks in groups) and not self._is_there_room():
            raise RunError(
                f"the nodes of the Ray cluster have not {self._needs} any more. Start one and give the "
                "command again: the run goes on where it is"
            )

    def _is_there_room(self) -> bool:
        """Whether the nodes, where nothing else runs, hold the processes of a training."""
        return sum(map(self._room, _nodes())) >= self.config.processes

    def _check_needs(self) -> None:
        """ConfigError where the nodes have not what a training needs."""
        nodes = _nodes()
        if self.config.ray.gpus is not None:
            self.gpus = self.config.ray.gpus
        elif self.config.device != "cpu":
            self.gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
        if not self._is_there_room():
            there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
            raise ConfigError(
                f"the nodes of the Ray cluster have not {self._needs}, as a training needs by ray.cpus, "
                f"ray.gpus and processes; they have {there}"
            )

    @property
    def _needs(self) -> str:
        one = f"{self.config.ray.cpus:g} CPU and {self.gpus:g} GPU"
        return one if self.config.processes == 1 else f"{self.config.processes} times {one}"

    def _room(self, node: dict[str, float]) -> int:
        """How many trainings a node has room for."""
        needs = {"CPU": self.config.ray.cpus, "GPU": self.gpus}
        rooms = [int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items() if amount > 0]
        return min(rooms, default=1)

    def _disconnect(self) -> None:
        import ray

        self._parts = None
        if self._started:
            ray.shutdown()
            self._started = False


def connect(address: str) -> None:
    """Join the Ray cluster at `address`, or start one on this machine where that is "local".

    ConfigError where there is none.
    """
    import ray

    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        if ":" in address:  # Ray would try for ever
            host, port = address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        # Ray prints a hundred lines of its log into the view for every node that dies, and has no setting
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except Exception as error:  # Ray raises all sorts, and Exception itself where it starts too slowly
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"ray.address={address}: {reason}. `ray start --head` starts a cluster on this machine, "
            "ray.address=local one for the run alone"
        ) from None
    if address == LOCAL and ray.util.get_node_ip_address() != HERE:
        ray.shutdown()
        raise ConfigError(
            "ray.address=local: Ray would listen to other machines, as it was imported before Coterie could "
            "tell it not to. Set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before"
        )


def stay_on_this_machine() -> None:
    """Let a cluster that this process starts listen on 127.0.0.1 alone, to those that know a token, and send
    no statistics of its use.

    Ray reads this when it is imported for the first time. That no other machine is to join it takes from a
    variable that is named for Windows. Without a token, every user of this machine could run code as this
    one.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class _Parts:
    """A workshop on its way to another machine: without the pixels, which that one decodes for itself."""

    workshop: Workshop

    @classmethod
    def of(cls, workshop: Workshop, on_gpu: bool) -> _Parts:
        """`on_gpu`: whether Ray gives the tasks a GPU; without one they must not take what they find."""
        images, config = workshop.images, workshop.config
        empty = ResizedImages(images.dataset, images.preprocessing, stored=images.stored)
        if not on_gpu and config.device == "auto":
            config = config.model_copy(update={"device": "cpu"})
        return cls(replace(workshop, images=empty, folder=workshop.folder.absolute(), config=config))

    def unpacked(self, node: str) -> Workshop:
        """The workshop as the tasks on `node` use it; RunError where that does not see the run folder."""
        images, data = self.workshop.images, self.workshop.config.data
        folder, mirror = self.workshop.folder, self.workshop.mirror
        if mirror is None and not folder.is_dir():
            raise RunError(
                f"there is no {folder} on node {node}: choose an out=… that all nodes see, or keep the run "
                "at storage=…"
            )
        if mirror is not None:
            place = self.workshop.config.ray.work_dir or own_temporary_folder()
            folder = place / f"{content_hash([mirror.url, str(folder)])[:12]}-{node}"
            mirror = replace(mirror, folder=folder)
        images.fill(lambda _: None)
        shared, memory = data.workers > 0, 0.0 if images.stored else data.cache_gb
        return replace(
            self.workshop,
            folder=folder,
            mirror=mirror,
            images=ResizedImages(images.dataset, images.preprocessing, memory, shared, images.stored),
        )


def _brought(result: Training | Failed, mirror: Mirror) -> Training | Failed:
    """A finished training, its files brought from the storage to the run folder."""
    if not isinstance(result, Training):
        return result
    try:
        if mirror.take(result, result.key) is not None:
            return result
        error = RunError(f"storage={mirror.url} does not hold it whole; start the run again")
    except RunError as unreached:
        error = unreached
    return reset(result), error


def own_temporary_folder() -> Path:
    """A folder among the temporary files that no other user of this machine can write to; RunError where
    somebody else has made one of its name.
    """
    folder = Path(tempfile.gettempdir()) / f"coterie-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RunError(
            f"{folder} is not a folder of yours alone; remove it, or choose another by ray.work_dir=…"
        )
    return folder


class _Together:
    """What several tasks need to do a group of jobs together: room for all of them, on one node where that
    has it, and where they meet.
    """

    def __init__(self, size: int, cpus: float, gpus: float) -> None:
        import ray

        needs = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
        self.placement = ray.util.placement_group([needs] * size, strategy="PACK")
        self.meeting = Meeting(size, ray.util.get_node_ip_address())


class _Tasks(Worker):
    """The tasks that do a group of jobs, one or several that share every batch: each a stream of messages."""

    def __init__(
        self,
        streams: Sequence[Any],
        jobs: Sequence[Job],
        workshop: Workshop,
        bars: Bars,
        together: _Together | None = None,
    ) -> None:
        super().__init__(jobs, workshop.folder, bars)
        self.streams = list(streams)  # those that have not ended
        self._together = together
        self._failures: list[Message] = []
        self._deaths: list[str] = []
        self._failed_at: float | None = None

    def listen(self) -> None:
        """Take in what the tasks have said since. One that fails ends the others."""
        for stream in list(self.streams):
            self._hear(stream)
        if self.streams and self._failed_at is None and (self._failures or self._deaths):
            self._failed_at = time.monotonic()
        if not self.streams or self._is_clear():
            self._conclude()

    def stop(self) -> None:
        import ray

        for stream in self.streams:
            # what has ended meanwhile cannot be ended
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(stream, force=True)
        self.end()

    def end(self) -> None:
        import ray

        if self._together is not None and not self.ended:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.util.remove_placement_group(self._together.placement)
        super().end()

    def _hear(self, stream: Any) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            while ray.wait([stream], timeout=0, fetch_local=False)[0]:
                for message in ray.get(next(stream)):
                    if message[0] == "failed":
                        self._failures.append(message)
                    else:
                        self.take_in(message)
        except StopIteration:
            self.streams.remove(stream)
        except RayError as error:
            self.streams.remove(stream)
            self._deaths.append(_how(error))

    @property
    def _stated(self) -> list[Message]:
        """The failures that say what is wrong, and not where in the code."""
        return [message for message in self._failures if message[-1] is None]

    def _is_clear(self) -> bool:
        """Whether it is known why the group failed. The end of one task is an error in the others, so these
        are given a while to say what they know.
        """
        if self._failed_at is None:
            return False
        return bool(self._stated) or time.monotonic() - self._failed_at >= SECONDS_BETWEEN_LOOKS

    def _conclude(self) -> None:
        """End the group, with what one of its tasks says is wrong, or that one died, or the first error."""
        self.stop()
        if self._stated or (self._failures and not self._deaths):
            self.take_in((self._stated or self._failures)[0])
        else:
            self.died(self._deaths[0] if self._deaths else "its task ended early")


def _how(error: Exception) -> str:
    """The end of a task in words."""
    from ray import exceptions

    if isinstance(error, exceptions.OutOfMemoryError):
        return "Ray ended it, as the memory of its node ran out"
    if isinstance(
        error, exceptions.WorkerCrashedError | exceptions.NodeDiedError | exceptions.ObjectLostError
    ):
        return "its process or its node died"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0]


# What a process of Ray's has unpacked: it does several groups, and keeps the images that it has decoded.
_unpacked: dict[str, Workshop] = {}


def _work(
    parts: Sequence[Any],
    places: Sequence[str],
    jobs: Sequence[Job],
    manifest: Sequence[Training],
    threads: int,
    environment: dict[str, str],
) -> Iterator[list[Message]]:
    """Do a group of jobs in this process of Ray's, or its part of each: what it has to say, in portions.

    `places`: the working folder of the driver, and where it looks for modules. `environment`: what one of
    several processes has to know.
    """
    import ray
    import torch
    from ray import cloudpickle

    with contextlib.suppress(OSError):  # it is not on every machine, and absolute paths need none
        os.chdir(places[0])
    # a model of one's own is found where the driver finds it
    sys.path[:] = dict.fromkeys([*places[1:], *sys.path])
    torch.set_num_threads(threads)
    context = ray.get_runtime_context()
    ranks = ranks_in(environment)
    if ranks.are_several:
        os.environ.update(environment | _interface(ray.util.get_node_ip_address()))
    names = ", ".join(job.training.name for job in jobs)
    node = context.get_node_id()[:8]
    part = f" ({ranks.rank + 1} of {ranks.size})" if ranks.are_several else ""
    yield [("note", f"{names}{part}: on {socket.gethostname()}, node {node}, process {os.getpid()}")]
    name = parts[0].hex()

    def work(send: Send) -> None:
        with sending_failures(send):
            if name not in _unpacked:
                _unpacked.clear()
                _unpacked[name] = cloudpickle.loads(ray.get(parts[0])).unpacked(node)
            do_group(_unpacked[name], jobs, manifest, 0, send, ranks)

    yield from _portions(names, work)


def _interface(address: str) -> dict[str, str]:
    """By which network the processes of a training speak: that of the node's `address`. The name of a host
    may stand for another, or for the machine itself.
    """
    psutil: Any = import_module("psutil")  # Ray brings it
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


def _portions(name: str, work: Callable[[Send], object]) -> Iterator[list[Message]]:
    """What `work` sends while it goes on in a thread of that `name`, as much at a time as there is."""
    messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def do() -> None:
        try:
            work(messages.put)
        finally:
            messages.put(None)

    threading.Thread(target=do, name=name, daemon=True).start()
    while True:
        portion = [messages.get()]
        while not messages.empty():
            portion.append(messages.get())
        yield [message for message in portion if message is not None]
        if portion[-1] is None:
            return
