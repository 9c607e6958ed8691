"""Whatever ends a run, nothing is lost: it goes on to the same numbers and the same weights, bit for bit.

`make soak` runs the long form: 52 kills at random moments instead of 8, each moment of a save in both ways of saving.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scaling import manifest
from tests.faults import lives
from tests.faults.plants import MOMENTS, DeathInSave, LossSpike, NotANumber, Slow, SmallFiles
from tests.ranks import SOAK
from tests.training.runs import layout, metrics, tiny_recipe

SAVES = ["background", "at_once"]
KILLS = 13 if SOAK else 2  # of each kind of run
STEPS = 24

RAMP = {"start": 4, "increment": 4, "samples": 60}  # the batch grows in the midst of the run

# Each stage; accumulation, dropout, a batch that grows and both precisions among them.
KINDS = {
    "fp32 stage 0": (layout(2, 0, micro=2), {}),
    "bf16 stage 1, accumulation": (layout(2, 1, micro=1), {"precision": "bf16"}),
    "bf16 stage 2, a growing batch": (layout(2, 2, micro=2), {"precision": "bf16", "batch_ramp": RAMP}),
    "bf16 stage 3": (layout(2, 3), {"precision": "bf16"}),
}


def recipe_of(folder, precision="fp32", **changes):
    fields = {"num_steps": STEPS, "checkpoint_every_steps": 2, "evaluate_every_steps": 8, "dropout": 0.1}
    return tiny_recipe(folder, precision=precision, **{**fields, **changes})


@pytest.fixture(scope="module", params=KINDS)
def straight(request, tmp_path_factory):
    """(recipe, strategy, story) of a run that nothing befalls."""
    strategy, changes = KINDS[request.param]
    folder = tmp_path_factory.mktemp("straight")
    recipe = recipe_of(folder, **changes)
    assert lives.run(folder / "run", recipe, strategy) == [0, 0]
    return recipe, strategy, lives.story(folder / "run")


def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(straight, tmp_path):
    recipe, strategy, story = straight
    folder, chance, kills, again = tmp_path / "run", random.Random(str(strategy)), 0, 0
    while True:
        with lives.start(folder, recipe, strategy, "--save", chance.choice(SAVES)) as life:
            if kills == KILLS:
                assert life.ended() == [0, 0], life.said()
                break
            life.wait_for(lambda said=life.said: "at step" in said())
            time.sleep(chance.uniform(0, 1.2))
            life.kill()
            lost_at = len(whole_lines(folder))
            kills += 1
            assert not list(folder.glob("checkpoints/step_*[!0-9]*"))
            saved = manifest.steps(folder / "checkpoints")
            again += lost_at - (manifest.step_of(saved[0]) if saved else 0)
    assert lives.story(folder) == story
    print(f"{kills} kills at random moments, {again} steps made again")  # noqa: T201


def whole_lines(folder):
    path = folder / "metrics.jsonl"
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(recipe, strategy, story) of a short run at ZeRO-1 that nothing befalls."""
    folder = tmp_path_factory.mktemp("plain")
    recipe, strategy = recipe_of(folder, num_steps=8), layout(2, 1)
    assert lives.run(folder / "run", recipe, strategy) == [0, 0]
    return recipe, strategy, lives.story(folder / "run")


