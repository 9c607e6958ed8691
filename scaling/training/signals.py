"""Requests to stop: SIGTERM and SIGINT from whoever ends the job, SIGUSR1 from Slurm ahead of its time limit.

A handler only takes note. The loop lets all ranks know at the end of each step, so that one signalled rank is enough,
and DeepSpeed's launcher, which signals its ranks one after another (0.19.8, launcher/launch.py), is no worse than one
that signals all at once.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A launcher in the process group that was signalled passes the signal on: within this time it is the same request.
_SAME_REQUEST_S = 2.0


class StopRequest:
    """What this rank was asked. `name` is empty until it is asked to stop."""

    def __init__(self) -> None:
        self.name = ""
        self.exit_code = 0  # of a second request; 0 until the run is safe to leave: then the code that it leaves with
        self._asked_at = 0.0

    @contextmanager
    def heeded(self) -> Iterator["StopRequest"]:
        """Notes signals within the block; a second one ends the process at once."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.name:
            self.name, self._asked_at = signal.Signals(number).name, time.monotonic()
        elif self.exit_code == 0 and time.monotonic() - self._asked_at > _SAME_REQUEST_S:
            os.write(sys.__stderr__.fileno(), b"stopped: at once, without saving, by a second signal\n")
            os._exit(128 + number)
