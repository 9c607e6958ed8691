"""Checkpoints: a folder per step, complete or invisible.

DeepSpeed writes into a partial folder; when every rank is done the first one describes it in state.json and renames
it. A run resumes from the newest complete folder, never from a partial one and never silently from step 0: in the
layout that wrote it by DeepSpeed's own loader, bit for bit, in any other through scaling/training/universal.py.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling import recipe as recipes
from scaling.errors import FileProblems, InputError, ScaleError
from scaling.files import read_text
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import universal
from scaling.training.ranks import Ranks

_STATE = "state.json"
_PARTIAL = "partial"
# What may change between two lives of a run without changing its loss.
_FREE = {"evaluate_every_steps", "checkpoint_every_steps", "name"}


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands, and how many ranks wrote it at which stage."""

    step: int
    world_size: int
    zero_stage: int
    recipe: dict[str, Any]
    uses_nvme: bool = False


def save(engine: Any, folder: Path, recipe: Recipe, strategy: Strategy, step: int, ranks: Ranks) -> Path:
    """Writes `folder`/step_N on all ranks and points `folder`/latest at it."""
    final, partial = folder / f"step_{step:06d}", folder / _PARTIAL
    if ranks.is_first:
        shutil.rmtree(partial, ignore_errors=True)
    ranks.barrier()
    engine.save_checkpoint(str(folder), tag=_PARTIAL, save_latest=False)
    if not strategy.uses_nvme:  # whose tensors are elsewhere
        universal.write_map(engine, partial)
    ranks.barrier()
    if ranks.is_first:
        state = State(
            step=step,
            world_size=ranks.world_size,
            zero_stage=strategy.zero_stage,
            recipe=recipe.model_dump(mode="json"),
            uses_nvme=strategy.uses_nvme,
        )
        _write(partial / _STATE, json.dumps(asdict(state), indent=2))
        shutil.rmtree(final, ignore_errors=True)  # an earlier life of this run reached the same step
        os.replace(partial, final)
        _write(folder / "latest", final.name)  # for DeepSpeed's own tools; we go by the folders
    ranks.barrier()
    return final


def newest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in `folder`, if there is one."""
    complete = (state.parent for state in folder.glob(f"step_*/{_STATE}"))
    return max(complete, key=lambda found: int(found.name.removeprefix("step_")), default=None)


def find(path: Path, field: str = "resume") -> Path:
    """The checkpoint that `path` means: one itself, or the newest of a run. Raises InputError where there is none."""
    if (path / _STATE).is_file():
        return path
    found = newest(path / "checkpoints") or newest(path)
    if found is None:
        raise InputError(
            field, str(path), "holds no complete checkpoint", hint="name a run directory or its checkpoints/step_N"
        )
    return found


def to_resume(folder: Path, resume: str) -> Path | None:
    """The checkpoint that --resume means: "auto" is the newest of the run, if any, "never" none, else a path."""
    if resume == "never":
        return None
    return newest(folder / "checkpoints") if resume == "auto" else find(Path(resume))


def read_state(checkpoint: Path) -> State:
    try:
        return State(**json.loads(read_text(checkpoint / _STATE, "resume")))
    except (TypeError, ValueError) as error:
        raise InputError("resume", str(checkpoint), f"has an unreadable {_STATE}: {error}") from None


def require_match(checkpoint: Path, recipe: Recipe, strategy: Strategy) -> None:
    """Raises ScaleError naming every way in which `checkpoint` is not of this recipe, not whole, or not readable."""
    state = read_state(checkpoint)
    problems = []
    if state.uses_nvme or strategy.uses_nvme:
        # Measured: docs/log.md, 2026-11-24. Losses differ from the first step on, or loading breaks off.
        problems.append("NVMe: DeepSpeed 0.19.8 does not restore states that were or will be offloaded there")
    then, fields = _with_defaults(state.recipe), recipe.model_dump(mode="json")
    problems += [
        f"recipe {key}: {then.get(key)!r} then, {fields[key]!r} now"
        for key in fields
        if key not in _FREE and then.get(key) != fields[key]
    ]
    if problems:
        raise FileProblems(
            f"resume: {checkpoint}",
            problems,
            hint="resume as it was, or start anew: --resume never, or another --run_dir",
        )
    elsewhere = not _is_of(state, strategy)
    if elsewhere or universal.read_map(checkpoint):
        saved = universal.Saved(checkpoint)
        if elsewhere:
            saved.require_movable()


def load(engine: Any, checkpoint: Path, strategy: Strategy) -> tuple[int, str]:
    """Restores `engine` on all ranks; the step reached, and which layout was read, where it is another.

    `require_match` came before.
    """
    state = read_state(checkpoint)
    if not (_is_of(state, strategy) and universal.is_laid_out_alike(engine, checkpoint)):
        universal.load(engine, checkpoint)
        ranks = "1 rank" if state.world_size == 1 else f"{state.world_size} ranks"
        return state.step, f"laid out anew from {ranks} at ZeRO-{state.zero_stage}"
    loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if loaded is None:
        raise ScaleError(f"resume: DeepSpeed found nothing to load in {checkpoint}")
    return state.step, ""


def _with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields as an older version wrote them, with those that came since at what they then meant."""
    try:
        return recipes.validated(fields).model_dump(mode="json")
    except InputError:
        return fields


def _is_of(state: State, strategy: Strategy) -> bool:
    return (state.world_size, state.zero_stage) == (strategy.data_parallel_size, strategy.zero_stage)


def _write(path: Path, text: str) -> None:
    """`text` at `path`, on disk, by rename."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
