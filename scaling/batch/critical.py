"""How large a batch is worth using: published fits as data, each with its source and the range it was fitted on.

Three batches go by that name. The *critical batch* C of McCandlish et al. 2018 takes twice the least samples and twice
the least steps. Zhang et al. 2024 mean one that takes 20 % more samples. The *optimal* batch of others has the lowest
loss after a fixed number of tokens, which says nothing of what a larger one costs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scaling.errors import InputError
from scaling.shape import Shape
from scaling.units import format_count

# Zhang et al. 2024 call a batch critical that costs this many more samples. We take it as what is still worth paying.
WORTHWHILE_OVERHEAD_FRACTION = 0.2

_NOISE_SCALES = (1e-3, 1e12)  # samples
_LOSSES = (0.1, 100.0)  # nats per token


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the fits ask of a run. `loss` is in nats per token, `noise_scale` in samples of `seq_length` tokens."""

    shape: Shape
    num_tokens: int
    seq_length: int
    given_loss: float | None = None
    noise_scale: float | None = None

    def __post_init__(self) -> None:
        for field, value, (low, high), unit in (
            ("loss", self.given_loss, _LOSSES, "nats per token, such as 2.5"),
            ("noise_scale", self.noise_scale, _NOISE_SCALES, "samples, such as 1500"),
        ):
            if value is not None and not low <= value <= high:
                raise InputError(field, value, f"is not between {low:g} and {high:g}", hint=f"in {unit}")

    @cached_property
    def num_params(self) -> int:
        """Without embeddings: all four fits count so (85M and 302M are GPT-2's 124M and 355M)."""
        parts = self.shape.params_by_part
        return parts["layers"] + parts.get("decoder_layers", 0)

    @cached_property
    def flops(self) -> float:
        """C = M D, M the FLOPs per token without the vocabulary: DeepSeek-AI 2024, section 3.2."""
        return self.shape.flops_per_token(self.seq_length, predicted_fraction=0.0) * self.num_tokens

    @cached_property
    def loss(self) -> float:
        """The loss at the end of training: given, or 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28, at most ln V of guessing.

        Hoffmann et al. 2022 (arXiv 2203.15556), the parametric fit of section 3.3, on their own data and tokenizer.
        """
        if self.given_loss is not None:
            return self.given_loss
        fitted: float = 1.69 + 406.4 / self.shape.num_params**0.34 + 410.7 / self.num_tokens**0.28
        return min(fitted, math.log(self.shape.vocab_size))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The range of one quantity that a fit was made on."""

    quantity: Literal["num_params", "num_tokens", "flops", "loss"]
    low: float
    high: float

    def outside(self, training: Training) -> str | None:
        value = float(getattr(training, self.quantity))
        if self.low <= value <= self.high:
            return None
        return f"{self.quantity} {_shown(value)} is not within {_shown(self.low)} to {_shown(self.high)}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A published function of a run. `batch_tokens` is None where the source has no formula or its input is missing."""

    name: str
    formula: str
    means: str  # what the batch costs, or is best at
    batch_tokens: Callable[[Training], float | None]
    critical_tokens: Callable[[float], float | None] | None = None  # C of that batch, where it says something of C
    lr: Callable[[Training], float] | None = None
    limits: tuple[Limits, ...] = ()
    measured: bool = False  # in a run, not fitted to others: holds for any model
    source: str


# Kaplan et al. 2020: tokens, and 1 / alpha_B with alpha_B = 0.21.
_KAPLAN_TOKENS, _KAPLAN_ALPHA = 2e8, 0.21
# Zhang et al. 2024, plots/chinchilla.ipynb: sequences of 512 tokens from millions of parameters. The runs saw 20.4
# tokens per parameter (13,282 to 187,500 steps of 256 sequences), and overhead is counted from 256 sequences.
_ZHANG_FACTOR, ZHANG_EXPONENT, _ZHANG_SEQUENCE = 93.197, 0.4683, 512
_ZHANG_TOKENS_PER_PARAM, _ZHANG_BASE_TOKENS = 20.4, 256 * 512


