"""What TensorBoard and notebooks show of a run beside its scalars, read back from event files and outputs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from commands import fit, one_line, only_run, pictures
from marks import slow
from softmax_regression import FashionMNISTDataModule, FigureLogger, LiveCurve, SoftmaxRegression
from softmax_regression.commands.train import main
from softmax_regression.data.minibatches import Minibatches
from softmax_regression.figures.scoring import score
from softmax_regression.runs import checkpoint

ON = "--figures.every_n_epochs=null"
NAMES = ("confusion_matrix", "predictions", "weights")
STEPS = 16  # of an epoch of 499 images


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def steps(run: Path) -> dict[str, list[int]]:
    return {tag: sorted(found) for tag, found in pictures(run).items() if tag != "graph"}


def images(n: int = 60) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 1, 28, 28, generator=generator), torch.arange(n) % 10)


class Plain(LightningModule):
    """A LightningModule of somebody else's: two layers, dropout, ordinary loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(model: LightningModule, *callbacks: Callback, data: Any = (), epochs: int = 2) -> Trainer:
    """Train from Python, on a data module or loaders, and return the Trainer."""
    trainer = Trainer(max_epochs=epochs, callbacks=list(callbacks), enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu", log_every_n_steps=1,
                      logger=TensorBoardLogger("logs", "softmax", "run"), num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(model, *(data or (DataLoader(images(), 20, shuffle=True), DataLoader(images(), 20))))
    return trainer


@pytest.mark.slow
def test_the_last_and_the_best_epoch_are_drawn_and_all_of_the_test() -> None:
    assert fit(ON, "--best_checkpoint.mode=max", "--trainer.max_epochs=4") == 0  # the first, with the highest loss
    run = only_run()
    best = checkpoint.read(run / "checkpoints" / "best.ckpt")["global_step"]
    assert best < 4 * STEPS
    ends = {"val": 4 * STEPS - 1, "val_best": best - 1}  # counted from 0, as those of scalars
    drawn = {f"{tag}/{name}": [step] for tag, step in ends.items() for name in NAMES}
    assert steps(run) == drawn
    shown = pictures(run)
    assert shown["val/weights"][4 * STEPS - 1] != shown["val_best/weights"][best - 1]
    assert main(["test", f"--ckpt_path={run}", ON]) == 0
    tested = (*NAMES, "calibration", "worst_mistake")
    assert steps(run) == drawn | {f"test/{name}": [best - 1] for name in tested}


@pytest.mark.slow
def test_figures_are_drawn_as_often_as_asked() -> None:
    assert fit("--figures.every_n_epochs=2", "--trainer.max_epochs=3") == 0
    assert steps(only_run())["val/weights"] == [2 * STEPS - 1, 3 * STEPS - 1]


@pytest.mark.slow
def test_a_run_that_goes_on_draws_its_new_last_and_best_epoch() -> None:
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=step"]  # keeps the first epoch
    assert fit(ON, *own, "--trainer.max_epochs=2") == 0
    run = only_run()
    assert main(["fit", f"--resume={run}", ON, "--trainer.max_epochs=3"]) == 0
    best = checkpoint.read(run / "checkpoints" / "best.ckpt")["global_step"]
    assert best == 3 * STEPS  # so both are drawn of the same epoch
    found = steps(run)
    assert found["val/weights"] == found["val_best/weights"] == [2 * STEPS - 1, 3 * STEPS - 1]
    shown = pictures(run)
    newest = shown["val/weights"][best - 1]
    assert shown["val_best/weights"][best - 1] == newest != shown["val/weights"][2 * STEPS - 1]


@pytest.mark.parametrize(
    "options",
    [
        ("--figures.every_n_epochs=0",),
        slow((ON, "--data.val_size=0")),
        (ON, "--data.val_size=0", "--data.watch_test=true"),
    ],
)
def test_nothing_is_drawn_when_off_or_where_nothing_is_validated(options: tuple[str, ...]) -> None:
    assert fit(*options, "--early_stopping.patience=0", "--best_checkpoint.monitor=train/loss") == 0
    assert steps(only_run()) == {}


def test_a_negative_interval_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--figures.every_n_epochs=-1") == 2
    assert "every_n_epochs=-1: must be at least 0" in one_line(capsys)


def test_histograms_come_on_request() -> None:
    data = FashionMNISTDataModule(32, 101, source="synthetic", synthetic_size=600)
    trained(SoftmaxRegression(), FigureLogger(0, histograms=True), data=[data])
    events = EventAccumulator("logs/softmax/run", size_guidance={"histograms": 0})
    events.Reload()
    names = {f"{kind}/net.2.{name}" for kind in ("weights", "gradients") for name in ("weight", "bias")}
    assert set(events.Tags()["histograms"]) == names
    assert [event.step for event in events.Histograms("gradients/net.2.bias")] == [STEPS - 1, 2 * STEPS - 1]


@pytest.mark.parametrize("histograms", [False, True])
def test_a_step_costs_a_call_only_with_histograms(histograms: bool) -> None:
    figures = FigureLogger(histograms=histograms)
    assert is_overridden("on_train_batch_end", figures, Callback) == histograms
    for hook in (
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_after_backward",
        "on_before_optimizer_step",
    ):
        assert not is_overridden(hook, figures, Callback)


@pytest.mark.parametrize(("monitor", "tags"), [slow(None, ("val",)), ("val_loss", ("val", "val_best"))])
def test_any_module_and_loader_will_do_but_only_a_linear_one_has_templates(
    monitor: str | None, tags: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trained(Plain(), FigureLogger(), ModelCheckpoint(monitor=monitor))
    assert set(steps(only_run())) == {f"{tag}/{name}" for tag in tags for name in NAMES[:2]}
    assert steps(only_run())["val/predictions"] == [5]
    assert "figures" not in capsys.readouterr().err


def test_a_test_from_python_is_drawn_where_training_ended() -> None:
    data = FashionMNISTDataModule(32, 101, source="synthetic", synthetic_size=600)
    model = SoftmaxRegression()
    trained(model, FigureLogger(), data=[data]).test(model, data, verbose=False)
    assert steps(only_run())["test/calibration"] == [2 * STEPS - 1]


@pytest.mark.filterwarnings("ignore:Found 1 module")  # in eval mode, which is meant
def test_drawing_leaves_training_as_it_is() -> None:
    def weights(*callbacks: Callback) -> Tensor:
        seed_everything(1, verbose=False)
        model = Plain()
        model.net[1].eval()  # frozen by its owner; nothing may set it to train
        trained(model, *callbacks, epochs=3)
        assert not model.net[1].training
        return nn.utils.parameters_to_vector(model.parameters())

    best = ModelCheckpoint("best", monitor="val_loss")  # of another epoch than the last
    assert torch.equal(weights(), weights(FigureLogger(1), best))
    assert "epoch=2" not in best.best_model_path
    assert steps(only_run())["val/predictions"] == [2, 5, 8]


class FirstTwo(Plain):
    """It takes batches of more than two, and classes as distributions."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[:2], batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch[:2], batch_idx)


x, y = images().tensors
OTHERS = {"three parts": (x, y, y), "distributions": (x, nn.functional.one_hot(y).float())}


class Keyed(Plain):
    """It takes batches that are dictionaries."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step((batch["image"], batch["label"]), batch_idx)


def test_batches_may_be_dictionaries_and_validation_sets_have_names_of_their_own() -> None:
    examples: Any = [{"label": label, "image": image} for image, label in zip(*images().tensors, strict=True)]
    loader: Any = DataLoader(examples, 20)
    trained(Keyed(), FigureLogger(), data=[loader, {"hard": loader, "easy": loader}], epochs=1)
    assert set(steps(only_run())) == {f"val/{name}" for name in NAMES[:2]}


class Changed(Plain):
    """Changes its batches by hooks, in training with noise, and returns probabilities; it keeps what it validates."""

    def __init__(self) -> None:
        super().__init__()
        self.validated: list[Tensor] = []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 2 * batch[0] - 1, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + int(self.trainer.training), batch[1]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.validated += [batch[0], self(batch[0])]


class Scoring(Callback):
    """Compares what figures are drawn of with what was validated."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.val_dataloaders
        inputs, _, logits = score(trainer, pl_module, loader)
        validated: Any = pl_module.validated
        torch.testing.assert_close(inputs, torch.cat(validated[-6::2]))
        torch.testing.assert_close(logits.softmax(1), torch.cat(validated[-5::2]))
        assert trainer.training
        validated.clear()


def test_figures_are_drawn_of_what_the_validation_step_is_given() -> None:
    loader = DataLoader(images(), 20)
    module = Changed()
    trained(module, Scoring(), data=[loader, loader])
    assert not module.validated


class Diverged(Plain):
    def on_train_batch_end(self, *_: Any) -> None:
        nn.utils.vector_to_parameters(torch.full((12_730,), torch.nan), self.parameters())


def test_histograms_of_what_is_not_finite_end_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(images(), 20)
    trained(Diverged(), FigureLogger(0, histograms=True), data=[loader, loader])
    assert capsys.readouterr().err.count("histograms are left out: ") == 1


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_drawn_is_said_and_ends_no_run(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(TensorDataset(*OTHERS[kind]), 20)
    trained(FirstTwo(), FigureLogger(), data=[loader, loader])
    err = capsys.readouterr().err
    assert "figures val/... are left out: " in err
    assert err.count("figures") == 1
    assert steps(only_run()) == {}


def test_an_error_without_words_ends_no_run_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("softmax_regression.figures.logger.score", refuse)
    trained(Plain(), FigureLogger())
    assert "figures val/... are left out: AssertionError\n" in capsys.readouterr().err


def test_of_several_validation_sets_without_names_the_first_is_drawn() -> None:
    few = DataLoader(TensorDataset(x[:20], y[:20]), 20)

    class Several(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    trained(Several(), FigureLogger(), data=[few, [few, DataLoader(TensorDataset(x, y), 20)]])
    assert steps(only_run())["val/predictions"] == [1]


def test_a_best_checkpoint_that_is_gone_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Remove(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for path in Path("best").iterdir():
                path.unlink()

    trained(Plain(), Remove(), FigureLogger(), ModelCheckpoint("best", monitor="val_loss"))
    assert "figures val_best/... are left out: " in capsys.readouterr().err
    assert set(steps(only_run())) == {f"val/{name}" for name in NAMES[:2]}


def test_the_shares_of_all_processes_are_the_whole() -> None:
    pixels, labels = torch.randint(256, (70, 28, 28), dtype=torch.uint8), torch.arange(70)
    model, index = SoftmaxRegression(num_classes=70), torch.randperm(70)[:50]
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    found = [
        score(trainer, model, Minibatches(pixels, labels, index, 16, rank=rank, world_size=3)) for rank in range(3)
    ]
    _, y, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert sorted(y.tolist()) == sorted(index.tolist())
    with torch.no_grad():
        assert torch.allclose(logits, model.eval()(pixels[y]), atol=1e-6)


def test_outside_a_notebook_the_live_curve_says_what_to_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)  # importing it would fail
    trained(Plain(), LiveCurve())
    assert capsys.readouterr().err.count("LiveCurve draws in notebooks; here, look with: tensorboard") == 1


@pytest.mark.parametrize(("model", "epochs"), [(Plain(), 0), (SoftmaxRegression(), 2)])
def test_the_live_curve_is_of_the_history_or_of_what_was_logged(
    model: LightningModule, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Figure] = []

    def draw(figure: Figure) -> bytes:
        shown.append(figure)
        return b""

    kernel, handle = SimpleNamespace(kernel=True), SimpleNamespace(update=lambda picture: None)
    notebook = SimpleNamespace(Image=lambda png: png, display=lambda picture, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr("softmax_regression.figures.live.to_png", draw)
    trained(model, LiveCurve())
    assert len(shown) == 2
    lines = [np.size(line.get_xdata()) for line in shown[-1].axes[0].lines]
    assert lines == ([2, 2] if epochs else [2])  # train and val, or what it logs of val


CELL = """
import warnings; warnings.simplefilter("ignore")
import torch
from lightning.pytorch import Trainer
from softmax_regression import FashionMNISTDataModule, LiveCurve, SoftmaxRegression
data = FashionMNISTDataModule(32, 100, source="synthetic", synthetic_size=600)
trainer = Trainer(max_epochs=2, logger=False, callbacks=[LiveCurve()], enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
trainer.fit(SoftmaxRegression(), data)
"""


@pytest.mark.slow
def test_a_fresh_notebook_shows_one_picture_of_the_curve_while_the_model_trains() -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbformat, nbclient and ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    outputs = [output.data for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert len(outputs) == 1  # updated, not repeated
    assert outputs[0]["image/png"]
