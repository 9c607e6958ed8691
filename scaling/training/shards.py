"""How a checkpoint's files are written and read: DeepSpeed's own checkpoint engine, replaced.

DeepSpeed's (0.19.8, runtime/checkpoint_engine/torch_checkpoint_engine.py) writes in place, does not sync, and unpickles
whatever it finds. This one writes each file to the disk, with the SHA-256 of what was written, at once or from a copy
on a thread; an error is kept until all ranks can hear of it, because one that raises alone leaves the others waiting.
"""

import copy
import hashlib
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import Tensor

from scaling.errors import ScaleError
from scaling.hardware.machine import available_memory_bytes
from scaling.manifest import File

# A copy of the states may take this share of what the host has left: the rest is for the page cache that the files
# go through, and for whatever else grows.
_COPY_SHARE = 0.5
# So many bytes are synced at once: each time the watchdog can see that something moves.
_SYNC_BYTES = 1 << 26


class Reader(CheckpointEngine):
    """Reads the files that a manifest names, and no others."""

    def __init__(self, may_read: Collection[Path] = ()) -> None:
        super().__init__()
        self.name = type(self).__name__
        self._may_read = {path.resolve() for path in may_read}

    def load(self, path: str, map_location: Any = None) -> Any:
        if Path(path).resolve() not in self._may_read:
            raise ScaleError(f"resume: {path} is not named in its checkpoint's manifest")
        return load(Path(path), map_location=map_location)

    def create(self, info: CheckpointCommitInfo) -> None:
        raise NotImplementedError

    def save(self, state_dict: Any, path: str) -> None:
        raise NotImplementedError

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True  # scaling/training/checkpoint.py does


