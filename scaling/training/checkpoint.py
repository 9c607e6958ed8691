"""Checkpoints: a folder per step, complete or invisible, and checked before it is read.

Every rank writes its files into a partial folder and keeps their digests; when all have, the first one writes them into
a manifest, renames the folder, and moves `latest` last. So a kill at any moment leaves whole checkpoints, and a run
goes on from the newest: in the layout that wrote it by DeepSpeed's own loader, bit for bit, in any other through
scaling/training/universal.py. It never starts at step 0 by itself where checkpoints are damaged.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaling import manifest
from scaling import recipe as recipes
from scaling.errors import FileProblems, InputError, ScaleError
from scaling.files import replace_text, sync_folder
from scaling.manifest import Damaged, File, Manifest, NoCheckpoint
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import environment, universal
from scaling.training.ranks import Ranks
from scaling.training.shards import Reader, Writer

_PARTIAL = ".partial"  # no name that a reader looks for
_REMOVED = ".removed-"
# What may change between two lives of a run without changing its loss.
_FREE = {"evaluate_every_steps", "checkpoint_every_steps", "keep_checkpoints", "guards", "name"}


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where a run stands, beside its weights."""

    step: int
    samples_seen: int
    validation_loss: float | None = None  # of this very step
    recent_losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    skipped_in_a_row: int = 0


