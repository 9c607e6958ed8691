"""A run as one HTML page that needs nothing else: no script, no font, no link."""

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from scaling.report import svg
from scaling.report.comparison import comparison, shown_rows
from scaling.report.history import event_sentence, events_of, facts, lives_of, steps_of, summary

_POINTS = 400  # of a line: more than its pixels
_BLUE, _ORANGE = "#2a6fbb", "#d1701f"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: white }
body { max-width: 680px; margin: 3em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 } h2 { font-size: 1.1em; margin: 2em 0 .4em }
.sub, .how { color: #777 } .how { font-size: .85em; margin: .2em 0 }
table { border-collapse: collapse } td, th { padding: .15em 1.2em .15em 0; text-align: left; vertical-align: top }
th { font-weight: normal; color: #777 } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto; display: block } code { font-size: .85em; overflow-wrap: anywhere }
"""


def page(run: Path) -> str:
    """The page of the run in `run`. Raises InputError where there is no run."""
    lines, events, lives = steps_of(run), events_of(run), lives_of(run)
    parts = [f"<h1>{escape(run.resolve().name)}</h1>", f'<p class="sub">{escape(_subtitle(lives))}</p>']
    parts.append(_table([(_cell(name), _cell(value)) for name, value in facts(summary(lines))]))
    if lines:
        parts.append("<h2>Steps</h2>")
        parts += [svg.drawing(row) for row in _panels(lines)]
        if group := _group(lines):
            parts.append(f'<p class="how">Each point is the mean of {group} steps.</p>')
    if (run / "measured.json").is_file():
        found = comparison(run)
        rows = [
            tuple(_cell(text, "n" if column else "") for column, text in enumerate(row)) for row in shown_rows(found)
        ]
        head = "".join(f"<th>{name}</th>" for name in ("", "predicted", "measured", "ratio"))
        parts += ["<h2>Predicted against measured</h2>", _table(rows, head)]
        parts += [f'<p class="how">{escape(row["quantity"])}: {escape(row["how"])}</p>' for row in found["rows"]]
    if events:
        items = "".join(f"<li>{escape(event_sentence(event))}</li>" for event in events)
        parts.append(f"<h2>What happened</h2><ul>{items}</ul>")
    if lives:
        parts += ["<h2>Where it ran</h2>", *(_life(life) for life in lives)]
    head = f'<meta charset="utf-8"><title>{escape(run.resolve().name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _panels(lines: list[dict[str, Any]]) -> list[list[svg.Panel]]:
    """Two rows of two."""
    fast = max(line["tokens_per_second"] for line in lines) >= 10_000
    unit = 1000 if fast else 1
    loss = [("training", "loss", _BLUE, False), ("validation", "validation_loss", _ORANGE, True)]
    drawn = [
        _panel(lines, "loss", "nats per target", loss),
        _panel(lines, "learning rate", "", [("", "lr", _BLUE, False)]),
        _panel(lines, "gradient norm", "before clipping", [("", "grad_norm", _BLUE, False)]),
        _panel(lines, "speed", "thousand tokens/s" if fast else "tokens/s",
               [("", "tokens_per_second", _BLUE, False)], lambda value: value / unit),
    ]  # fmt: skip
    return [drawn[:2], drawn[2:]]


def _panel(
    lines: list[dict[str, Any]],
    title: str,
    y_label: str,
    quantities: Sequence[tuple[str, str, str, bool]],
    scaled: Callable[[float], float] = float,
) -> svg.Panel:
    drawn = []
    for name, key, color, dots in quantities:
        points = [(float(line["step"]), scaled(line[key])) for line in lines if math.isfinite(line.get(key, math.nan))]
        if points:
            drawn.append(svg.Line(name=name, points=_thinned(points), color=color, dots=dots))
    values = [y for line in drawn for _, y in line.points] or [0.0]
    steps = [float(line["step"]) for line in lines]
    return svg.Panel(title=title, x_label="step", y_label=y_label, lines=drawn, x_ticks=svg.ticks(steps),
                     y_ticks=svg.ticks(values), log_x=False)  # fmt: skip


def _group(points: Sequence[object]) -> int:
    """How many consecutive points are drawn as one; 0 where each is."""
    return -(-len(points) // _POINTS) if len(points) > _POINTS else 0


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = _group(points) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _subtitle(lives: list[dict[str, Any]]) -> str:
    if not lives:
        return "a run of scale"
    devices = ", ".join(f"{count} x {name}" for name, count in _items(lives[-1].get("devices")))
    return f"{devices or 'a run of scale'}, started {lives[0].get('started_at', 'at an unknown time')}"


def _life(life: dict[str, Any]) -> str:
    command = life.get("command")
    words = " ".join(str(word) for word in command) if isinstance(command, list) else ""
    versions = ", ".join(f"{name} {version}" for name, version in _items(life.get("versions")))
    git = dict(_items(life.get("git")))
    code = f", commit {str(git.get('commit'))[:12]}{' and changes' if git.get('dirty') else ''}" if git else ""
    said = escape(f"{life.get('started_at', '')}: {versions}{code}")
    return f'<p class="how">{said}<br><code>{escape(words)}</code></p>'


def _items(what: object) -> list[tuple[Any, Any]]:
    return list(what.items()) if isinstance(what, dict) else []


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _table(rows: Sequence[tuple[str, ...]], head: str = "") -> str:
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
