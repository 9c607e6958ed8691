"""A run's directory: what was asked for, what happened, and the files that others read.

recipe.yaml  ds_config.json  plan.json   what was asked for
metrics.jsonl                            one line per optimizer step
events.jsonl                             one line for each time that a guard acted
tensorboard/  metrics.csv                the same numbers, where --track asks for them
environment.json                         one entry per life of the run: versions, hosts, devices, command
measured.json                            what `scale report` holds against plan.json
checkpoints/  logs/rank_N.log
"""

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from scaling import recipe as recipes
from scaling.errors import InputError
from scaling.files import read_json_lines, write_folder
from scaling.recipe import Recipe


def prepare(folder: Path, recipe: Recipe, copies: dict[str, str], *, anew: bool) -> list[str]:
    """Makes `folder` and writes recipe.yaml and `copies` (name -> text) into it; the first rank calls it.

    `anew` first moves an earlier life of the run aside. Returns sentences to say.
    """
    notes = []
    if anew and (aside := set_aside(folder)):
        notes.append(f"the earlier run was moved to {aside}")
    texts = {"recipe.yaml": recipes.dump(recipe), **copies}
    # A plan's own folder may be the run's: what stands there already, with its comments, stays.
    texts = {name: text for name, text in texts.items() if not _says_the_same(folder / name, text)}
    write_folder(folder, texts, "run_dir")
    try:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError("run_dir", str(folder), f"cannot be written: {error.strerror}") from None
    return notes


def _says_the_same(path: Path, text: str) -> bool:
    try:
        standing = path.read_text(encoding="utf-8")
    except OSError:
        return False
    if path.suffix != ".yaml":
        return standing == text
    with contextlib.suppress(Exception):
        return recipes.parse(standing, str(path)) == recipes.parse(text, str(path))
    return False


def set_aside(folder: Path) -> Path | None:
    """Moves an earlier life's metrics and checkpoints into `folder`/replaced-N; None where there is nothing."""
    names = [
        "metrics.jsonl", "measured.json", "checkpoints", "logs", "tensorboard", "metrics.csv", "environment.json",
        "events.jsonl", "wandb_id", "trackio_id",
    ]  # fmt: skip
    there = [folder / name for name in names if (folder / name).exists()]
    if not any(path.is_file() or any(path.glob("step_*")) for path in there):
        return None
    number = next(n for n in range(1, 1_000_000) if not (folder / f"replaced-{n}").exists())
    aside = folder / f"replaced-{number}"
    aside.mkdir()
    for path in there:
        os.replace(path, aside / path.name)
    return aside


class Metrics:
    """metrics.jsonl, one JSON object a step, and events.jsonl, one for each time that a guard acted.

    Resuming at step N keeps the lines of steps 1 to N and goes on from there. What is not a finite number is null.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self._steps = _Lines(path, resumed_step)
        self._events = _Lines(path.with_name("events.jsonl"), resumed_step)

    def write(self, values: Mapping[str, Any]) -> None:
        self._steps.add(values)

    def event(self, values: Mapping[str, Any]) -> None:
        self._events.add(values)

    def sync(self) -> None:
        """Puts what was written on the disk."""
        self._steps.sync()
        self._events.sync()

    def close(self) -> None:
        self._steps.close()
        self._events.close()


class _Lines:
    """A file of JSON lines that grows; what a full disk does not take waits, whole, for the next line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = "".join(f"{line}\n" for line in lines if _step(line) <= resumed_step)
            write_folder(path.parent, {path.name: kept}, "run_dir")  # beside and renamed: a kill here loses no line
        self._path = path
        self._file: FileIO | None = None  # opened with the first line: most runs have no events
        self._waiting = b""

    def add(self, values: Mapping[str, Any]) -> None:
        finite = {key: None if _is_no_number(value) else value for key, value in values.items()}
        self._waiting += json.dumps(finite).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        with contextlib.suppress(OSError):
            self._file = self._file or FileIO(self._path, "a")
            size = self._file.seek(0, os.SEEK_END)
            try:
                whole = self._file.write(self._waiting) == len(self._waiting)
            except OSError:
                whole = False
            if whole:
                self._waiting = b""
            else:
                self._file.truncate(size)

    def sync(self) -> None:
        self._flush()
        with contextlib.suppress(OSError):
            if self._file:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        self._flush()
        if self._file:
            self._file.close()


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path, "run")


def _step(line: str) -> float:
    """The step of a line; a line cut short by a crash belongs to no step that can be kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Sends what libraries print, log and warn on this rank to `log`, and yields the real stdout.

    DeepSpeed prints memory lines straight to stdout and its logger holds its own stream (0.19.8, utils/logging.py).
    """
    talk = sys.stdout
    with open(log, "a", encoding="utf-8", buffering=1) as file, contextlib.redirect_stdout(file):
        handler = logging.StreamHandler(file)
        loggers = [logging.getLogger(name) for name in ("DeepSpeed", "transformers", "py.warnings")]
        before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers[:] = [handler]
            logger.propagate = False
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        try:
            yield talk
        finally:
            logging.captureWarnings(False)
            for logger, handlers, propagate in before:
                logger.handlers[:], logger.propagate = handlers, propagate
