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
    host: str = ""
    pid: int = 0  # 0 as long as no pulse of the rank has been read
    beat: int = 0
    count: int = 0
    parts: int = 0
    doing: str = "starting"


@dataclass(frozen=True)
class Seen:
    """The last pulse of a rank, and when it was first seen to have beaten and to have moved as far."""

    pulse: Pulse
    beat_at: float
    moved_at: float

    def then(self, pulse: Pulse, now: float) -> "Seen":
        moved = (pulse.count, pulse.parts) != (self.pulse.count, self.pulse.parts)
        beat = pulse.beat != self.pulse.beat
        return Seen(pulse, now if beat else self.beat_at, now if moved else self.moved_at)


class Watchdog:
    """`patience_s` None adapts to the steps. A context manager around all that ranks do together."""

    def __init__(self, folder: Path, ranks: Ranks, patience_s: float | None, *, hint: str) -> None:
        self._folder, self._ranks, self._asked_s, self._hint = folder, ranks, patience_s, hint
        self._pulse = Pulse(rank=ranks.rank, host=socket.gethostname(), pid=os.getpid())
        self._slowest_s: float | None = None
        self._is_unusual = True  # until the loop begins
        self._is_shown = False  # to the other ranks
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def doing(self, what: str) -> None:
        """The loop begins something: every rank says the same, in the same order."""
        self._pulse.doing = what
        self._pulse.count += 1
        self._is_unusual = False  # after the count, which the thread reads later

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
        began_at = time.monotonic()
        seen = {rank: Seen(Pulse(rank=rank), began_at, began_at) for rank in range(self._ranks.world_size)}
        # The first rank makes the folder when all have joined: the others show themselves as soon as they can.
        while not self._ended.wait(min(1.0 if self._is_shown else 0.1, self.patience_s / 10)):
            self._pulse.beat += 1
            self._write()
            now, patience_s = time.monotonic(), self.patience_s
            for pulse in (*self._others(), replace(self._pulse)):
                seen[pulse.rank] = seen[pulse.rank].then(pulse, now)
            if all(now - last.moved_at > patience_s for last in seen.values()):
                silent = [rank for rank, last in seen.items() if now - last.beat_at > patience_s / 2]
                self._end({rank: last.pulse for rank, last in seen.items()}, silent)

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
            self._is_shown = True
        except OSError:
            pass  # a full disk is no silence: training goes on

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.pulse"


def diagnosis(pulses: dict[int, Pulse], silent: list[int]) -> str:
    """Which rank the others wait for, as far as can be told."""

    def named(rank: int) -> str:
        pulse = pulses[rank]
        return f"rank {rank} (host {pulse.host}, process {pulse.pid})" if pulse.pid else f"rank {rank} (never seen)"

    if silent:
        return ", ".join(f"{named(rank)} does not answer, since {pulses[rank].doing}" for rank in sorted(silent))
    last = min(pulse.count for pulse in pulses.values())
    behind = [rank for rank, pulse in pulses.items() if pulse.count == last]
    if len(behind) < len(pulses):
        return ", ".join(f"{named(rank)} is behind the others, in {pulses[rank].doing}" for rank in sorted(behind))
    return f"all ranks are in {pulses[min(pulses)].doing}"
