"""What a person sees: one line on a terminal, cut at its end where that is narrow, and plain lines in a log."""

import io
import re

import pytest

from scaling.training.progress import Talk

_LINE = {
    "step": 7, "loss": 3.21, "lr": 2.5e-4, "grad_norm": 0.61, "global_batch_size": 512, "tokens_per_second": 123456.0,
    "mfu_fraction": 0.423,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, **changes):
    with Talk(stream, speaks=True).start(done=0, total=20) as talk:
        for step in range(1, 21):
            talk.step({**_LINE, "step": step, **changes}, 20, 90.0)
    return stream.getvalue()


def drawn(text):
    """The last state of the line, without its escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").strip().splitlines()[-1]


@pytest.fixture
def terminal(monkeypatch):
    """A function from a width to a stream that is a terminal of that width."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def of(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        return Terminal()

    return of


def test_a_terminal_has_one_line_with_everything(terminal):
    line = drawn(shown(terminal(140)))
    for words in (
        "step 20/20",
        "loss 3.2100",
        "123,456 tokens/s",
        "MFU 42.3%",
        "lr 0.00025",
        "grad norm 0.61",
        "batch 512",
    ):
        assert words in line


def test_a_narrow_terminal_keeps_one_line_and_the_loss(terminal):
    line = drawn(shown(terminal(60)))
    assert len(line) <= 60
    assert "loss 3.2100" in line


def test_no_color_is_honoured_on_a_terminal(terminal, monkeypatch):
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d")
    assert colour.search(shown(terminal(140)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown(terminal(140)))


def test_a_log_has_plain_lines_and_no_share_of_a_peak_that_nobody_knows(monkeypatch):
    text = shown(io.StringIO(), mfu_fraction=None)
    assert "\x1b" not in text
    assert text.splitlines()[-1] == (
        "step 20/20  loss 3.2100  123,456 tokens/s  lr 0.00025  grad norm 0.61  batch 512  90 s left"
    )
