"""The page of a run, of this project's model and of anybody's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from commands import fit
from softmax_regression import RunLogger, RunRecord
from softmax_regression.commands import study
from softmax_regression.commands.train import main
from softmax_regression.errors import InputError
from softmax_regression.reports.report import report
from softmax_regression.runs import checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of softmax regression."""
    logs = tmp_path_factory.mktemp("logs")
    assert fit("--model.lr=0.5", f"--trainer.logger.save_dir={logs}") == 0
    return next(logs.glob("*/*"))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    """The report of it."""
    return text_of(report(str(run)))


def test_a_report_shows_the_validation_images(page: str, run: Path) -> None:
    assert "101 validation images" in page
    assert page.count("<img") == 6
    final = json.loads((run / "run.json").read_text())["final"]
    assert f">{final['val/loss']:.4g}</td>" in page
    assert (run / "report" / "confusion_matrix.png").exists()


@pytest.mark.slow
def test_a_report_shows_the_test_images_once_they_were_scored(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / run.name)
    assert main(["test", f"--ckpt_path={run}", "--figures.every_n_epochs=0"]) == 0
    assert "100 test images" in text_of(report(str(run / "checkpoints" / "last.ckpt"), force=True))


def test_a_report_opens_with_the_scores_and_explains_its_words(page: str, run: Path) -> None:
    shown, hidden = page.split("<details>", 1)
    places = [shown.index(words) for words in ("val/loss", "cross-entropy in nats", "<img", "<td>model.lr</td>")]
    assert places == sorted(places)
    assert "To guess among 10 classes costs log 10 = 2.303." in " ".join(shown.split())
    assert "<td>model.lr</td><td>0.5</td>" in shown
    assert "trainer.callbacks" not in shown
    assert shown.count(f"Run {run.name}") == 2  # title and heading
    assert "momentum: 0.0" in hidden


