"""A callback at every step: `python train.py fit --trainer.callbacks+=examples.own_callback.GradientNorm`."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm


class GradientNorm(Callback):
    """Log the length of the gradient, as `grad_norm`, once in `--trainer.log_every_n_steps` steps."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the length; Lightning calls this at every step."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        pl_module.log("grad_norm", get_total_norm(gradients))
