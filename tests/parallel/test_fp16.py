"""fp16 under every kind of parallelism: one rank's overflow is a step that every rank skips."""

import pytest

from scaling.parallelism import PARALLELISMS
from tests.faults import lives
from tests.faults.plants import Both, InFp16, NotANumber
from tests.parallel.families import recipe_of
from tests.ranks import SOAK
from tests.training.runs import layout, metrics

SKIPPED = 3
# By kind: a family, a stage, and a parameter whose gradient is no number on rank 1 alone, which has the only copy of
# that part or that expert; the last is what it is called, or belongs to, where one rank has all.
CASES = {
    "tensor": ("gpt2", 2, "h.1.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"),
    "pipeline": ("gpt2", 1, "h.3.mlp.c_fc.weight", "h.3.mlp.c_fc.weight"),
    "sequence": ("llama", 3, "layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
    "expert": ("mixtral", 1, "layers.1.mlp.experts.w1", "layers.1.mlp.experts.gate_up_proj"),
}


@pytest.mark.parametrize("kind", CASES if SOAK else ["tensor", "pipeline"])
def test_losses_scales_and_skipped_steps_are_those_of_one_rank(kind, tmp_path):
    family, stage, part, whole = CASES[kind]
    recipe = recipe_of(family, tmp_path, num_steps=6, precision="fp16")
    runs = {
        "alone": (layout(1, 1), NotANumber(0, (SKIPPED,), whole)),
        "split": (layout(2, stage, micro=4, **{kind: 2}), NotANumber(1, (SKIPPED,), part)),
    }
    for name, (strategy, fault) in runs.items():
        plant = Both(InFp16(), fault)
        assert lives.run(tmp_path / name, recipe, strategy, plant=plant) == [0] * strategy.world_size
    alone, split = (metrics(tmp_path / name) for name in runs)
    assert [line["grad_norm"] is None for line in alone] == [number + 1 == SKIPPED for number in range(6)]
    assert alone[-1]["loss"] < alone[0]["loss"] - 0.1
    for key in ("loss_scale", "skipped_steps"):
        assert [line[key] for line in split] == [line[key] for line in alone]
    assert [line["loss"] for line in split] == pytest.approx([line["loss"] for line in alone], rel=2e-3)
    assert [line["grad_norm"] is None for line in split] == [line["grad_norm"] is None for line in alone]


STAGED = [family for family, row in PARALLELISMS.items() if not row.pipeline]


@pytest.mark.parametrize("family", STAGED if SOAK else ["vit"])
def test_stages_find_the_loss_scale_of_one_rank(family, tmp_path):
    """From 2^21, at which each family's first steps overflow, on whichever stage."""
    recipe = recipe_of(family, tmp_path, num_steps=8, precision="fp16")
    for name, strategy in {"alone": layout(1, 1), "split": layout(2, 1, pipeline=2, micro=4)}.items():
        plant = InFp16(initial_scale_power=21)
        assert lives.run(tmp_path / name, recipe, strategy, plant=plant) == [0] * strategy.world_size
    alone, split = metrics(tmp_path / "alone"), metrics(tmp_path / "split")
    assert 3 < alone[-1]["skipped_steps"] < 8
    for key in ("loss_scale", "skipped_steps"):
        assert [line[key] for line in split] == [line[key] for line in alone]
    assert [line["loss"] for line in split] == pytest.approx([line["loss"] for line in alone], rel=1e-5)
