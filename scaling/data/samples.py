"""Samples by number: what sample i holds depends on the recipe and i, never on the layout or on a resume.

Alphabet: B samples in a batch, T tokens in a sample. There is no iterator and no state: a step names the
samples that it wants. Randomness is Philox's raw stream, keyed by (seed, number): NumPy keeps the streams of
its bit generators stable across versions, and promises nothing for the methods of Generator (NEP 19).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from scaling.data.tokenizer import Vocabulary
from scaling.errors import InputError
from scaling.recipe import Spans, spans_of

IGNORED = -100  # the label of a position that is not predicted; torch's cross_entropy skips it

# Streams of random numbers that never meet.
_ORDER, _MASKS = 0, {"train": 1, "validation": 2}


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a corpus: a token stream in windows of `window` tokens that do not overlap.

    Training takes the windows in a new order each epoch and numbers its samples through all epochs.
    Validation takes them as they stand, with the same masks every time.
    """

    part: Literal["train", "validation"]
    task: Literal["causal-lm", "masked-lm", "span-corruption"]
    tokens: np.ndarray
    seq_length: int
    masking_fraction: float
    vocabulary: Vocabulary
    seed: int
    mean_span_length: float = 3.0

    @property
    def spans(self) -> Spans | None:
        """What span corruption makes of a sample; None for another task."""
        return self.spans_at(self.seq_length) if self.task == "span-corruption" else None

    def spans_at(self, T: int) -> Spans:
        return spans_of(T, self.masking_fraction, self.mean_span_length)

    @property
    def window(self) -> int:
        """Tokens of the stream in a sample: span corruption takes some out."""
        return self.spans.raw_length if self.spans else self.seq_length

    @property
    def num_samples(self) -> int:
        """Samples in one epoch. A causal stream needs one token more, the last target."""
        return max(0, len(self.tokens) - (self.task == "causal-lm")) // self.window

    @property
    def targets_per_sample(self) -> int:
        """Positions with a label: as many in each, so that the mean over micro batches is the batch's."""
        return self.targets_in(self.seq_length)

    def targets_in(self, T: int) -> int:
        """Of them in a sample cut to T tokens."""
        match self.task:
            case "causal-lm":
                return T
            case "masked-lm":
                return max(1, round(self.masking_fraction * T))
        return self.spans_at(T).target_length

    def batch(self, indices: Sequence[int], seq_length: int | None = None) -> dict[str, torch.Tensor]:
        """The model's inputs and `labels`, by name, all int64, of the samples numbered `indices` from 0.

        With `seq_length` each is cut to so many tokens, before any are masked or left out. labels[b, t] is what
        position t predicts, or IGNORED: they are shifted already. An encoder-decoder has T in its `input_ids`; its
        `decoder_input_ids` and labels are as long as each other, and no sequence is padded.
        """
        numbers = np.asarray(indices)
        if self.part == "validation":
            numbers = numbers % self.num_samples
        T = self.seq_length if seq_length is None else seq_length
        return {name: torch.from_numpy(ids) for name, ids in _MAKERS[self.task](self, numbers, T).items()}


def micro_batch_indices(
    *,
    first_sample: int,
    global_batch_size: int,
    rank: int,
    data_parallel_size: int,
    micro_step: int,
    gradient_accumulation_steps: int,
) -> range:
    """The samples that data-parallel `rank` takes in `micro_step` of an optimizer step, all counted from 0.

    The step is `global_batch_size` samples from `first_sample` on (scaling/course.py), in any layout: a rank takes a
    contiguous share, a micro step a contiguous slice of that. Raises InputError for a batch that does not divide.
    """
    shares = data_parallel_size * gradient_accumulation_steps
    size, rest = divmod(global_batch_size, shares)
    if rest:
        raise InputError(
            "global_batch_size", global_batch_size,
            f"is not a multiple of data parallel {data_parallel_size} x accumulation "
            f"{gradient_accumulation_steps}",
            hint=f"{(size + 1) * shares} is" + (f", and {size * shares}" if size else ""),
        )  # fmt: skip
    start = first_sample + (rank * gradient_accumulation_steps + micro_step) * size
    return range(start, start + size)


def _causal(split: Split, numbers: np.ndarray, T: int) -> dict[str, np.ndarray]:
    windows = _windows(split, numbers, T + 1)
    return {"input_ids": windows[:, :-1].copy(), "labels": windows[:, 1:].copy()}


