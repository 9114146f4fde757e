"""The TensorBoard events of a resumed run: all that was logged before the save stays, whatever its x axis.

TensorBoard itself hides everything from the step of the save on.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from softmax_regression.runs.loops import file_writer


def mark_saved(loggers: Iterable[Logger], step: int, batches: int) -> None:
    """Write an event that says that the run is saved now, after so many steps and minibatches."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            saved = Event(session_log=SessionLog(status=SessionLog.CHECKPOINT, msg=str(batches)))
            file_writer(logger.experiment).add_event(saved, step)
            logger.experiment.flush()


def dropped_events(run: Path, step: int, batches: int) -> list[Any]:
    """Return the events that TensorBoard hides when a run is resumed after so many steps, but were logged before.

    Where gradients are accumulated, a run may be saved several times at one step, after other numbers of minibatches.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    later: list[Any] = []
    saved: list[Any] = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            status = event.session_log.status
            if status == event.session_log.START:  # the run was resumed here
                later = [each for each in later if each.step < event.step]
            elif status == event.session_log.CHECKPOINT and event.session_log.msg == str(batches):
                saved = list(later)
            elif event.HasField("summary") and event.step >= step:
                later.append(event)
    return saved
