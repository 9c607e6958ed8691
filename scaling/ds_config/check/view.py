"""A ds_config as DeepSpeed reads it: the release's defaults, lax conversions, dropped "auto"s, deprecated spellings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scaling.ds_config.check import trainers
from scaling.ds_config.check.reader import Document, Path
from scaling.ds_config.check.rule import Context
from scaling.ds_config.check.schema import KEYS, REMOVED, UNSET, Key, children, key_at
from scaling.ds_config.check.values import Refused, read_as

AUTO = "auto"

# The spellings of a width, by the one that the rules use (deepspeed 0.19.8, runtime/config.py:DtypeEnum).
WIDTHS = {
    name: width
    for width, names in {
        "fp16": ("fp16", "float16", "half", "torch.float16"),
        "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
        "fp32": ("fp32", "float32", "float", "torch.float32"),
        "int8": ("int8", "torch.int8"),
    }.items()
    for name in names
}

# deepspeed 0.19.8, runtime/config.py:DEEPSPEED_OPTIMIZERS; these names are taken in any letter case.
OWN_OPTIMIZERS = ("adagrad", "adam", "adamw", "lamb", "muadam", "muadamw", "musgd", "lion", "muon")
ONE_BIT = ("onebitadam", "onebitlamb", "zerooneadam")


class Undetermined(Exception):
    """The file alone does not say: a trainer fills it in, or the value is wrong and another rule's."""


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A key that stands in the file. `key` is None where DeepSpeed reads none of that name in `block`."""

    path: Path
    key: Key | None
    block: Key | None  # None at the top
    value: Any

    @property
    def is_auto(self) -> bool:
        return isinstance(self.value, str) and self.value == AUTO and not (self.key and self.key.kind.holds(AUTO))


class View:
    """One file in its context, for rules to ask."""

    def __init__(self, document: Document, context: Context) -> None:
        self.document = document
        self.context = context
        self.root: dict[str, Any] = document.root.value
        self.release = context.release

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """Every key in the file down to where DeepSpeed stops looking, in the file's order."""
        return tuple(self._spots((), None, self.root))

    def _spots(self, path: Path, block: Key | None, value: dict[str, Any]) -> Iterator[Spot]:
        known = children(block.path if block else ())
        for name, inner in value.items():
            key = known.get(name)
            if key and not key.exists_at(self.release):
                key = None
            spot = Spot(path=(*path, name), key=key, block=block, value=inner)
            yield spot
            if key and key.keys and isinstance(inner, dict) and (*path, name) not in REMOVED:
                yield from self._spots((*path, name), key, inner)

    def raw(self, path: str) -> Any:
        """What the file says, or UNSET; by whichever of the key's names."""
        value: Any = self.root
        here: tuple[str, ...] = ()
        for name in path.split("."):
            here = (*here, name)
            if not isinstance(value, dict):
                return UNSET
            alias = KEYS[here].alias if here in KEYS else ""
            if name in value:
                value = value[name]
            elif alias and alias in value:
                value = value[alias]
            else:
                return UNSET
        return value

    def says(self, path: str) -> bool:
        return self.raw(path) is not UNSET

    def at(self, path: str) -> Path:
        """The path of a key in the file's own spelling, to point at."""
        *block, name = path.split(".")
        key = KEYS.get((*block, name))
        parent = self.raw(".".join(block)) if block else self.root
        if key and key.alias and isinstance(parent, dict) and key.alias in parent and name not in parent:
            name = key.alias
        return (*block, name)

    def is_auto(self, path: str) -> bool:
        return self.raw(path) == AUTO and not KEYS[tuple(path.split("."))].kind.holds(AUTO)

    def is_resolved(self, path: Path) -> bool:
        """Does the trainer put a value in the place of the "auto" at `path`?"""
        return trainers.resolves(self.context.trainer, path)

    def get(self, path: str) -> Any:
        """What DeepSpeed works with at `path`; None where there is nothing. Raises Undetermined."""
        key = KEYS[tuple(path.split("."))]
        default = key.default_at(self.release)
        value = self._block_above(path)
        if value is UNSET or not key.exists_at(self.release):
            return None if default is UNSET else default
        if value == AUTO and not key.kind.holds(AUTO):
            if key.reader == "get" or self.context.trainer != "none":
                raise Undetermined(path)
            return None if default is UNSET else default
        if key.reader == "get":
            if not key.kind.holds(value):
                raise Undetermined(path)
            return value
        try:
            return read_as(key.kind, value)
        except Refused:
            raise Undetermined(path) from None

    def _block_above(self, path: str) -> Any:
        """raw(path), once every block above it is seen to be one."""
        names = path.split(".")
        for depth in range(1, len(names)):
            block = self.raw(".".join(names[:depth]))
            if block is UNSET or block is None:
                return UNSET
            if not isinstance(block, dict):
                raise Undetermined(path)
        return self.raw(path)

    # What several rules ask for.

    @cached_property
    def stage(self) -> int:
        zero = self.root.get("zero_optimization")
        if isinstance(zero, bool):
            return int(zero)  # the old form
        return int(self.get("zero_optimization.stage"))

    def zero(self, name: str) -> Any:
        if isinstance(self.root.get("zero_optimization"), bool):
            default = KEYS["zero_optimization", name].default_at(self.release)
            return None if default is UNSET else default
        return self.get(f"zero_optimization.{name}")

    @cached_property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        bf16 = "bf16" if self.root.get("bf16") is not None else "bfloat16"
        if self.get(f"{bf16}.enabled"):
            return "bf16"
        return "fp16" if self.get("fp16.enabled") else "fp32"

    @cached_property
    def grad_accum_dtype(self) -> str:
        """The width in which micro steps are summed, in short."""
        return WIDTHS[self.get("data_types.grad_accum_dtype") or self.precision]

    def offload(self, what: str) -> str:
        """none, cpu or nvme, of "optimizer" or "param"."""
        old = {"optimizer": "cpu_offload", "param": "cpu_offload_param"}[what]
        if self.says(f"zero_optimization.{old}"):
            return "cpu" if self.zero(old) else "none"
        if isinstance(self.root.get("zero_optimization"), bool):
            return "none"
        return str(self.get(f"zero_optimization.offload_{what}.device"))

    def zero_block(self, block: str, name: str) -> Any:
        """A setting of a block of zero_optimization, or its default; None where there is no such block."""
        return None if self.zero(block) is None else self.get(f"zero_optimization.{block}.{name}")

    def zero_offload(self, what: str, name: str) -> Any:
        return self.zero_block(f"offload_{what}", name)

    @cached_property
    def optimizer(self) -> str | None:
        """Whose step it is: the script's, else the file's; DeepSpeed's own names in small letters."""
        name = self.context.optimizer or self.get("optimizer.type")
        return None if name is None else name.lower() if name.lower() in OWN_OPTIMIZERS else name

    @property
    def optimizer_is_the_files(self) -> bool:
        return self.context.optimizer is None and self.get("optimizer.type") is not None

    @property
    def raw_optimizer_type(self) -> bool:
        """Does the file name an optimizer?"""
        return self.says("optimizer.type") and self.raw("optimizer.type") is not None

    def optimizer_params(self) -> dict[str, Any]:
        params = self.get("optimizer.params")
        return params if isinstance(params, dict) else {}

    @property
    def world_size(self) -> int:
        if self.context.world_size is None:
            raise Undetermined("world_size")
        return self.context.world_size

    @cached_property
    def batch_world_size(self) -> int:
        """The ranks by which DeepSpeed multiplies the micro batch: all, by sequence_parallel_size where it is given."""
        shared = self.get("sequence_parallel_size") or 1
        if self.world_size % shared:
            raise Undetermined("world_size")
        return self.world_size // shared


__all__ = ["AUTO", "ONE_BIT", "OWN_OPTIMIZERS", "WIDTHS", "Spot", "Undetermined", "View", "key_at"]
