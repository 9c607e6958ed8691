"""Requests to stop: SIGTERM and SIGINT from whoever ends the job, SIGUSR1 from Slurm ahead of its time limit.

A request is only noted. The loop lets all ranks know at the end of each step, so that one signalled rank is enough,
and DeepSpeed's launcher, which signals its ranks one after another (0.19.8, launcher/launch.py), is no worse than one
that signals all at once. A thread takes the note: Python's handlers wait for a main thread that may stand in a
collective.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A launcher in the process group that was signalled passes the signal on: within this time it is the same request.
_SAME_REQUEST_S = 2.0


class StopRequest:
    """What this rank was asked. `name` is empty until it is asked to stop.

    Once `is_safe` there is nothing left to save, and further signals change nothing.
    """

    def __init__(self) -> None:
        self.name = ""
        self.is_safe = False
        self._asked_at = 0.0

    @contextmanager
    def heeded(self) -> Iterator["StopRequest"]:
        """Notes signals within the block; a second one ends the process at once."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        woken = signal.set_wakeup_fd(writer)
        thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                # A launcher ends the other ranks when the first has left; they leave by themselves.
                signal.signal(number, signal.SIG_IGN if self.is_safe else handler)
            os.close(writer)
            thread.join()
            os.close(reader)

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        if not self.name:
            self.name, self._asked_at = number.name, time.monotonic()
        elif not self.is_safe and time.monotonic() - self._asked_at > _SAME_REQUEST_S:
            print("stopped: at once, without saving, by a second signal", file=sys.__stderr__, flush=True)
            os._exit(128 + number)
