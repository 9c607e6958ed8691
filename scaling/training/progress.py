"""What a person sees of a run: one line on a terminal, plain lines in a log. NO_COLOR is rich's own to honour."""

from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_LINES = 20  # about so many step lines in a log, whatever the length of the run
_BAR_WIDTH = 12


class Talk:
    """Speaks for the first rank and is silent on the others. A context manager around the steps."""

    def __init__(self, stream: TextIO, *, speaks: bool) -> None:
        self._speaks = speaks
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._every = 1

    def say(self, what: RenderableType) -> None:
        if self._speaks:
            self._console.print(what)

    def start(self, *, done: int, total: int) -> "Talk":
        """Steps `done` + 1 to `total` are about to be run."""
        self._every = max(1, (total - done) // _PLAIN_LINES)
        if self._speaks and self._console.is_terminal:
            # What matters most stands first: a narrow terminal cuts the line's end.
            self._bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(_BAR_WIDTH), TimeRemainingColumn(compact=True),
                TextColumn("{task.description}", markup=False), console=self._console,
            )  # fmt: skip
            self._bar.add_task("", total=total, completed=done)
        return self

    def step(self, values: dict[str, Any], total: int, left_s: float) -> None:
        """One optimizer step is done."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=values["step"], description=sentence(values))
        elif values["step"] % self._every == 0 or values["step"] == total:
            self.say(f"step {values['step']}/{total}  {sentence(values)}  {left_s:.0f} s left")

    def __enter__(self) -> "Talk":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


def sentence(values: dict[str, Any]) -> str:
    """A step's numbers in words; MFU only where it is known."""
    mfu = values.get("mfu_fraction")
    said = [
        f"loss {values['loss']:.4f}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"MFU {mfu:.1%}" if mfu is not None else "",
        f"lr {values['lr']:.3g}",
        f"grad norm {values['grad_norm']:.3g}",
        f"batch {values['global_batch_size']:,}",
    ]
    return "  ".join(filter(None, said))
