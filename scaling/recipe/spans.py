"""The arithmetic of span corruption: how long a sample's three sequences are, as T5 has it."""

from dataclasses import dataclass
from functools import lru_cache

from scaling.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Spans:
    """`raw_length` tokens, of which `num_noise_tokens` in `num_spans` spans are left out of the encoder's input.

    The input has one sentinel for each span, the target each span behind its sentinel; both close with an end of text.
    """

    raw_length: int
    num_noise_tokens: int
    num_spans: int

    @property
    def input_length(self) -> int:
        return self.raw_length - self.num_noise_tokens + self.num_spans + 1

    @property
    def target_length(self) -> int:
        return self.num_noise_tokens + self.num_spans + 1


@lru_cache
def spans_of(seq_length: int, masking_fraction: float, mean_span_length: float) -> Spans:
    """The spans that make inputs of exactly `seq_length` tokens.

    Raffel et al. 2020 (arXiv 1910.10683), 3.1.4, and google-research/text-to-text-transfer-transformer,
    t5/data/preprocessors.py:random_spans_helper: the longest text whose input fits. One token more adds one or none to
    the input, so that every length is met. Raises InputError where a sample has no room for its spans.
    """
    spans = _of_raw(2, masking_fraction, mean_span_length)
    for raw_length in range(2, 2 * seq_length + 2):
        longer = _of_raw(raw_length, masking_fraction, mean_span_length)
        if longer.input_length > seq_length:
            break
        spans = longer
    kept = spans.raw_length - spans.num_noise_tokens
    if spans.input_length != seq_length or kept < spans.num_spans:
        problem = f"leaves no room for spans of {mean_span_length:g} tokens at masking_fraction {masking_fraction:g}"
        raise InputError("data.seq_length", seq_length, problem, hint="lower masking_fraction; 0.15 and 3 are T5's")
    return spans


def _of_raw(raw_length: int, masking_fraction: float, mean_span_length: float) -> Spans:
    noise = min(max(round(raw_length * masking_fraction), 1), raw_length - 1)
    return Spans(raw_length=raw_length, num_noise_tokens=noise, num_spans=max(1, round(noise / mean_span_length)))
