"""The states of sources of random numbers, of torch, Python and NumPy, as tensors that a checkpoint can hold."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomState = dict[str, Tensor]

SOURCES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
# Those of a process; the modules have the methods of a `random.Random` and a `RandomState`.
GLOBAL_SOURCES: dict[str, Any] = {"cpu": torch.default_generator, "python": random, "numpy": np.random}


def random_state(device: torch.device | None = None) -> RandomState:
    """Return the states of the process's own sources, with that of a CUDA device if one is given."""
    state = {name: state_of(source) for name, source in GLOBAL_SOURCES.items()}
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
    """Let the process's own sources draw on from their states."""
    for name, source in GLOBAL_SOURCES.items():
        set_state(source, state[name])
    if "cuda" in state and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def state_of(source: Any) -> Tensor:
    """Return the state of one of SOURCES, (n,) uint8: torch's own bytes, or JSON."""
    state: Any
    if isinstance(source, torch.Generator):
        return source.get_state()
    if isinstance(source, np.random.Generator):
        state = source.bit_generator.state
    elif hasattr(source, "getstate"):
        state = source.getstate()
    else:
        state = source.get_state(legacy=False)
    text = json.dumps(state, default=np.ndarray.tolist)
    return torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)


def set_state(source: Any, state: Tensor) -> None:
    """Let one of SOURCES draw on from a state."""
    if isinstance(source, torch.Generator):
        source.set_state(state)
        return
    found = json.loads(bytes(state.tolist()))
    if isinstance(source, np.random.Generator):
        source.bit_generator.state = found
    elif hasattr(source, "setstate"):
        version, words, gauss = found
        source.setstate((version, tuple(words), gauss))
    else:
        source.set_state(found)
