"""JAX: an epoch is one `lax.scan` over its minibatches, compiled together with its validation pass."""

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from .task import BATCH_SIZE, INIT_STD, LR, Outcome, Run, Task, clock

Params = tuple[Array, Array]  # weights (784, 10), biases (10,)


def contestant(task: Task) -> Run:
    """Return the loop; compiling is its set-up. JAX chooses the device."""
    data = tuple(jnp.asarray(array) for array in task.arrays())
    start, key = clock(), random.key(0)
    epoch = jax.jit(_epoch).lower((jnp.zeros((784, 10)), jnp.zeros(10)), key, *data).compile()
    setup = clock() - start

    def run(epochs: int) -> Outcome:
        params = random.normal(key, (784, 10)) * INIT_STD, jnp.zeros(10)
        start = clock()
        for e in range(epochs):
            params, loss, val_acc = epoch(params, random.fold_in(key, e), *data)
        outcome = loss.item(), val_acc.item()  # waits
        return Outcome(clock() - start, setup, *outcome)

    return run


def _epoch(params: Params, key: Array, x: Array, y: Array, val_x: Array, val_y: Array) -> tuple[Params, Array, Array]:
    """Train on every example once; return the parameters, the mean loss and the validation accuracy."""

    def step(params: Params, index: Array) -> tuple[Params, Array]:
        loss, grads = jax.value_and_grad(_loss)(params, x[index], y[index])
        return jax.tree.map(lambda p, g: p - LR * g, params, grads), loss * len(index)

    order = random.permutation(key, len(x))
    full = len(x) - len(x) % BATCH_SIZE
    params, losses = lax.scan(step, params, order[:full].reshape(-1, BATCH_SIZE))
    params, rest = step(params, order[full:]) if full < len(x) else (params, jnp.zeros(()))
    return params, (losses.sum() + rest) / len(x), (_logits(params, val_x).argmax(1) == val_y).mean()


def _loss(params: Params, x: Array, y: Array) -> Array:
    return -jax.nn.log_softmax(_logits(params, x))[jnp.arange(len(y)), y].mean()


def _logits(params: Params, x: Array) -> Array:
    return x @ params[0] + params[1]
