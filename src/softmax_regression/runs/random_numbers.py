"""The states of random number generators, of torch, Python and NumPy, as tensors for a checkpoint."""

import json
import random
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomState = dict[str, Tensor]

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
# Packages whose objects have no generators of their own.
WITHOUT_GENERATORS = {"lightning", "torchmetrics", __name__.partition(".")[0], *sys.stdlib_module_names}
MAX_PARTS = 10_000  # that are searched, and of these at most so many in one list or dictionary:
MAX_ITEMS = 100
# The modules `random` and `numpy.random` have the methods of a `random.Random` and a `RandomState`.
GLOBAL_GENERATORS: dict[str, Any] = {"cpu": torch.default_generator, "python": random, "numpy": np.random}


def random_state(device: torch.device | None = None) -> RandomState:
    """Return the states of the global generators, with that of a CUDA device if one is given."""
    state = {name: generator_state(generator) for name, generator in GLOBAL_GENERATORS.items()}
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
    """Set the states of the global generators to what `random_state` returned."""
    for name, generator in GLOBAL_GENERATORS.items():
        set_generator_state(generator, state[name])
    if "cuda" in state and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def own_states(objects: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the states of the generators that objects have of their own, see `own_generators`."""
    return {name: generator_state(generator) for name, generator in own_generators(objects).items()}


def set_own_states(objects: Mapping[str, Any], states: Mapping[str, Tensor]) -> None:
    """Set the generators of objects to what `own_states` returned."""
    for name, generator in own_generators(objects).items():
        if name in states:
            set_generator_state(generator, states[name])


def own_generators(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generators among the attributes of objects, and of what these have, each by the path to it."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    waiting = list(objects.items())
    for name, part in waiting:  # which grows
        if id(part) in seen or len(seen) == MAX_PARTS:
            continue
        seen.add(id(part))
        inner: Any = {}
        if isinstance(part, GENERATORS):
            if not isinstance(part, random.SystemRandom):  # it has no state
                found[name] = part
        elif isinstance(part, list | tuple) and len(part) <= MAX_ITEMS:
            inner = dict(enumerate(part))
        elif isinstance(part, dict) and len(part) <= MAX_ITEMS:
            inner = part
        elif _may_have_generators(part):
            inner = vars(part)
        waiting += [(f"{name}.{key}", value) for key, value in inner.items()]
    return found


def _may_have_generators(part: object) -> bool:
    """Whether the attributes of an object are searched, which takes time: not those of a package without generators."""
    package = type(part).__module__.partition(".")[0]
    if isinstance(part, Tensor | ModuleType) or package in WITHOUT_GENERATORS:
        return False
    return hasattr(part, "__dict__")


def generator_state(generator: Any) -> Tensor:
    """Return the state of one of `GENERATORS`, (n,) uint8: the bytes of torch's state, or else JSON."""
    state: Any
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        state = generator.bit_generator.state
    elif hasattr(generator, "getstate"):
        state = generator.getstate()
    else:
        state = generator.get_state(legacy=False)
    text = json.dumps(state, default=np.ndarray.tolist)
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def set_generator_state(generator: Any, state: Tensor) -> None:
    """Set the state of one of `GENERATORS` to what `generator_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
        return
    found = json.loads(bytes(state.tolist()))
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = found
    elif hasattr(generator, "setstate"):
        version, words, gauss = found
        generator.setstate((version, tuple(words), gauss))
    else:
        generator.set_state(found)
