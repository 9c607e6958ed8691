"""Span corruption is T5's: the same lengths, nothing lost, every sample a function of its number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scaling import data
from scaling.data import Split, tokenizer
from scaling.data.tokenizer import Vocabulary
from scaling.errors import InputError
from scaling.recipe import EMBEDDED_CORPUS, spans_of
from tests.parallel.families import recipe_of

SENTINELS = tuple(range(1999, 1989, -1))
SPLIT = Split(
    part="train", task="span-corruption", tokens=np.arange(10, 1510, dtype="<u2"), seq_length=32, masking_fraction=0.15,
    vocabulary=Vocabulary(size=2000, sentinel_ids=SENTINELS, special_ids=(0, 1, 2, *SENTINELS)), seed=3,
)  # fmt: skip


@pytest.mark.parametrize(("seq_length", "raw_length", "target_length"), [(512, 568, 114), (114, 126, 26)])
def test_lengths_are_those_of_t5(seq_length, raw_length, target_length):
    """512, 568, 114 as T5 was trained (t5/data/preprocessors.py:random_spans_helper; also transformers'
    run_t5_mlm_flax.py, compute_input_and_target_lengths, whose result that is)."""
    spans = spans_of(seq_length, 0.15, 3.0)
    assert (spans.input_length, spans.raw_length, spans.target_length) == (seq_length, raw_length, target_length)


def test_every_length_is_met_exactly_and_what_has_no_room_is_refused():
    for seq_length in range(3, 300):
        for fraction, mean in ((0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.3, 1.5)):
            assert spans_of(seq_length, fraction, mean).input_length == seq_length
    with pytest.raises(InputError, match=r"data\.seq_length: 64 leaves no room for spans of 1 tokens"):
        spans_of(64, 0.9, 1.0)


def restored(inputs, labels):
    """The text of a sample: each sentinel of the input replaced by what stands behind it in the target."""
    assert inputs[-1] == labels[-1] == 0
    spans, current = {}, None
    for token in labels[:-1]:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])  # each once and in order
    assert all(spans.values())
    return [token for entry in inputs[:-1] for token in spans.get(entry, [entry])], [
        len(span) for span in spans.values()
    ]


def test_input_and_target_together_are_the_text_and_15_percent_is_left_out_in_spans_of_3():
    split = replace(SPLIT, seq_length=64)
    spans = split.spans
    batch = split.batch(range(2000))
    inputs, labels = batch["input_ids"], batch["labels"]
    assert inputs.shape == (2000, 64)
    assert labels.shape == batch["decoder_input_ids"].shape == (2000, spans.target_length)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert torch.equal(batch["decoder_input_ids"][:, 1:], labels[:, :-1])
    assert (batch["decoder_input_ids"][:, 0] == 0).all()
    lengths, starts = [], set()
    for row in range(2000):
        text, of_spans = restored(inputs[row].tolist(), labels[row].tolist())
        assert text == list(range(text[0], text[0] + spans.raw_length))
        assert sum(of_spans) == spans.num_noise_tokens
        starts.add(text[0])
        lengths.append(of_spans)
    assert starts == set(range(10, 10 + split.num_samples * spans.raw_length, spans.raw_length))
    # Of the ways to cut n tokens into k spans each is as likely, so that all spans are as long on average.
    means = np.mean(lengths, axis=0)
    assert means == pytest.approx([spans.num_noise_tokens / spans.num_spans] * spans.num_spans, rel=0.1)
    assert spans.num_noise_tokens / spans.raw_length == pytest.approx(0.15, abs=0.01)


def test_a_sample_depends_on_its_number_alone_and_is_drawn_anew_each_epoch():
    whole = SPLIT.batch(range(3 * SPLIT.num_samples))
    for indices in (range(5, 9), [60, 2, 31]):
        for name, found in SPLIT.batch(indices).items():
            assert torch.equal(found, whole[name][list(indices)])
    fixed = replace(SPLIT, part="validation").batch([0, SPLIT.num_samples])["input_ids"]
    assert torch.equal(fixed[0], fixed[1])
    firsts = [whole["input_ids"][i] for i in range(len(whole["input_ids"])) if restored(
        whole["input_ids"][i].tolist(), whole["labels"][i].tolist())[0][0] == 10]  # fmt: skip
    assert len(firsts) == 3
    assert len(torch.stack(firsts).unique(dim=0)) > 1


def test_a_sample_cut_short_is_the_beginning_of_its_text():
    batch, whole = SPLIT.batch(range(7), 16), SPLIT.batch(range(7))
    assert batch["input_ids"].shape == (7, 16)
    assert batch["labels"].shape == (7, SPLIT.targets_in(16))
    for row in range(7):
        cut, _ = restored(batch["input_ids"][row].tolist(), batch["labels"][row].tolist())
        text, _ = restored(whole["input_ids"][row].tolist(), whole["labels"][row].tolist())
        assert cut == text[: len(cut)]


def test_the_tokenizer_leaves_the_top_of_the_vocabulary_to_the_sentinels(tmp_path):
    from transformers import AutoTokenizer

    recipe = recipe_of("t5", tmp_path)
    corpus = data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    causal = data.prepare(recipe_of("gpt2", tmp_path), base=tmp_path, cache=tmp_path / "cache")
    assert corpus.preprocessor_dir != causal.preprocessor_dir
    assert corpus.vocab_size == recipe.shape.vocab_size == 384
    assert corpus.train.vocabulary.sentinel_ids == (383, 382) == tuple(range(383, 383 - recipe.spans.num_spans, -1))
    assert corpus.train.tokens.max() < 382
    loaded = AutoTokenizer.from_pretrained(corpus.preprocessor_dir)
    assert loaded("a<extra_id_0>b<extra_id_1>").input_ids.count(383) == 1
    assert loaded.convert_ids_to_tokens([383, 382]) == ["<extra_id_0>", "<extra_id_1>"]
    assert "of 34 tokens the encoder takes 32, with 2 spans left out, and the decoder 8" in str(corpus)
    assert recipe.predicted_fraction == 8 / 32
    with pytest.raises(InputError, match="3 special tokens and 200 sentinels"):
        tokenizer.train(["text"], 384, 200)


def test_a_sample_may_be_longer_than_the_context_where_positions_are_relative(tmp_path):
    data_of = {"corpus": [EMBEDDED_CORPUS], "seq_length": 64, "validation_fraction": 0.05}
    assert recipe_of("t5", tmp_path, data=data_of).shape.max_position_embeddings == 32
    with pytest.raises(ValidationError, match=r"data\.seq_length: 64 is beyond the 32 positions"):
        recipe_of("bart", tmp_path, data=data_of)