@pytest.mark.parametrize(
    ("moment", "save"),
    [(moment, save) for number, moment in enumerate(MOMENTS) for save in (SAVES if SOAK else SAVES[number % 2 :][:1])],
)
def test_killed_within_a_save_a_run_goes_on_from_a_whole_checkpoint(moment, save, plain, tmp_path):
    recipe, strategy, story = plain
    nth = {"within a shard": 30, "before the manifest": 3, "before latest moves": 4}.get(moment, 3)
    codes = lives.run(tmp_path / "run", recipe, strategy, "--save", save, plant=DeathInSave(moment, nth))
    assert codes == [-signal.SIGKILL, 75]
    for checkpoint in manifest.steps(tmp_path / "run" / "checkpoints"):
        manifest.require_whole(checkpoint, "test")
    assert lives.run(tmp_path / "run", recipe, strategy) == [0, 0]
    assert lives.story(tmp_path / "run") == story
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))  # no leftovers


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_told_by_the_other_which_leaves_with_75(rank, plain, tmp_path):
    recipe, strategy, story = plain
    with lives.start(tmp_path / "run", recipe, strategy) as life:
        life.wait_for(lambda: len(lives.steps_on_disk(tmp_path / "run")) > 0)
        life.signal(signal.SIGKILL, rank)
        codes = life.ended(30)
        assert codes[rank] == -signal.SIGKILL
        assert codes[1 - rank] == 75
        assert f"stopped: rank {1 - rank}, in " in life.said()
        assert "another rank is gone" in life.said()
        assert "Traceback" not in life.said()
    assert lives.run(tmp_path / "run", recipe, strategy) == [0, 0]
    assert lives.story(tmp_path / "run") == story


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_one_rank_that_is_asked_to_stop_stops_all_who_save_and_leave_with_75(number, plain, tmp_path):
    recipe, strategy, story = plain
    recipe = recipe.model_copy(update={"checkpoint_every_steps": 100})
    with lives.start(tmp_path / "run", recipe, strategy) as life:
        life.wait_for(lambda: len(whole_lines(tmp_path / "run")) > 0)
        life.signal(number, 1)
        assert life.ended() == [75, 75]
        step = int(lives.steps_on_disk(tmp_path / "run")[-1].removeprefix("step_"))
        assert f"stopped: by {signal.Signals(number).name} at step {step} of 8, saved" in life.said()
        assert "the same command goes on" in life.said()
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, step + 1))
    assert lives.run(tmp_path / "run", recipe, strategy) == [0, 0]
    assert lives.story(tmp_path / "run") == story


def test_a_second_signal_stops_at_once(plain, tmp_path):
    recipe, strategy, _ = plain
    with lives.start(tmp_path / "run", recipe, strategy, plant=Slow(0, 8)) as life:
        life.wait_for(lambda: any((tmp_path / "run" / "logs").glob("*.pulse")))
        life.signal(signal.SIGTERM)
        time.sleep(2.5)
        life.signal(signal.SIGTERM)
        assert life.ended(3) == [128 + signal.SIGTERM] * 2
        assert "at once, without saving" in life.said()


def test_a_rank_that_stands_still_is_named_and_the_others_leave_with_75(plain, tmp_path):
    recipe, strategy, story = plain
    with lives.start(tmp_path / "run", recipe, strategy, "--patience_s", "4") as life:
        life.wait_for(lambda: len(lives.steps_on_disk(tmp_path / "run")) > 0)  # well within the second of a beat
        life.signal(signal.SIGSTOP, 1)
        life.processes[0].join(30)
        assert life.processes[0].exitcode == 75
        assert f"rank 1 (host {os.uname().nodename}, process {life.processes[1].pid}) does not answer" in life.said()
        assert "in take_step" in (tmp_path / "run" / "logs" / "rank_0.stacks").read_text()
    assert lives.run(tmp_path / "run", recipe, strategy) == [0, 0]
    assert lives.story(tmp_path / "run") == story


def test_a_rank_that_hangs_in_its_own_code_is_named_with_where(plain, tmp_path):
    recipe, strategy, _ = plain
    with lives.start(tmp_path / "run", recipe, strategy, "--patience_s", "3", plant=Slow(1, 60)) as life:
        codes = life.ended(40)
    assert codes == [75, 75]
    assert "rank 1" in life.said()
    assert "is behind the others" in life.said()
    assert "in slowly" in (tmp_path / "run" / "logs" / "rank_1.stacks").read_text()


def test_a_slow_rank_is_no_silent_one(plain, tmp_path):
    recipe, strategy, _ = plain
    codes = lives.run(tmp_path / "run", recipe, strategy, "--patience_s", "4", "--max_steps", "3", plant=Slow(1, 2.5))
    assert codes == [0, 0]


