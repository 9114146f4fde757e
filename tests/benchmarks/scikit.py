"""scikit-learn: other algorithms for the same model, so that accuracy is asserted and not the loss.

`LogisticRegression` makes 100 iterations of L-BFGS whatever the number of epochs. `SGDClassifier` makes one
update an example and learns ten classifiers, each class against the rest. Neither validates as it goes.
"""

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier

from .task import Outcome, Run, Task, clock


def fit(estimator: Any, x: Any, y: Any, held_out_x: Any, held_out_y: Any) -> Outcome:
    """Fit an estimator to images (n, 784) and labels (n,), and score it on others."""
    start = clock()
    with warnings.catch_warnings():
        # 100 iterations, the default, end before its tolerance is met; see max_iter in
        # https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegression.html
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(x, y)
    return Outcome(clock() - start, 0.0, None, float(estimator.score(held_out_x, held_out_y)))


def logistic_regression(task: Task) -> Run:
    """Return the fit of a `LogisticRegression`."""
    arrays = task.arrays()
    return lambda epochs: fit(LogisticRegression(max_iter=100), *arrays)


def sgd_classifier(task: Task) -> Run:
    """Return the fit of an `SGDClassifier`, with learning rates of its own."""
    arrays = task.arrays()
    return lambda epochs: fit(SGDClassifier(loss="log_loss", max_iter=epochs, tol=None), *arrays)
