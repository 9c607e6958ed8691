"""The measured side of the memory estimate: bytes of tensors on one rank during one step."""

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch


class MemoryGauge:
    """Peak of one rank's tensors. On CUDA the caching allocator counts; on a CPU, torch's MemTracker does.

    On a CPU only the last micro step of one optimizer step is tracked, backward and optimizer included: the tracker
    takes one forward, and it slows what it watches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def how(self) -> str:
        if self.device.type == "cuda":
            return "torch.cuda.max_memory_allocated over the run"
        return "torch MemTracker over the last micro step of one optimizer step"

    @contextlib.contextmanager
    def watching(self, module: Any, *, on: bool) -> Iterator[None]:
        """Measures the block where `on` and the device is a CPU; costs nothing otherwise."""
        if not on or self.device.type == "cuda":
            yield
            return
        from torch.distributed._tools.mem_tracker import MemTracker

        tracker = MemTracker()
        # It hooks every parameter, and a frozen one takes none (torch 2.13.0, mem_tracker.py:603): counted as done.
        done = torch.utils.hooks.RemovableHandle(OrderedDict())
        for frozen in (parameter for parameter in module.parameters() if not parameter.requires_grad):
            tracker._param_to_grad_hook_handles[frozen] = (done, done)
        tracker.track_external(module, *_live_tensors(module))
        with tracker:
            yield
        snapshot = tracker.get_tracker_snapshot("peak")
        self.peak_allocated_bytes = max(device["Total"] for device in snapshot.values())
        self.peak_reserved_bytes = self.peak_allocated_bytes

    @contextlib.contextmanager
    def seeing(self, *, on: bool) -> Iterator[None]:
        """Gives what autograd keeps of the block's forwards a Python object, by which `watching` finds it.

        A pipeline has micro steps in flight when the last one begins. Without this what was made within an operation,
        as dropout's noise is, would be there unseen.
        """
        if not on or self.device.type == "cuda":
            yield
            return
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            yield

    def read(self) -> None:
        """Takes the CUDA allocator's peaks; nothing to do on a CPU."""
        if self.device.type == "cuda":
            self.peak_allocated_bytes = torch.cuda.max_memory_allocated(self.device)
            self.peak_reserved_bytes = torch.cuda.max_memory_reserved(self.device)


def _live_tensors(module: Any) -> list[torch.Tensor]:
    """Every tensor alive outside `module`, once per storage: optimizer states, master copies, buckets."""
    seen = {p.untyped_storage()._cdata for p in module.parameters()}
    tensors = []
    for candidate in gc.get_objects():
        # type(), not isinstance(): lazy proxies in other libraries answer isinstance by importing.
        if type(candidate) not in (torch.Tensor, torch.nn.Parameter) or candidate.is_meta:
            continue
        storage = candidate.untyped_storage()._cdata
        if storage not in seen and candidate.untyped_storage().nbytes():
            seen.add(storage)
            tensors.append(candidate)
    return tensors
