"""No checkpoint and no configuration of a stranger runs code; the attacks are shown to work elsewhere."""

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
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch

from commands import SMALL, fit, one_line, only_run
from softmax_regression.commands import study as studies
from softmax_regression.commands import trust
from softmax_regression.commands.train import COMMANDS, main
from softmax_regression.runs.checkpoint import read

CANARY = "canary"  # a file in the folder of the test; that it exists says that foreign code ran


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def within(name: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda saved: zipped(saved | {name: saved[name] | {"x": SYSTEM}})


HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "os.system": lambda saved: zipped(SYSTEM),
    **{
        f"in {name}": within(name)
        for name in ("state_dict", "hyper_parameters", "datamodule_hyper_parameters", "callbacks", "loops")
    },
    "as a key": lambda saved: zipped(saved | {("x", SYSTEM): 0}),
    "eval": lambda saved: zipped(saved | {"x": Call(eval, f"__import__('os').mkdir({CANARY!r})")}),
    "exec": lambda saved: zipped(saved | {"x": Call(exec, f"import os; os.mkdir({CANARY!r})")}),
    "subprocess": lambda saved: zipped(saved | {"x": Call(subprocess.check_output, ["touch", CANARY])}),
    "mkdir": lambda saved: zipped(saved | {"x": Call(os.mkdir, CANARY)}),
    "getattr": lambda saved: archived(BY_NAME),
    "methodcaller": lambda saved: zipped(Call(operator.methodcaller("write_text", "x"), Path(CANARY))),
    "a pickle in a pickle": lambda saved: zipped(Call(pickle.loads, pickle.dumps(SYSTEM))),
    "torch's own loader": lambda saved: zipped(Call(torch.storage._load_from_bytes, legacy(SYSTEM))),
    "torch's own rebuilder": lambda saved: zipped(
        Call(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f"touch {CANARY}",), {})
    ),
    "numpy": lambda saved: zipped(saved | {"x": np.array([SYSTEM], dtype=object)}),
    "legacy": lambda saved: legacy(saved | {"x": SYSTEM}),
    "tar": lambda saved: tarred(SYSTEM),
    "bare pickle": lambda saved: pickle.dumps(SYSTEM),
    "bare pickle, protocol 0": lambda saved: BY_NAME,
    "renamed root": lambda saved: archived(pickle.dumps(SYSTEM, 2), root="x"),
}


def sealed(data: bytes) -> bytes:
    """Give a file the checksum that ours have, for a stranger can compute it too."""
    if data[-22:-18] == b"PK\5\6":
        data = data[:-2] + (71).to_bytes(2, "little")
    data += b"sha256="
    return data + hashlib.sha256(data).hexdigest().encode()


# Every way in which a person names a checkpoint; the commands of study.py that read one belong here too.
WAYS: dict[str, Callable[[str], list[str]]] = {
    "fit --resume": lambda path: ["fit", *SMALL, "--resume", path],
    "fit --ckpt_path": lambda path: ["fit", *SMALL, f"--ckpt_path={path}"],
    "test": lambda path: ["test", *SMALL, "--ckpt_path", path],
    "validate": lambda path: ["validate", *SMALL, "--ckpt_path", path],
    "predict": lambda path: ["predict", *SMALL, "--ckpt_path", path],
    "report": lambda path: ["report", path],
    "compare": lambda path: ["compare", path, path],
    "export": lambda path: ["export", path],
}


COMMANDS_WITH_A_CONFIGURATION = [way for way in WAYS if way.split()[0] in COMMANDS]


