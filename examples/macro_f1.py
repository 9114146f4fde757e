"""One more metric, the mean F1 of the classes: `python train.py fit --model examples.macro_f1.WithF1`."""

from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from softmax_regression import SoftmaxRegression


class WithF1(SoftmaxRegression):
    """Softmax regression that is scored by `train/f1`, `val/f1` and `test/f1`, too."""

    def metrics(self) -> dict[str, Metric]:
        """Return what is scored of logits (n, k) and classes (n,)."""
        return super().metrics() | {"f1": MulticlassF1Score(self.num_classes)}
