"""What a run's own files say of it: its steps in a few numbers, and what happened to it."""

import json
import math
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich import box
from rich.table import Table

from scaling.errors import InputError
from scaling.files import read_json_lines
from scaling.units import format_count, format_duration

Lines = list[dict[str, Any]]

_PARTS = ("data_s", "forward_s", "backward_s", "optimizer_s", "rest_s")  # of a step's elapsed_s
_SETTLED = 2  # steps of a life whose time is not the machine's pace: allocation, and the measurement of memory


def steps_of(run: Path) -> Lines:
    """The lines of metrics.jsonl; none where there is no such file. Raises InputError where one is no step's.

    A loss or gradient norm that was not a number is null there.
    """
    path = run / "metrics.jsonl"
    lines = read_json_lines(path, "run") if path.is_file() else []
    for line in lines:
        line |= {name: math.nan for name in ("loss", "grad_norm") if line.get(name, 0.0) is None}
        for name in ("step", "loss", "tokens_per_second"):
            if not isinstance(line.get(name), int | float):
                raise InputError("run", str(path), f"has a line without a number {name}: {json.dumps(line)[:200]}")
    return lines


def events_of(run: Path) -> Lines:
    """The lines of events.jsonl: {"step", "kind", "message"}; none where nothing happened."""
    path = run / "events.jsonl"
    return read_json_lines(path, "run") if path.is_file() else []


def lives_of(run: Path) -> Lines:
    """The entries of environment.json, oldest first; none for a run of another version, or where it cannot be read."""
    try:
        found = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [life for life in found if isinstance(life, dict)] if isinstance(found, list) else []


def summary(lines: Lines) -> dict[str, Any]:
    """The steps in a few numbers; None is unknown. Medians leave the first two steps out."""
    if not lines:
        return {}
    settled = lines[_SETTLED:] or lines
    skipped = [line["skipped_steps"] for line in lines if "skipped_steps" in line]
    return {
        "steps": lines[-1]["step"],
        "tokens": lines[-1].get("tokens"),
        "elapsed_s": sum(line.get("elapsed_s", 0.0) for line in lines),
        "final_loss": lines[-1]["loss"],
        **_best(lines, "loss"),
        "final_validation_loss": next(
            (line["validation_loss"] for line in reversed(lines) if "validation_loss" in line), None
        ),
        **_best(lines, "validation_loss"),
        "tokens_per_second": _median(settled, "tokens_per_second"),
        "mfu_fraction": _median(settled, "mfu_fraction"),
        "time_fractions": _time_fractions(settled),
        "skipped_steps": skipped[-1] if skipped else None,
    }


def _best(lines: Lines, name: str) -> dict[str, Any]:
    finite = [line for line in lines if math.isfinite(line.get(name, math.nan))]
    best = min(finite, key=lambda line: float(line[name]), default=None)
    return {f"best_{name}": best and best[name], f"best_{name}_step": best and best["step"]}


def _median(lines: Lines, name: str) -> float | None:
    known = [line[name] for line in lines if line.get(name) is not None]
    return median(known) if known else None


def _time_fractions(lines: Lines) -> dict[str, float] | None:
    """Of all these steps' time together, by part."""
    timed = [line for line in lines if all(part in line for part in _PARTS)]
    if not timed:
        return None
    seconds = {part.removesuffix("_s"): fmean(line[part] for line in timed) for part in _PARTS}
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """`summary` for people, as (what, how much)."""
    if not found:
        return []
    shown = [
        ("steps", f"{found['steps']:,} in {format_duration(found['elapsed_s'])}"),
        ("tokens", format_count(found["tokens"]) if found["tokens"] else "unknown"),
        ("loss", _loss(found, "loss")),
    ]
    if found["final_validation_loss"] is not None:
        shown.append(("validation loss", _loss(found, "validation_loss")))
    mfu = found["mfu_fraction"]
    shown += [
        ("tokens per second", f"{format_count(found['tokens_per_second'])} median"),
        ("MFU", f"{mfu:.1%} median" if mfu is not None else "unknown"),
    ]
    if found["time_fractions"]:
        parts = [f"{part} {share:.0%}" for part, share in found["time_fractions"].items()]
        shown.append(("a step's time", ", ".join(parts)))
    if found["skipped_steps"] is not None:
        shown.append(("skipped steps", f"{found['skipped_steps']:,} (fp16 overflow)"))
    return shown


def _loss(found: dict[str, Any], name: str) -> str:
    best = found[f"best_{name}"]
    at = f", best {best:.4f} at step {found[f'best_{name}_step']:,}" if best is not None else ""
    return f"{found[f'final_{name}']:.4f} at the end{at}"


def facts_table(found: dict[str, Any]) -> Table:
    shown = Table(title="the run", title_justify="left", box=box.SIMPLE, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column()
    for fact in facts(found):
        shown.add_row(*fact)
    return shown


def event_sentence(event: dict[str, Any]) -> str:
    return f"step {event.get('step', '?')}: {event.get('kind', 'event')}: {event.get('message', '')}"
