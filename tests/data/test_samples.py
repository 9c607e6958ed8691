"""What a sample holds depends on its number alone, and every layout trains on the same samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scaling.data import IGNORED, Split, micro_batch_indices, samples
from scaling.data.tokenizer import END_OF_TEXT_ID, MASK_ID, SPECIALS, Vocabulary
from scaling.errors import InputError

T, NUM_SAMPLES, SEED = 16, 50, 3
# Tokens that say where they stand.
CAUSAL = Split(
    part="train", task="causal-lm", tokens=np.arange(10, 10 + NUM_SAMPLES * T + 1, dtype="<u2"), seq_length=T,
    masking_fraction=0.15, vocabulary=Vocabulary(size=2000), seed=SEED,
)  # fmt: skip
MASKED = replace(CAUSAL, task="masked-lm")
B = 24
LAYOUTS = [(1, 1), (1, 24), (2, 3), (3, 1), (4, 2), (24, 1)]  # data parallel size, accumulation


def run(split, data_parallel_size, accumulation, steps):
    """What each sample of `steps` held, by number, under one layout; a new process each time."""
    seen = {}
    samples._order.cache_clear()
    for step in steps:
        for rank in range(data_parallel_size):
            for micro_step in range(accumulation):
                indices = micro_batch_indices(
                    first_sample=step * B, global_batch_size=B, rank=rank, data_parallel_size=data_parallel_size,
                    micro_step=micro_step, gradient_accumulation_steps=accumulation,
                )  # fmt: skip
                assert len(indices) == B // data_parallel_size // accumulation
                batch = split.batch(indices)
                for row, index in enumerate(indices):
                    assert index not in seen
                    seen[index] = (batch["input_ids"][row].tolist(), batch["labels"][row].tolist())
    return seen


@pytest.mark.parametrize("split", [CAUSAL, MASKED], ids=["causal", "masked"])
def test_world_size_micro_batch_and_resume_change_no_sample_and_no_mask(split):
    steps = range(2 * NUM_SAMPLES // B)  # across the end of an epoch
    whole = run(split, 1, 1, steps)
    assert sorted(whole) == list(range(B * len(steps)))
    for layout in LAYOUTS:
        assert run(split, *layout, steps) == whole
        resumed = run(split, *layout, steps[2:])
        assert resumed == {index: sample for index, sample in whole.items() if index >= 2 * B}


def test_a_rank_takes_one_contiguous_share_of_the_global_batch():
    layout = {"first_sample": 2 * B, "global_batch_size": B, "data_parallel_size": 2, "gradient_accumulation_steps": 3}
    taken = [micro_batch_indices(rank=1, micro_step=m, **layout) for m in range(3)]
    assert taken == [range(60, 64), range(64, 68), range(68, 72)]


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    starts = CAUSAL.batch(range(3 * NUM_SAMPLES))["input_ids"][:, 0].reshape(3, NUM_SAMPLES).tolist()
    for epoch in starts:
        assert sorted(epoch) == list(range(10, 10 + NUM_SAMPLES * T, T))
    assert starts[0] != starts[1] != starts[2] != sorted(starts[2])
    assert replace(CAUSAL, seed=4).batch(range(NUM_SAMPLES))["input_ids"][:, 0].tolist() != starts[0]


def test_the_order_is_pinned_so_that_a_release_of_numpy_cannot_change_a_run():
    starts = CAUSAL.batch(range(8))["input_ids"][:, 0]
    assert ((starts - 10) // T).tolist() == [43, 6, 13, 31, 26, 1, 34, 18]


def test_causal_labels_are_the_inputs_shifted_and_windows_do_not_overlap():
    batch = CAUSAL.batch(range(NUM_SAMPLES))
    assert all(tensor.dtype == torch.int64 and tensor.shape == (NUM_SAMPLES, T) for tensor in batch.values())
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)
    assert len(batch["input_ids"].unique()) == NUM_SAMPLES * T
    one_less = replace(CAUSAL, tokens=CAUSAL.tokens[:-1])  # the last window has no last target
    assert one_less.num_samples == NUM_SAMPLES - 1


def test_validation_is_in_order_and_the_same_at_every_step():
    for split in (replace(CAUSAL, part="validation"), replace(MASKED, part="validation")):
        first = split.batch(range(NUM_SAMPLES))
        again = split.batch(range(NUM_SAMPLES, 2 * NUM_SAMPLES))
        assert all(torch.equal(first[name], again[name]) for name in first)
        kept = first["labels"][:, 0] == IGNORED if split.task == "masked-lm" else slice(None)
        assert first["input_ids"][kept, 0].tolist() == torch.arange(10, 10 + NUM_SAMPLES * T, T)[kept].tolist()


def test_masking_is_80_10_10_over_exactly_15_percent_of_ordinary_tokens(embedded):
    split = replace(embedded.train, task="masked-lm")
    n, T = 2000, split.seq_length
    inputs, labels = split.batch(range(n)).values()
    target = labels != IGNORED
    assert set(target.sum(1).tolist()) == {split.targets_per_sample} == {19}  # round(0.15 * 128)

    assert not torch.isin(labels, torch.arange(len(SPECIALS))).any()
    original = torch.where(target, labels, inputs)
    assert (original == END_OF_TEXT_ID).any()
    assert not (original == MASK_ID).any()

    # 38,000 targets: a standard deviation is 0.002 or less; the bounds are five.
    masked, same = inputs[target] == MASK_ID, inputs[target] == labels[target]
    other = inputs[target][~masked & ~same]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.0103)
    assert same.float().mean() == pytest.approx(0.1, abs=0.0077)
    assert other.min() >= len(SPECIALS)
    assert other.max() < embedded.vocab_size
    assert other.float().mean() == pytest.approx((len(SPECIALS) + embedded.vocab_size) / 2, abs=50)
    # Each position is as likely: 297 of 2000 samples, give or take 16, but for where special tokens stand.
    assert (target.sum(0) - n * 19 / T).abs().max() < 5.5 * 16


def test_masks_are_drawn_anew_each_epoch_and_special_tokens_only_when_unavoidable():
    tokens = np.full(T, END_OF_TEXT_ID, "<u2")
    tokens[:3] = 100
    split = replace(MASKED, tokens=tokens, masking_fraction=0.125)
    targets = split.batch(range(40))["labels"] != IGNORED  # one sample an epoch
    assert targets[:, :3].sum() == 40 * 2
    assert len(targets.unique(dim=0)) == 3  # every pair of three
    forced = replace(split, masking_fraction=0.5).batch(range(9))["labels"]
    assert (forced[:, :3] == 100).all()
    assert ((forced != IGNORED).sum(1) == 8).all()


def test_a_sample_cut_short_is_its_first_tokens_and_its_targets_their_usual_share():
    whole, cut = CAUSAL.batch(range(7)), CAUSAL.batch(range(7), 5)
    for name in ("input_ids", "labels"):
        assert cut[name].tolist() == whole[name][:, :5].tolist()
    half = T // 2
    masked, stream = MASKED.batch(range(7), half), MASKED.tokens.tolist()
    assert masked["input_ids"].shape == (7, half)
    targets = masked["labels"] != IGNORED
    assert targets.sum(1).tolist() == [max(1, round(MASKED.masking_fraction * half))] * 7
    for row, of in zip(masked["input_ids"].tolist(), masked["labels"].tolist(), strict=True):
        found = [label if label != IGNORED else token for token, label in zip(row, of, strict=True)]
        starts = range(0, len(stream) - T, T)
        assert any(stream[start : start + half] == found for start in starts)


def test_a_batch_that_the_ranks_cannot_share_is_refused_with_the_nearest_that_they_can():
    layout = {
        "first_sample": 0,
        "rank": 0,
        "micro_step": 0,
        "data_parallel_size": 3,
        "gradient_accumulation_steps": 8,
    }
    with pytest.raises(InputError, match="100 is not a multiple of data parallel 3 x accumulation 8") as caught:
        micro_batch_indices(global_batch_size=100, **layout)
    assert caught.value.hint == "120 is, and 96"
