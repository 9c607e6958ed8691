"""What is done about a step that is not to be trusted: judged on all ranks alike, before it changes the weights."""

import math
from dataclasses import dataclass
from statistics import median
from typing import Literal

from scaling.errors import Stopped
from scaling.recipe import Guards

_WINDOW = 64  # losses to compare with
_FEWEST = 16  # below which there is nothing to compare with
_DEVIATION = 1.4826  # standard deviations of a normal distribution to its median absolute deviation

Action = Literal["train", "warn", "skip", "rollback", "stop"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What to do with a step, and why: a sentence where it is not simply to be trained on."""

    action: Action
    kind: str = ""
    reason: str = ""


TRAIN = Judgement(action="train")


class Judge:
    """Remembers what it takes to judge, all of it part of a checkpoint."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.recent_losses: list[float] = []
        self.rollbacks = 0
        self.skipped_in_a_row = 0

    def judge(self, loss: float, *, is_finite: bool) -> Judgement:
        """The step of global `loss`, `is_finite` where it and every rank's gradients are numbers."""
        guards = self.guards
        if not is_finite:
            return Judgement(action=guards.non_finite, kind="non-finite", reason=f"loss {loss}")
        if (limit := self.spike_limit()) is not None and loss > limit:
            reason = f"loss {loss:.4f}, and {limit:.4f} is {guards.spike_deviations:g} deviations above the median"
            return Judgement(action=guards.loss_spike, kind="loss spike", reason=reason)
        return TRAIN

    def spike_limit(self) -> float | None:
        """The loss above which a step is a spike; None while there are too few to compare with, or all are equal."""
        if len(self.recent_losses) < _FEWEST:
            return None
        middle = median(self.recent_losses)
        deviation = _DEVIATION * median(abs(loss - middle) for loss in self.recent_losses)
        return middle + self.guards.spike_deviations * deviation if deviation else None

    def trained(self, loss: float) -> None:
        """A step was trained on."""
        self.skipped_in_a_row = 0
        if math.isfinite(loss):
            self.recent_losses = [*self.recent_losses, loss][-_WINDOW:]

    def skipped(self, what: str) -> None:
        """Raises Stopped after too many in a row."""
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.guards.most:
            raise unhealthy(f"{what}, after {self.guards.most} steps skipped in a row")

    def rolled_back(self, what: str) -> None:
        """Raises Stopped after too many in the run."""
        self.rollbacks += 1
        if self.rollbacks > self.guards.most:
            raise unhealthy(f"{what}, after {self.guards.most} rollbacks")


def unhealthy(what: str) -> Stopped:
    hint = "the checkpoints before it are whole; a lower learning rate, or another recipe.guards, may carry it past"
    return Stopped(what, exit_code=76, hint=hint)