def test_on_a_full_disk_training_goes_on_the_last_checkpoint_stands_and_the_end_says_so(plain, tmp_path):
    recipe, strategy, story = plain
    folder = tmp_path / "run"
    lives.run(folder, recipe, strategy, "--max_steps", "2")
    before = {path: path.read_bytes() for path in folder.glob("checkpoints/step_*/*")}
    with lives.start(folder, recipe, strategy, plant=SmallFiles(1, 100_000)) as life:
        assert life.ended() == [77, 77]
        assert (
            "warning: no checkpoint of step 4: rank 1: zero_pp_rank_1_mp_rank_00_optim_states.pt: File too large"
            in life.said()
        )
        assert "step_000002 stands as it was" in life.said()
        assert "error: checkpoint: step 8 could not be saved" in life.said()
    assert {path: path.read_bytes() for path in folder.glob("checkpoints/step_*/*")} == before
    assert not (folder / "checkpoints" / ".partial").exists()
    assert lives.run(folder, recipe, strategy) == [0, 0]
    assert lives.story(folder) == story


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_small_disk_that_fills_up_the_last_whole_checkpoint_stands(small_disk, plain):
    recipe, strategy, story = plain
    recipe = recipe.model_copy(update={"keep_checkpoints": 100})  # each has 1.6 MB
    with lives.start(small_disk / "run", recipe, strategy) as life:
        assert life.ended() == [77, 77], life.said()
        assert "No space left on device" in life.said() or "are free" in life.said()
    for checkpoint in manifest.steps(small_disk / "run" / "checkpoints"):
        manifest.require_whole(checkpoint, "test")
    shutil.rmtree(small_disk / "run" / "checkpoints" / "step_000002")
    recipe = recipe.model_copy(update={"keep_checkpoints": 1})
    assert lives.run(small_disk / "run", recipe, strategy) == [0, 0]
    assert lives.story(small_disk / "run") == story


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "a bit of the weights": (flipped, "mp_rank_00_model_states.pt", "is not what was written"),
    "a bit of a state": (flipped, "zero_pp_rank_1_mp_rank_00_optim_states.pt", "is not what was written"),
    "a bit of the map": (flipped, "layout.json", "is not what was written"),
    "a bit of the manifest": (flipped, "manifest.json", "manifest.json is damaged"),
    "a state cut short": (cut, "zero_pp_rank_0_mp_rank_00_optim_states.pt", "bytes of"),
    "a state missing": (Path.unlink, "zero_pp_rank_0_mp_rank_00_optim_states.pt", "is missing"),
    "no manifest": (Path.unlink, "manifest.json", "manifest.json is missing"),
}


@pytest.fixture(scope="module")
def halfway(plain, tmp_path_factory):
    """A run of `plain`'s recipe with checkpoints at steps 2 and 4."""
    recipe, strategy, _ = plain
    folder = tmp_path_factory.mktemp("halfway") / "run"
    assert lives.run(folder, recipe, strategy, "--max_steps", "4") == [0, 0]
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_refused_by_name_and_the_newest_whole_checkpoint_offered(kind, halfway, plain, tmp_path):
    recipe, strategy, story = plain
    damage, name, said = DAMAGES[kind]
    folder = tmp_path / "run"
    shutil.copytree(halfway, folder)
    damage(folder / "checkpoints" / "step_000004" / name)
    lives.COUNTS["damaged checkpoint"] += 1
    before = {path: path.read_bytes() for path in folder.glob("checkpoints/**/*") if path.is_file()}
    with lives.start(folder, recipe, strategy) as life:
        assert life.ended() == [2, 2]
        assert life.said().count("error: ") == 1
        assert f"{folder}/checkpoints/step_000004: {name}" in life.said()
        assert said in life.said()
        assert f"--resume {folder}/checkpoints/step_000002, or --resume newest-whole" in life.said()
        assert "Traceback" not in life.said()
    assert {path: path.read_bytes() for path in folder.glob("checkpoints/**/*") if path.is_file()} == before
    with lives.start(folder, recipe, strategy, "--resume", "newest-whole") as life:
        assert life.ended() == [0, 0]
        assert "passed over: " in life.said()
        assert "set aside: step_000004, beyond step_000002" in life.said()
    assert lives.story(folder) == story


