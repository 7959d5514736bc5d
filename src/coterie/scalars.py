"""The numbers of every epoch, for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class ScalarLog:
    """A new file of TensorBoard's in `folder`, from the step `first` on: what files before it say of later
    steps does not count any more.

    Torch's own writer has a thread for it, and a full disk would end that thread and not the training. The
    names count up, as TensorBoard reads files by their names, and a clock may go back.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob("*tfevents*"))
        self._file = (folder / f"events.out.tfevents.{number:010d}.coterie").open("ab")
        self._records = RecordWriter(self._file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._put(Event(wall_time=time.time(), step=first, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step, in this thread; OSError where that cannot be done."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=one) for name, one in values.items()])
        self._put(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _put(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()
