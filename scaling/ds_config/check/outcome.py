"""What DeepSpeed does with something wrong, and how loudly we say so."""

from enum import IntEnum, StrEnum


class Outcome(StrEnum):
    """What becomes of a run."""

    AT_START = "refuses at start"
    AT_STEP = "fails at step one"
    LATER = "fails later"
    IGNORES = "silently ignores"
    CHANGES = "silently changes"
    ACCEPTS = "accepts"


AT_START, AT_STEP, LATER = Outcome.AT_START, Outcome.AT_STEP, Outcome.LATER
IGNORES, CHANGES, ACCEPTS = Outcome.IGNORES, Outcome.CHANGES, Outcome.ACCEPTS


class Severity(IntEnum):
    """An error fails the check: the run would not start, would fail, or would not be what the file says."""

    NOTE = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        return self.name.lower()


NOTE, WARNING, ERROR = Severity.NOTE, Severity.WARNING, Severity.ERROR
