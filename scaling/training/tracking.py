"""Where a run's numbers go: metrics.jsonl always, and the trackers that `--track` names.

A tracker that fails in the middle of a run is said once and dropped: it never ends training.
"""

import contextlib
import csv
import importlib.util
import io
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from scaling.errors import InputError, did_you_mean
from scaling.files import write_folder
from scaling.training.run import Metrics

Line = Mapping[str, Any]

# Values that wait for TensorBoard's thread. A step has some 16, and its own 10 make training wait for that thread.
_QUEUED = 1000
_FLUSH_S = 20  # TensorBoard shows a step at most so much later; its own 120 is long to look at nothing


class Sink(Protocol):
    """Takes each step's line."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a sink is opened for. `resumed_step` is the last step that it may keep."""

    folder: Path
    name: str
    config: dict[str, Any]
    resumed_step: int


class TensorBoard:
    """<run>/tensorboard. TensorBoard hides what an earlier life wrote after the resumed step."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=run.resumed_step + 1, flush_secs=_FLUSH_S, max_queue=_QUEUED
        )

    def write(self, line: Line) -> None:
        for name, value in _numbers(line):
            self._writer.add_scalar(_tag(name), value, line["step"])

    def close(self) -> None:
        self._writer.close()


class Csv:
    """<run>/metrics.csv; a quantity that shows up late widens the table, its earlier rows empty there."""

    def __init__(self, run: Run) -> None:
        self._path = run.folder / "metrics.csv"
        self._rewrite(row for row in self._read() if _step(row) <= run.resumed_step)

    def write(self, line: Line) -> None:
        if any(name not in self._columns for name in line):
            self._file.close()
            self._rewrite(self._read(), line)
        self._writer.writerow(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _read(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a crash may have cut the last row short
        return list(csv.DictReader(io.StringIO(whole)))

    def _rewrite(self, rows: Iterable[Line], columns: Iterable[str] = ()) -> None:
        """Beside and renamed, with the columns of `rows` and `columns`; then open for more."""
        rows = list(rows)
        self._columns = list(dict.fromkeys(name for line in (*rows[:1], columns) for name in line))
        fresh = self._path.with_name(".metrics.csv")
        with open(fresh, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if self._columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(fresh, self._path)
        self._file = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115  closed by close()
        self._writer = csv.DictWriter(self._file, self._columns)


class Wandb:
    """Weights & Biases. Project, mode and key come from its own WANDB_ variables; a resumed run is the same one there.

    What it has of steps after the resumed one stays: only its server could cut that.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "scale"), name=run.name, id=_run_id(run.folder, "wandb"),
            dir=str(run.folder), config=run.config, resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        # Not its own step, which must not fall: a resumed run says the same steps again.
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Line) -> None:
        self._run.log({"step": line["step"], **{_tag(name): value for name, value in _numbers(line)}})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """Hugging Face's trackio: a local database, or a Space where TRACKIO_SPACE_ID names one; a resumed run goes on."""

    def __init__(self, run: Run) -> None:
        import trackio

        name = f"{run.name}-{_run_id(run.folder, 'trackio')}"
        self._finish = trackio.finish  # not the run's own, which would be called once more at exit
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "scale"), name=name, config=run.config, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, line: Line) -> None:
        self._run.log({_tag(name): value for name, value in _numbers(line)}, step=line["step"])

    def close(self) -> None:
        self._finish()


class _Kind(NamedTuple):
    """A tracker: how it is opened, the module that it needs, and the extra that brings that."""

    open: Callable[[Run], Sink]
    needs: str = ""
    extra: str = ""


TRACKERS: Mapping[str, _Kind] = {
    "tensorboard": _Kind(TensorBoard, "tensorboard", "train"),
    "csv": _Kind(Csv),
    "wandb": _Kind(Wandb, "wandb", "wandb"),
    "trackio": _Kind(Trackio, "trackio", "trackio"),
}
DEFAULT = "tensorboard"


def names_of(text: str) -> tuple[str, ...]:
    """ "tensorboard,csv" -> these, "none" -> none. Raises InputError for a tracker that is unknown or not installed."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in TRACKERS:
            raise InputError("track", name, "is not a tracker", hint=did_you_mean(name, [*TRACKERS, "none"]))
        needs, extra = TRACKERS[name].needs, TRACKERS[name].extra
        if needs and importlib.util.find_spec(needs) is None:
            raise InputError("track", name, "is not installed", hint=f"pip install '.[{extra}]', or leave it out of "
                             "--track; `--track none` keeps metrics.jsonl alone")  # fmt: skip
    return names


class Tracking:
    """metrics.jsonl and the trackers called `names`, of one run; `say` tells of one that failed."""

    def __init__(self, run: Run, names: Iterable[str], say: Callable[[str], None]) -> None:
        self._say = say
        # metrics.jsonl is the run's record: where it cannot be begun there is no run.
        self._record = Metrics(run.folder / "metrics.jsonl", resumed_step=run.resumed_step)
        self._sinks: dict[str, Sink] = {}
        for name in names:
            with self._guarded(name):
                self._sinks[name] = TRACKERS[name].open(run)

    def write(self, line: Line) -> None:
        self._record.write(line)
        for name, sink in list(self._sinks.items()):
            with self._guarded(name):
                sink.write(line)

    def event(self, line: Line) -> None:
        """Something that a guard did."""
        self._record.event(line)

    def sync(self) -> None:
        """Puts what was written on the disk."""
        self._record.sync()

    def close(self) -> None:
        self._record.close()
        for name, sink in list(self._sinks.items()):
            with self._guarded(name):
                sink.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises
            self._sinks.pop(name, None)
            self._say(f"warning: {name} failed and was dropped, the run goes on ({type(error).__name__}: {error})")


# Panels by what belongs together; TensorBoard, wandb and trackio all group by what stands before the slash.
_PANELS = {
    "time": ("elapsed_s", "data_s", "forward_s", "backward_s", "optimizer_s", "rest_s"),
    "speed": ("tokens_per_second", "mfu_fraction"),
    "memory": ("peak_allocated_bytes", "predicted_peak_allocated_bytes"),
    "seen": ("samples", "tokens", "global_batch_size"),
    "gradient": ("grad_norm", "gradient_signal", "gradient_noise"),
    "fp16": ("loss_scale", "skipped_steps"),
    "loss": ("loss", "validation_loss"),
    "schedule": ("lr",),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}
_CONSTANT = ("step", "peak_flops")


def _tag(name: str) -> str:
    panel = "trust_ratio" if name.startswith("trust_ratio_") else _PANEL_OF.get(name, "run")
    return f"{panel}/{name.removeprefix('trust_ratio_')}"


def _numbers(line: Line) -> list[tuple[str, float]]:
    """What of a line can be drawn."""
    kept = ((name, value) for name, value in line.items() if name not in _CONSTANT)
    return [(name, float(value)) for name, value in kept if isinstance(value, int | float)]


def _step(row: Line) -> float:
    try:
        return float(row["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _run_id(folder: Path, tracker: str) -> str:
    """By which a tracker knows this run again: drawn once, and kept in the run directory."""
    path = folder / f"{tracker}_id"
    if not path.exists():
        write_folder(folder, {path.name: uuid.uuid4().hex[:8] + "\n"}, "run_dir")
    return path.read_text(encoding="utf-8").strip()
