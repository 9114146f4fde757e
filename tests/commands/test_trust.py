"""A user may name any class; no checkpoint and no configuration of a stranger's run makes code run."""

import hashlib
import io
import operator
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from commands import SMALL, fit, one_line, only_run
from marks import slow_but
from softmax_regression.commands import study
from softmax_regression.commands.help import COMMANDS
from softmax_regression.commands.train import main
from softmax_regression.experiment.allowed_classes import allow_classes
from softmax_regression.runs.checkpoint import RUN, dumps, read

CANARY = "canary"  # a file in the folder of the test; that it exists says that foreign code ran
ABOVE = "from lightning.pytorch import Callback, LightningModule\n"
FOREIGN = f"""{ABOVE}import pathlib
pathlib.Path({CANARY!r}).touch()
class C(Callback): pass
class D(Callback): pass
def f(): pass
def g(): pass
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def foreign(in_folder: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that came along in the folder of a stranger's run, on the path as where a command is typed in it."""
    folder = Path("logs/softmax/theirs")
    folder.mkdir(parents=True)
    for name in ("foreign", "étranger"):
        (folder / f"{name}.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(folder.resolve())
    yield
    for name in ("foreign", "étranger"):
        sys.modules.pop(name, None)
    allow_classes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good checkpoint, to hide things in."""
    folder = tmp_path_factory.mktemp("trained")
    assert fit("--trainer.max_epochs=1", f"--trainer.logger.save_dir={folder}") == 0
    return read(only_run(folder) / "checkpoints" / "last.ckpt")


# Checkpoints


class Call:
    """What a pickle calls when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


SYSTEM = Call(os.system, f"touch {CANARY}")
# getattr(__import__("os"), "system")("touch canary"), which no object in Python pickles to
BY_NAME = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch canary'\ntR."


def zipped(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archived(data: bytes, root: str = "archive") -> bytes:
    """A zip archive like those of torch.save, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in (("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"{root}/{name}", part)
    return buffer.getvalue()


def legacy(content: Any) -> bytes:
    """The format of torch before 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tarred(content: Any) -> bytes:
    """The format of torch before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def alone(content: Any, saved: dict[str, Any]) -> bytes:
    """A checkpoint that holds nothing else."""
    return zipped(content)


def added(content: Any, saved: dict[str, Any]) -> bytes:
    """A checkpoint with one thing more."""
    return zipped(saved | {"x": content})


def within(name: str, saved: dict[str, Any]) -> bytes:
    """A checkpoint with one thing more in a part of it."""
    return zipped(saved | {name: saved[name] | {"x": SYSTEM}})


def as_a_key(saved: dict[str, Any]) -> bytes:
    return zipped(saved | {("x", SYSTEM): 0})


def in_the_legacy_format(saved: dict[str, Any]) -> bytes:
    return legacy(saved | {"x": SYSTEM})


def as_it_is(content: bytes, saved: dict[str, Any]) -> bytes:
    """A file that torch.save has not written."""
    return content


REBUILDER = Call(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f"touch {CANARY}",), {})
HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "os.system": partial(alone, SYSTEM),
    "in state_dict": partial(within, "state_dict"),
    "in hyper_parameters": partial(within, "hyper_parameters"),
    "in datamodule_hyper_parameters": partial(within, "datamodule_hyper_parameters"),
    "in callbacks": partial(within, "callbacks"),
    "in loops": partial(within, "loops"),
    "as a key": as_a_key,
    "eval": partial(added, Call(eval, f"__import__('os').mkdir({CANARY!r})")),
    "exec": partial(added, Call(exec, f"import os; os.mkdir({CANARY!r})")),
    "subprocess": partial(added, Call(subprocess.check_output, ["touch", CANARY])),
    "mkdir": partial(added, Call(os.mkdir, CANARY)),
    "getattr": partial(as_it_is, archived(BY_NAME)),
    "methodcaller": partial(alone, Call(operator.methodcaller("write_text", "x"), Path(CANARY))),
    "a pickle in a pickle": partial(alone, Call(pickle.loads, pickle.dumps(SYSTEM))),
    "torch's own loader": partial(alone, Call(torch.storage._load_from_bytes, legacy(SYSTEM))),
    "torch's own rebuilder": partial(alone, REBUILDER),
    "numpy": partial(added, np.array([SYSTEM], dtype=object)),
    "legacy": in_the_legacy_format,
    "tar": partial(as_it_is, tarred(SYSTEM)),
    "bare pickle": partial(as_it_is, pickle.dumps(SYSTEM)),
    "bare pickle, protocol 0": partial(as_it_is, BY_NAME),
    "renamed root": partial(as_it_is, archived(pickle.dumps(SYSTEM, 2), root="x")),
}


def sealed(data: bytes) -> bytes:
    """Give a file the checksum that ours have, for a stranger can compute it too."""
    if data[-22:-18] == b"PK\5\6":
        data = data[:-2] + (71).to_bytes(2, "little")
    data += b"sha256="
    return data + hashlib.sha256(data).hexdigest().encode()


# Every way in which a person names a checkpoint.
WAYS = (
    "fit --resume PATH",
    "fit --ckpt_path=PATH",
    "test --ckpt_path PATH",
    "test --ckpt_path PATH --weights_only=false",
    "validate --ckpt_path PATH",
    "predict --ckpt_path PATH",
    "report PATH",
    "compare PATH PATH",
    "export PATH",
)


def run(way: str, path: str) -> int:
    words = way.replace("PATH", path).split()
    if words[0] == "fit":
        words += SMALL
    if words[0] in COMMANDS:
        return main(words)
    return study.main(words)


def a_run(saved: dict[str, Any], config: str) -> str:
    """Make the folder of a stranger's run, and return it."""
    folder = Path("logs/softmax/theirs")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "checkpoints" / "last.ckpt").write_bytes(dumps(saved))
    return str(folder)


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")  # which as an error would refuse it
@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter extracted tar archives")  # likewise
@pytest.mark.parametrize("kind", slow_but(["os.system", "in callbacks", "numpy", "legacy", "bare pickle"], HOSTILE))
def test_a_hostile_checkpoint_is_live_and_refused_in_every_way(
    kind: str, saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = HOSTILE[kind](saved)
    Path("x.ckpt").write_bytes(data)
    with suppress(Exception):
        torch.load("x.ckpt", weights_only=False)
    assert Path(CANARY).exists()
    if Path(CANARY).is_dir():
        Path(CANARY).rmdir()
    else:
        Path(CANARY).unlink()
    Path("x.ckpt").write_bytes(sealed(data))
    folder = Path(a_run(saved, "{trainer: {max_epochs: 3}}"))
    (folder / "checkpoints" / "last.ckpt").write_bytes(sealed(data))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for way in WAYS:
        for path in ("x.ckpt", str(folder)):
            assert run(way, path) == 2, way
            out, err = capsys.readouterr()
            assert out == ""
            assert "checksum" not in err  # it is not refused for its checksum
    assert not Path(CANARY).exists()


BOMB = "dirs: [&a x, " + ", ".join(["*a"] * 30) + "]"
C = "{class_path: foreign.C}"
LAMBDA = "class_path: lightning.pytorch.callbacks.LambdaCallback"
BOARD = "class_path: lightning.pytorch.loggers.TensorBoardLogger"
THEIRS = {
    "class": f"trainer: {{logger: {C}}}",
    "not ASCII": "trainer: {callbacks: [étranger.C]}",
    "in a list": f"trainer: {{callbacks: [{{{LAMBDA}}}, {C}]}}",
    "in init_args": f"trainer: {{callbacks: [{{{LAMBDA}, init_args: {{on_fit_start: foreign.C}}}}]}}",
    "in init_args of a string": f'trainer: {{callbacks: "[{C}]"}}',
    "escaped": r'trainer: {callbacks: "[{class_path: \"for\\x65ign.C\"}]"}',
    "where anything goes": f"trainer: {{logger: {{{BOARD}, init_args: {{save_dir: x, comment: {C}}}}}}}",
    "dotted key": f'{{"trainer.logger": {C}}}',
    "merged": f"x: &x {C}\ntrainer: {{logger: {{<<: *x}}}}",
    "model": f"model: {C}",
    "optimizer": f"optimizer: {C}",
    "file beside it": "trainer: sub.yaml",
    "file of another name": "trainer: {logger: sub.txt}",
    "of this folder's logs": "trainer: {callbacks: [logs.softmax.theirs.own.C]}",
    "through a trusted module": "trainer: {callbacks: [lightning.fabric.utilities.cloud_io.os.system]}",
    "of torch, but runs code": f"trainer: {{callbacks: {{{LAMBDA}, init_args: {{setup: torch.hub.load}}}}}}",
    "of Python": "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, canary]}}]}",
    "of the parser": "trainer: {callbacks: [jsonargparse.set_parsing_settings]}",
}


@pytest.mark.parametrize("kind", slow_but(["class", "in init_args", "file beside it", "of Python"], THEIRS))
def test_a_class_that_a_run_names_is_not_imported(
    kind: str, saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_run(saved, THEIRS[kind])
    for name, words in {
        "sub.yaml": f"logger: {C}",
        "sub.txt": C,
        "own.py": FOREIGN,
        "__init__.py": "",
    }.items():
        Path(path, name).write_text(words)
    for way in ("test --ckpt_path PATH", "fit --resume PATH"):
        code = run(way, path)
        assert not Path(CANARY).exists()
        assert not {"foreign", "étranger"} & sys.modules.keys()
        if kind != "where anything goes":  # no class is wanted there, so that it is a mere value
            assert code == 2
            one_line(capsys)


def test_a_class_that_a_checkpoint_names_is_not_imported(
    saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = Path("logs/softmax/theirs/theirs.ckpt")
    for text in (THEIRS["class"], THEIRS["of Python"], "/dev/zero", "x.yaml", f"data: {{{BOMB}}}"):
        theirs.write_bytes(dumps(saved | {RUN: saved[RUN] | {"config": text}}))
        assert run("test --ckpt_path PATH", str(theirs)) == 2
        one_line(capsys)
    assert not Path(CANARY).exists()


@pytest.mark.slow
def test_what_a_user_names_is_trusted_in_flags_and_in_files(saved: dict[str, Any]) -> None:
    Path("x.yaml").write_text(f"trainer: {{callbacks: [{C}]}}")
    Path("t.yaml").write_text(f"callbacks: [{C}]")
    for flags in (
        ["--trainer.callbacks+=foreign.C"],
        ["--config=x.yaml"],
        ["-cx.yaml"],
        ["--trainer", "t.yaml"],
    ):
        Path(CANARY).unlink(missing_ok=True)
        sys.modules.pop("foreign", None)
        assert fit("--trainer.max_epochs=1", *flags) == 0
        assert Path(CANARY).exists()


def test_trust_in_one_command_says_nothing_about_another(
    saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--trainer.max_epochs=1", "--trainer.callbacks+=foreign.C") == 0
    capsys.readouterr()
    theirs = a_run(saved, f"trainer: {{callbacks: [{C}]}}")
    assert main(["test", "--ckpt_path", theirs]) == 2
    assert "class foreign.C is refused" in one_line(capsys)


def allowed(name: str) -> bool:
    """Whether a configuration may name a function or class now."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--f", type=Callable)
    with suppress(Exception):
        parser.parse_args([f"--f={name}"])
        return True
    return False


def test_allowed_are_installed_packages_and_the_users_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("beside.py").write_text("def f(): pass")
    Path("package").mkdir()
    Path("package/__init__.py").write_text("def f(): pass")
    monkeypatch.syspath_prepend(Path.cwd())
    allow_classes(run=Path("logs/softmax/theirs"))
    for name in (
        "beside.f",
        "package.f",
        "torch.nn.functional.relu",
        "torchvision.ops.nms",
        "lightning.pytorch.seed_everything",
    ):
        assert allowed(name), name
    for name in ("os.system", "os.path.join", "math.sqrt", "torch.hub.load", "foreign.f", "jsonargparse.CLI"):
        assert not allowed(name), name
    allow_classes()
    assert allowed("foreign.f")  # by a user who names it
    assert not allowed("os.system")
    allow_classes(run=Path("logs/softmax/theirs"))
    assert not allowed("foreign.f")


def test_environment_variables_are_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_FIT__TRAINER__LOGGER", "PL_TRAINER__LOGGER", "PL_CONFIG", "PL_FIT__CONFIG"):
        monkeypatch.setenv(name, "foreign.C")
    assert fit("--trainer.max_epochs=1") == 0
    assert not Path(CANARY).exists()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a web server, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"max_epochs: 1\n")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/x", asked
        http.shutdown()
        thread.join()


@pytest.mark.slow
def test_nothing_is_fetched_from_a_url(server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    address, asked = server
    for option in (
        "config",
        "trainer",
        "trainer.logger",
        "trainer.callbacks",
        "data",
        "model",
        "ckpt_path",
        "resume",
    ):
        for url in (f"{address}.yaml", f"{address}.ckpt", "memory://x.yaml", f"simplecache::{address}.yaml"):
            assert main(["fit", f"--{option}={url}"]) == 2
            one_line(capsys)
    assert study.main(["numerics", f"--config={address}"]) == 2
    one_line(capsys)
    assert not asked
