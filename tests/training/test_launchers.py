"""The real launchers on real ranks, as a user starts them: nothing compiled, nothing left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GPT_DEMO = ["--ds_config", "ds_configs/zero2_bf16.json", "--recipe", "recipes/gpt_demo.yaml"]
TIMEOUT_S = 240


def launched(*command, cwd=CHECKOUT, **environment):
    """The finished process; its output is shown when a test fails."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    process = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**clean, "PATH": f"{BIN}:{clean['PATH']}", **environment},
    )  # fmt: skip
    print(process.stdout, process.stderr)  # noqa: T201
    return process


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def shared_memory():
    return {path.name for path in Path("/dev/shm").glob("deepspeed*")}


def test_the_deepspeed_launcher_trains_twice_alike_and_goes_on_from_its_checkpoint(tmp_path):
    before = shared_memory()
    extensions = tmp_path / "torch_extensions"
    for name, steps in (("first", 6), ("second", 6), ("first", 8)):
        command = ["deepspeed", "--num_gpus", 2, "--master_port", 29731, "scale/train.py", *GPT_DEMO]
        process = launched(
            *command, "--run_dir", tmp_path / name, "--max_steps", steps, TORCH_EXTENSIONS_DIR=str(extensions)
        )
        assert process.returncode == 0
    first, second = lines(tmp_path / "first"), lines(tmp_path / "second")
    assert [line["step"] for line in first] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["loss"] for line in first[:6]] == [line["loss"] for line in second]
    assert "resumed from" in process.stdout
    assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= first[0].keys()
    # Nothing was compiled, and DeepSpeed's shared-memory buffers (69 MB a rank and run) were never made.
    assert not list(extensions.rglob("*.so"))
    assert not list(extensions.rglob("lock"))
    assert shared_memory() == before


def test_torchrun_starts_the_same_program(tmp_path):
    command = ["torchrun", "--nproc_per_node", 2, "--master_port", 29732, "scale/train.py", *GPT_DEMO]
    assert launched(*command, "--run_dir", tmp_path / "run", "--max_steps", 2).returncode == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


def test_the_module_trains_alone_beside_stale_build_locks(tmp_path):
    """A process killed while DeepSpeed compiled leaves `lock` files on which every later one would wait for ever."""
    for op in ("deepspeed_shm_comm", "fused_adam", "cpu_adam", "pin_memory"):
        for root in ("", "py311_cpu"):
            folder = tmp_path / "torch_extensions" / root / op
            folder.mkdir(parents=True)
            (folder / "lock").touch()
    command = [sys.executable, "-m", "scaling.train", *GPT_DEMO, "--run_dir", tmp_path / "run", "--max_steps", 2]
    started_at = time.monotonic()
    process = launched(*command, TORCH_EXTENSIONS_DIR=str(tmp_path / "torch_extensions"))
    assert process.returncode == 0
    assert time.monotonic() - started_at < TIMEOUT_S / 2
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("program", [["scale/train.py"], ["-m", "scaling.train"]])
def test_a_mistake_is_one_message_and_exit_2(program, tmp_path):
    process = launched(sys.executable, *program, "--ds_config", tmp_path / "absent.json")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: ds_config: ")
    assert "Traceback" not in process.stderr


def test_under_a_launcher_only_the_first_rank_speaks_of_a_mistake(tmp_path):
    (tmp_path / "ds_config.json").write_text('{"train_micro_batch_size_per_gpu": 3, "bf16": {"enabled": true}}')
    command = ["deepspeed", "--num_gpus", 2, "--master_port", 29733, "scale/train.py", "--ds_config"]
    process = launched(*command, tmp_path / "ds_config.json", "--recipe", "recipes/gpt_demo.yaml")
    assert process.returncode == 2
    assert process.stderr.count("error: ") == 1
    assert "micro batches that divide it on 2 ranks: 1, 2, 4, 8, 16" in process.stderr
