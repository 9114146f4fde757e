"""Time to the test accuracy of scikit-learn's LogisticRegression, for a configuration of this project."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from softmax_regression.data.datasets import load_files

from . import scikit
from .ours import fit
from .race import DifferentWorkError
from .task import Outcome, flat


def in_turn(config: str, logs: Path, rounds: int) -> tuple[list[Outcome], list[Outcome]]:
    """Fit this project and scikit-learn in turn after a warm-up, and score both on the test set.

    The time is that of the whole call, `Trainer.fit` or scikit-learn's `fit`, with the data in memory.

    Raises:
        DifferentWorkError: This project came out below scikit-learn in a round.
    """
    data = load_files()
    parts = flat(data.images), data.labels, flat(data.test_images), data.test_labels
    ours, theirs = [], []
    for _ in range(rounds + 1):
        with redirect_stdout(StringIO()):
            done = fit([f"--config={config}", f"--trainer.logger.save_dir={logs}"], stop_early=True)
        with torch.no_grad():
            hits = done.model.eval()(data.test_images).argmax(1) == data.test_labels
        ours.append(Outcome(done.setup + done.seconds, 0.0, None, hits.double().mean().item()))
        theirs.append(scikit.fit(LogisticRegression(max_iter=100), *(part.numpy() for part in parts)))
        if ours[-1].acc < theirs[-1].acc:
            raise DifferentWorkError(f"{config}: test acc {ours[-1].acc:.4f} is below {theirs[-1].acc:.4f}")
    return ours[1:], theirs[1:]
