"""What TensorBoard shows of a run that goes on: all that was logged before it was saved, whatever the x axis.

TensorBoard itself drops what stands at the step of the save or after it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def mark_saved(loggers: Iterable[Logger], step: int) -> None:
    """Note in the event files of a run that it is saved now, after so many steps, once all that was logged is there."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            saved = Event(session_log=SessionLog(status=SessionLog.CHECKPOINT))
            logger.experiment.file_writer.add_event(saved, step)
            logger.experiment.flush()


def dropped_events(run: Path, step: int) -> list[Any]:
    """Return what TensorBoard drops of a run that goes on after so many steps, though it was logged before the save."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    later: list[Any] = []
    saved: list[Any] = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            status = event.session_log.status
            if status == event.session_log.START:  # the run went on from here
                later = [each for each in later if each.step < event.step]
            elif status == event.session_log.CHECKPOINT and event.step == step:
                saved = list(later)
            elif event.HasField("summary") and event.step >= step:
                later.append(event)
    return saved
