"""Real ranks for tests: processes forked from a server that has imported torch and DeepSpeed once.

A two-rank case costs one to three seconds here, against fifteen under a launcher, nearly all of it imports.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([
    "scaling.training.loop", "scaling.data", "scaling.train",
    # What DeepSpeed and torch import as a run goes on: a second of each rank's time, for the first alone.
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer",
    "torch.utils.tensorboard", "torch.distributed._tools.mem_tracker",
])  # fmt: skip
SOAK = bool(os.environ.get("SCALE_SOAK"))  # the long form of a test: `make soak`
_TIMEOUT_S = 3600 if SOAK else 120  # there many programs run on the same ranks, one after another


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` on each of `world_size` ranks with a launcher's environment; the results by rank.

    A rank that raises or exits fails the test with its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(theirs, rank, world_size, port, function, args), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    try:
        results = [_received(ours, rank) for rank, (_, ours) in enumerate(ranks)]
        for process, _ in ranks:
            process.join(_TIMEOUT_S)
        return results
    finally:
        for process, _ in ranks:
            if process.is_alive():
                process.kill()


def _received(pipe: Any, rank: int) -> Any:
    if not pipe.poll(_TIMEOUT_S):
        raise TimeoutError(f"rank {rank} said nothing for {_TIMEOUT_S} s")
    ok, value = pipe.recv()
    if not ok:
        raise AssertionError(f"rank {rank} failed:\n{value}")
    return value


def _rank(
    pipe: Any, rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        pipe.send((True, function(*args)))
    except BaseException:  # an exit code is a result to report too
        pipe.send((False, traceback.format_exc()))
