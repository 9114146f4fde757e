"""A callback at every step: `python train.py fit --trainer.callbacks+=examples.own_callback.GradientNorm`."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorm(Callback):
    """Log the length of the gradient, `grad_norm`, for TensorBoard: of every 50th step, see log_every_n_steps."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log it once it is computed and clipped; the engine then calls this hook at every step."""
        pl_module.log("grad_norm", get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]))