def test_where_nothing_is_whole_a_run_never_starts_anew_by_itself(halfway, plain, tmp_path):
    recipe, strategy, _ = plain
    folder = tmp_path / "run"
    shutil.copytree(halfway, folder)
    for state in folder.glob("checkpoints/step_*/*_optim_states.pt"):
        flipped(state)
    before = (folder / "metrics.jsonl").read_bytes()
    for resume in ("auto", "newest-whole"):
        with lives.start(folder, recipe, strategy, "--resume", resume) as life:
            assert life.ended() == [77, 77]
            assert "no other in" in life.said()
            assert "--resume never starts anew" in life.said()
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_gradient_that_is_no_number_on_one_rank_leaves_out_that_update_and_is_named(stage, precision, tmp_path):
    recipe = recipe_of(tmp_path, precision, num_steps=4, dropout=0.0)
    strategy = layout(2, stage, micro=2)
    lives.run(tmp_path / "two", recipe, strategy, "--max_steps", "2")
    with lives.start(tmp_path / "run", recipe, strategy, "--max_steps", "3", plant=NotANumber(1, (3,))) as life:
        assert life.ended() == [0, 0], life.said()
        assert "warning: step 3: loss" in life.said()
        assert "gradients not finite on rank 1: model.transformer.h.1.mlp.c_fc.weight first, 1 in all" in life.said()
    assert lives.story(tmp_path / "run")[1] == lives.story(tmp_path / "two")[1]  # the weights of step 3 are step 2's
    assert lives.run(tmp_path / "run", recipe, strategy) == [0, 0]
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[3] < losses[0]  # and it learns on


def test_the_policy_of_a_recipe_decides_and_is_bounded(tmp_path):
    strategy = layout(2, 2)
    always = NotANumber(0, tuple(range(3, 30)))

    def codes(name, guards, plant):
        recipe = recipe_of(tmp_path, num_steps=6, dropout=0.0, guards=guards)
        with lives.start(tmp_path / name, recipe, strategy, plant=plant) as life:
            return life.ended(), life.said()

    found, said = codes("stop", {"non_finite": "stop"}, NotANumber(0, (3,)))
    assert found == [76, 76]
    assert "stopped: step 3: loss" in said
    assert lives.steps_on_disk(tmp_path / "stop") == ["step_000002"]

    found, said = codes("bounded", {"non_finite": "skip", "most": 2}, always)
    assert found == [76, 76]
    assert "after 2 steps skipped in a row" in said

    found, said = codes("back", {"non_finite": "rollback"}, NotANumber(0, (4,)))
    assert found == [0, 0]
    assert "went back to step_000002: the batches of steps 3 to 4 are left out" in said

    found, said = codes("back and forth", {"non_finite": "rollback", "most": 2}, always)
    assert found == [76, 76]
    assert "after 2 rollbacks" in said


def test_a_loss_spike_is_seen_and_what_follows_a_rollback_goes_on_bit_for_bit_after_a_kill(tmp_path):
    strategy = layout(2, 1)
    recipe = recipe_of(
        tmp_path, num_steps=22, checkpoint_every_steps=16, dropout=0.0, guards={"loss_spike": "rollback"}
    )
    spike = LossSpike(18, 3.0)
    assert lives.run(tmp_path / "straight", recipe, strategy, plant=spike) == [0, 0]
    events = (tmp_path / "straight" / "events.jsonl").read_text()
    assert events.count("loss spike") == 1
    with lives.start(tmp_path / "broken", recipe, strategy, plant=spike) as life:
        life.wait_for(lambda: (tmp_path / "broken" / "events.jsonl").exists())
        life.kill()
    assert lives.run(tmp_path / "broken", recipe, strategy, plant=spike) == [0, 0]
    assert lives.story(tmp_path / "broken") == lives.story(tmp_path / "straight")
    assert (tmp_path / "broken" / "events.jsonl").read_text() == events
