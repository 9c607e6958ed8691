"""environment.json: each life of a run, what it ran with, and nothing that is secret."""

import json
import os
import platform
import subprocess
import sys

import torch

from scaling import train
from scaling.training import environment
from tests.ranks import on_ranks
from tests.training.runs import files, layout, tiny_recipe


def _train(argv):
    os.environ |= {
        "WANDB_API_KEY": "s3cret-wandb",
        "HF_TOKEN": "s3cret-hf",
        "NCCL_DEBUG": "WARN",
        "MY_PASSWORD": "s3cret",
    }
    train.main(argv)


def test_each_life_of_a_run_has_an_entry_and_none_tells_a_secret(tmp_path):
    recipe_path, config_path = files(tmp_path / "asked", tiny_recipe(tmp_path), layout(2, 1))
    folder = tmp_path / "run"
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(folder), "--max_steps"]
    on_ranks(2, _train, [*argv, "1"])
    on_ranks(2, _train, [*argv, "2"])
    text = (folder / "environment.json").read_text()
    first, second = json.loads(text)
    assert (first["command"][-1], second["command"][-1]) == ("1", "2")
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["python"] == platform.python_version()
    assert first["versions"]["deepspeed"] == "0.19.8"
    assert first["hosts"] == {platform.node(): 2}
    assert sum(first["devices"].values()) == 2
    assert first["variables"]["WORLD_SIZE"] == "2"
    assert first["variables"]["NCCL_DEBUG"] == "WARN"
    assert first["started_at"] <= second["started_at"]
    assert "s3cret" not in text


def test_git_tells_the_commit_and_whether_the_code_was_changed(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    git("init")
    assert environment.git_state(source) is None  # as in a .venv inside somebody's repository
    git("add", "module.py")
    git("commit", "-m", "one")
    found = environment.git_state(source)
    assert len(found["commit"]) == 40
    assert not found["dirty"]
    source.write_text("x = 2\n")
    assert environment.git_state(source) == {"commit": found["commit"], "dirty": True}


def test_without_a_checkout_or_without_git_there_is_no_commit_and_no_error(tmp_path, monkeypatch):
    assert environment.git_state(tmp_path / "absent.py") is None
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert environment.git_state() is None


def test_what_stood_there_and_cannot_be_read_is_kept(tmp_path):
    path = tmp_path / "environment.json"
    assert environment._earlier(path) == []
    path.write_text("[{")
    assert environment._earlier(path) == [{"unreadable": "[{"}]
