"""A run's numbers where they are looked for: the same in every sink, whole after a resume, and no reason to stop."""

import csv
import errno
import json
import math
import os
import shutil
from io import FileIO

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaling import train
from scaling.errors import InputError
from scaling.training import run as run_dir
from scaling.training import tracking
from scaling.training.run import Metrics
from scaling.training.tracking import TRACKERS, Run, Tracking, names_of
from tests.training.runs import files, layout, run, tiny_recipe


def on_tensorboard(folder):
    """{tag: {step: value}} as TensorBoard itself reads the run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def in_csv(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_after_a_resume_every_local_sink_has_each_step_once_and_the_same_values(tmp_path):
    recipe, strategy = tiny_recipe(tmp_path, checkpoint_every_steps=4, evaluate_every_steps=3), layout(2, 2)
    run(tmp_path, recipe, strategy, "--max_steps", "6", "--track", "tensorboard,csv")
    # As if killed in step 7: the last checkpoint is of step 4, and the files were cut in the middle of a line.
    shutil.rmtree(tmp_path / "checkpoints" / "step_000006")
    for name in ("metrics.jsonl", "metrics.csv"):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(whole + whole.splitlines()[1][:8])
    lines = run(tmp_path, recipe, strategy, "--track", "tensorboard,csv")

    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    drawn, rows = on_tensorboard(tmp_path), in_csv(tmp_path)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    for tag, key in (("loss/loss", "loss"), ("gradient/grad_norm", "grad_norm"), ("time/forward_s", "forward_s")):
        assert drawn[tag] == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
        assert [float(row[key]) for row in rows] == [line[key] for line in lines]
    assert [step for step, _ in drawn["loss/validation_loss"]] == [3, 6, 8]
    assert [int(row["step"]) for row in rows if row["validation_loss"]] == [3, 6, 8]
    # A CPU has no published peak: unknown everywhere, and drawn nowhere.
    assert all(line["mfu_fraction"] is None for line in lines)
    assert "speed/mfu_fraction" not in drawn
    assert {row["mfu_fraction"] for row in rows} == {""}
    # Beside the estimate, once the second step has been measured.
    assert lines[-1]["peak_allocated_bytes"] > 0
    assert lines[-1]["predicted_peak_allocated_bytes"] > 0
    assert [line["tokens"] for line in lines] == [step * 8 * 32 for step in range(1, 9)]


def test_a_run_is_tracked_by_tensorboard_unless_it_says_otherwise(tmp_path):
    recipe, strategy = tiny_recipe(tmp_path, num_steps=2), layout(1, 0, micro=8)
    run(tmp_path / "default", recipe, strategy)
    assert on_tensorboard(tmp_path / "default")["loss/loss"]
    run(tmp_path / "none", recipe, strategy, "--track", "none")
    assert not (tmp_path / "none" / "tensorboard").exists()
    assert (tmp_path / "none" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("tensorbord", "track: 'tensorbord' is not a tracker", "tensorboard"),
        ("", "track: '' is not a tracker", "known: csv, none, tensorboard, trackio, wandb"),
        ("csv,none", "track: 'none' is not a tracker", "none"),
        ("csv,wandb", "track: 'wandb' is not installed", r"pip install '.[wandb]'"),
    ],
)
def test_a_tracker_that_cannot_be_is_one_error_before_anything_is_written(text, message, hint, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        names_of(text)
    assert message in refused.value.message
    assert hint in refused.value.hint
    recipe_path, config_path = files(tmp_path / "asked", tiny_recipe(tmp_path), layout(1, 0))
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as left:
        train.main([*argv, "--track", text])
    assert left.value.code == 2
    assert not (tmp_path / "run").exists()


class Failing:
    """Takes one step; then its disk is full."""

    def __init__(self, run):
        self.taken = 0

    def write(self, line):
        self.taken += 1
        if self.taken > 1:
            raise OSError(28, "No space left on device")

    def close(self):
        raise AssertionError("a dropped tracker is left alone")


def opening_fails(run):
    raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_said_once_and_dropped_and_the_others_go_on(tmp_path, monkeypatch):
    kinds = {"failing": tracking._Kind(Failing), "offline": tracking._Kind(opening_fails)}
    monkeypatch.setattr(tracking, "TRACKERS", TRACKERS | kinds)
    said = []
    tracked = Tracking(a_run(tmp_path), ["failing", "csv", "offline"], said.append)
    for step in (1, 2, 3):
        tracked.write({"step": step, "loss": 1.0 / step})
    tracked.close()
    assert len(said) == 2
    assert "offline failed" in said[0]
    assert "no route to host" in said[0]
    assert "failing failed" in said[1]
    assert "No space left" in said[1]
    assert [row["step"] for row in in_csv(tmp_path)] == ["1", "2", "3"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def a_run(folder, resumed_step=0):
    return Run(folder=folder, name="tiny", config={"seed": 1}, resumed_step=resumed_step)


class FullDisk(FileIO):
    """Takes half of what is written while it is full, and then says so."""

    is_full = False

    def write(self, content):
        if not self.is_full:
            return super().write(content)
        super().write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_drops_trackers_and_no_line_of_the_record(tmp_path, monkeypatch):
    """/dev/full answers every write with ENOSPC."""
    monkeypatch.setattr(run_dir, "FileIO", FullDisk)
    said = []
    tracked = Tracking(a_run(tmp_path), ["tensorboard", "csv"], said.append)
    for step in range(1, 40):
        FullDisk.is_full = 3 <= step < 30
        if step == 3:
            tracked._sinks["csv"]._file = open("/dev/full", "w")  # noqa: SIM115
            tracked._sinks["csv"]._writer = csv.DictWriter(tracked._sinks["csv"]._file, ["step", "loss"])
        tracked.write({"step": step, "loss": math.nan if step == 5 else 1.0 / step})
        if step == 20:
            assert [line["step"] for line in run_dir.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    tracked.close()
    assert [sentence.split()[1] for sentence in said] == ["csv"]
    assert [line["step"] for line in run_dir.read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 40))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert len(on_tensorboard(tmp_path)["loss/loss"]) == 39


def test_a_kill_while_the_metrics_are_cut_loses_no_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 7))
    path.write_text(whole)

    def killed(*names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Metrics(path, resumed_step=4)
    assert path.read_text() == whole
    Metrics(path, resumed_step=4).close()
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:4])


def test_wandb_takes_a_run_and_its_resumed_life_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert lived_twice(tmp_path, "wandb") == []
    lives = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert lives == [(tmp_path / "wandb_id").read_text().strip()] * 2


def test_trackio_takes_a_run_and_its_resumed_life(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read where it is imported
    pytest.importorskip("trackio", reason="the extra [trackio]")
    from trackio.sqlite_storage import SQLiteStorage

    assert lived_twice(tmp_path, "trackio") == []
    (name,) = SQLiteStorage.get_runs("scale")
    logs = SQLiteStorage.get_logs("scale", name)
    assert [(line["step"], line["loss/loss"]) for line in logs] == [
        (step, 1.0 / step)
        for step in (1, 2, 3, 4, 3, 4, 5, 6)  # what lies after the resumed step stays there
    ]


def lived_twice(folder, name):
    """What was said of a run of four steps that goes on from its second."""
    said = []
    for first in (1, 3):
        tracked = Tracking(a_run(folder, resumed_step=first - 1), names_of(name), said.append)
        for step in range(first, first + 4):
            tracked.write({"step": step, "loss": 1.0 / step, "mfu_fraction": None})
        tracked.close()
    return said
