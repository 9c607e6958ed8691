"""The cache holds whole folders or none, and what it says about the corpus is true."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from scaling import data
from scaling.data import tokens
from scaling.data.tokenizer import END_OF_TEXT_ID
from scaling.errors import FileProblems, InputError
from scaling.recipe import model_of


def stream(corpus):
    """All tokens, read without the code under test."""
    folder = corpus.preprocessor_dir.parent
    return np.fromfile(folder / "tokens.bin", json.loads((folder / "meta.json").read_text())["dtype"])


def visible(cache):
    return [path.name for path in cache.iterdir()] if cache.exists() else []


def test_the_entropy_is_that_of_the_training_tokens(embedded):
    counts = Counter(stream(embedded)[: len(embedded.train.tokens)].tolist())
    total = sum(counts.values())
    entropy = -math.fsum(count / total * math.log(count / total) for count in counts.values())
    assert embedded.unigram_entropy_nats == pytest.approx(entropy, rel=1e-12)
    assert 5 < entropy < math.log(embedded.vocab_size)


def test_the_counts_are_those_of_the_text(embedded):
    from transformers import AutoTokenizer

    ids = stream(embedded)
    text = AutoTokenizer.from_pretrained(embedded.preprocessor_dir).decode(ids.tolist(), skip_special_tokens=True)
    assert len(text.encode()) == embedded.num_bytes
    assert (ids == END_OF_TEXT_ID).sum() == embedded.num_documents
    assert len(ids) == embedded.num_tokens
    assert ids.max() == embedded.vocab_size - 1 == 2047
    assert 2.5 < embedded.bytes_per_token < 4.5


def test_no_validation_token_and_no_validation_document_is_trained_on(embedded):
    train, validation = embedded.train.tokens, embedded.validation.tokens
    assert np.array_equal(np.concatenate([train, validation]), stream(embedded))
    assert len(validation) == round(0.05 * embedded.num_tokens)

    def whole_documents(part):
        ends = np.flatnonzero(part == END_OF_TEXT_ID)
        return {part[a + 1 : b].tobytes() for a, b in pairwise(ends)}

    assert len(whole_documents(validation)) > 200
    first_bytes = {document[:2] for document in whole_documents(validation)}
    assert len(first_bytes) > 50  # a choice from the whole alphabet, though the documents come sorted
    assert not whole_documents(validation) & whole_documents(train)


def test_the_order_in_which_files_are_listed_changes_nothing(recipe_of, tmp_path, text_file):
    (tmp_path / "more.txt").write_text("\n".join(f"{i} more." for i in range(500)))
    for names in ([text_file, "more.txt"], ["more.txt", text_file]):
        data.prepare(recipe_of(corpus=names), base=tmp_path, cache=tmp_path / "cache")
    assert len(visible(tmp_path / "cache")) == 1


def test_validation_is_the_end_of_a_single_file(recipe_of, tmp_path, text_file):
    corpus = data.prepare(recipe_of(corpus=text_file), base=tmp_path, cache=tmp_path / "cache")
    positions = torch.cat([corpus.train.batch([i])["input_ids"] for i in range(corpus.train.num_samples)])
    assert len(positions) * 128 == positions.numel() <= len(corpus.train.tokens)
    assert np.array_equal(corpus.validation.tokens, stream(corpus)[-len(corpus.validation.tokens) :])


def test_a_second_call_takes_what_the_first_built_for_either_task(recipe_of, tmp_path, text_file, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    first = data.prepare(recipe_of(corpus=text_file), base=tmp_path, cache=cache)
    monkeypatch.setattr(tokens, "_build", lambda *_: pytest.fail("built again"))
    again = data.prepare(recipe_of(corpus=text_file), base=tmp_path, cache=cache)
    masked = data.prepare(recipe_of("bert-demo", corpus=text_file, seq_length=32), base=tmp_path, cache=cache)
    assert again.fingerprint == masked.fingerprint == first.fingerprint
    assert masked.train.targets_per_sample == 5
    assert len(visible(cache)) == 1


def test_another_text_vocabulary_or_split_is_another_folder(recipe_of, tmp_path, text_file):
    cache, small = tmp_path / "cache", recipe_of(corpus=text_file)
    shape = replace(small.shape, name="wide", vocab_size=70_000)
    wide = data.prepare(recipe_of(model_of(shape), corpus=text_file), base=tmp_path, cache=cache)
    data.prepare(small, base=tmp_path, cache=cache)
    data.prepare(recipe_of(corpus=text_file, validation_fraction=0.1), base=tmp_path, cache=cache)
    with (tmp_path / text_file).open("a") as file:
        file.write("One line more.\n")
    data.prepare(small, base=tmp_path, cache=cache)
    assert len(visible(cache)) == 4
    assert wide.train.tokens.dtype == np.uint32
    assert 259 < wide.vocab_size < 70_000  # said, for the text has no more pairs to merge
    assert wide.train.vocabulary.size == wide.vocab_size


@pytest.mark.parametrize("place", ["scaling.data.tokenizer.save", "scaling.data.cache.sync"])
def test_a_builder_that_dies_leaves_nothing_to_take(recipe_of, tmp_path, text_file, monkeypatch, place):
    def die(*_):
        raise KeyboardInterrupt

    recipe, cache = recipe_of(corpus=text_file), tmp_path / "cache"
    monkeypatch.setattr(place, die)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(recipe, base=tmp_path, cache=cache)
    monkeypatch.undo()
    assert visible(cache) == []

    # What SIGKILL leaves, for it lets nobody tidy up.
    (cache / ".building-killed" / "built").mkdir(parents=True)
    (cache / ".building-killed" / "built" / "tokens.bin").write_bytes(b"half")
    assert data.prepare(recipe, base=tmp_path, cache=cache).num_documents == 1


def test_a_builder_that_loses_the_race_uses_the_winners_folder(recipe_of, tmp_path, text_file, monkeypatch):
    recipe, cache, save, winners = recipe_of(corpus=text_file), tmp_path / "cache", tokens.tokenizer.save, []

    def slow_save(*arguments):
        monkeypatch.undo()
        winners.append(data.prepare(recipe, base=tmp_path, cache=cache))
        winners.append(winners[0].preprocessor_dir.parent.stat().st_ino)
        save(*arguments)

    monkeypatch.setattr(tokens.tokenizer, "save", slow_save)
    loser = data.prepare(recipe, base=tmp_path, cache=cache)
    assert loser.preprocessor_dir.parent.stat().st_ino == winners[1]
    assert loser.fingerprint == winners[0].fingerprint
    assert len(visible(cache)) == 1


@pytest.mark.parametrize("name", ["tokens.bin", "meta.json", "tokenizer/tokenizer.json"])
def test_a_truncated_or_missing_file_is_refused_with_the_folder_to_delete(recipe_of, tmp_path, text_file, name):
    recipe, cache = recipe_of(corpus=text_file), tmp_path / "cache"
    folder = data.prepare(recipe, base=tmp_path, cache=cache).preprocessor_dir.parent
    content = (folder / name).read_bytes()
    for damage in (lambda: (folder / name).write_bytes(content[:-2]), (folder / name).unlink):
        damage()
        with pytest.raises(FileProblems, match=name) as caught:
            data.prepare(recipe, base=tmp_path, cache=cache)
        assert str(folder) in caught.value.message
        assert "delete that directory" in caught.value.hint
    (folder / name).write_bytes(content)
    assert data.prepare(recipe, base=tmp_path, cache=cache).num_documents == 1


@pytest.mark.parametrize("model", ["gpt-demo", "bert-demo"])
def test_a_text_too_small_for_a_sample_is_refused_with_the_size_that_would_do(recipe_of, tmp_path, model):
    line = "".join(f"{i} is not {i + 1}.\n" for i in range(40))
    (tmp_path / "text.txt").write_text(line)
    recipe = recipe_of(model, corpus="text.txt", validation_fraction=0.25)
    with pytest.raises(InputError, match="at seq_length 128 that is 1 training and 0 validation") as caught:
        data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    assert caught.value.field == "data.corpus"
    assert "give it 516 tokens" in caught.value.hint  # 129 / 0.25


def test_a_cache_that_cannot_be_written_is_an_input_error(recipe_of, tmp_path, text_file):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cache: .* cannot hold the tokens"):
        data.prepare(recipe_of(corpus=text_file), base=tmp_path, cache=tmp_path / "cache")
