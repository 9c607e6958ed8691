"""A run's steps in a few numbers, and the page that shows them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from scaling.errors import InputError
from scaling.report import events_of, page, steps_of, summary
from scaling.report.history import facts
from scaling.report.svg import ticks


def line(step, **changes):
    time = {"data_s": 0.1, "forward_s": 0.4, "backward_s": 1.2, "optimizer_s": 0.2, "rest_s": 0.1}
    return {
        "step": step, "loss": 8.0 / step, "lr": 1e-3 * step, "grad_norm": 1.0, "tokens": 1000 * step,
        "tokens_per_second": 100.0 * step, "elapsed_s": 2.0, "mfu_fraction": 0.01 * step, **time, **changes,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A function from lines and events to a run directory called "a run"."""

    def of(lines, events=(), lives=()):
        folder = tmp_path / "a run"
        folder.mkdir(exist_ok=True)
        for name, objects in (("metrics.jsonl", lines), ("events.jsonl", events)):
            (folder / name).write_text("".join(json.dumps(each) + "\n" for each in objects))
        (folder / "environment.json").write_text(json.dumps(list(lives)))
        return folder

    return of


def test_the_summary_is_that_of_a_count_by_hand(run):
    lines = [line(1), line(2), line(3, validation_loss=3.0), line(4, loss=1.5), line(5, loss=float("nan")),
             line(6, loss=1.75, skipped_steps=2, validation_loss=3.5)]  # fmt: skip
    found = summary(steps_of(run(lines)))
    assert found["steps"] == 6
    assert found["tokens"] == 6000
    assert found["elapsed_s"] == 12.0
    assert (found["final_loss"], found["best_loss"], found["best_loss_step"]) == (1.75, 1.5, 4)
    assert (found["final_validation_loss"], found["best_validation_loss"]) == (3.5, 3.0)
    # Medians of steps 3 to 6.
    assert found["tokens_per_second"] == 450.0
    assert found["mfu_fraction"] == pytest.approx(0.045)
    assert found["time_fractions"]["backward"] == pytest.approx(0.6)
    assert sum(found["time_fractions"].values()) == pytest.approx(1.0)
    assert found["skipped_steps"] == 2
    assert dict(facts(found))["MFU"] == "4.5% median"


def test_of_an_older_run_what_it_did_not_measure_is_unknown(run):
    found = summary(steps_of(run([{"step": 1, "loss": 2.0, "tokens_per_second": 5.0, "lr": 1.0, "grad_norm": 1.0}])))
    assert (found["mfu_fraction"], found["time_fractions"], found["skipped_steps"]) == (None, None, None)
    assert dict(facts(found))["MFU"] == "unknown"


def test_a_line_that_is_being_written_is_left_out_and_one_that_is_no_steps_is_an_error(run):
    folder = run([line(1), line(2)])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [each["step"] for each in steps_of(folder)] == [1, 2]
    for text, said in (("{}\n", "without a number step"), ("[1]\n", "not a JSON object"), ("{\n", "not JSON")):
        (folder / "metrics.jsonl").write_text(text)
        with pytest.raises(InputError) as caught:
            steps_of(folder)
        assert caught.value.field == "run"
        assert said in caught.value.message


class Reader(HTMLParser):
    """Collects what a page would load, and checks that its elements are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.charts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.charts += tag == "svg"
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset")]
        self.loaded += [tag] if tag in ("script", "link", "iframe") else []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_needs_nothing_else_and_runs_nothing_that_a_run_says(run):
    life = {
        "started_at": "2026-11-24T10:00:00+00:00", "command": ["train.py", "--run_dir", "<script>x</script>"],
        "versions": {"torch": "2.13.0"}, "git": {"commit": "f" * 40, "dirty": True}, "devices": {"H100": 8},
    }  # fmt: skip
    event = {"step": 7, "kind": "spike", "message": "<script>alert(1)</script>"}
    folder = run([line(step) for step in range(1, 1001)], [event], [life])
    measured = {"tokens_per_second": {"value": 900.0, "predicted": 1000.0, "how": "median", "predicted_in": "time"}}
    (folder / "measured.json").write_text(json.dumps(measured))
    text = page(folder)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.loaded == []
    assert reader.charts == 2
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "@import" not in text
    assert "<script" not in text
    assert "step 7: spike: &lt;script&gt;" in text
    for words in (
        "<h1>a run</h1>",
        "8 x H100",
        "1.11",
        "Each point is the mean of 3 steps",
        "commit ffffffffffff and changes",
    ):
        assert words in text
    assert text.count("<path") < 100
    assert len(text) < 60_000


@pytest.mark.parametrize("changes", [{"loss": float("nan")}, {"loss": 0.0, "lr": 0.0, "grad_norm": float("inf")}])
def test_a_run_of_one_step_or_without_a_finite_number_has_a_page_too(run, changes):
    for lines in ([line(1, **changes)], [line(step, **changes) for step in (1, 2, 3)]):
        numbers = re.sub(r"<style>.*?</style>", "", page(run(lines)))
        assert "<svg" in numbers
        assert 'd="M' in numbers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 9.7], [0, 2, 4, 6, 8, 10]),
        ([1, 1000], [0, 200, 400, 600, 800, 1000]),
        ([2.5e-5, 3e-4], [0, 1e-4, 2e-4, 3e-4]),
        ([5.0], [2, 3, 4, 5, 6, 7, 8]),
        ([0.0, 0.0], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([-3.0, 3.0], [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_hold_every_value(values, expected):
    found = ticks(values)
    assert found == pytest.approx(expected)
    assert found[0] <= min(values)
    assert max(values) <= found[-1]


def scale_report(*arguments):
    program = "import sys; from scaling.cli import main; sys.argv = ['scale', 'report', *sys.argv[1:]]\ntry: main()\n"
    program += "finally: assert 'torch' not in sys.modules"
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_shows_a_run_that_has_not_ended_without_torch(run, tmp_path):
    folder = run([line(1), line(2)], [{"step": 2, "kind": "spike", "message": "up [red]"}])
    shown = scale_report(folder, "--html", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    assert "2 in 4" in shown.stdout
    assert "step 2: spike: up [red]" in shown.stdout
    assert (tmp_path / "page.html").read_text() == page(folder)
    answer = json.loads(scale_report(folder, "--json").stdout)
    assert answer["summary"]["steps"] == 2
    assert answer["events"] == events_of(folder)
    assert answer["rows"] == []


def test_no_run_and_no_place_for_the_page_are_one_error(run, tmp_path):
    refused = scale_report(tmp_path / "nope")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: run: ")
    blocked = scale_report(run([line(1)]), "--html", "/proc/nope/page.html")
    assert blocked.returncode == 2
    assert blocked.stderr.startswith("error: html: ")
