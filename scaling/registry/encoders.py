"""Encoders, encoder-decoders and vision models, by family, as the paper's table or the config.json on the hub has them.

Alphabet: L layers, D hidden, N heads, F intermediate, V vocabulary.
"""

from scaling.registry.decoders import OURS
from scaling.registry.entry import table
from scaling.shape import Shape

BERT_VOCAB = 30_522  # google-research/bert, uncased WordPiece
_ROBERTA_VOCAB = 50_265  # GPT-2's, with fairseq's special tokens
_T5_VOCAB = 32_128  # 32,000 pieces and 100 sentinels, padded
_MIT, _APACHE = "MIT", "Apache-2.0"


def _encoder(family: str, name: str, L: int, D: int, N: int, F: int, V: int, context: int) -> Shape:
    return Shape(
        name=name, family=family, num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=F,
        vocab_size=V, max_position_embeddings=context,
    )  # fmt: skip


def _bert(name: str, L: int, D: int, context: int = 512, vocab: int = BERT_VOCAB) -> Shape:
    return _encoder("bert", name, L, D, D // 64, 4 * D, vocab, context)


def _t5(name: str, L: int, D: int, N: int, F: int, *, head_dim: int = 64, gated: bool = False, vocab: int = _T5_VOCAB,
        context: int = 512) -> Shape:  # fmt: skip
    return Shape(
        name=name, family="t5", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=F,
        vocab_size=vocab, max_position_embeddings=context, explicit_head_dim=head_dim, gated_mlp=gated,
        tied_embeddings=not gated,
    )  # fmt: skip


def _vit(name: str, L: int, D: int, N: int, *, patch: int, image: int = 224, channels: int = 3,
         classes: int = 1000) -> Shape:  # fmt: skip
    return Shape(
        name=name, family="vit", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=4 * D,
        vocab_size=classes, max_position_embeddings=(image // patch) ** 2 + 1, image_size=image, patch_size=patch,
        num_channels=channels,
    )  # fmt: skip


# Appendix A.2: 256 sequences of 512 tokens, Adam at 1e-4.
_BERT_ENTRIES = table(
    (
        (_bert("bert-tiny", 2, 128), None, None),
        (_bert("bert-mini", 4, 256), None, None),
        (_bert("bert-small", 4, 512), None, None),
        (_bert("bert-medium", 8, 512), None, None),
    ),
    source="Turc et al. 2019 (arXiv 1908.08962), table 1; google/bert_uncased_L-*_H-* config.json", licence=_APACHE,
) + table(
    (
        (_bert("bert-base", 12, 768), 256 * 512, 1.0e-4),
        (_bert("bert-large", 24, 1024), 256 * 512, 1.0e-4),
    ),
    source="Devlin et al. 2018 (arXiv 1810.04805), section 3", licence=_APACHE,
) + table(
    (
        (_encoder("roberta", "roberta-base", 12, 768, 12, 3072, _ROBERTA_VOCAB, 512), 8192 * 512, 6.0e-4),
        (_encoder("roberta", "roberta-large", 24, 1024, 16, 4096, _ROBERTA_VOCAB, 512), 8192 * 512, 4.0e-4),
    ),
    source="Liu et al. 2019 (arXiv 1907.11692), table 9; FacebookAI/roberta-* config.json", licence=_MIT,
) + table(
    (
        (_encoder("modernbert", "modernbert-base", 22, 768, 12, 1152, 50_368, 8192), 4608 * 1024, 8.0e-4),
        (_encoder("modernbert", "modernbert-large", 28, 1024, 16, 2624, 50_368, 8192), 4928 * 1024, 5.0e-4),
    ),
    source="Warner et al. 2024 (arXiv 2412.13663), tables 3 and 4; answerdotai/ModernBERT-* config.json",
    licence=_APACHE, seq_length=1024,
    note="batch, rate and length are of the first stage, by StableAdamW",
)  # fmt: skip

# Section 2.3's baseline has 2^16 tokens a batch, the released models 2,048 sequences of 512 (section 3.7), Adafactor.
_T5_ENTRIES = table(
    (
        (_t5("t5-small", 6, 512, 8, 2048), 2048 * 512, None),
        (_t5("t5-base", 12, 768, 12, 3072), 2048 * 512, None),
        (_t5("t5-large", 24, 1024, 16, 4096), 2048 * 512, None),
        (_t5("t5-3b", 24, 1024, 32, 16_384, head_dim=128), 2048 * 512, None),
        (_t5("t5-11b", 24, 1024, 128, 65_536, head_dim=128), 2048 * 512, None),
    ),
    source="Raffel et al. 2020 (arXiv 1910.10683), section 3.7; google-t5/t5-* config.json", licence=_APACHE,
    note="trained with Adafactor at min(0.01, 1 / sqrt(step))",
) + table(
    (
        (_t5("t5-v1.1-small", 8, 512, 6, 1024, gated=True), 2048 * 512, None),
        (_t5("t5-v1.1-base", 12, 768, 12, 2048, gated=True), 2048 * 512, None),
        (_t5("t5-v1.1-large", 24, 1024, 16, 2816, gated=True), 2048 * 512, None),
        (_t5("t5-v1.1-xl", 24, 2048, 32, 5120, gated=True), 2048 * 512, None),
        (_t5("t5-v1.1-xxl", 24, 4096, 64, 10_240, gated=True), 2048 * 512, None),
    ),
    source="Shazeer 2020 (arXiv 2002.05202) for the MLP; google/t5-v1_1-* config.json", licence=_APACHE,
    note="trained with Adafactor at min(0.01, 1 / sqrt(step))",
)  # fmt: skip

_TRANSFORMER_ENTRIES = table(
    (
        # Section 5.3: the rate peaks at D^-0.5 x 4000^-0.5; section 5.1: about 25,000 tokens of each side.
        (_encoder("transformer", "transformer-base", 6, 512, 8, 2048, 37_000, 512), 25_000, 7.0e-4),
        (_encoder("transformer", "transformer-big", 6, 1024, 16, 4096, 37_000, 512), 25_000, 4.9e-4),
    ),
    source="Vaswani et al. 2017 (arXiv 1706.03762), table 3 and section 5", licence="no weights published",
    note="its sinusoids have no last position; 512 here",
) + table(
    (
        (_encoder("bart", "bart-base", 6, 768, 12, 3072, _ROBERTA_VOCAB, 1024), None, None),
        (_encoder("bart", "bart-large", 12, 1024, 16, 4096, _ROBERTA_VOCAB, 1024), None, None),
    ),
    source="Lewis et al. 2020 (arXiv 1910.13461), sections 4 and 5; facebook/bart-* config.json", licence=_APACHE,
)  # fmt: skip

# Batches are 4,096 images; tokens here are patches and class token.
_VIT_ENTRIES = table(
    (
        (_vit("vit-base-16", 12, 768, 12, patch=16), 4096 * 197, 1.0e-3),
        (_vit("vit-large-16", 24, 1024, 16, patch=16), 4096 * 197, 1.0e-3),
        (_vit("vit-huge-14", 32, 1280, 16, patch=14), 4096 * 257, 3.0e-4),
    ),
    source="Dosovitskiy et al. 2021 (arXiv 2010.11929), tables 1 and 3; google/vit-* config.json", licence=_APACHE,
    note="the head is ImageNet-1k's; the rate is that of ImageNet-21k, of JFT-300M for the huge one",
)  # fmt: skip

_DEMO_ENTRIES = table(
    (
        (_bert("bert-demo", 4, 256, 128, vocab=2048), 32 * 128, 1.0e-3),
        (_t5("t5-demo", 2, 128, 4, 512, head_dim=32, vocab=2048, context=128), 32 * 128, None),
        (_encoder("transformer", "transformer-demo", 2, 128, 4, 512, 2048, 128), 32 * 128, None),
        (_vit("vit-demo", 4, 128, 4, patch=4, image=32, classes=10), 64 * 65, None),
    ),
    source=OURS, licence="no weights published",
)  # fmt: skip

ENCODERS = _BERT_ENTRIES + _T5_ENTRIES + _TRANSFORMER_ENTRIES + _VIT_ENTRIES + _DEMO_ENTRIES
