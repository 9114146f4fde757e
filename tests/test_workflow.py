"""The workflow that tests other systems runs what the README says; .ci/run runs that, and every other test."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTEST = PROJECT["tool"]["pytest"]["ini_options"]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
JOB = WORKFLOW["jobs"]["test"]


def test_the_last_step_is_the_readmes_test_command() -> None:
    command = JOB["steps"][-1]["run"]
    assert command == 'pip install -e ".[test]" && pytest'
    assert command in README


def test_ci_run_installs_the_extra_of_that_command_and_runs_it() -> None:
    dev = PROJECT["project"]["optional-dependencies"]["dev"]
    assert "[test" in dev[0]
    assert re.search(r'^pip install .* -e "\.\[dev\]"$', CI, re.MULTILINE)
    assert re.search(r'^    pytest "\$\{tests\[@\]\}" (?!.*-m )', CI, re.MULTILINE)
    assert JOB["steps"][-1]["run"] in CI  # which looks for it in the README


def test_every_test_that_the_readmes_command_leaves_out_is_run_by_ci_run() -> None:
    left_out = re.search(r"-m 'not \((.*?)\)'", PYTEST["addopts"])
    assert left_out
    selections = re.findall(r'-m "\(?([^")]*)', CI)
    assert sorted(left_out[1].split(" or ")) == sorted([*" or ".join(selections).split(" or "), "table"])


def test_its_variables_are_those_of_ci_run() -> None:
    exported = {}
    for line in re.findall("^export (.*)", CI, re.MULTILINE):
        for pair in shlex.split(line):
            name, _, value = pair.partition("=")
            exported[name] = value
    assert JOB["env"].items() <= exported.items()


def test_it_runs_on_the_systems_and_pythons_that_are_supported() -> None:
    matrix = JOB["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    assert WORKFLOW[True] == ["push", "pull_request"]  # YAML 1.1 reads `on` so


def test_the_end_of_ci_run_names_the_tests_that_failed(tmp_path: Path) -> None:
    (tmp_path / "quick.xml").write_text("""<testsuites><testsuite>
        <testcase classname="tests.test_a" name="test_one"><failure message="assert 1&#10;== 2" /></testcase>
        <testcase classname="tests.test_a" name="test_two"><error message="no disk" /></testcase>
        <testcase classname="tests.test_a" name="test_three"><skipped message="no GPU" /></testcase>
        <testcase classname="tests.test_a" name="test_four"><skipped message="no network" /></testcase>
    </testsuite></testsuites>""")
    (tmp_path / "slow.xml").write_text("""<testsuites><testsuite>
        <testcase classname="tests.test_a" name="test_one" />
        <testcase classname="tests.test_a" name="test_four" />
    </testsuite></testsuites>""")
    command = [sys.executable, ".ci/summary.py", str(tmp_path / "quick.xml"), str(tmp_path / "slow.xml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [
        "skipped: tests.test_a::test_three: in quick: no GPU",
        "failed: tests.test_a::test_one: in quick: assert 1 == 2",
        "failed: tests.test_a::test_two: in quick: no disk",
        "1 passed, 2 failed, 1 skipped",
    ]
