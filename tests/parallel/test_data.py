"""Data parallelism at every ZeRO stage trains every family to the losses of plain torch."""

import pytest

from scaling.family import FAMILIES
from tests.parallel.families import NUM_STEPS, recipe_of
from tests.ranks import SOAK
from tests.training.runs import layout, run_each
from tests.training.test_same_loss import reference


def test_each_task_has_the_losses_of_a_plain_torch_loop_on_two_ranks(tmp_path):
    """Stages 0 to 3 in turn, with accumulation, so that tied weights' gradients add up over micro steps too."""
    families = FAMILIES if SOAK else ("gpt2", "roberta", "t5", "transformer", "bart", "vit")
    recipes = {family: recipe_of(family, tmp_path, num_steps=NUM_STEPS) for family in families}
    cases = {
        tmp_path / f"{family}_{stage}": (recipes[family], layout(2, stage, micro=2))
        for number, family in enumerate(families)
        for stage in (range(4) if SOAK else [number % 4])
    }
    expected = {family: reference(recipe, tmp_path) for family, recipe in recipes.items()}
    for folder, lines in run_each(cases).items():
        family, _, stage = folder.name.partition("_")
        losses, norms, validation = expected[family]
        assert all("gradient_noise" in line for line in lines), family  # its hooks saw every step
        if family != "vit":  # to which eighty images teach too little to see
            assert losses[-1] < losses[0] - 0.1, family
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), (family, stage)
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), (family, stage)
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), (family, stage)