class Writer(Reader):
    """One rank's. `in_background` copies what is saved, where the host has room, and writes while training goes on.

    `tick` is called whenever a part has been written.
    """

    def __init__(self, *, in_background: bool, ranks_of_host: int, tick: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.in_background = in_background
        self._ranks_of_host = ranks_of_host
        self._tick = tick
        self._copy = _Copy()
        self._queue: list[tuple[Any, Path]] = []
        self._thread: threading.Thread | None = None
        self._begun: set[str] = set()
        self._files: dict[str, File] = {}
        self._error = ""

    # What DeepSpeed calls

    def create(self, info: CheckpointCommitInfo) -> None:
        self._begun, self._files, self._error, self._queue = set(), {}, "", []
        self._copy.begin()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._error = self._error or _said(error, Path(path))

    def save(self, state_dict: Any, path: str) -> None:
        self._begun.add(Path(path).name)
        copied = self._copied(state_dict) if self.in_background else None
        if copied is None:
            self._write(state_dict, Path(path))
        else:
            self._queue.append((copied, Path(path)))

    # What checkpoint.Saver calls

    def text(self, content: str, path: Path) -> None:
        """Writes a small file at once."""
        self._begun.add(path.name)
        self._write(content, path)

    def start(self) -> None:
        """Writes what was copied, on a thread."""
        if self._queue:
            self._copy.wait()
            self._thread = threading.Thread(target=self._write_queue, name="checkpoint", daemon=True)
            self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> tuple[dict[str, File], str]:
        """The files of this rank by their names in the checkpoint, and what went wrong; waits for the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        missing = self._begun - self._files.keys()
        if missing and not self._error:
            self._error = f"{', '.join(sorted(missing))}: not written, for a reason unknown"
        return self._files, self._error

    def _write_queue(self) -> None:
        for content, path in self._queue:
            self._write(content, path)
        self._queue = []

    def _write(self, content: Any, path: Path) -> None:
        if self._error:
            return
        try:
            with open(path, "wb") as file:
                hashed = _Hashed(file, self._tick)
                if isinstance(content, str):
                    hashed.write(content.encode())
                else:
                    _torch_save(content, hashed)
                hashed.sync()
            self._files[path.name] = File(num_bytes=hashed.num_bytes, sha256=hashed.digest.hexdigest())
        except BaseException as error:  # torch has no type of its own; whatever it is, the other ranks must hear of it
            self._error = _said(error, path)

    def _copied(self, content: Any) -> Any:
        """A copy of `content`; None where the host has no room for it."""
        if not self._copy.fits(content, int(available_memory_bytes() * _COPY_SHARE / self._ranks_of_host)):
            return None
        try:
            return self._copy.of(content, self._tick)
        except (MemoryError, RuntimeError):  # torch's, where it cannot pin or allocate
            return None


def load(path: Path, *, map_location: Any = None, mmap: bool = False) -> Any:
    """torch.load of tensors, plain values and the classes that DeepSpeed pickles beside them."""
    with torch.serialization.safe_globals(_classes()):
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)


def _classes() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [OrderedDict, defaultdict, set, LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def _torch_save(content: Any, file: Any) -> None:
    checks = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # the SHA-256 says more, and this holds the interpreter's lock
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(checks)


def _said(error: BaseException, path: Path) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    known = cause.strerror if isinstance(cause, OSError) else None
    return f"{path.name}: {known or (str(error) or type(error).__name__).splitlines()[0]}"


class _Hashed:
    """A file that knows the digest of what was written to it."""

    def __init__(self, file: BinaryIO, tick: Callable[[], None]) -> None:
        self._file, self._tick = file, tick
        self.digest = hashlib.sha256()
        self.num_bytes = self._unsynced = 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.num_bytes += size
        self._unsynced += size
        if self._unsynced >= _SYNC_BYTES:
            self.sync()
        self._tick()
        return size

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0


class _Copy:
    """Copies on the host, in memory that is kept for the next one: new pages cost more than the copying.

    Storages are copied, not tensors, so that what shares memory still does, and is written once.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def begin(self) -> None:
        """What was copied before has been written."""
        self._used = 0

    def fits(self, content: Any, room: int) -> bool:
        """Whether what `content` needs beyond the memory already held is at most `room` bytes."""
        sizes = {storage._cdata: storage.nbytes() for storage in map(Tensor.untyped_storage, _tensors(content))}
        held = sum(buffer.numel() for buffer in self._buffers[self._used :])
        return sum(sizes.values()) - held <= room

    def of(self, content: Any, tick: Callable[[], None]) -> Any:
        """`content` as it is now, whatever becomes of its tensors and objects; a `tick` for each storage."""
        self._tick = tick
        return self._of(content, {})

    def wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _of(self, content: Any, copies: dict[int, Tensor]) -> Any:
        match content:
            case Tensor():
                copied = self._storage(content, copies).untyped_storage()
                empty = torch.empty(0, dtype=content.dtype)
                return empty.set_(copied, content.storage_offset(), content.size(), content.stride())
            case dict() if type(content) in (dict, OrderedDict):
                made = type(content)((key, self._of(value, copies)) for key, value in content.items())
                if hasattr(content, "_metadata"):  # of a module's state_dict: versions of its layers
                    made._metadata = copy.deepcopy(content._metadata)
                return made
            case list() | tuple() if type(content) in (list, tuple):
                return type(content)(self._of(value, copies) for value in content)
        return copy.deepcopy(content)

    def _storage(self, tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
        """The bytes of `tensor`'s storage, copied the first time that it is met."""
        storage = tensor.untyped_storage()
        if storage._cdata not in copies:
            size = storage.nbytes()
            if self._used == len(self._buffers) or self._buffers[self._used].numel() != size:
                on_gpu = tensor.device.type == "cuda"
                self._buffers[self._used : self._used + 1] = [torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)]
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            copies[storage._cdata] = self._buffers[self._used].copy_(source, non_blocking=True)
            self._used += 1
            self._tick()
        return copies[storage._cdata]


def _tensors(content: Any) -> list[Tensor]:
    match content:
        case Tensor():
            return [content]
        case dict():
            return [tensor for value in content.values() for tensor in _tensors(value)]
        case list() | tuple():
            return [tensor for value in content for tensor in _tensors(value)]
    return []