@pytest.mark.slow
def test_a_checkpoint_that_was_moved_has_a_report_without_curves(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", moved)
    page = text_of(report(str(moved), tmp_path / "page"))
    assert "Run moved.ckpt" in page
    assert "<td>model.lr</td><td>0.5</td>" in page
    assert page.count("<img") == 5
    assert "The curves are left out: this run has no metrics.csv." in page


@pytest.mark.slow
def test_images_that_were_not_trained_on_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint.read(run / "checkpoints" / "best.ckpt")
    saved["softmax_regression.run"]["sha256"] = "0"
    (tmp_path / "other.ckpt").write_bytes(checkpoint.dumps(saved))
    report(str(tmp_path / "other.ckpt"), tmp_path / "page", dirs=["absent"])
    assert "warning: data with SHA-256 " in capsys.readouterr().err


def test_a_run_without_held_out_images_says_what_shows_some(tmp_path: Path) -> None:
    where = (f"--trainer.logger.save_dir={tmp_path}", "--data.val_size=0")
    assert fit(*where, "--early_stopping.patience=0", "--best_checkpoint.monitor=train/loss") == 0
    page = text_of(report(str(next(tmp_path.glob("*/*")))))
    assert "after <code>train.py test</code>, this page shows the test images" in page
    assert page.count("<img") == 1


def test_what_is_no_run_is_refused_and_somebody_elses_page_is_not_replaced(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no checkpoints"):
        report(str(tmp_path))
    theirs = tmp_path / "index.html"
    theirs.write_text("mine")
    with pytest.raises(InputError, match="was not written by this project"):
        report(str(run), tmp_path)
    assert theirs.read_text() == "mine"


@pytest.mark.slow
def test_by_force_somebody_elses_page_is_replaced(run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "index.html"
    theirs.write_text("mine")
    report(str(run), tmp_path, force=True)
    assert theirs.read_text() != "mine"


class FiveGreys(LightningDataModule):
    """Square grey images of five classes, each of another brightness; set up for `fit` alone."""

    shape: tuple[int, ...] = (1, 28, 28)

    def setup(self, stage: str) -> None:
        assert stage in ("fit", "validate")
        if stage == "fit":
            self.examples: Any = [self.example(i) for i in range(40)]

    def example(self, i: int) -> Any:
        return torch.full(self.shape, (i % 5) / 5), i % 5

    def train_dataloader(self) -> Any:
        return DataLoader(self.examples, 20)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class InLists(FiveGreys):
    shape = (3, 8, 12)

    def val_dataloader(self) -> Any:
        return [self.train_dataloader()]


class InDictionaries(FiveGreys):
    def example(self, i: int) -> Any:
        image, label = super().example(i)
        return {"label": label, "image": image}

    def val_dataloader(self) -> Any:
        return {"bright": self.train_dataloader(), "dark": self.train_dataloader()}


class Measurements(FiveGreys):
    shape = (4,)


class Unlabelled(FiveGreys):
    def example(self, i: int) -> Any:
        return super().example(i)[0]


class Stream(IterableDataset[Any]):
    """Examples without an end; who takes too many meets an error rather than waiting for ever."""

    def __iter__(self) -> Any:
        for i in range(10_000):
            yield torch.full((1, 28, 28), (i % 5) / 5), i % 5
        raise RecursionError("endless")


class Endless(FiveGreys):
    def val_dataloader(self) -> Any:
        return DataLoader(Stream(), 20)


class Net(LightningModule):
    """Somebody else's module: names of its own, an injected part, layers that are made late."""

    def __init__(self, pixels: int = 784, act: nn.Module | None = None) -> None:
        super().__init__()
        self.pixels = pixels
        self.act = act or nn.ReLU()
        self.layers: nn.Module | None = None

    def configure_model(self) -> None:
        if self.layers is None:
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(self.pixels, 8), self.act, nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Any:
        assert self.layers is not None
        return self.layers(x)

    def loss(self, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            return nn.functional.cross_entropy(self(batch["image"]), batch["label"])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log(f"ce{dataloader_idx or ''}", self.loss(batch), add_dataloader_idx=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Autoencoder(Net):
    def forward(self, x: Tensor) -> Any:
        return torch.sigmoid(x)

    def loss(self, batch: Any) -> Tensor:
        self.configure_model()
        logits: Tensor = super().forward(batch)
        return logits.square().mean()


def page_of(folder: Path, *flags: str) -> str:
    """The report of a run of these classes, which lie in this module."""
    monitors = ("--early_stopping.monitor=ce", "--best_checkpoint.monitor=ce", "--figures.every_n_epochs=0")
    where = (f"--trainer.logger.save_dir={folder}", "--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0")
    assert main(["fit", *monitors, *where, *flags]) == 0
    return " ".join(text_of(report(str(next(folder.glob("*/*"))))).split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "pictures", "left_out"),
    [
        (["--model=test_report.Net", "--model.act=torch.nn.Tanh", "--model.pixels=288", "--data=test_report.InLists"],
         4, "each pixel adds, are left out: the model is not linear in the pixels of square grey images."),
        (["--model=test_report.Net", "--data=test_report.InDictionaries"],
         4, "each pixel adds, are left out: the model is not linear in the pixels of square grey images."),
        (["--model=test_report.Autoencoder", "--data=test_report.Unlabelled"],
         1, "What the model makes of images is left out: a batch has no classes (n,)."),
    ],
    ids=["injected, in colour, a list", "dictionaries", "without labels"],
)  # fmt: skip
def test_of_anybodys_model_and_data_the_page_shows_what_can_be_drawn_and_says_what_cannot(
    flags: list[str], pictures: int, left_out: str, tmp_path: Path
) -> None:
    page = page_of(tmp_path, *flags)
    assert page.count("<img") == pictures
    assert left_out in page
    assert '<th class="number">ce</th>' in page
    assert "cross-entropy in nats" not in page  # nobody knows


def test_the_page_of_data_that_are_no_images_speaks_of_examples(tmp_path: Path) -> None:
    page = page_of(tmp_path, "--model=test_report.Net", "--model.pixels=4", "--data=test_report.Measurements")
    assert "What it makes of the 40 validation examples" in page
    assert "the share of the examples classified as a class" in page
    assert "the inputs are no images" in page


@pytest.mark.slow
def test_the_page_shows_as_many_batches_as_were_validated(tmp_path: Path) -> None:
    flags = ["--model=test_report.Net", "--data=test_report.Endless", "--trainer.limit_val_batches=2"]
    assert "What it makes of the 40 validation images" in page_of(tmp_path, *flags)


@pytest.mark.slow
def test_to_guess_among_five_classes_costs_the_logarithm_of_five(tmp_path: Path) -> None:
    flags = ("--early_stopping.monitor=val/loss", "--best_checkpoint.monitor=val/loss")
    page = page_of(tmp_path, "--data=test_report.FiveGreys", "--model.num_classes=5", *flags)
    assert "To guess among 5 classes costs log 5 = 1.609." in page
    assert page.count("<img") == 6


def test_a_run_without_a_data_module_has_its_curves(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, logger=RunLogger(str(tmp_path)), callbacks=[RunRecord()], accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1)  # fmt: skip
    examples: Any = [(torch.rand(1, 28, 28), i % 5) for i in range(20)]
    loader: Any = DataLoader(examples, 10)
    trainer.fit(Net(), loader, loader)
    assert study.main(["report", str(trainer.log_dir)]) == 0
    page = text_of(Path(str(trainer.log_dir), "report", "index.html"))
    assert page.count("<img") == 1
    assert "held out no validation images that can be loaded again: it was trained on DataLoaders of a script" in page
    assert "FashionMNISTDataModule" not in page.partition("How to repeat it")[0]