def exit_code(way: str, path: str, *options: str) -> int:
    arguments = WAYS[way](path)
    return main([*arguments, *options]) if arguments[0] in COMMANDS else studies.main(arguments)


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_hostile_checkpoints_are_live(kind: str, saved: dict[str, Any]) -> None:
    Path("x.ckpt").write_bytes(HOSTILE[kind](saved))
    with suppress(Exception):
        torch.load("x.ckpt", weights_only=False)
    assert Path(CANARY).exists()


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")  # which as an error would refuse it
@pytest.mark.parametrize("forced", [False, True], ids=["", "weights_only=False wanted"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    kind: str,
    way: str,
    forced: bool,
    saved: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = []
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        options = ["--weights_only=false"]
    Path("x.ckpt").write_bytes(sealed(HOSTILE[kind](saved)))
    assert exit_code(way, "x.ckpt", *options) == 2
    line = one_line(capsys)
    assert "x.ckpt" in line
    assert "damaged" not in line  # it is not refused for its checksum
    assert [path.name for path in Path().iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_checkpoint_in_a_run_is_refused(
    way: str, saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("logs/softmax/a")
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{trainer: {max_epochs: 3}}")
    (run / "checkpoints" / "last.ckpt").write_bytes(sealed(zipped(SYSTEM)))
    for path in (str(run), "last"):
        assert exit_code(way, path) == 2
        assert "refused" in one_line(capsys)
    assert not Path(CANARY).exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:Warning")  # it is on its way out
def test_torchscript_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.ckpt").write_bytes(sealed(scripted()))
    assert main(["test", "--ckpt_path", "x.ckpt"]) == 2
    assert "x.ckpt: " in one_line(capsys)


# Configurations


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module on the path that leaves a canary when it is imported, under two names."""
    for name in ("foreign", "étranger"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / CANARY)!r}, 'w')\nclass C: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("foreign", "étranger"):
        sys.modules.pop(name, None)


C = "{class_path: foreign.C}"
LAMBDA = "class_path: lightning.pytorch.callbacks.LambdaCallback"
BOARD = "class_path: lightning.pytorch.loggers.TensorBoardLogger"

FLAGS = {
    "class": ["--trainer.logger=foreign.C"],
    "class path": ["--trainer.logger.class_path=foreign.C"],
    "appended": ["--trainer.callbacks+=foreign.C"],
    "not ASCII": ["--trainer.callbacks+=étranger.C"],
    "two arguments": ["--trainer.logger", "foreign.C"],
    "JSON": ['--trainer.callbacks=[{"class_path": "foreign.C"}]'],
    "JSON, all": ['--trainer={"logger": {"class_path": "foreign.C"}}'],
    "plugins": ["--trainer.plugins=[foreign.C]"],
    "profiler": ["--trainer.profiler.class_path=foreign.C"],
    "strategy": ["--trainer.strategy.class_path=foreign.C"],
    "callable": [f"--trainer.callbacks=[{{{LAMBDA}, init_args: {{on_fit_start: foreign.C}}}}]"],
    "help": ["--trainer.logger.help=foreign.C"],
    "through a trusted module": ["--trainer.callbacks+=lightning.fabric.utilities.cloud_io.os.system"],
    "of torch, but runs code": [
        "--trainer.callbacks=lightning.pytorch.callbacks.LambdaCallback",
        "--trainer.callbacks.on_fit_start=torch.hub.load",
    ],
    "of the parser": ["--trainer.callbacks+=jsonargparse.set_parsing_settings"],
}  # fmt: skip

FILES = {
    "class": f"trainer: {{logger: {C}}}",
    "in a list": f"trainer: {{callbacks: [{{{LAMBDA}}}, {C}]}}",
    "in init_args": f"trainer: {{callbacks: [{{{LAMBDA}, init_args: {{on_fit_start: foreign.C}}}}]}}",
    "in init_args of a string": f'trainer: {{callbacks: "[{C}]"}}',
    "where anything goes": f"trainer: {{logger: {{{BOARD}, init_args: {{save_dir: x, comment: {C}}}}}}}",
    "dotted key": f'{{"trainer.logger": {C}}}',
    "merged": f"x: &x {C}\ntrainer: {{logger: {{<<: *x}}}}",
    "model": f"model: {C}",
    "optimizer": f"optimizer: {C}",
    "file beside it": "trainer: sub.yaml",
    "file of another name": "trainer: {logger: sub.txt}",
}


def write_configuration(text: str) -> str:
    folder = Path("configurations")
    folder.mkdir()
    (folder / "sub.yaml").write_text(f"logger: {C}")
    (folder / "sub.txt").write_text(C)
    (folder / "x.yaml").write_text(text)
    return str(folder / "x.yaml")


def assert_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(capsys)
    assert len(line) < 3000
    assert not Path(CANARY).exists()
    assert not {"foreign", "étranger"} & sys.modules.keys()


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_foreign_class_in_a_flag_is_refused_before_it_is_imported(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*flags) == 2
    assert_refused(capsys)
    assert not Path("logs").exists()


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_foreign_class_in_a_file_is_not_imported(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = fit("--config", write_configuration(text), "--trainer.max_epochs=1")
    if text == FILES["where anything goes"]:  # no class is wanted there, so that it is a mere value
        assert code == 0
        assert not Path(CANARY).exists()
    else:
        assert code == 2
        assert_refused(capsys)


@pytest.mark.usefixtures("foreign")
def test_a_foreign_class_is_refused_wherever_the_option_stands(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(f"fit: {{trainer: {{logger: {C}}}}}")
    Path("trainer.txt").write_text(f"logger: {C}")
    for args in (
        ["--config", "x.yaml", "fit"],
        ["--fit.trainer.logger=foreign.C", "fit"],
        ["fit", "--trainer", "trainer.txt"],
        ["fit", "--trainer=file://" + str(Path("trainer.txt").absolute())],
    ):
        assert main(args) == 2
        assert_refused(capsys)


@pytest.mark.usefixtures("foreign")
def test_a_foreign_class_in_the_configuration_of_a_run_is_refused(
    saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--trainer.max_epochs=1") == 0
    capsys.readouterr()
    run = only_run()
    (run / "config.yaml").write_text(f"trainer: {{logger: {C}}}")
    for way in COMMANDS_WITH_A_CONFIGURATION:
        assert exit_code(way, str(run)) == 2
        assert_refused(capsys)


@pytest.mark.usefixtures("foreign")
def test_environment_variables_are_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_FIT__TRAINER__LOGGER", "PL_TRAINER__LOGGER", "PL_CONFIG", "PL_FIT__CONFIG"):
        monkeypatch.setenv(name, "foreign.C")
    assert fit("--trainer.max_epochs=1") == 0
    assert not Path(CANARY).exists()


def test_the_line_names_the_option_the_class_and_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.callbacks+=json.JSONDecoder") == 2
    line = one_line(capsys)
    assert line.startswith("error: trainer.callbacks: class json.JSONDecoder is refused")
    assert ", ".join(trust.TRUSTED) in line


def test_classes_of_lightning_and_of_this_package_may_be_named() -> None:
    assert (
        fit("--trainer.callbacks+=lightning.pytorch.callbacks.LambdaCallback", "--trainer.max_epochs=1") == 0
    )


@pytest.mark.usefixtures("foreign")
def test_a_study_trusts_no_more_than_a_run(
    server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    jsonargparse.set_parsing_settings(import_path_denylist=[], import_path_allowlist=[])  # as it is at first
    Path("x.yaml").write_text(f"space: {{lr: {C}}}")
    for option in ("--config=x.yaml", f"--space.lr={C}", "--space.lr=foreign.C"):
        assert studies.main(["sweep", option]) == 2
        assert_refused(capsys)
    address, asked = server
    assert studies.main(["sweep", f"--config={address}"]) == 2
    assert "not from URLs" in one_line(capsys)
    assert not asked


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


URLS = (
    "--config={}", "--trainer={}", "--trainer.logger={}", "--trainer.callbacks={}", "--data={}", "--model={}",
    "--ckpt_path={}", "--resume={}", "--config=simplecache::{}", "--trainer=simplecache::{}",
)  # fmt: skip


@pytest.mark.parametrize("option", URLS)
def test_nothing_is_fetched_from_a_url(
    option: str, server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = server
    for url in (address + ".yaml", address + ".ckpt", "memory://x.yaml"):
        assert main(["fit", option.format(url)]) == 2
        one_line(capsys)
    assert main([option.format(address), "fit"]) == 2
    one_line(capsys)
    assert not asked


def test_a_bomb_of_aliases_and_a_file_without_end_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    Path("x.yaml").write_text("\n".join(["a0: &a0 [x]", *levels, "trainer: {callbacks: *a9}"]))
    for path, word in (("x.yaml", "aliases"), ("/dev/zero", "no regular file")):
        assert main(["fit", "--config", path]) == 2
        assert word in one_line(capsys)
