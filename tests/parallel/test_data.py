"""Data parallelism at every ZeRO stage trains every family to the losses of plain torch."""

import pytest

from scaling.family import FAMILIES
from tests.parallel.families import recipe_of, run_each
from tests.training.runs import layout
from tests.training.test_same_loss import reference


def test_every_family_has_the_losses_of_a_plain_torch_loop_on_two_ranks(tmp_path):
    """Stages 0 to 3 in turn, with accumulation, so that tied weights' gradients add up over micro steps too."""
    recipes = {family: recipe_of(family, tmp_path, num_steps=10) for family in FAMILIES}
    stages = {family: number % 4 for number, family in enumerate(FAMILIES)}
    found = run_each({tmp_path / name: (recipe, layout(2, stages[name], micro=2)) for name, recipe in recipes.items()})
    for family, recipe in recipes.items():
        losses, norms, validation = reference(recipe, tmp_path)
        lines = found[tmp_path / family]
        assert all("gradient_noise" in line for line in lines), family  # its hooks saw every step
        if family != "vit":  # to which eighty images teach too little to see
            assert losses[-1] < losses[0] - 0.1, family
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), family
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), family
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), family
