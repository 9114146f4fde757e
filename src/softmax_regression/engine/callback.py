"""The callback that puts the lean loop into a Trainer, and says what runs."""

from lightning.pytorch import Callback, LightningModule, Trainer

try:
    from softmax_regression.engine import lean
except ImportError as error:  # a Lightning that names its parts in another way
    lean, missing = None, str(error)


class Engine(Callback):
    """Train any LightningModule by Lightning's step without the calls that nobody answers, see `engine.lean`.

    Weights, metrics, checkpoints, random numbers and the calls of every hook are those of Lightning's own
    loop; only the time between them is shorter.

    Args:
        enabled: False to train by Lightning's own loop.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the lean loop in the place of Lightning's, unless the Trainer has one of somebody else's."""
        if stage == "fit" and self.enabled and lean:
            lean.install(trainer)

    def describe(self, trainer: Trainer) -> str:
        """Say which step trains: the lean one and the hooks that it calls, or Lightning's and why."""
        if self.enabled and lean:
            return lean.describe(trainer)
        return f"Lightning's own step ({missing if self.enabled else 'engine.enabled is false'})"