def zhang_tokens(num_tokens: float) -> float:
    """93.197 N^0.4683 sequences of 512, N in millions, at N = D / 20.4: the batch that costs 20 % more samples.

    Zhang et al. 2024 find that the data decide and the model hardly, so that the fit is read as one of D.
    """
    millions = num_tokens / _ZHANG_TOKENS_PER_PARAM / 1e6
    return float(_ZHANG_FACTOR * millions**ZHANG_EXPONENT * _ZHANG_SEQUENCE)


def zhang_critical_tokens(batch_tokens: float) -> float | None:
    """C = b / a of their fit of the steps, a + b / B, from the batch that they print, b / (5 a) + 1.2 x 256 sequences.

    None below 1.2 x 256 sequences, where that has no solution.
    """
    beyond = batch_tokens - 1.2 * _ZHANG_BASE_TOKENS
    return 5 * beyond if beyond > 0 else None


NOISE_SCALE = Fit(
    name="noise scale",
    formula="tr(Sigma) / |G|^2",
    means="twice the samples",
    batch_tokens=lambda run: run.noise_scale * run.seq_length if run.noise_scale else None,
    critical_tokens=lambda batch: batch,
    measured=True,
    source="measured; McCandlish et al. 2018 (arXiv 1812.06162). Merrill et al. 2025 find it an untrustworthy proxy",
)
KAPLAN = Fit(
    name="Kaplan 2020",
    formula="2e8 / L^(1 / 0.21) tokens",
    means="twice the samples",
    batch_tokens=lambda run: _KAPLAN_TOKENS / run.loss ** (1 / _KAPLAN_ALPHA),
    critical_tokens=lambda batch: batch,
    limits=(
        Limits(quantity="num_params", low=768, high=1.5e9),
        Limits(quantity="loss", low=3.0, high=10.0),
    ),
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 5.3; WebText2, Adam. The losses of its figure 10 are "
    "quoted from memory",
)
ZHANG = Fit(
    name="Zhang 2024",
    formula="93.197 (D / 20.4M)^0.4683 sequences of 512",
    means="20 % more than 256 x 512 tokens",
    batch_tokens=lambda run: zhang_tokens(run.num_tokens),
    critical_tokens=zhang_critical_tokens,
    limits=(
        Limits(quantity="num_params", low=85e6, high=1.21e9),
        Limits(quantity="num_tokens", low=1.74e9, high=24.6e9),
    ),
    source="Zhang et al. 2024 (arXiv 2410.21676), the authors' plots/chinchilla.ipynb at c5b509d; C4, sequences of "
    "512, Adam at a constant rate with averaged weights",
)
MERRILL = Fit(
    name="Merrill 2025",
    formula="no formula",
    means="near 0 at first, rises, levels off",
    batch_tokens=lambda run: None,
    source="Merrill et al. 2025 (arXiv 2505.23971), abstract: measured on OLMo, alike at 1B and 7B",
)
STEP_LAW = Fit(
    name="Step Law",
    formula="0.581 D^0.5709 tokens, lr 1.797 N^-0.7129 D^0.3075",
    means="lowest loss",
    batch_tokens=lambda run: 0.581 * run.num_tokens**0.5709,
    lr=lambda run: float(1.797 * run.num_params**-0.7129 * run.num_tokens**0.3075),
    limits=(
        Limits(quantity="num_params", low=59e6, high=1.1e9),
        Limits(quantity="num_tokens", low=2e9, high=100e9),
    ),
    source="Li et al. 2025 (arXiv 2503.04715), mean of the 1,000 fits in their repository at 32a8f4c; the least tokens "
    "are quoted from memory",
)
DEEPSEEK = Fit(
    name="DeepSeek 2024",
    formula="0.2920 C^0.3271 tokens, lr 0.3118 C^-0.1250",
    means="lowest loss",
    batch_tokens=lambda run: 0.2920 * run.flops**0.3271,
    lr=lambda run: float(0.3118 * run.flops**-0.1250),
    limits=(Limits(quantity="flops", low=1e17, high=2e19),),
    source="DeepSeek-AI 2024 (arXiv 2401.02954), formula 1, as other authors quote it",
)
FITS = (NOISE_SCALE, KAPLAN, ZHANG, MERRILL, STEP_LAW, DEEPSEEK)


