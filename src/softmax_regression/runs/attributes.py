"""What a module, its data and callbacks count and collect in attributes, such as sums of an epoch; it is in no state.

Lightning resumes a run only between epochs, where many of them begin anew.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from softmax_regression.runs.checkpoint import is_plain_data
from softmax_regression.runs.loops import modes_before_validation

LIBRARIES = ("lightning.", "softmax_regression.")
# Names of attributes that Lightning sets itself; `training` is also set by hooks that keep a frozen part in eval mode.
OF_LIGHTNING = {*vars(LightningModule()), *vars(LightningDataModule())} - {"training"}
FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, list, dict, set)}  # of a defaultdict
OF_TRAINER = ("accumulate_grad_batches", "gradient_clip_val")  # which a callback may set as an epoch begins


class Attributes:
    """The attributes that have changed since the training began."""

    def __init__(self) -> None:
        self._before: dict[str, Any] | None = None  # fingerprints of the values as the training began
        self._values: list[Any] = []  # these values, so that no other object gets the id of one of them
        self._names: set[str] = set()  # of those that changed before the run was resumed

    def begin(self, trainer: Trainer, module: LightningModule, saved: Mapping[str, Any]) -> None:
        """Note the values before the first epoch, and set those that `changed` has returned for a resumed run."""
        self._before = {}
        self._names = set(saved)
        for name, value in _attributes(trainer, module):
            self._before[name] = _fingerprint(value)
            self._values.append(value)
        owners = _owners(trainer, module) | {"trainer": trainer}
        for name, (value, is_on_cpu) in saved.items():
            owner, _, attribute = name.rpartition(".")
            if owner in owners:
                device = "cpu" if is_on_cpu else trainer.strategy.root_device
                _set(owners[owner], attribute, move_data_to_device(value, device))

    def changed(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Return values, and whether they are on the CPU, by names such as `model.head.count`.

        There are none before the training has begun.
        """
        found: dict[str, Any] = {}
        if self._before is None:
            return found
        for name, value in _attributes(trainer, module):
            is_same = name in self._before and self._before[name] == _fingerprint(value)
            plain = _plain(value)
            if is_plain_data(plain) and (name in self._names or not is_same):
                found[name] = plain, _is_on_cpu(plain)
        return found


def _attributes(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Any]]:
    """Yield names and values; not a layer's output, which has a gradient, and not the lists of a data module."""
    modes = modes_before_validation(trainer)
    for owner, part in _owners(trainer, module).items():
        for attribute, value in (vars(part) | modes.get(owner, {})).items():
            is_result = isinstance(value, Tensor) and value.requires_grad
            is_data = owner == "data" and isinstance(value, list | dict)  # of examples, maybe a million
            if attribute not in OF_LIGHTNING and not is_result and not is_data:
                yield f"{owner}.{attribute}", value
    for name in OF_TRAINER:
        yield f"trainer.{name}", getattr(trainer, name)


def _owners(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the module, its parts, the data module and the user's callbacks, but not those with a `state_dict`.

    Schedules are among them, as some modules step one that they do not return to Lightning.
    """
    owners: dict[str, Any] = {}
    for name, part in module.named_modules(prefix="model"):
        if not isinstance(part, Metric):
            owners[name] = part
        for attribute, value in vars(part).items():
            if isinstance(value, LRScheduler):  # which a hook steps
                owners[f"{name}.{attribute}"] = value
    data = trainer.datamodule  # type: ignore[attr-defined]
    if getattr(type(data), "state_dict", None) is LightningDataModule.state_dict:
        owners["data"] = data
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        known = [kind for kind in type(callback).__mro__ if kind.__module__.startswith(LIBRARIES)]
        if known == [Callback] and type(callback).state_dict is Callback.state_dict:
            owners[callback.state_key] = callback
            for attribute, value in vars(callback).items():
                if isinstance(value, Metric | MetricCollection) and id(value) not in map(id, module.modules()):
                    owners |= value.named_modules(prefix=f"{callback.state_key}.{attribute}")
    return owners


def _plain(value: Any) -> Any:
    """Return a value as what a checkpoint can hold, if it is a deque or a defaultdict."""
    if type(value) is deque:
        return {"deque": list(value), "maxlen": value.maxlen}
    if type(value) is defaultdict:
        return {"defaultdict": dict(value), "factory": getattr(value.default_factory, "__name__", "")}
    return value


def _is_on_cpu(value: Any) -> bool:
    """Return whether no tensor in a value is on another device."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_on_cpu, value))
    return not isinstance(value, Tensor) or value.device.type == "cpu"


def _fingerprint(value: Any) -> Any:
    """Return what is another object once a value has changed; lists and dictionaries may hold others."""
    value = _plain(value)
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, dict):
        return [(key, _fingerprint(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | set):
        return [_fingerprint(each) for each in value]
    return value if is_plain_data(value) else id(value)


def _set(owner: Any, attribute: str, value: Any) -> None:
    """Set an attribute; a dictionary that is there is filled anew: it may have a default."""
    there = getattr(owner, attribute, None)
    if isinstance(value, dict) and value.keys() == {"defaultdict", "factory"}:
        if not isinstance(there, defaultdict):
            there = defaultdict(FACTORIES.get(value["factory"]))
            setattr(owner, attribute, there)
        value = value["defaultdict"]
    if isinstance(value, dict) and value.keys() == {"deque", "maxlen"}:
        setattr(owner, attribute, deque(value["deque"], value["maxlen"]))
    elif isinstance(there, dict) and isinstance(value, dict):
        there.clear()
        there.update(value)
    else:
        setattr(owner, attribute, value)
