"""The callback that puts the lean loop into a Trainer, and says what runs."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

missing: str | None = None
try:
    from softmax_regression.engine import lean, reasons
except ImportError as error:  # a Lightning that names its parts in another way
    lean, missing = None, str(error)  # type: ignore[assignment]


class Engine(Callback):
    """Train any LightningModule by Lightning's step without the hooks that nothing implements, to the same bits.

    Args:
        enabled: False to train by Lightning's own loop.
    """

    flag_group = "engine"  # of its arguments on the command line

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the lean loop in the place of Lightning's, unless there is a reason not to."""
        if stage == "fit" and self.enabled and lean:
            lean.install(trainer)

    def describe(self, trainer: Trainer) -> str:
        """Say which step trains, and why if it is Lightning's own."""
        reason = missing
        if not self.enabled:
            reason = "engine.enabled is false"
        elif lean:
            reason = reasons.why_not(trainer)
        return f"Lightning's own step ({reason})" if reason else "lean step"


def results_of_epoch(trainer: Trainer, of_validation: bool = False) -> dict[str, Any]:
    """Return the running sums of what was logged in this epoch, by Lightning's names; none in another Lightning."""
    return lean.results_of_epoch(trainer, of_validation) if lean else {}
