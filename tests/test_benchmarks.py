from pathlib import Path

import pytest

from benchmarks import growth, plain, race
from benchmarks.__main__ import main
from benchmarks.task import Outcome, Run, Task

QUICK = ["--source=synthetic", "--train-size=2000", "--epochs=2", "--rounds=1"]


def test_the_race_writes_a_row_for_each_contestant_and_a_plot(tmp_path: Path) -> None:
    absent = race.missing(["e2", "f", "g"])
    main([*QUICK, "--only=a,a+,d,e2,f,g", f"--out={tmp_path}"])
    text = (tmp_path / "benchmarks.md").read_text()
    for key in "a", "a+", "b", "d", "e2", "f", "g":
        assert (f"| ({key}) {race.CONTESTANTS[key].title} |" in text) == (key not in absent)
    assert (tmp_path / "benchmarks.png").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"benchmarks.md", "benchmarks.png"}


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
        race._check("a peer", Outcome(1.0, 0.0, None, 0.5), Outcome(1.0, 0.0, 0.45, 0.8))


def test_a_point_of_growth_has_its_times_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "EPOCHS", 2)
    point = growth.point(500, 100, "cpu")
    assert len(point.seconds) == 1
    assert point.seconds[0] > 0
    assert point.memory >= 0
    assert point.data == 1500 * (784 + 8) / 2**20
