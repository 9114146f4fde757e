"""The contestants, run in turn, and the check that they did the same work."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import NamedTuple

from .task import Outcome, Run, Task

ACC_TOLERANCE = 0.05  # absolute; for those that minimise something else


class Contestant(NamedTuple):
    """Who runs: a function in a module here, imported only then, and the packages that it needs."""

    title: str
    function: str
    packages: tuple[str, ...] = ()
    slow: bool = False
    like: str = "b"  # the contestant whose result this one should come to
    tolerance: float = 0.01  # relative, of the loss; each has an order of the examples of its own


CONTESTANTS = {
    "a": Contestant("this project, `fit`", "ours.contestant"),
    "a+": Contestant("the same with the figures at its end", "ours.with_figures"),
    "b": Contestant("plain PyTorch loop", "plain.contestant"),
    "b2": Contestant("plain PyTorch loop, torch's default threads", "plain.default_threads"),
    "h": Contestant("the same work by hand", "by_hand.contestant"),
    "am": Contestant("this project, `fit` of examples/mlp.py", "ours.of_mlp", like="bm", tolerance=0.05),
    "bm": Contestant("plain PyTorch loop, MLP", "plain.of_mlp", like="bm", tolerance=0.05),
    "hm": Contestant("the same work by hand, MLP", "by_hand.of_mlp", like="bm", tolerance=0.05),
    "c": Contestant("the book's loop, 4 workers", "book.contestant", slow=True),
    "d": Contestant("Lightning, the usual template", "template.contestant"),
    "e1": Contestant("scikit-learn LogisticRegression", "scikit.logistic_regression", ("sklearn",), slow=True),
    "e2": Contestant("scikit-learn SGDClassifier", "scikit.sgd_classifier", ("sklearn",), slow=True),
    "f": Contestant("Keras on JAX, steps_per_execution 16", "keras_jax.contestant", ("keras", "jax")),
    "g": Contestant("JAX, one lax.scan an epoch", "jax_scan.contestant", ("jax",)),
}


class DifferentWorkError(AssertionError):
    """A contestant did not come to the result that all should come to."""


def missing(keys: Sequence[str]) -> list[str]:
    """Return which of the contestants cannot run because a package is not installed."""
    return [key for key in keys if not all(find_spec(name) for name in CONTESTANTS[key].packages)]


def race(task: Task, keys: Sequence[str], epochs: int, rounds: int, slow_rounds: int) -> dict[str, list[Outcome]]:
    """Run contestants in turn, some rounds after a warm-up of one epoch, and those that they should be like.

    Raises:
        DifferentWorkError: A loss or an accuracy is not that of the one it is `like` in the same round.
    """
    absent = missing(keys)
    keys = [*keys, *(CONTESTANTS[key].like for key in keys)]
    runs = {key: _prepare(key, task) for key in CONTESTANTS if key in keys and key not in absent}
    outcomes: dict[str, list[Outcome]] = {key: [] for key in runs}
    for run in runs.values():
        _quiet(run, 1)
    for i in range(rounds):
        for key, run in runs.items():
            if i < slow_rounds or not CONTESTANTS[key].slow:
                outcomes[key].append(_quiet(run, epochs))
        for key, done in outcomes.items():
            _check(CONTESTANTS[key], done[-1], outcomes[CONTESTANTS[key].like][-1])
    return outcomes


def _prepare(key: str, task: Task) -> Run:
    module, _, name = CONTESTANTS[key].function.partition(".")
    run: Run = getattr(import_module(f".{module}", __package__), name)(task)
    return run


def _quiet(run: Run, epochs: int) -> Outcome:
    """Run with the progress on, but its lines out of sight; errors are seen."""
    with redirect_stdout(StringIO()):
        return run(epochs)


def _check(contestant: Contestant, outcome: Outcome, plain: Outcome) -> None:
    assert plain.loss is not None
    if outcome.loss is None:
        if not outcome.acc >= plain.acc - ACC_TOLERANCE:
            raise DifferentWorkError(
                f"{contestant.title}: accuracy {outcome.acc:.4f}, the plain loop's is {plain.acc:.4f}"
            )
    elif not abs(outcome.loss - plain.loss) <= contestant.tolerance * plain.loss:
        raise DifferentWorkError(
            f"{contestant.title}: train loss {outcome.loss:.4f}, the plain loop's is {plain.loss:.4f}"
        )
