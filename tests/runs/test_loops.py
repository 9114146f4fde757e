"""What is read of Lightning's loops by private names."""

from types import SimpleNamespace
from typing import Any

from softmax_regression.runs.loops import consumed_loaders, validated_batches, waiting_batches


def test_a_lightning_that_lacks_the_private_names_has_nothing_to_restore() -> None:
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))
    assert validated_batches(trainer) == {}
    assert waiting_batches(trainer) == 0
    assert consumed_loaders(trainer) == []
