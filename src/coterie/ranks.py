"""Processes that do one training together, each on its part of every batch: which of them this one is, and
what they tell each other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import Tensor, distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from coterie.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

# What a process has to know, as torchrun sets it.
ADDRESS, PORT, RANK, SIZE, LOCAL = "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"
VARIABLES = (ADDRESS, PORT, RANK, SIZE, LOCAL)
# How long the processes may take to find each other; then, one may have to wait for the others for as long
# as it takes to decode all images. That one has died is told by its connection, or by who started it.
SECONDS_TO_MEET = 600
PATIENCE = timedelta(days=30)


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the `size` that share each batch of a training; `local` is its place
    among those on its machine, and so its GPU. The first of them writes files and is told what goes on.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def are_several(self) -> bool:
        return self.size > 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


ALONE = Ranks()


def ranks_in(environment: Mapping[str, str]) -> Ranks:
    """What the variables that torchrun sets say; alone where there are none, ConfigError where one lacks."""
    if int(environment.get(SIZE) or 1) == 1 or RANK not in environment:
        return ALONE
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigError(f"{SIZE} is {environment[SIZE]}, so {missing[0]} must be set too; use torchrun")
    return Ranks(int(environment[RANK]), int(environment[SIZE]), int(environment[LOCAL]))


@contextmanager
def joined(ranks: Ranks, on_gpu: bool) -> Iterator[Store | None]:
    """Be one of the `ranks` in the block, which all enter: by the address in the environment, where the
    store is through which they have met.

    What goes wrong in the block is left to whoever started the processes: a farewell may never be answered.
    """
    if not ranks.are_several:
        yield None
        return
    limit = timedelta(seconds=SECONDS_TO_MEET)
    store, *_ = next(rendezvous("env://", ranks.rank, ranks.size, timeout=limit))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=PATIENCE,
    )
    yield store
    distributed.destroy_process_group()


class Meeting:
    """Where `size` processes that this one starts find each other, until it lets go of this: at an `address`
    of this machine.

    By default it is reached from this machine alone, as are the processes.
    """

    def __init__(self, size: int, address: str = LOOPBACK) -> None:
        self.size = size
        self.address = address
        # a port that is free now may be taken before a process listens there; this one listens already
        listener = socket.create_server((address, 0))
        self._store = TCPStore(
            address,
            listener.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def environment(self, rank: int, local: int) -> dict[str, str]:
        """What the process of a rank has to have in its environment, where it takes the GPU `local`."""
        own = {ADDRESS: self.address, PORT: self._store.port, RANK: rank, SIZE: self.size, LOCAL: local}
        # as of torchrun: the first of the processes need not listen itself
        values = {name: str(value) for name, value in own.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if self.address == LOOPBACK and loopback is not None:
            values |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        return values


class RanksEnvironment(ClusterEnvironment):
    """The `ranks` as Fabric asks for them: each a node of its own with one device, whichever that is."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ[ADDRESS]

    @property
    def main_port(self) -> int:
        return int(os.environ[PORT])

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.ranks.size

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.ranks.rank


def leave_out(task: nn.Module, part: str) -> None:
    """Let the processes that share `task` not compare its module `part`, in which nothing learns or moves."""
    names = [name for name, _ in (*task.named_parameters(), *task.named_buffers())]
    left_out = [name for name in names if name.startswith(f"{part}.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, left_out)  # type: ignore[no-untyped-call]


def summed(values: Tensor, ranks: Ranks) -> Tensor:
    """The sum of `values` over all processes, on each of them; the tensor itself where there is one."""
    if ranks.are_several:
        distributed.all_reduce(values)
    return values


def wait_for_all(ranks: Ranks) -> None:
    """Return when every process has come to this point."""
    if ranks.are_several:
        distributed.barrier()


def gathered(rows: Tensor, counts: Sequence[int], ranks: Ranks) -> Tensor:
    """The `rows` [n, ...] of all processes, one after the other, on the first of them; the others have their
    own back. `counts`: the n of each process.
    """
    if not ranks.are_several:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if ranks.is_first else None
    distributed.gather(padded, parts)
    return rows if parts is None else torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
