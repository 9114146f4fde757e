"""The workflow that tests other systems runs what the README says and what .ci/run runs here."""

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
JOB = WORKFLOW["jobs"]["test"]
COMMANDS = [step["run"] for step in JOB["steps"] if "run" in step]
CI = (ROOT / ".ci" / "run").read_text()


def test_its_commands_are_the_readmes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert COMMANDS[-1] == 'pip install -e ".[test]" && pytest'
    assert all(command in readme for command in COMMANDS)


def test_its_commands_are_those_of_ci_run() -> None:
    install, test = COMMANDS[-1].split(" && ")
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    assert install.endswith('".[test]"')
    assert "[test" in dev[0]  # .ci/run installs that, and more
    lines = [line.split() for line in CI.splitlines()]
    assert any(line[:2] == install.split()[:2] and line[-2:] == ["-e", '".[dev]"'] for line in lines)
    assert any(test in line and "-m" not in line for line in lines if line[:1] != ["#"])
    assert COMMANDS[-1] in CI  # which looks for it in the README


def test_its_variables_are_those_of_ci_run() -> None:
    (exported,) = [line.split()[1:] for line in CI.splitlines() if line.startswith("export ")]
    assert JOB["env"] == dict(pair.split("=") for pair in exported)


def test_it_runs_on_the_systems_and_pythons_that_are_supported() -> None:
    matrix = JOB["strategy"]["matrix"]
    assert [name.partition("-")[0] for name in matrix["system"]] == ["ubuntu", "macos", "windows"]
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert least == f">={matrix['python'][0]}"
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert WORKFLOW[True] == ["push", "pull_request"]  # YAML 1.1 reads `on` so
