"""What is read of Lightning's loops by private names."""

from types import SimpleNamespace
from typing import Any

from softmax_regression.runs.loops import loop_positions, waiting_batches


def test_a_lightning_that_lacks_the_private_names_has_nothing_to_restore() -> None:
    progress = SimpleNamespace(current=SimpleNamespace(ready=1, processed=0, completed=0))
    epoch_loop = SimpleNamespace(batch_progress=progress)
    fit_loop = SimpleNamespace(epoch_loop=epoch_loop, epoch_progress=progress)
    trainer: Any = SimpleNamespace(
        fit_loop=fit_loop, current_epoch=0, is_last_batch=False, validating=False, reload_dataloaders_every_n_epochs=1
    )
    positions = loop_positions(trainer)
    assert positions["validated"] == {}
    assert positions["consumed"] == []
    assert waiting_batches(trainer) == 0
