"""A plan: what was chosen, its price, what was assumed, what else would do, and what was rejected and why."""

from dataclasses import dataclass

from scaling.cost import MemoryEstimate, TimeEstimate
from scaling.hardware import Cluster
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.units import HOURS_PER_DAY

# Times this close are as good as equal, the estimate being no better: something else decides among them.
TIE_FRACTION = 0.02


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One strategy with its price."""

    strategy: Strategy
    memory: MemoryEstimate
    time: TimeEstimate

    @property
    def gpu_hours(self) -> float:
        """Of the whole run: devices x hours."""
        return self.strategy.world_size * self.time.train_days * HOURS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A family of strategies (or several that lost for one cause), and the reason in numbers."""

    strategy: str
    reason: str
    can_run: bool  # by scale/train.py, if it were chosen


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`chosen` is the fastest candidate that fits; where none fits, the one that comes closest, and `fits` is False.

    `pareto` are those candidates, of all that fit and can be run, that no other beats in both memory and time: least
    memory first. `alternatives` are the best of each other layout. `num_priced` is how many strategies were looked at.
    """

    recipe: Recipe
    cluster: Cluster
    chosen: Candidate
    alternatives: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    assumptions: tuple[str, ...]
    num_priced: int
    remedies: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.chosen.memory.fits

    @property
    def strategy(self) -> Strategy:
        return self.chosen.strategy

    @property
    def cost(self) -> float | None:
        """Of the whole run, in the currency of the accelerator's price; None without one."""
        price = self.cluster.accelerator.price_per_hour
        return None if price is None else price * self.chosen.gpu_hours