class Saver:
    """Saves a run's checkpoints into `folder`, one at a time. All ranks make every call, at the same step.

    `begin` returns when training may go on: with `in_background` when the states have been copied. `finish` makes the
    checkpoint visible; `is_written` says whether this rank's part of it is on the disk.
    """

    def __init__(
        self, engine: Any, folder: Path, recipe: Recipe, strategy: Strategy, ranks: Ranks, *,
        in_background: bool = True, say: Callable[[str], None] = print, tick: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.engine, self.folder, self.recipe, self.strategy, self.ranks = engine, folder, recipe, strategy, ranks
        self.failed = ""  # why the last one was not written, while there is none newer
        self._say = say
        self._writer = Writer(in_background=in_background, ranks_of_host=ranks.local_world_size, tick=tick)
        self._pending: Reached | None = None
        self._num_bytes = 0  # of the last one
        engine.checkpoint_engine = self._writer
        # DeepSpeed's scripts, which it copies on the first rank alone: an error there would leave the others waiting.
        engine._copy_recovery_script = lambda path: None

    @property
    def is_pending(self) -> bool:
        return self._pending is not None

    @property
    def is_written(self) -> bool:
        return self._writer.is_done

    def save(self, reached: Reached) -> None:
        """Writes a checkpoint and waits for it."""
        self.begin(reached)
        self.finish()

    def begin(self, reached: Reached) -> float:
        """Starts a checkpoint of what the engine has reached; the seconds for which that held up the step."""
        started_at = time.perf_counter()
        self.finish()
        partial = self.folder / _PARTIAL
        if problem := self.ranks.from_first(self._emptied, partial):
            self._fail(reached, problem)
            return time.perf_counter() - started_at
        self.engine.save_checkpoint(str(self.folder), tag=_PARTIAL, save_latest=False)
        if not self.strategy.uses_nvme:  # whose tensors are elsewhere
            text = universal.whole_map(self.engine)
            if text and self.ranks.is_first:
                self._writer.text(text, partial / universal.MAP)
        self._writer.start()
        self._pending = reached
        if not self._writer.in_background:
            self.finish()
        return time.perf_counter() - started_at

    def finish(self) -> Path | None:
        """Waits for what was begun, makes it visible and removes what is not kept; None where nothing was written."""
        if (reached := self._pending) is None:
            return None
        self._pending = None
        parts = self.ranks.gathered(self._writer.result())
        problem = next((f"rank {rank}: {error}" for rank, (_, error) in enumerate(parts) if error), "")
        files = {name: file for written, _ in parts for name, file in written.items()}
        problem, afterwards = self.ranks.from_first(self._committed, reached, files, problem)
        if afterwards:
            self._say(f"warning: the checkpoint of step {reached.step} is whole; after it: {afterwards}")
        if problem:
            self._fail(reached, problem)
            return None
        self.failed = ""
        self._num_bytes = sum(file.num_bytes for file in files.values())
        return self.folder / _name(reached.step)

    def _fail(self, reached: Reached, problem: str) -> None:
        self.failed = problem
        last = manifest.steps(self.folder)
        standing = f"{last[0].name} stands as it was" if last else "there is none yet"
        self._say(f"warning: no checkpoint of step {reached.step}: {problem}; {standing}")

    # On the first rank

    def _emptied(self, partial: Path) -> str:
        """Makes room for a new checkpoint; what is in the way."""
        for leftover in self.folder.glob(f"{_REMOVED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            return f"{partial}: {error.strerror}"
        return f"it needs {self._num_bytes:,} bytes and {free:,} are free" if free < self._num_bytes else ""

    def _committed(self, reached: Reached, files: dict[str, File], problem: str) -> tuple[str, str]:
        """Makes the partial folder a checkpoint unless there is a problem already; what went wrong, and after it."""
        partial, final = self.folder / _PARTIAL, self.folder / _name(reached.step)
        try:
            if not problem:
                replace_text(partial / manifest.NAME, self._manifest(reached, files).dump())
                _remove(final)  # an earlier life of this run reached the same step
                os.replace(partial, final)
                sync_folder(self.folder)
        except OSError as error:
            problem = _said(error)
        if problem:
            shutil.rmtree(partial, ignore_errors=True)
            return problem, ""
        try:
            for old in set(manifest.steps(self.folder)) - manifest.kept(self.folder, self.recipe.keep_checkpoints):
                _remove(old)
            replace_text(self.folder / "latest", final.name)  # for DeepSpeed's own tools; we go by the folders
        except OSError as error:
            return "", _said(error)
        return "", ""

    def _manifest(self, reached: Reached, files: dict[str, File]) -> Manifest:
        return Manifest(
            **vars(reached),
            world_size=self.ranks.world_size,
            zero_stage=self.strategy.zero_stage,
            uses_nvme=self.strategy.uses_nvme,
            recipe=self.recipe.model_dump(mode="json"),
            plan=asdict(self.strategy),
            versions=environment.versions(),
            random_state={"seed": self.recipe.seed, "drawn_by": "torch.manual_seed before each micro batch"},
            files=files,
        )


def _said(error: OSError) -> str:
    return f"{error.filename or 'a file'}: {error.strerror}"


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint, out of sight first, so that no half of one is ever seen."""
    if checkpoint.exists():
        removed = checkpoint.with_name(_REMOVED + checkpoint.name)
        shutil.rmtree(removed, ignore_errors=True)
        os.replace(checkpoint, removed)
        shutil.rmtree(removed, ignore_errors=True)


# Choosing


def to_resume(folder: Path, resume: str) -> list[Path]:
    """The checkpoints that --resume means, the first to be taken: nothing is read yet.

    "auto" is the newest of the run, "newest-whole" the newest that is whole, "never" none, anything else a path.
    """
    match resume:
        case "never":
            return []
        case "auto":
            return manifest.steps(folder / "checkpoints")[:1]
        case "newest-whole":
            return manifest.steps(folder / "checkpoints")
    return [manifest.find(Path(resume), "resume")]


def require_same_recipe(checkpoint: Path, recipe: Recipe, strategy: Strategy) -> None:
    """Raises ScaleError naming every way in which `checkpoint` is not of this recipe; only its manifest is read."""
    found = manifest.read(checkpoint)
    problems = []
    if found.uses_nvme or strategy.uses_nvme:
        # Measured: docs/log.md, 2026-11-24. Losses differ from the first step on, or loading breaks off.
        problems.append("NVMe: DeepSpeed 0.19.8 does not restore states that were or will be offloaded there")
    then, fields = _with_defaults(found.recipe), recipe.model_dump(mode="json")
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


def require_match(checkpoint: Path, recipe: Recipe, strategy: Strategy) -> None:
    """Raises ScaleError where `checkpoint`, known to be whole, is of another recipe or not readable in this layout."""
    require_same_recipe(checkpoint, recipe, strategy)
    elsewhere = not _is_of(manifest.read(checkpoint), strategy)
    if elsewhere or universal.read_map(checkpoint):
        saved = universal.Saved(checkpoint)
        if elsewhere:
            saved.require_movable()


def first_whole(
    candidates: list[Path],
    ranks: Ranks,
    fits: Callable[[Path], None],
    say: Callable[[str], None],
    tick: Callable[[], None],
) -> Path | None:
    """The first of `candidates` that is whole and that `fits` (which raises ScaleError); all ranks call it.

    The first rank's candidates are taken: on a network's disk another may not see the newest yet. None where there is
    none. A single one is taken or refused, with the newest whole one as the hint; of several the first good one is
    taken, and `say` names those passed over. Raises NoCheckpoint where none is whole.
    """
    problems: list[ScaleError] = []
    candidates = ranks.from_first(lambda: candidates)
    for checkpoint in candidates:
        problem = _problem(checkpoint, ranks, fits, tick)
        if problem is None:
            return checkpoint
        problems.append(problem)
        if len(candidates) > 1:
            say(f"passed over: {problem.message}")
    if not problems:
        return None
    newest = problems[0]
    if not isinstance(newest, Damaged):
        raise newest
    if len(candidates) == 1:
        for other in ranks.from_first(manifest.steps, candidates[0].parent):
            if other != candidates[0] and _problem(other, ranks, fits, tick) is None:
                newest.hint = f"{other} is whole: --resume {other}, or --resume newest-whole"
                raise newest
    raise NoCheckpoint(
        f"{newest.message}\nno other in {candidates[0].parent} can be resumed from",
        hint="--resume never starts anew, and keeps the earlier life of the run beside it",
    )


def _problem(
    checkpoint: Path, ranks: Ranks, fits: Callable[[Path], None], tick: Callable[[], None]
) -> ScaleError | None:
    """What is wrong with a checkpoint, the same on all ranks, between which its files are shared out for reading."""
    digest = ""
    try:
        found = manifest.read(checkpoint)
        digest = found.digest
        files = sorted(found.files.items(), key=lambda entry: -entry[1].num_bytes)
        problems = manifest.problems(checkpoint, files[ranks.rank :: ranks.world_size], tick)
    except Damaged as error:
        problems = error.problems
    everyones = ranks.gathered((problems, digest))
    damage = sorted({problem for problems, _ in everyones for problem in problems})
    if not damage and len({digest for _, digest in everyones}) > 1:
        damage = [f"{manifest.NAME} is not the same on all ranks: is this a disk that they share?"]
    if damage:
        return Damaged(f"resume: {checkpoint}", damage)
    try:
        fits(checkpoint)
    except ScaleError as error:
        return error
    return None


def set_aside_after(folder: Path, chosen: Path) -> list[str]:
    """Renames the checkpoints of `folder` beyond `chosen`: they are of another future, and would be taken next time."""
    beyond = [path for path in manifest.steps(folder) if manifest.step_of(path) > manifest.step_of(chosen)]
    for path in beyond:
        number = next(n for n in range(1, 1_000_000) if not path.with_name(f"aside-{n}_{path.name}").exists())
        os.replace(path, path.with_name(f"aside-{number}_{path.name}"))
    return [f"set aside: {path.name}, beyond {chosen.name}" for path in beyond]


def load(engine: Any, checkpoint: Path, strategy: Strategy) -> tuple[Manifest, str]:
    """Restores `engine` on all ranks; what was reached, and which layout was read, where it is another.

    `first_whole` came before.
    """
    found = manifest.read(checkpoint)
    if not (_is_of(found, strategy) and universal.is_laid_out_alike(engine, checkpoint)):
        universal.load(engine, checkpoint)
        ranks = "1 rank" if found.world_size == 1 else f"{found.world_size} ranks"
        return found, f"laid out anew from {ranks} at ZeRO-{found.zero_stage}"
    standing = engine.checkpoint_engine
    engine.checkpoint_engine = Reader([checkpoint / name for name in found.files])
    try:
        loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    finally:
        engine.checkpoint_engine = standing
    if loaded is None:
        raise ScaleError(f"resume: DeepSpeed found nothing to load in {checkpoint}")
    return found, ""


def _is_of(found: Manifest, strategy: Strategy) -> bool:
    experts = found.plan.get("expert_parallel_size", 1)
    return (found.world_size, found.zero_stage, experts) == (
        strategy.world_size, strategy.zero_stage, strategy.expert_parallel_size,
    )  # fmt: skip


def _with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields as an older version wrote them, with those that came since at what they then meant."""
    try:
        return recipes.validated(fields).model_dump(mode="json")
    except InputError:
        return fields
