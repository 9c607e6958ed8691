"""First weights have the statistics that each family's paper, or its authors' code, gives them: docs/models.md."""

import math

import pytest
import torch

from scaling.models import build
from scaling.shape import Shape

L, D, F = 3, 256, 640
_TRUNCATED = 0.87962566  # the standard deviation of a normal cut at two of its own


def _weights(family, **changes):
    more = {"vit": {"image_size": 32, "patch_size": 8, "num_channels": 3, "max_position_embeddings": 17}}
    shape = Shape(**{
        "name": "x", "family": family, "num_layers": L, "hidden_size": D, "num_attention_heads": 4,
        "intermediate_size": F, "vocab_size": 512, "max_position_embeddings": 64, **more.get(family, {}), **changes,
    })  # fmt: skip
    return {name: weight.detach() for name, weight in build(shape, seed=5).named_parameters()}


def _xavier(inputs, outputs):
    return math.sqrt(2 / (inputs + outputs))


# (family, part of a name, standard deviation, the largest value over it where the distribution is cut).
_UNIFORM = math.sqrt(3)
STATISTICS = [
    # Radford et al. 2019, section 2.3: residual layers by 1 / sqrt of their number.
    ("gpt2", "wte.weight", 0.02, None), ("gpt2", "c_fc.weight", 0.02, None),
    ("gpt2", "attn.c_proj.weight", 0.02 / math.sqrt(2 * L), None),
    ("gpt2", "mlp.c_proj.weight", 0.02 / math.sqrt(2 * L), None),
    # Black et al. 2022, section 2: small init, and Wang & Komatsuzaki's 2 / (L sqrt(D)) into the residual.
    ("gpt-neox", "embed_in.weight", math.sqrt(2 / (5 * D)), None),
    ("gpt-neox", "query_key_value.weight", math.sqrt(2 / (5 * D)), None),
    ("gpt-neox", "dense_h_to_4h.weight", math.sqrt(2 / (5 * D)), None),
    ("gpt-neox", "attention.dense.weight", 2 / (L * math.sqrt(D)), None),
    ("gpt-neox", "dense_4h_to_h.weight", 2 / (L * math.sqrt(D)), None),
    # Zhang et al. 2022, section 2.2: 0.006, output layers by 1 / sqrt(2 L).
    ("opt", "embed_tokens.weight", 0.006, None), ("opt", "fc1.weight", 0.006, None),
    ("opt", "out_proj.weight", 0.006 / math.sqrt(2 * L), None), ("opt", "fc2.weight", 0.006 / math.sqrt(2 * L), None),
    ("llama", "down_proj.weight", 0.02, None), ("llama", "embed_tokens.weight", 0.02, None),
    # google-research/bert, modeling.py, create_initializer.
    ("bert", "word_embeddings.weight", 0.02 * _TRUNCATED, 2 / _TRUNCATED),
    ("bert", "intermediate.dense.weight", 0.02 * _TRUNCATED, 2 / _TRUNCATED),
    ("bert", "predictions.transform.dense.weight", 0.02 * _TRUNCATED, 2 / _TRUNCATED),
    # fairseq's init_bert_params draws from the whole normal.
    ("roberta", "intermediate.dense.weight", 0.02, None), ("bart", "fc1.weight", 0.02, None),
    ("modernbert", "Wi.weight", 0.02 * _TRUNCATED, 2 / _TRUNCATED),
    ("modernbert", "mlp.Wo.weight", 0.02 * _TRUNCATED / math.sqrt(2 * L), 2 / _TRUNCATED),
    # mesh-tensorflow: by fan-in, queries by the head too, so that scores need no scale.
    ("t5", "shared.weight", 1.0, None), ("t5", "SelfAttention.q.weight", (D * 64) ** -0.5, None),
    ("t5", "SelfAttention.k.weight", D**-0.5, None), ("t5", "wo.weight", F**-0.5, None),
    # tensor2tensor: uniform with Glorot's variance, embeddings by D.
    ("transformer", "shared.weight", D**-0.5, None),
    ("transformer", "q_proj.weight", _xavier(D, D), _UNIFORM), ("transformer", "fc1.weight", _xavier(D, F), _UNIFORM),
    # google-research/vision_transformer, vit_jax/models_vit.py.
    ("vit", "projection.weight", (3 * 64) ** -0.5, 2 / _TRUNCATED), ("vit", "position_embeddings", 0.02, None),
    ("vit", "q_proj.weight", _xavier(D, D), _UNIFORM), ("vit", "mlp.fc2.weight", _xavier(D, F), _UNIFORM),
    ("vit", "mlp.fc1.bias", 1e-6, None),
]  # fmt: skip


@pytest.mark.parametrize("family", sorted({row[0] for row in STATISTICS}))
def test_first_weights_have_the_deviation_and_the_cut_of_the_paper(family):
    weights = _weights(family)
    for of, part, std, cut in STATISTICS:
        if of == family:
            (found, *_) = (weight for name, weight in weights.items() if name.endswith(part))
            # Four of the standard errors that so many draws of a normal have.
            assert found.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * found.numel())), part
            assert abs(found.mean().item()) < 4 * std / math.sqrt(found.numel()), part
            largest = found.abs().max().item() / std
            assert largest <= cut * 1.001 if cut else largest > 2.5, part
            assert cut is None or largest > 0.98 * cut, part


def test_a_vision_transformer_begins_with_a_head_and_a_class_token_of_zeros():
    weights = _weights("vit")
    assert not weights["classifier.weight"].any()
    assert not weights["vit.embeddings.cls_token"].any()


def test_the_head_of_t5_1_1_is_its_own_and_survives_saving(tmp_path):
    # T5Config (transformers 5.23.0) ties all that it builds; Shazeer 2020 and google/t5-v1_1-* do not.
    from transformers import AutoModelForSeq2SeqLM

    shape = Shape(
        name="x", family="t5", num_layers=1, hidden_size=64, num_attention_heads=2, intermediate_size=96,
        vocab_size=80, max_position_embeddings=32, gated_mlp=True, tied_embeddings=False,
    )  # fmt: skip
    model = build(shape).eval()
    assert model.lm_head.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert again.encoder.embed_tokens.weight is again.shared.weight
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        logits = (one(input_ids=ids, decoder_input_ids=ids).logits for one in (model, again))
        assert torch.equal(*logits)


def test_the_same_seed_has_the_same_first_weights():
    for family in ("bert", "vit"):
        first, second = _weights(family), _weights(family)
        assert all(torch.equal(first[name], second[name]) for name in first)
