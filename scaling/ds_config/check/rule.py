"""The nouns of a check: what is known beside the file, a rule, what a rule finds, and how it is mended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scaling.ds_config.check.outcome import ERROR, Outcome, Severity
from scaling.ds_config.check.reader import Path
from scaling.ds_config.check.version import LATEST, Version, version
from scaling.hardware import Accelerator
from scaling.shape import Shape

if TYPE_CHECKING:
    from scaling.ds_config.check.view import View

Trainer = Literal["none", "hf", "accelerate"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What decides about a ds_config and does not stand in it; None is not known."""

    world_size: int | None = None
    model: Shape | None = None
    gpu: Accelerator | None = None
    optimizer: str | None = None  # what the script itself passes to deepspeed.initialize
    deepspeed_version: str = LATEST
    trainer: Trainer = "none"  # who reads the file first

    @property
    def release(self) -> Version:
        return version(self.deepspeed_version)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of the text: at `path`, a new value, another key, nothing, or (`insert`) a new member of an object.

    "commas" takes every trailing comma out.
    """

    what: Literal["value", "key", "remove", "insert", "commas"]
    path: Path = ()
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A rule's finding, before it has a place. `path` may name a key that is absent: then it points above."""

    path: Path
    says: str  # what is wrong here: "7 is not 2 x 1 x 4"
    mend: str  # what to write instead
    edits: tuple[Edit, ...] = ()  # only where there is one right answer
    outcome: Outcome | None = None  # where it is not the rule's
    severity: Severity | None = None
    does: str = ""
    offset: int | None = None  # where in the text, if it is not where `path` begins


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that can be wrong. `find` is pure and sees the file as DeepSpeed reads it."""

    id: str
    title: str  # the condition
    outcome: Outcome
    does: str  # what DeepSpeed does with it, with names
    mend: str  # what to write instead, in general; a hit says it for its file
    source: str  # where, in the package deepspeed 0.19.8
    find: "Callable[[View], Iterator[Hit]]"
    severity: Severity = ERROR
    since: str = ""  # first release that does so; "" is older than any known
    until: str = ""  # first release that no longer does

    def applies_to(self, release: Version) -> bool:
        return version(self.since) <= release and (not self.until or release < version(self.until))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `scale check` says of one place of one file."""

    rule: Rule
    path: Path
    line: int
    column: int
    severity: Severity
    outcome: Outcome
    says: str
    does: str
    mend: str
    edits: tuple[Edit, ...]
