"""The gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162): the batch at which noise and signal are equal.

The gradient g of b samples has E|g|^2 = |G|^2 + tr(S) / b, where G is the true gradient, the signal, and S is the
covariance of one sample's, the noise. Two batches measured give both (appendix A.1), and B_simple = tr(S) / |G|^2
samples. One step's estimates are unbiased and scatter widely, so each is averaged over steps before they are divided.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NUM_BLOCKS = 20
_T_95 = 2.093  # Student's t for 19 degrees of freedom, two-sided 95 %


def signal_and_noise(
    *, small_squared_norm: float, big_squared_norm: float, small_batch: float, big_batch: float
) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(S) from the mean |g|^2 of small batches and that of a big one.

    Either may come out negative.
    """
    signal = (big_batch * big_squared_norm - small_batch * small_squared_norm) / (big_batch - small_batch)
    noise = (small_squared_norm - big_squared_norm) / (1 / small_batch - 1 / big_batch)
    return signal, noise


@dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """B_simple in samples, averaged over steps, and the interval that holds it with 95 % confidence.

    The interval is Fieller's for a ratio of means, over 20 blocks of consecutive steps. It takes blocks for independent
    and their means for normal; what the scale changes within those steps counts as scatter and widens it. Where the
    signal cannot be told from zero there is no upper bound.
    """

    samples: float
    low_samples: float
    high_samples: float
    first_step: int
    last_step: int

    def sentence(self, seq_length: int) -> str:
        """For people; a sample is `seq_length` tokens."""
        steps = f"gradient noise scale of steps {self.first_step} to {self.last_step}"
        if math.isinf(self.samples):
            return f"{steps}: above {self.low_samples:,.0f} samples, the signal being too weak to tell from none"
        high = "without bound" if math.isinf(self.high_samples) else f"{self.high_samples:,.0f}"
        interval = f"95 % interval {self.low_samples:,.0f} to {high} samples"
        return f"{steps}: {self.samples:,.0f} samples, {self.samples * seq_length:,.0f} tokens ({interval})"


def of_run(lines: Iterable[Mapping[str, Any]]) -> NoiseScale | None:
    """The noise scale over the second half of a run's steps, from the lines of its metrics.jsonl.

    It grows as the loss falls, so the first half would speak of another model. None for fewer than 40 measured steps.
    """
    measured = [line for line in lines if "gradient_noise" in line]
    if len(measured) < 2 * _NUM_BLOCKS:
        return None
    recent = measured[len(measured) // 2 :]
    samples, low, high = ratio(
        [line["gradient_noise"] for line in recent], [line["gradient_signal"] for line in recent]
    )
    return NoiseScale(
        samples=samples,
        low_samples=low,
        high_samples=high,
        first_step=recent[0]["step"],
        last_step=recent[-1]["step"],
    )


def ratio(noises: Sequence[float], signals: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the means, and its 95 % interval within [0, inf] by Fieller's theorem over blocks."""
    blocks = np.array(
        [[part.mean() for part in np.array_split(np.asarray(row, float), _NUM_BLOCKS)] for row in (noises, signals)]
    )
    noise, signal = float(np.mean(noises)), float(np.mean(signals))
    (noise_var, both_var), (_, signal_var) = (np.cov(blocks) * (_T_95**2 / _NUM_BLOCKS)).tolist()
    # The ratios r for which noise - r signal is within t standard errors of zero: a r^2 - 2 b r + c <= 0.
    a, b, c = signal**2 - signal_var, noise * signal - both_var, noise**2 - noise_var
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0:
        low, high = (b - root) / a, (b + root) / a
    else:  # outside two roots, of which one is positive where the noise is not zero; or anything
        low, high = ((b - root) / a if c > 0 and a < 0 else 0.0), math.inf
    return noise / signal if signal > 0 else math.inf, max(0.0, low), max(0.0, high)
