"""Steering the search: fields that a user pins, strategies that a user forbids, and what counts as best."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from scaling.cost.memory import USABLE_FRACTION
from scaling.errors import InputError, did_you_mean
from scaling.parallelism import KINDS

# On one cluster cost ranks as time does: "cost" also chooses how many GPUs (scaling/plan/reverse.py).
Objective = Literal["time", "memory", "cost"]

# The fields of a strategy that the search varies, with the type of their values.
_FIELDS = {
    "zero_stage": int,
    "offload_optimizer": str,
    "offload_param": str,
    "micro_batch_size": int,
    "gradient_accumulation_steps": int,
    "activation_checkpointing": str,
    "loss_kernel": str,
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "sequence_parallel_size": int,
    "expert_parallel_size": int,
}
Pair = tuple[str, int | str]
# Words for what people forbid most.
_WORDS: dict[str, tuple[Pair, ...]] = {
    "offload": tuple((field, device) for field in ("offload_optimizer", "offload_param") for device in ("cpu", "nvme")),
    "nvme": (("offload_optimizer", "nvme"), ("offload_param", "nvme")),
    "checkpointing": (("activation_checkpointing", "full"),),
}
# What a script can be told that splits no model itself.
DATA_PARALLELISM_ALONE: tuple[Pair, ...] = tuple((f"{kind}_parallel_size", 1) for kind in KINDS)


@dataclass(frozen=True, kw_only=True)
class Steering:
    """`pins` must hold and `forbidden` must not: (field, value) pairs. A process may fill `safety` of a device."""

    objective: Objective = "time"
    safety: float = USABLE_FRACTION
    pins: tuple[Pair, ...] = ()
    forbidden: tuple[Pair, ...] = ()

    @property
    def pinned(self) -> str:
        """As it was written, without what a runner's plans are always pinned to."""
        return ", ".join(f"{name}={value}" for name, value in self._own_pins)

    @property
    def _own_pins(self) -> tuple[Pair, ...]:
        if not set(self.pins).issuperset(DATA_PARALLELISM_ALONE):
            return self.pins
        return tuple(pin for pin in self.pins if pin not in DATA_PARALLELISM_ALONE)

    @property
    def sizes(self) -> dict[str, int]:
        """The pinned sizes of parallelism by kind; 1 where none is."""
        pinned = dict(self.pins)
        return {kind: int(pinned.get(f"{kind}_parallel_size", 1)) for kind in KINDS}

    @property
    def split(self) -> int:
        """Ranks to one copy of the data, as far as they are pinned; experts are spread over ranks with data apart."""
        return prod(size for kind, size in self.sizes.items() if kind != "expert")

    def divides(self, num_ranks: int) -> bool:
        """Whether the pinned sizes share out so many ranks."""
        return num_ranks % self.split == 0 and num_ranks % self.sizes["expert"] == 0

    def allows(self, what: object) -> bool:
        """Whether what is pinned or forbidden leaves a strategy, or a layout, which has some of its fields."""
        return all(getattr(what, name, value) == value for name, value in self.pins) and not any(
            getattr(what, name, None) == value for name, value in self.forbidden
        )

    def __str__(self) -> str:
        words = [] if self._own_pins == self.pins else ["data parallelism alone"]
        words += [f"{name}={value} pinned" for name, value in self._own_pins]
        spelled = set(self.forbidden)
        for word, pairs in _WORDS.items():
            if spelled.issuperset(pairs):
                words.append(f"{word} forbidden")
                spelled -= set(pairs)
        words += [f"{name}={value} forbidden" for name, value in self.forbidden if (name, value) in spelled]
        return ", ".join(words)


FREE = Steering()


def steering_of(
    *, objective: str = "time", safety: float | None = None, pin: Sequence[str] = (), forbid: Sequence[str] = ()
) -> Steering:
    """What the flags mean: --pin zero_stage=2, --forbid offload. Raises InputError naming the flag."""
    if objective not in get_args(Objective):
        raise InputError(
            "objective", objective, "is not an objective", hint=did_you_mean(objective, get_args(Objective))
        )
    safety = USABLE_FRACTION if safety is None else safety
    if not 0 < safety <= 1:
        raise InputError("safety", safety, "is not a share of a device's memory", hint="write 0.9 for nine tenths")
    return Steering(
        objective=objective,  # type: ignore[arg-type]  # checked above
        safety=safety,
        pins=tuple(_pair("pin", text) for text in _split(pin)),
        forbidden=tuple(pair for text in _split(forbid) for pair in (_WORDS.get(text) or (_pair("forbid", text),))),
    )


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",")]


def _pair(flag: str, text: str) -> Pair:
    """ "zero_stage=2" -> ("zero_stage", 2)."""
    name, equals, value = text.partition("=")
    known = [*_FIELDS, *(_WORDS if flag == "forbid" else ())]
    if name not in _FIELDS:
        raise InputError(flag, text, "names no field of a strategy", hint=did_you_mean(name, known))
    if not equals or not value:
        raise InputError(flag, text, "has no value", hint=f"write {name}=VALUE")
    if _FIELDS[name] is str:
        return name, value
    if not value.isdecimal():
        raise InputError(flag, text, "is not a whole number", hint=f"write {name}=2")
    if int(value) < 1 and name.endswith("_parallel_size"):
        raise InputError(flag, text, "is no number of ranks", hint="at least 1")
    return name, int(value)
