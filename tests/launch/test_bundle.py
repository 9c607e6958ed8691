"""A plan as three files that agree with each other."""

import json
import shlex
from dataclasses import fields, replace

import pytest

from scaling import __version__, ds_config, recipe
from scaling.errors import InputError
from scaling.launch import bundle
from scaling.plan import search
from scaling.strategy import Strategy


@pytest.fixture(scope="module")
def plan(planned_recipe, cluster_like):
    return search(planned_recipe(), cluster_like(), assumptions=["gpu: assumed"])


def test_three_files_are_written_and_agree_with_the_document(plan, tmp_path):
    folder = tmp_path / "my plans" / "x"
    bundle.write(plan, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["ds_config.json", "plan.json", "recipe.yaml"]
    document = bundle.document(plan, folder)
    assert json.loads((folder / "plan.json").read_text()) == document
    assert json.loads((folder / "ds_config.json").read_text()) == document["ds_config"]
    assert recipe.load(folder / document["recipe"]) == plan.recipe


def test_what_is_written_is_a_ds_config_that_spells_the_chosen_strategy(plan, tmp_path):
    bundle.write(plan, tmp_path)
    found = ds_config.load(tmp_path / "ds_config.json")
    written = recipe.load(tmp_path / "recipe.yaml")
    strategy = ds_config.strategy_of(found, written, plan.cluster.world_size)
    # No key of a ds_config carries the loss kernel: train.py reads it from plan.json.
    assert replace(strategy, loss_kernel=plan.strategy.loss_kernel) == plan.strategy
    kernel = json.loads((tmp_path / "plan.json").read_text())["strategy"]["loss_kernel"]
    assert kernel == plan.strategy.loss_kernel
    assert ds_config.reconcile(found, written, strategy)[1] == []


def test_the_document_is_plain_data_and_its_numbers_are_the_plans(plan, tmp_path):
    document = bundle.document(plan, tmp_path)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["scale_version"] == __version__
    assert document["model"]["num_params"] == plan.recipe.shape.num_params
    assert document["cluster"]["world_size"] == 8
    assert document["batch"]["tokens_per_step"] == 512 * 2048
    assert document["strategy"] == {field.name: getattr(plan.strategy, field.name) for field in fields(Strategy)}
    assert document["memory"]["peak_allocated_bytes"] == plan.chosen.memory.peak_allocated_bytes
    assert document["time"]["step_s"] == plan.chosen.time.step_s
    assert document["fits"] is True
    assert len(document["alternatives"]) == len(plan.alternatives)
    assert all(set(rejection) == {"strategy", "reason"} for rejection in document["rejected"])
    assert document["assumptions"][0] == "gpu: assumed"
    assert document["remedies"] == []


def test_the_launch_line_names_the_files_where_they_are(plan, tmp_path):
    folder = tmp_path / "my plans"
    words = shlex.split(bundle.document(plan, folder)["launch"])
    assert words[-4:] == ["--ds_config", str(folder / "ds_config.json"), "--run_dir", str(folder)]


def test_writing_twice_changes_nothing(plan, tmp_path):
    bundle.write(plan, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bundle.write(plan, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["ds_config.json", "plan.json", "recipe.yaml"])
def test_where_one_of_the_three_cannot_be_written_none_is(plan, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "kept").write_text("")
    with pytest.raises(InputError) as caught:
        bundle.write(plan, tmp_path)
    assert caught.value.field == "out"
    assert [path.name for path in tmp_path.iterdir()] == [name]
