"""What a checkpoint is: a folder with a manifest, which is written last and names every file by size and SHA-256.

A folder without one was never finished. What a manifest does not name is not read, and nothing is read before it has
been found to be what was written.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scaling.errors import FileProblems, InputError, ScaleError
from scaling.files import read_text

NAME = "manifest.json"
_CHUNK_BYTES = 1 << 22


class Damaged(FileProblems):
    """A checkpoint is not what was written; another may be."""


class NoCheckpoint(ScaleError):
    """None can be used, or the last could not be written: what then is for a person to decide."""

    exit_code = 77


@dataclass(frozen=True, kw_only=True)
class File:
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run had reached, by what means, and the files that hold it.

    `plan` is the strategy that wrote it. `random_state` says what draws the dropout masks: nothing else is random.
    `recent_losses`, `rollbacks` and `skipped_in_a_row` are what the guards have seen. `validation_loss` is None where
    none was taken here.
    """

    step: int
    samples_seen: int
    world_size: int
    zero_stage: int
    uses_nvme: bool
    recipe: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, str]
    random_state: dict[str, Any]
    validation_loss: float | None
    recent_losses: list[float]
    rollbacks: int
    skipped_in_a_row: int
    files: dict[str, File]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        return _digest(asdict(self))

    def dump(self) -> str:
        """As JSON, with a digest of itself."""
        content = asdict(self)
        return json.dumps({**content, "digest": _digest(content)}, indent=1) + "\n"


def read(checkpoint: Path, field: str = "resume") -> Manifest:
    """The manifest of `checkpoint`. Raises Damaged naming `field` where there is none, or not the one written."""
    path = checkpoint / NAME
    if not path.is_file():
        raise Damaged(f"{field}: {checkpoint}", [f"{NAME} is missing: it was never finished, or is none of ours"])
    try:
        content = json.loads(read_text(path, field))
        digest = content.pop("digest")
        if digest != _digest(content):
            raise ValueError("its own digest does not match")
        named = {name: File(**entry) for name, entry in content.pop("files").items()}
        known = {each.name for each in fields(Manifest)}
        return Manifest(**{key: value for key, value in content.items() if key in known}, files=named)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # an InputError too, of a file that is no text
        raise Damaged(f"{field}: {checkpoint}", [f"{NAME} is damaged: {error}"]) from None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _nothing() -> None:
    pass


def problems(checkpoint: Path, files: Iterable[tuple[str, File]], tick: Callable[[], None] = _nothing) -> list[str]:
    """Which of `files`, from its manifest, are not what was written; each is read to its end, with a `tick` a part."""
    found = []
    for name, file in files:
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != file.num_bytes:
                found.append(f"{name} has {size:,} bytes of {file.num_bytes:,}")
            elif (digest := sha256(path, tick)) != file.sha256:
                found.append(
                    f"{name} is not what was written: its SHA-256 is {digest[:12]}..., not {file.sha256[:12]}..."
                )
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
    return found


def sha256(path: Path, tick: Callable[[], None] = _nothing) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            tick()
    return digest.hexdigest()


def require_whole(checkpoint: Path, field: str) -> Manifest:
    """The manifest of `checkpoint`, every file of which has been checked. Raises Damaged."""
    manifest = read(checkpoint, field)
    if found := problems(checkpoint, manifest.files.items()):
        raise Damaged(f"{field}: {checkpoint}", found, hint="name another checkpoint")
    return manifest


def steps(folder: Path) -> list[Path]:
    """The folders of checkpoints in `folder`, finished or not, newest first."""
    found = (path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal())
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def find(path: Path, field: str) -> Path:
    """The checkpoint that `path` means: one itself, or the newest of a run. Raises InputError where there is none."""
    if (path / NAME).is_file():
        return path
    found = steps(path / "checkpoints") or steps(path)
    if not found:
        raise InputError(
            field, str(path), "holds no complete checkpoint", hint="name a run directory or its checkpoints/step_N"
        )
    return found[0]


def kept(folder: Path, last: int) -> set[Path]:
    """The checkpoints to keep: the `last` newest, and the one of the lowest validation loss."""
    losses = {}
    for path in steps(folder):
        try:
            losses[path] = read(path).validation_loss
        except ScaleError:
            losses[path] = None  # what is damaged is for a person to look at
    measured = {path: loss for path, loss in losses.items() if loss is not None and math.isfinite(loss)}
    best = [min(measured, key=lambda path: (measured[path], -step_of(path)))] if measured else []
    return {*list(losses)[:last], *best}
