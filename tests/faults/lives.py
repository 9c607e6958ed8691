"""Lives of a run: the real program on real ranks, each a process that can be killed, stopped or signalled.

The ranks are forked from a server that has imported everything once, with a launcher's environment; what they say goes
to a file, and a fault may be planted in one before it starts.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import manifest, train
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training.export import export
from tests.ranks import context
from tests.training.runs import files, metrics

_TIMEOUT_S = 120

COUNTS: Counter[str] = Counter()  # of what was done to runs; conftest.py prints it

Plant = Callable[[int], None]


@dataclass(kw_only=True)
class Life:
    """The ranks of one start of a run. A context manager, after which none of them is left."""

    processes: list[Any]
    logs: list[Path]

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def ended(self, timeout_s: float = _TIMEOUT_S) -> list[int]:
        """The exit codes by rank, negative where a signal ended it."""
        deadline = time.monotonic() + timeout_s
        for rank, process in enumerate(self.processes):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                raise TimeoutError(f"rank {rank} is still there after {timeout_s} s:\n{self.said()}")
        return [process.exitcode for process in self.processes]

    def signal(self, number: int, *ranks: int) -> None:
        """To `ranks`, or to all."""
        COUNTS[f"{signal.Signals(number).name} to {'a rank' if ranks else 'all ranks'}"] += 1
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.ended()

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = _TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > deadline or all(process.exitcode is not None for process in self.processes):
                raise TimeoutError(f"it did not happen:\n{self.said()}")
            time.sleep(0.01)

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.exists())


def start(folder: Path, what: Recipe, strategy: Strategy, *flags: str, plant: Plant | None = None) -> Life:
    """One life of the run in `folder`; `plant` is called on each rank with its number before it trains."""
    COUNTS["lives"] += 1
    if plant:
        COUNTS[type(plant).__name__] += 1
    recipe_path, config_path = files(folder / "asked", what, strategy)
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(folder), *flags]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, logs = [], []
    for rank in range(strategy.world_size):
        logs.append(folder / f"said_{rank}.txt")
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": strategy.world_size, "MASTER_PORT": port,
            "LOCAL_WORLD_SIZE": strategy.world_size, "MASTER_ADDR": "127.0.0.1",
        }  # fmt: skip
        arguments = (argv, {key: str(value) for key, value in environment.items()}, logs[-1], plant)
        process = context.Process(target=_rank, args=arguments, daemon=True)
        process.start()
        processes.append(process)
    return Life(processes=processes, logs=logs)


def _rank(argv: list[str], environment: dict[str, str], log: Path, plant: Plant | None) -> None:
    os.environ |= environment
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.__stderr__ = sys.stderr
    if plant:
        plant(int(environment["RANK"]))
    train.main(argv)


def run(folder: Path, what: Recipe, strategy: Strategy, *flags: str, plant: Plant | None = None) -> list[int]:
    """A life to its own end: the exit codes by rank."""
    with start(folder, what, strategy, *flags, plant=plant) as life:
        return life.ended()


def story(folder: Path) -> tuple[list[tuple[Any, ...]], str]:
    """What must not differ between two runs: every step's numbers, and the SHA-256 of the final weights."""
    numbers = [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in metrics(folder)]
    scratch = folder / "story"
    if not scratch.exists():
        export(folder, scratch)
    return numbers, manifest.sha256(scratch / "model.safetensors")


def steps_on_disk(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("checkpoints/step_*/manifest.json"))
