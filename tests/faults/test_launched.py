"""Under the real launchers: a signal to the whole job saves it, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaling import manifest
from tests.faults.lives import story
from tests.training.runs import files, layout, metrics, run, tiny_recipe

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", "29741"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", "29742"],
}


def launched(launcher, folder, recipe, strategy):
    recipe_path, config_path = files(folder / "asked", recipe, strategy)
    argv = ["scale/train.py", "--ds_config", config_path, "--recipe", recipe_path, "--run_dir", folder]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with open(folder / "said.txt", "w") as said:
        return subprocess.Popen(
            [*LAUNCHERS[launcher], *map(str, argv)], cwd=CHECKOUT, stdout=said, stderr=said, start_new_session=True,
            env={**clean, "PATH": f"{BIN}:{clean['PATH']}"},
        )  # fmt: skip


def of_session(session):
    """The processes of a session that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sigterm_to_a_launched_job_saves_it_and_leaves_nothing_behind(launcher, tmp_path):
    recipe, strategy, folder = (
        tiny_recipe(tmp_path, num_steps=3000, checkpoint_every_steps=3000),
        layout(2, 1),
        tmp_path / "run",
    )
    process = launched(launcher, folder, recipe, strategy)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().splitlines()) < 5:
        assert time.monotonic() < deadline, (folder / "said.txt").read_text()
        assert process.poll() is None, (folder / "said.txt").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(60)
    deadline = time.monotonic() + 40
    while (left := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert code != 0
    said = (folder / "said.txt").read_text()
    assert "stopped: by SIGTERM at step " in said, said
    step = manifest.step_of(manifest.find(folder, "test"))
    assert len(metrics(folder)) == step
    # It is the run that nothing befell, as far as it came, and goes on.
    run(tmp_path / "straight", recipe, strategy, "--max_steps", str(step))
    assert story(folder) == story(tmp_path / "straight")
    print(f"{launcher}: exit code {code}")  # noqa: T201
