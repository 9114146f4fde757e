"""The TensorBoard events of a resumed run: all that was logged before the save stays, whatever its x axis.

TensorBoard itself hides everything from the step of the save on.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from softmax_regression.runs.loops import file_writer


def mark_saved(loggers: Iterable[Logger], step: int) -> None:
    """Write an event that says that the run is saved now, after so many steps."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            saved = Event(session_log=SessionLog(status=SessionLog.CHECKPOINT))
            file_writer(logger.experiment).add_event(saved, step)
            logger.experiment.flush()


def dropped_events(run: Path, step: int) -> list[Any]:
    """Return the events that TensorBoard hides when a run is resumed after so many steps, but were logged before."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    later: list[Any] = []
    saved: list[Any] = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            status = event.session_log.status
            if status == event.session_log.START:  # the run was resumed here
                later = [each for each in later if each.step < event.step]
            elif status == event.session_log.CHECKPOINT and event.step == step:
                saved = list(later)
            elif event.HasField("summary") and event.step >= step:
                later.append(event)
    return saved
