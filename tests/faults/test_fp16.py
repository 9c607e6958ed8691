"""fp16 with a dynamic loss scale: overflows, their skips, and the floor, on a CPU that is told it can."""

from itertools import pairwise

import pytest

from tests.faults import lives
from tests.faults.plants import Both, InFp16, NotANumber
from tests.faults.test_faults import recipe_of
from tests.ranks import SOAK
from tests.training.runs import layout, metrics

# The loss of these steps times 2^24 overflows; the scale finds its place within the first steps, and doubles later.
OVERFLOWING = InFp16(initial_scale_power=24, loss_scale_window=6)


@pytest.mark.parametrize("stage", [1, 2, 3] if SOAK else [2])
def test_overflows_are_skipped_and_a_resumed_run_repeats_them_bit_for_bit(stage, tmp_path):
    recipe = recipe_of(tmp_path, "fp16", num_steps=18, checkpoint_every_steps=5)
    strategy = layout(2, stage, micro=2)
    assert lives.run(tmp_path / "straight", recipe, strategy, plant=OVERFLOWING) == [0, 0]
    lines = metrics(tmp_path / "straight")
    scales = [line["loss_scale"] for line in lines]
    assert lines[-1]["skipped_steps"] > 2  # overflows took part
    assert min(scales) < 2**24
    assert any(after > before for before, after in pairwise(scales))  # and doublings
    assert not (tmp_path / "straight" / "events.jsonl").exists()  # which is how fp16 finds its scale
    for steps in ("5", "13"):  # in the midst of the overflows, and between doublings
        assert lives.run(tmp_path / "broken", recipe, strategy, "--max_steps", steps, plant=OVERFLOWING) == [0, 0]
    assert lives.run(tmp_path / "broken", recipe, strategy, plant=OVERFLOWING) == [0, 0]
    assert lives.story(tmp_path / "broken") == lives.story(tmp_path / "straight")
    assert [line["loss_scale"] for line in metrics(tmp_path / "broken")] == scales


def test_a_loss_scale_at_its_floor_stops_the_run_and_names_the_parameters(tmp_path):
    recipe, strategy = recipe_of(tmp_path, "fp16", num_steps=12), layout(2, 2)
    floor = InFp16(initial_scale_power=4, min_loss_scale=8)
    with lives.start(tmp_path / "run", recipe, strategy, plant=Both(floor, NotANumber(1, tuple(range(5, 99))))) as life:
        assert life.ended() == [76, 76], life.said()
        assert "the loss scale is at its floor of 8 and gradients still overflow" in life.said()
        assert "gradients not finite on rank 1: model.transformer.h.1.mlp.c_fc.weight first" in life.said()
        assert "Traceback" not in life.said()
    assert lives.steps_on_disk(tmp_path / "run")[-1] == "step_000006"
