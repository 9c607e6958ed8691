"""The project as a stranger meets it: the README's commands, the shipped configurations, the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from scaling import recipe
from scaling.ds_config.shipped import shipped

CHECKOUT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a clone holds, to run commands in."""
    copy = tmp_path_factory.mktemp("checkout") / "scale"
    ignored = shutil.ignore_patterns(".*", "runs", "plans", "__pycache__", "dist", "build")
    shutil.copytree(CHECKOUT, copy, ignore=ignored)
    return copy


def sh(command, cwd, **environment):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(cwd), **environment}
    process = subprocess.run(
        ["bash", "-euc", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    print(command, process.stdout, process.stderr, sep="\n")  # noqa: T201
    return process


def readme_commands():
    blocks = re.findall(r"```sh\n(.*?)```", (CHECKOUT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_readme_runs(checkout):
    """In order, in one checkout. `make demo` is only expanded, being long; pip has its own test."""
    commands = readme_commands()
    assert len(commands) >= 10
    for command in commands:
        if command.startswith("pip install"):
            continue
        command = command.replace("make ", "make -n ", 1) if command.startswith("make ") else command
        assert sh(command, checkout).returncode == 0, command
    lines = [json.loads(line) for line in (checkout / "runs/gpt/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 16))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5


def test_the_shipped_configurations_are_what_the_planner_emits():
    """`python -m scaling.ds_config.shipped ds_configs` writes them anew."""
    standing = {path.name: json.loads(path.read_text()) for path in (CHECKOUT / "ds_configs").glob("*.json")}
    assert standing == shipped()


@pytest.mark.parametrize("path", sorted((CHECKOUT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_says_how_to_start_it(path):
    loaded = recipe.load(path)
    assert loaded.name == path.stem
    assert f"recipes/{path.name}" in path.read_text()


def test_the_bare_wheel_plans_in_an_empty_environment_without_torch(checkout, tmp_path):
    assert sh(f"python -m build --outdir {tmp_path / 'dist'} .", checkout).returncode == 0
    assert len(list((tmp_path / "dist").glob("*.tar.gz"))) == 1
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = CHECKOUT / "constraints.txt"
    assert sh(f"{python} -m pip install --quiet -c {constraints} {wheel}", tmp_path).returncode == 0
    assert sh(f"{python} -c 'import torch'", tmp_path, PYTHONPATH="").returncode == 1
    planned = sh(f"{python.with_name('scale')} plan --params 1.3B --json", tmp_path, PYTHONPATH="")
    assert planned.returncode == 0
    answer = json.loads(planned.stdout)
    assert answer["fits"]
    # Away from a checkout there is no scale/train.py: the command names the module.
    assert "--module scaling.train" in answer["launch"]
