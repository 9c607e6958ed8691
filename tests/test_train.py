"""What the training program's command line means."""

import json

import pytest

from scaling import train
from tests.training.runs import files, layout, tiny_recipe


@pytest.mark.parametrize(
    ("in_file", "planned", "flags", "meant"),
    [
        ("none", None, [], None),
        ("full", "full", [], None),
        ("none", "selective", [], "selective"),
        ("full", "selective", ["--activation_checkpointing", "none"], "none"),
        ("none", "none", ["--activation_checkpointing", "full"], "full"),
    ],
)
def test_activation_checkpointing_is_the_flags_then_the_plans_then_the_ds_configs(
    tmp_path, in_file, planned, flags, meant
):
    # None: the ds_config's, whose block can only say full.
    recipe_path, config_path = files(tmp_path, tiny_recipe(tmp_path), layout(1, 1, checkpointing=in_file))
    if planned:
        plan = {"strategy": {"activation_checkpointing": planned}}
        config_path.with_name("plan.json").write_text(json.dumps(plan))
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), *flags]
    assert train.parse(argv).activation_checkpointing == meant
