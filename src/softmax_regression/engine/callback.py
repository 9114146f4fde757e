"""The callback that puts the lean loop into a Trainer, and says what runs."""

from types import ModuleType

from lightning.pytorch import Callback, LightningModule, Trainer

_lean: ModuleType | None
try:
    from softmax_regression.engine import lean as _lean
except ImportError as error:  # a Lightning that names its parts in another way
    _lean, _missing = None, str(error)
else:
    _missing = _lean.missing()


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
        """Put the lean loop in the place of Lightning's, unless the Trainer has a loop of somebody else's."""
        if stage == "fit" and self.enabled and _lean and not _missing:
            _lean.install(trainer)

    def describe(self, trainer: Trainer) -> str:
        """Say which step trains: the lean one and the hooks that it calls, or Lightning's and why."""
        if not self.enabled:
            return "Lightning's own step (engine.enabled is false)"
        if _lean is None or _missing:
            return f"Lightning's own step (this version of it has no {_missing})"
        if reason := _lean.why_not(trainer):
            return f"Lightning's own step ({reason})"
        called = _lean.called_each_step(trainer)
        return "lean step" + (f", calling {', '.join(called)}" if called else "")
