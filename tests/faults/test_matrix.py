"""A run goes on at each stage, on as many, fewer and more ranks, and across stages: the losses of the one unbroken."""

import pytest

from tests.faults import lives
from tests.ranks import SOAK
from tests.training.runs import layout, losses, tiny_recipe

RANKS = {"same": (2, 2), "2 -> 1": (2, 1), "1 -> 2": (1, 2)}
STAGES = [(0, 0), (1, 1), (2, 2), (3, 3), (1, 3), (3, 1), (2, 0)]
SHORT = {("same", 3, 1), ("2 -> 1", 1, 3), ("1 -> 2", 2, 0)}  # what CI runs: every move once


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(recipe, the losses of six steps on one rank at stage 0)"""
    folder = tmp_path_factory.mktemp("straight")
    recipe = tiny_recipe(folder, num_steps=6)
    assert lives.run(folder / "run", recipe, layout(1, 0, micro=4)) == [0]
    return recipe, losses(folder / "run")


@pytest.mark.parametrize(("written", "read"), STAGES)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_goes_on_with_the_losses_of_the_one_that_was_not_broken(ranks, written, read, straight, tmp_path):
    if not SOAK and (ranks, written, read) not in SHORT:
        pytest.skip("make soak runs the whole matrix")
    recipe, expected = straight
    before, after = RANKS[ranks]
    for number, stage, steps in ((before, written, "3"), (after, read, "6")):
        codes = lives.run(tmp_path / "run", recipe, layout(number, stage, micro=4), "--max_steps", steps)
        assert codes == [0] * number
    found = losses(tmp_path / "run")
    off = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    print(f"{ranks} ranks, ZeRO-{written} -> {read}: losses to {off:.1e}")  # noqa: T201
    assert off < 1e-5
