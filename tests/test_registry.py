"""Names for shapes: published rows with their sources, and sizes in between."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaling.errors import InputError
from scaling.registry import MODELS, find, nearest_gpt


@pytest.mark.parametrize("name", MODELS)
def test_an_entry_is_found_by_its_name_and_names_its_source(name):
    entry = find(name)
    assert entry.shape.name == name
    assert len(entry.source) > 10
    assert entry.licence
    assert entry.batch_tokens is None or entry.batch_tokens > 1000
    assert entry.lr is None or 1e-5 < entry.lr < 1e-2


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "batch_millions", "lr"),
    [
        # Brown et al. 2020, table 2.1, with the two misprints of the table undone: 1.3B has 16 heads, 13B is 5120 wide.
        ("gpt3-125m", 12, 768, 12, 0.5, 6.0e-4),
        ("gpt3-350m", 24, 1024, 16, 0.5, 3.0e-4),
        ("gpt3-760m", 24, 1536, 16, 0.5, 2.5e-4),
        ("gpt3-1.3b", 24, 2048, 16, 1, 2.0e-4),
        ("gpt3-2.7b", 32, 2560, 32, 1, 1.6e-4),
        ("gpt3-6.7b", 32, 4096, 32, 2, 1.2e-4),
        ("gpt3-13b", 40, 5120, 40, 2, 1.0e-4),
        ("gpt3-175b", 96, 12288, 96, 3.2, 0.6e-4),
    ],
)
def test_a_gpt3_row_is_that_of_the_paper(name, layers, width, heads, batch_millions, lr):
    shape = MODELS[name].shape
    assert (shape.num_layers, shape.hidden_size, shape.num_attention_heads) == (layers, width, heads)
    assert shape.max_position_embeddings == 2048
    assert MODELS[name].batch_tokens / 1e6 == pytest.approx(batch_millions, rel=0.05)
    assert MODELS[name].lr == lr


def test_an_unknown_model_is_refused_with_the_closest_names():
    with pytest.raises(InputError) as caught:
        find("gpt2-xxl")
    assert caught.value.field == "model"
    assert "'gpt2-xl'" in caught.value.hint


def test_1_3b_is_gpt3s_24_by_2048_and_says_where_that_stands():
    entry, sentence = nearest_gpt(1_300_000_000)
    shape = entry.shape
    assert (shape.name, shape.num_layers, shape.hidden_size, shape.num_attention_heads) == ("gpt3-1.3b", 24, 2048, 16)
    assert "arXiv 2005.14165" in sentence
    assert "24 layers x 2048" in sentence
    assert "1.32B" in sentence


@pytest.mark.parametrize(
    ("size", "name"),
    # The sizes that the paper's table prints are answered by its rows.
    [(125, "gpt3-125m"), (350, "gpt3-350m"), (760, "gpt3-760m"), (2700, "gpt3-2.7b"), (6700, "gpt3-6.7b"),
     (13_000, "gpt3-13b"), (175_000, "gpt3-175b")],
)  # fmt: skip
def test_a_published_size_is_answered_by_the_published_shape(size, name):
    assert nearest_gpt(size * 10**6)[0] is MODELS[name]


_LOG_UNIFORM = st.floats(0, 1)


def _between(fraction, low, high):
    return round(low * (high / low) ** fraction)


@given(_LOG_UNIFORM)
@example(0.0)
@example(1.0)
def test_from_100m_to_1t_a_derived_shape_is_within_5_percent_of_what_was_asked(fraction):
    asked = _between(fraction, 1e8, 1e12)
    entry, _ = nearest_gpt(asked)
    if "derived" in entry.source:
        assert entry.shape.num_params == pytest.approx(asked, rel=0.05)


@given(_LOG_UNIFORM)
@example(0.0)
# The smallest derived shape, one layer of one head, has 3.4M parameters.
def test_from_the_smallest_shape_to_100m_a_derived_shape_is_within_a_quarter_of_what_was_asked(fraction):
    asked = _between(fraction, 3.4e6, 1e8)
    assert nearest_gpt(asked)[0].shape.num_params == pytest.approx(asked, rel=0.25)


@given(_LOG_UNIFORM)
def test_a_size_whatever_gets_a_shape_that_can_be_built_and_a_sentence_with_its_numbers(fraction):
    asked = _between(fraction, 1e7, 1e12)
    entry, sentence = nearest_gpt(asked)
    shape = entry.shape
    assert shape.hidden_size % shape.num_attention_heads == 0
    assert shape.intermediate_size == 4 * shape.hidden_size
    assert f"{shape.num_layers} layers x {shape.hidden_size}" in sentence
    if entry.source.startswith("derived"):
        assert "derived" in sentence
        assert "no published GPT-3 shape is within 10%" in sentence
        # Layers over width stays near the extremes of the table, 96 / 12288 and 24 / 1024; below 100M parameters
        # the vocabulary leaves too few shapes to choose from.
        if asked >= 1e8:
            assert 96 / 12288 * 0.8 <= shape.num_layers / shape.hidden_size <= 24 / 1024 * 1.3
    else:
        assert entry is MODELS[shape.name]
        assert shape.num_params == pytest.approx(asked, rel=0.10)


@given(st.integers(10**7, 10**12))
@example(999_600_000)  # three digits of this are a thousand millions
def test_a_derived_name_can_name_a_recipe_and_a_folder(asked):
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", nearest_gpt(asked)[0].shape.name)


@pytest.mark.parametrize("asked", [1, 1000, 10**6, 2 * 10**6])
def test_a_size_below_the_vocabulary_is_refused_with_the_smallest_that_there_is(asked):
    with pytest.raises(InputError) as caught:
        nearest_gpt(asked)
    assert caught.value.field == "params"
    assert "50,257" in caught.value.message
    assert "3.4M" in caught.value.hint
    assert "gpt-demo" in caught.value.hint
