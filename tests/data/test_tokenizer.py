"""The tokenizer loses nothing, is the same whoever loads it, and never outgrows the model's vocabulary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import tokenizer
from scaling.errors import InputError

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 3, "It's 10 o'clock,\n\tand all's well.\n" * 3]
BPE, VOCABULARY = tokenizer.train(TEXTS, 320)
HARD = "it 's a , b . a  b\r\n\t\u6f22\u5b57 na\u00efve \U0001f642 <|endoftext|><|mask|> \u200d\ufeff\x00 " + "- " * 40


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    [ids] = tokenizer.encode(BPE, [text])
    assert BPE.decode(ids[:-1], skip_special_tokens=False) == text
    assert [i for i in ids if i < len(tokenizer.SPECIALS)] == [tokenizer.END_OF_TEXT_ID]


def test_special_tokens_that_a_text_spells_out_are_characters():
    [ids] = tokenizer.encode(BPE, [HARD])
    assert ids.index(tokenizer.END_OF_TEXT_ID) == len(ids) - 1
    assert tokenizer.MASK_ID not in ids
    assert BPE.decode(ids[:-1]) == HARD


def test_the_saved_tokenizer_loads_with_autotokenizer_and_gives_the_same_ids(tmp_path):
    from transformers import AutoTokenizer, BertConfig, GPT2Config

    tokenizer.save(BPE, VOCABULARY, tmp_path)
    plain = HARD.replace("<|", "< |")
    # A model's config.json beside it once made transformers rebuild the tokenizer as the model's own kind.
    for config in (None, GPT2Config(), BertConfig()):
        if config is not None:
            config.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        [ids] = tokenizer.encode(BPE, [plain])
        assert loaded(plain)["input_ids"] == ids[:-1]
        assert loaded.decode(ids[:-1]) == plain
        assert len(loaded) == BPE.get_vocab_size()
        specials = (loaded.eos_token_id, loaded.pad_token_id, loaded.mask_token_id)
        assert specials == (tokenizer.END_OF_TEXT_ID, 1, tokenizer.MASK_ID)


def test_the_vocabulary_is_the_asked_size_or_smaller_where_the_text_runs_out():
    assert tokenizer.train(TEXTS, 300)[1].size == 300
    assert 259 < tokenizer.train(TEXTS, 50_000)[1].size < 400
    assert tokenizer.train(["x"], 259)[1].size == 259


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InputError, match=r"model\.vocab_size: 258 is below") as caught:
        tokenizer.train(TEXTS, 258)
    assert "259" in caught.value.hint


def test_training_twice_gives_the_same_tokenizer():
    assert tokenizer.train(TEXTS, 320)[0].to_str() == BPE.to_str()
