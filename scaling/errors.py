"""The errors a user can meet. Each says what was asked, why it cannot be, and what would work.

Whoever catches one prints `error:` and `hint:` lines on stderr and leaves with `exit_code`; a traceback is a defect.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LONGEST_VALUE = 2000  # characters of a wrong value that an error repeats


class ScaleError(Exception):
    """The root. `exit_code` 2 means wrong usage: the same call will fail again."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(ScaleError, ValueError):
    """One field of the user's input is wrong. A ValueError too, so that pydantic collects it with the others."""

    def __init__(self, field: str, value: object, problem: str, *, hint: str = "") -> None:
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."
        super().__init__(f"{field}: {shown} {problem}", hint=hint)
        self.field = field
        self.value = value


class Indivisible(InputError):
    """Ranks would not have equal shares of a batch or of a model; another number of them, or another size, may."""


class FileProblems(ScaleError):
    """Everything that is wrong with one file, reported at once."""

    def __init__(self, path: str, problems: Sequence[str], *, hint: str = "") -> None:
        head = f"{path}: {len(problems)} problems" if len(problems) > 1 else f"{path}: {problems[0]}"
        super().__init__("\n  ".join([head, *problems]) if len(problems) > 1 else head, hint=hint)
        self.problems = list(problems)


class Stopped(ScaleError):
    """A run ended before its last step; what it had reached is on the disk.

    75 (EX_TEMPFAIL of sysexits.h) says that the same command goes on, 76 that something must change first.
    """

    def __init__(self, message: str, *, exit_code: int, hint: str = "", by_every_rank: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.by_every_rank = by_every_rank  # the first one may be the one that is gone


class Infeasible(ScaleError):
    """The request is well-formed, and the answer is no."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known words, or all of them when none is close."""
    known = sorted(known)
    close = [name for name in known if word and name.startswith(word)] or get_close_matches(word[:80], known)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(known)
