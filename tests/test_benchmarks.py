from pathlib import Path

import pytest

from benchmarks import growth, plain, race, step, thread_table
from benchmarks.__main__ import main
from benchmarks.task import Outcome, Run, Task

QUICK = ["--source=synthetic", "--train-size=2000", "--epochs=2", "--rounds=1"]


@pytest.mark.slow
def test_the_race_writes_a_row_for_each_contestant_and_a_plot(tmp_path: Path) -> None:
    absent = race.missing(["e2", "f", "g"])
    main([*QUICK, "--only=a,a+,b2,h,am,hm,d,e2,f,g", f"--out={tmp_path}"])
    text = (tmp_path / "benchmarks.md").read_text()
    for key in "a", "a+", "b", "b2", "h", "am", "bm", "hm", "d", "e2", "f", "g":
        assert (f"| ({key}) {race.CONTESTANTS[key].title} |" in text) == (key not in absent)
    assert (tmp_path / "benchmarks.png").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"benchmarks.md", "benchmarks.png"}


@pytest.mark.slow
def test_a_busy_core_is_a_table_of_its_own_and_what_was_measured_is_kept(
    tmp_path: Path,
) -> None:
    main([*QUICK, "--only=b", "--busy", f"--out={tmp_path}"])
    assert (tmp_path / "benchmarks.md").read_text().count("| (b) plain PyTorch loop |") == 2


@pytest.mark.slow
def test_a_step_costs_most_by_lightnings_own_loop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "parts", lambda steps: {"gather": 56.0})
    times = step.main(["--steps=300", "--rounds=5"])
    hand, engine, lightning = map(min, times.values())  # other programs only make a loop slower
    assert max(hand, engine) < lightning  # how near the two are, a busy machine does not tell
    assert capsys.readouterr().out.endswith("| gather | 56 (56 to 56) |\n")


def test_the_parts_of_a_step_add_up() -> None:
    parts = step.parts(10)
    assert len(parts) == 7
    assert 0 < parts["gather, to float"] < sum(parts.values())


@pytest.mark.slow
def test_the_table_of_threads_has_a_row_for_each_batch_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_table, "BATCH_SIZES", (16, 64))
    thread_table.main(["--rounds=1", "--steps=2", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | batch size | 1 thread, quiet | 1 thread, one core busy |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        [f"| {model}", str(size)] for model in ("linear", "MLP") for size in (16, 64)
    ]


def test_a_peer_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = race.Contestant("a peer", "nowhere.contestant", ("not_installed",))
    monkeypatch.setitem(race.CONTESTANTS, "g", peer)
    main([*QUICK, "--only=b,g", f"--out={tmp_path}"])
    assert "Not installed: not_installed, for (g)." in (tmp_path / "benchmarks.md").read_text()


def test_a_contestant_with_another_loss_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = plain.contestant

    def cheat(task: Task) -> Run:
        run = honest(task)
        return lambda epochs: run(max(1, epochs - 1))

    monkeypatch.setattr("benchmarks.ours.contestant", cheat)
    with pytest.raises(race.DifferentWorkError, match=r"this project.*train loss"):
        main([*QUICK, "--only=a", f"--out={tmp_path}"])


def test_a_classifier_with_a_low_accuracy_fails() -> None:
    with pytest.raises(race.DifferentWorkError, match=r"accuracy 0\.5"):
        race._check(race.Contestant("a peer", ""), Outcome(1.0, 0.0, None, 0.5), Outcome(1.0, 0.0, 0.45, 0.8))


def test_a_point_of_growth_has_its_times_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "EPOCHS", 2)
    point = growth.point(500, 100, "cpu")
    assert len(point.seconds) == 1
    assert point.seconds[0] > 0
    assert point.memory >= 0
    assert point.data == 1500 * (784 + 8) / 2**20
