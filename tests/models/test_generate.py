"""`scale generate` has an answer for every family, or says why not."""

import pytest

from scaling import models
from scaling.data import tokenizer
from scaling.errors import InputError
from scaling.family import FAMILIES
from scaling.models.generate import generate
from tests.parallel.families import shape_of

PROMPTS = {
    "decoder": "some text",
    "encoder": "some <|mask|> text",
    "encoder-decoder": "some <extra_id_0> text <extra_id_1>.",
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder like those of `scale export`, of an untrained model."""
    bpe, vocabulary = tokenizer.train(["some text " * 9], 300, 3)

    def folder(family):
        path = tmp_path_factory.mktemp(family)
        model = models.build(shape_of(family))
        models.prepare_for_use(
            model, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 0}
        )
        model.save_pretrained(path)
        tokenizer.save(bpe, vocabulary, path)
        return path

    return folder


def ask(folder, prompt, **changes):
    return generate(folder, prompt, **{"max_new_tokens": 6, "temperature": 1.0, "seed": 1, **changes})


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.kind != "vision"])
def test_every_family_of_text_continues_or_fills_the_same_for_a_seed(family, folder_of):
    folder, kind = folder_of(family), FAMILIES[family].kind
    text = ask(folder, PROMPTS[kind])
    assert text == ask(folder, PROMPTS[kind])
    assert text.startswith("some ")
    assert "<|mask|>" not in text
    assert "<extra_id_" not in text
    if kind == "decoder":
        assert len(text) > len(PROMPTS[kind])
    else:
        assert " text" in text  # what stood there is kept
        with pytest.raises(InputError, match="to fill, which is"):
            ask(folder, "nothing left out")
    with pytest.raises(InputError, match="prompt: '' is empty"):
        ask(folder, "")


def test_spans_stand_where_their_sentinels_did(folder_of, monkeypatch):
    import torch
    from transformers import T5ForConditionalGeneration

    folder = folder_of("t5")
    bpe = tokenizer.Tokenizer.from_file(str(folder / "tokenizer.json"))
    said = bpe.encode("<|endoftext|><extra_id_0>me<extra_id_1>xt<|endoftext|>").ids
    monkeypatch.setattr(T5ForConditionalGeneration, "generate", lambda *_, **__: torch.tensor([said]))
    assert ask(folder, "so<extra_id_0> te<extra_id_1>.") == "some text."
    with pytest.raises(InputError, match="has <extra_id_7>, which the model's tokenizer has not"):
        ask(folder, "so <extra_id_7>")


def test_a_model_of_images_is_refused(folder_of):
    with pytest.raises(InputError, match="is a vit, which takes images and has no text to give"):
        ask(folder_of("vit"), "some text")