def _masked(split: Split, numbers: np.ndarray, T: int) -> dict[str, np.ndarray]:
    """BERT's masking (Devlin et al. 2018, 3.1): of the targets 80 % become the mask, 10 % a random token.

    Each sample has `targets_in(T)` targets, drawn anew each epoch. Special tokens are drawn last, and
    never as the random token.
    """
    ordinary = split.vocabulary.ordinary_ids
    windows_BT = _windows(split, numbers, T)
    draws = np.stack([uniform(split.seed, int(number), _MASKS[split.part], 3 * T) for number in numbers])
    place_BT, fate_BT, token_BT = draws.reshape(-1, 3, T).swapaxes(0, 1)

    order_BT = (place_BT + np.isin(windows_BT, split.vocabulary.special_ids)).argsort(axis=1)
    target_BT = np.zeros(windows_BT.shape, bool)
    np.put_along_axis(target_BT, order_BT[:, : split.targets_in(T)], True, axis=1)

    random_BT = ordinary[(token_BT * len(ordinary)).astype(np.int64)]
    inputs_BT = np.where(target_BT & (fate_BT < 0.9), random_BT, windows_BT)
    inputs_BT[target_BT & (fate_BT < 0.8)] = split.vocabulary.mask_id
    return {"input_ids": inputs_BT, "labels": np.where(target_BT, windows_BT, IGNORED)}


def _corrupted(split: Split, numbers: np.ndarray, T: int) -> dict[str, np.ndarray]:
    """T5's span corruption (Raffel et al. 2020, 3.1.4; t5/data/preprocessors.py:random_spans_noise_mask).

    Kept and noisy spans take turns, a kept one first. Both parts are cut into as many pieces, every way of which is as
    likely, drawn anew each epoch.
    """
    spans, vocabulary = split.spans_at(T), split.vocabulary
    num_kept = spans.raw_length - spans.num_noise_tokens
    sentinels = np.array(vocabulary.sentinel_ids[: spans.num_spans])
    windows = _windows(split, numbers, spans.raw_length)
    inputs = np.empty((len(numbers), spans.input_length), np.int64)
    labels = np.empty((len(numbers), spans.target_length), np.int64)
    for row, number in enumerate(numbers):
        draws = uniform(split.seed, int(number), _MASKS[split.part], num_kept + spans.num_noise_tokens)
        kept = _pieces(draws[:num_kept], spans.num_spans)
        noise = _pieces(draws[num_kept:], spans.num_spans)
        is_noise = np.repeat(np.arange(2 * spans.num_spans) % 2 == 1, np.stack([kept, noise], axis=1).ravel())
        for side, taken, before in ((inputs, ~is_noise, kept.cumsum()), (labels, is_noise, noise.cumsum() - noise)):
            side[row] = [*np.insert(windows[row][taken], before, sentinels), vocabulary.end_id]
    starts = np.full((len(numbers), 1), vocabulary.start_id)
    return {"input_ids": inputs, "decoder_input_ids": np.hstack([starts, labels[:, :-1]]), "labels": labels}


def _pieces(draws: np.ndarray, num_pieces: int) -> np.ndarray:
    """The lengths of `num_pieces` pieces of at least one item that `draws`, one for each item, are cut into."""
    cuts = np.sort(draws[1:].argsort(kind="stable")[: num_pieces - 1]) + 1
    return np.diff(cuts, prepend=0, append=len(draws))


_MAKERS = {"causal-lm": _causal, "masked-lm": _masked, "span-corruption": _corrupted}


def _windows(split: Split, numbers: np.ndarray, width: int) -> np.ndarray:
    """`width` tokens from the start of each sample, int64 of B x width."""
    slots = slots_of(numbers, split.num_samples, split.part, split.seed)
    return split.tokens[slots[:, None] * split.window + np.arange(width)].astype(np.int64)


def slots_of(numbers: np.ndarray, num_samples: int, part: Literal["train", "validation"], seed: int) -> np.ndarray:
    """Where in its part each sample stands: training takes a new order each epoch."""
    epochs, slots = np.divmod(numbers, num_samples)
    if part == "validation":
        return slots
    orders = [_order(seed, int(epoch), num_samples) for epoch in epochs]
    return np.array([order[slot] for order, slot in zip(orders, slots, strict=True)])


@lru_cache(maxsize=2)  # a batch may reach across the end of an epoch
def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The training windows of `epoch` in the order they are taken: a permutation of range(num_samples)."""
    return uniform(seed, epoch, _ORDER, num_samples).argsort(kind="stable")


def uniform(seed: int, number: int, stream: int, size: int) -> np.ndarray:
    """`size` numbers in [0, 1). Draws count up the counter's low words; `stream` is its high word."""
    raw = np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]).random_raw(size)
    return (raw >> np.uint64(11)) * 2.0**-53  # 53 bits, what a double holds


def count_targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions of a batch that have one."""
    return (batch["labels"] != IGNORED).sum()
