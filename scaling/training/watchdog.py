"""A thread on each rank that notices when nothing moves any more, says which rank it is, and ends the run.

Left alone, a collective waits for a silent rank for as long as its timeout, half an hour, and then names nobody. Each
rank writes its pulse into the run's logs; a rank that has stood still reads the others'. While any of them moves, a
long save or a slow step, there is nothing to do.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from scaling.training.ranks import Ranks

# Before the first step has ended kernels may be compiled; after it, twenty times the slowest step, and two minutes.
_FIRST_PATIENCE_S, _LEAST_PATIENCE_S, _STEPS_OF_PATIENCE = 900.0, 120.0, 20.0


@dataclass(kw_only=True)
class Pulse:
    """`beat` counts the thread's turns, `count` what the loop has begun, alike on all ranks, `parts` of files written.

    A rank whose beat stands still is stopped or dead; of those that beat, the one of the lowest count is waited for.
    """

    rank: int
    host: str
    pid: int
    beat: int = 0
    count: int = 0
    parts: int = 0
    doing: str = "starting"


class Watchdog:
    """`patience_s` None adapts to the steps. A context manager around all that ranks do together."""

    def __init__(self, folder: Path, ranks: Ranks, patience_s: float | None, *, hint: str) -> None:
        self._folder, self._ranks, self._asked_s, self._hint = folder, ranks, patience_s, hint
        self._pulse = Pulse(rank=ranks.rank, host=socket.gethostname(), pid=os.getpid())
        self._slowest_s: float | None = None
        self._is_unusual = True  # until the loop begins
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def doing(self, what: str) -> None:
        """The loop begins something: every rank says the same, in the same order."""
        self._is_unusual = False
        self._pulse.count += 1
        self._pulse.doing = what

    def unusual(self, what: str) -> None:
        """The loop begins what may take long without a sign: there is more patience until the next `doing`."""
        self.doing(what)
        self._is_unusual = True

    @property
    def doing_now(self) -> str:
        return self._pulse.doing

    def tick(self) -> None:
        """Something that only some ranks do has got further."""
        self._pulse.parts += 1

    def step_took(self, elapsed_s: float) -> None:
        self._slowest_s = max(self._slowest_s or 0.0, elapsed_s)

    @property
    def patience_s(self) -> float:
        if self._asked_s is not None and not self._is_unusual:
            return self._asked_s
        if self._slowest_s is None or self._is_unusual:
            return _FIRST_PATIENCE_S
        return max(_LEAST_PATIENCE_S, _STEPS_OF_PATIENCE * self._slowest_s)

    def __enter__(self) -> "Watchdog":
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._path(self._ranks.rank).unlink(missing_ok=True)

    def _run(self) -> None:
        seen: dict[int, tuple[Pulse, float, float]] = {}  # each rank's pulse, when it last beat and when it last moved
        while not self._ended.wait(min(1.0, self.patience_s / 10)):
            self._pulse.beat += 1
            self._write()
            now = time.monotonic()
            for pulse in (*self._others(), replace(self._pulse)):
                before, beat_at, moved_at = seen.get(pulse.rank, (pulse, now, now))
                if pulse.beat != before.beat:
                    beat_at = now
                if (pulse.count, pulse.parts) != (before.count, before.parts):
                    moved_at = now
                seen[pulse.rank] = pulse, beat_at, moved_at
            if all(now - moved_at > self.patience_s for _, _, moved_at in seen.values()):
                silent = [rank for rank, (_, beat_at, _) in seen.items() if now - beat_at > self.patience_s / 2]
                self._end({rank: pulse for rank, (pulse, _, _) in seen.items()}, silent)

    def _end(self, pulses: dict[int, Pulse], silent: list[int]) -> None:
        """Dumps this rank's stacks, lets the first rank that still beats speak, and leaves."""
        try:
            with open(self._folder / f"rank_{self._ranks.rank}.stacks", "w", encoding="utf-8") as file:
                file.write(f"{self._pulse.doing}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        try:
            time.sleep(min(2.0, self.patience_s / 5))  # the others dump theirs
            if self._ranks.rank == min(rank for rank in pulses if rank not in silent or rank == self._ranks.rank):
                moved = f"stopped: nothing has moved for {self.patience_s:.0f} s"
                stacks = self._folder / "rank_*.stacks"
                text = f"{moved}: {diagnosis(pulses, silent)}; stacks: {stacks}\nhint: {self._hint}"
                print(text, file=sys.__stderr__, flush=True)
            else:
                time.sleep(0.5)
        finally:
            os._exit(75)

    def _others(self) -> list[Pulse]:
        found = []
        for rank in range(self._ranks.world_size):
            if rank == self._ranks.rank:
                continue
            try:
                found.append(Pulse(**json.loads(self._path(rank).read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                continue  # it has not begun, or has ended
        return found

    def _write(self) -> None:
        path = self._path(self._ranks.rank)
        try:
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(asdict(self._pulse)), encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            pass  # a full disk is no silence: training goes on

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.pulse"


def diagnosis(pulses: dict[int, Pulse], silent: list[int]) -> str:
    """Which rank the others wait for, as far as can be told."""

    def named(rank: int) -> str:
        return f"rank {rank} (host {pulses[rank].host}, process {pulses[rank].pid})"

    if silent:
        return ", ".join(f"{named(rank)} does not answer, since {pulses[rank].doing}" for rank in sorted(silent))
    last = min(pulse.count for pulse in pulses.values())
    behind = [rank for rank, pulse in pulses.items() if pulse.count == last]
    if len(behind) < len(pulses):
        return ", ".join(f"{named(rank)} is behind the others, in {pulses[rank].doing}" for rank in sorted(behind))
    return f"all ranks are in {pulses[min(pulses)].doing}"
