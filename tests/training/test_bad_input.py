"""What a user can get wrong in front of train.py: one clear error that names the field, and nothing written."""

import json
import os
from unittest import mock

import pytest

from scaling import train
from tests.training.runs import files, layout, tiny_recipe


def failed(capsys, *flags):
    """The error text of a command line that must exit 2."""
    with pytest.raises(SystemExit) as left:
        train.main([str(flag) for flag in flags])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


@pytest.fixture(autouse=True)
def _environment_restored():
    """train.main completes a lone process's environment; the next test must not find it complete."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def asked(tmp_path):
    """(recipe.yaml, ds_config.json, run directory that must not come to be)."""
    recipe_path, config_path = files(tmp_path / "asked", tiny_recipe(tmp_path), layout(1, 0, micro=8))
    return recipe_path, config_path, tmp_path / "run"


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CORPORA = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\t\n", "holds only whitespace"),
    "binary": (b"text\x00with a NUL", "is binary"),
    "not UTF-8": (b"caf\xe9", "is not UTF-8 text"),
    "short": (b"too short", "at least one of each is needed"),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_that_cannot_be_trained_on(kind, asked, tmp_path, capsys):
    content, problem = CORPORA[kind]
    (tmp_path / "text.txt").write_bytes(content)
    recipe_path, config_path, run_dir = asked
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", run_dir)
    assert "data.corpus" in error
    assert problem in error
    assert not run_dir.exists()


def test_a_corpus_that_is_absent(asked, tmp_path, capsys):
    (tmp_path / "text.txt").rename(tmp_path / "test.txt")
    recipe_path, config_path, run_dir = asked
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", run_dir)
    assert "does not exist" in error
    assert "did you mean 'test.txt'" in error
    assert not run_dir.exists()


def test_a_missing_or_broken_ds_config(asked, tmp_path, capsys):
    recipe_path, config_path, _ = asked
    assert "--ds_config is missing" in failed(capsys)
    assert "does not exist" in failed(capsys, "--ds_config", tmp_path / "absent.json")
    assert "is a folder" in failed(capsys, "--ds_config", tmp_path)
    config_path.write_text('{"train_micro_batch_size_per_gpu": 8,\n "bf16" {}}')
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path)
    assert f"{config_path}:2:9: ds_config is not JSON" in error


def test_a_recipe_with_misspelt_keys_names_each_with_its_line(asked, capsys):
    recipe_path, config_path, _ = asked
    edited(recipe_path, "gradient_clipping", "gradient_cliping")
    edited(recipe_path, "weight_decay", "weigth_decay")
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path)
    assert "did you mean 'gradient_clipping'?" in error
    assert "did you mean 'weight_decay'?" in error
    assert error.count("line ") >= 2


def test_without_a_recipe_or_a_plan_beside_it(asked, capsys):
    _, config_path, _ = asked
    assert "--recipe is missing, and no plan.json beside" in failed(capsys, "--ds_config", config_path)


def test_a_plan_that_names_an_absent_recipe(asked, capsys):
    recipe_path, config_path, _ = asked
    config_path.with_name("plan.json").write_text(json.dumps({"recipe": "recipes.yaml"}))
    assert "did you mean 'recipe.yaml'?" in failed(capsys, "--ds_config", config_path)
    config_path.with_name("plan.json").write_text("{")
    assert "plan: " in failed(capsys, "--ds_config", config_path)
    assert recipe_path.exists()


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--max_steps", "0"], "max_steps: 0"),
        (["--seed", "-1"], "seed: -1"),
        (["--model", "gpt-dmo"], "did you mean 'gpt-demo'"),
        (["--model", "bert-demo"], "task: 'causal-lm' does not fit bert-demo"),
        (["--resume", "nowhere"], "resume: 'nowhere' holds no complete checkpoint"),
        (["--run_dir", "/proc/scale"], "run_dir: '/proc/scale' cannot be written"),
    ],
)
def test_flags_that_cannot_be(flags, field, asked, capsys):
    recipe_path, config_path, run_dir = asked
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", run_dir, *flags)
    assert field in error
    assert not run_dir.exists()


def test_a_config_that_says_another_mathematics_than_the_recipe(asked, capsys):
    recipe_path, config_path, run_dir = asked
    config = json.loads(config_path.read_text())
    config["optimizer"]["params"]["lr"] = 1.0
    config["gradient_clipping"] = 9.0
    config["bf16"] = {"enabled": True}
    config_path.write_text(json.dumps(config))
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", run_dir)
    assert "optimizer.params.lr: 1.0 here, 0.003 by the recipe" in error
    assert "gradient_clipping: 9.0 here, 0.5 by the recipe" in error
    assert "bf16: the recipe trains in fp32" in error
    assert not run_dir.exists()


def test_half_of_a_launchers_environment(asked, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    recipe_path, config_path, run_dir = asked
    error = failed(capsys, "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", run_dir)
    assert "environment: WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set" in error
    assert not run_dir.exists()