def trade_off(batch: float, critical_batch: float) -> tuple[float, float]:
    """(S / S_min, E / E_min): the steps and the samples that `batch` takes to one loss, over the least of each.

    McCandlish et al. 2018 (arXiv 1812.06162): (S / S_min - 1) (E / E_min - 1) = 1. With E = B S and C = E_min / S_min
    these are 1 + C / B and 1 + B / C.
    """
    return 1 + critical_batch / batch, 1 + batch / critical_batch


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One fit's answer for one run; `outside` says where the run leaves the fit's range."""

    fit: Fit
    training: Training

    @cached_property
    def applies(self) -> bool:
        """All fits are of causal LMs; only what was measured holds for another model."""
        return self.fit.measured or self.training.shape.traits.kind == "decoder"

    @cached_property
    def outside(self) -> tuple[str, ...]:
        beyond = (limits.outside(self.training) for limits in self.fit.limits)
        task = self.training.shape.traits.task
        return (*(() if self.applies else (f"{task}; fitted to causal LMs",)), *filter(None, beyond))

    @cached_property
    def batch(self) -> float | None:
        """In samples, as the source means it."""
        tokens = self.fit.batch_tokens(self.training)
        return None if tokens is None else tokens / self.training.seq_length

    @cached_property
    def critical_batch(self) -> float | None:
        """McCandlish's C in samples."""
        if self.batch is None or self.fit.critical_tokens is None:
            return None
        tokens = self.fit.critical_tokens(self.batch * self.training.seq_length)
        return None if tokens is None else tokens / self.training.seq_length

    @cached_property
    def worthwhile_batch(self) -> float | None:
        """The batch that takes 20 % more samples than the smallest: E / E_min = 1 + B / C."""
        return None if self.critical_batch is None else WORTHWHILE_OVERHEAD_FRACTION * self.critical_batch

    @cached_property
    def lr(self) -> float | None:
        return self.fit.lr(self.training) if self.fit.lr else None

    def trade_off(self, batch: int) -> tuple[float, float] | None:
        return None if self.critical_batch is None else trade_off(batch, self.critical_batch)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One batch, in samples, held against every fit for its run."""

    training: Training
    batch: int

    @cached_property
    def estimates(self) -> tuple[Estimate, ...]:
        """All fits; the noise scale only where one was measured."""
        rows = (Estimate(fit=fit, training=self.training) for fit in FITS)
        return tuple(row for row in rows if not row.fit.measured or row.batch is not None)

    @cached_property
    def deciding(self) -> tuple[Estimate, ...]:
        """Those that say something of C: of them those within their range, or all that apply where none is."""
        rows = tuple(row for row in self.estimates if row.applies and row.critical_batch is not None)
        return tuple(row for row in rows if not row.outside) or rows

    @property
    def is_extrapolated(self) -> bool:
        return all(row.outside for row in self.deciding)

    @property
    def is_worth_using(self) -> bool:
        """False where every deciding fit, within its range, has it above C: at more than twice the least samples."""
        costs = [cost for row in self.deciding if (cost := row.trade_off(self.batch))]
        return self.is_extrapolated or any(samples <= 2 for _, samples in costs)

    @cached_property
    def growing(self) -> Estimate | None:
        """What a growing batch follows: the noise scale where one was measured, else the fit that goes by the data."""
        rows = (row for row in self.estimates if row.fit in (NOISE_SCALE, ZHANG) and row.applies)
        return next((row for row in rows if row.worthwhile_batch is not None), None)


def _shown(value: float) -> str:
    return f"{value:.3g}" if value < 1000 or value >= 1e15 else format_count(value)
