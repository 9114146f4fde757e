"""The state of a process's random numbers, of torch, Python and NumPy, as tensors that a checkpoint can hold."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

RandomState = dict[str, Tensor]


def random_state(device: torch.device | None = None) -> RandomState:
    """Return the state, with that of a CUDA device if one is given: uint8 of torch, int64 of the others."""
    _, words, gauss = random.getstate()
    drawn = np.random.get_state(legacy=False)
    mersenne = drawn["state"]
    rest = [mersenne["pos"], drawn["has_gauss"], *_bits(drawn["gauss"])]
    state = {
        "cpu": torch.get_rng_state(),
        "python": torch.from_numpy(np.array([*words, *_bits(gauss)], np.int64)),
        "numpy": torch.from_numpy(np.array([*mersenne["key"], *rest], np.int64)),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
    """Let random numbers be drawn on from a state."""
    torch.set_rng_state(state["cpu"].clone())  # a row of another tensor crashes torch
    if "cuda" in state and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].clone(), device)
    if "python" in state:
        *words, given, gauss = state["python"].tolist()
        random.setstate((3, tuple(words), _number(gauss) if given else None))
    if "numpy" in state:
        *key, pos, has_gauss, _, gauss = state["numpy"].tolist()
        mersenne = {"key": np.array(key, np.uint32), "pos": pos}
        drawn = {"bit_generator": "MT19937", "state": mersenne, "has_gauss": has_gauss, "gauss": _number(gauss)}
        np.random.set_state(drawn)


def _bits(number: float | None) -> tuple[int, int]:
    """Return whether there is a number, and the bits of it."""
    if number is None:
        return 0, 0
    return 1, int(np.float64(number).view(np.int64))


def _number(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
