"""Decoders, by family: (layers, width, heads, ...) as the paper's table or the config.json on the hub has them.

Alphabet: L layers, D hidden, N heads, K key-value heads, F intermediate, V vocabulary.
"""

from scaling.family import Setting
from scaling.registry.entry import Entry, table
from scaling.shape import Shape

GPT2_VOCAB = 50_257  # 50,000 merges + 256 bytes + <|endoftext|>
OURS = "sized for two CPU ranks and a few minutes"

_MIT, _APACHE = "MIT", "Apache-2.0"


def gpt(name: str, L: int, D: int, N: int, context: int, vocab: int = GPT2_VOCAB) -> Shape:
    return Shape(
        name=name, family="gpt2", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=4 * D,
        vocab_size=vocab, max_position_embeddings=context,
    )  # fmt: skip


def _neox(name: str, L: int, D: int, N: int, vocab: int, **settings: Setting) -> Shape:
    return Shape(
        name=name, family="gpt-neox", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=4 * D,
        vocab_size=vocab, max_position_embeddings=2048, settings=tuple(settings.items()),
    )  # fmt: skip


def _opt(name: str, L: int, D: int, N: int) -> Shape:
    return Shape(
        name=name, family="opt", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=4 * D,
        vocab_size=50_272, max_position_embeddings=2048,
    )  # fmt: skip


def _llama(
    name: str, L: int, D: int, N: int, K: int, F: int, V: int, context: int, *, family: str = "llama",
    head_dim: int | None = None, tied: bool = False, experts: tuple[int, int] = (1, 1), eps: float = 1e-5,
    theta: float = 1e4, stretched: float | None = None,
) -> Shape:  # fmt: skip
    """Llama and what follows it; `experts` are (all, per token), `stretched` Llama 3.1's factor."""
    settings: dict[str, Setting] = {"rms_norm_eps": eps, "rope_parameters.rope_theta": theta}
    if stretched:
        settings |= {
            "rope_parameters.rope_type": "llama3", "rope_parameters.factor": stretched,
            "rope_parameters.low_freq_factor": 1.0, "rope_parameters.high_freq_factor": 4.0,
            "rope_parameters.original_max_position_embeddings": 8192,
        }  # fmt: skip
    return Shape(
        name=name, family=family, num_layers=L, hidden_size=D, num_attention_heads=N, num_key_value_heads=K,
        intermediate_size=F, vocab_size=V, max_position_embeddings=context, explicit_head_dim=head_dim,
        tied_embeddings=tied, num_experts=experts[0], experts_per_token=experts[1], settings=tuple(settings.items()),
    )  # fmt: skip


def _qwen2(name: str, L: int, D: int, N: int, K: int, F: int, V: int, context: int, *, tied: bool = False,
           eps: float = 1e-6) -> Shape:  # fmt: skip
    return _llama(name, L, D, N, K, F, V, context, family="qwen2", tied=tied, eps=eps, theta=1e6)


def _qwen3(name: str, L: int, D: int, N: int, F: int, *, tied: bool = False) -> Shape:
    return _llama(name, L, D, N, 8, F, 151_936, 32_768, family="qwen3", head_dim=128, tied=tied, eps=1e-6, theta=1e6)


# Context 2048, learning rate as printed; the batches 0.5M, 1M, 2M and 3.2M tokens as whole sequences.
_GPT3 = "Brown et al. 2020 (arXiv 2005.14165), table 2.1"
_GPT3_ENTRIES = (
    Entry(shape=gpt("gpt3-125m", 12, 768, 12, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=6.0e-4),
    Entry(shape=gpt("gpt3-350m", 24, 1024, 16, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=3.0e-4),
    Entry(shape=gpt("gpt3-760m", 24, 1536, 16, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=2.5e-4),
    Entry(
        shape=gpt("gpt3-1.3b", 24, 2048, 16, 2048), source=_GPT3, batch_tokens=512 * 2048, lr=2.0e-4,
        note="the table prints 24 heads of 128, which is not 2048; 16 heads of 128 as in Megatron-DeepSpeed",
    ),
    Entry(shape=gpt("gpt3-2.7b", 32, 2560, 32, 2048), source=_GPT3, batch_tokens=512 * 2048, lr=1.6e-4),
    Entry(shape=gpt("gpt3-6.7b", 32, 4096, 32, 2048), source=_GPT3, batch_tokens=1024 * 2048, lr=1.2e-4),
    Entry(
        shape=gpt("gpt3-13b", 40, 5120, 40, 2048), source=_GPT3, batch_tokens=1024 * 2048, lr=1.0e-4,
        note="the table prints a width of 5140 with 40 heads of 128, which is 5120",
    ),
    Entry(shape=gpt("gpt3-175b", 96, 12288, 96, 2048), source=_GPT3, batch_tokens=1536 * 2048, lr=0.6e-4),
)  # fmt: skip

# The paper's batch is 512 sequences of 1024; it prints no learning rate.
_GPT2_ENTRIES = table(
    (
        (gpt("gpt2", 12, 768, 12, 1024), 512 * 1024, None),
        (gpt("gpt2-medium", 24, 1024, 16, 1024), 512 * 1024, None),
        (gpt("gpt2-large", 36, 1280, 20, 1024), 512 * 1024, None),
        (gpt("gpt2-xl", 48, 1600, 25, 1024), 512 * 1024, None),
    ),
    source="Radford et al. 2019, table 2; openai-community/gpt2* config.json", licence=_MIT,
)  # fmt: skip

_NEOX_ENTRIES = table(
    # Its GELU is "gelu_fast", tanh's.
    ((_neox("gpt-neox-20b", 44, 6144, 64, 50_432, hidden_act="gelu_pytorch_tanh"), 1538 * 2048, 0.97e-4),),
    source="Black et al. 2022 (arXiv 2204.06745), section 2 and appendix; EleutherAI/gpt-neox-20b config.json",
    licence=_APACHE,
) + table(
    (
        (_neox("pythia-70m", 6, 512, 8, 50_304), 1024 * 2048, 1.0e-3),
        (_neox("pythia-160m", 12, 768, 12, 50_304), 1024 * 2048, 6.0e-4),
        (_neox("pythia-410m", 24, 1024, 16, 50_304), 1024 * 2048, 3.0e-4),
        (_neox("pythia-1b", 16, 2048, 8, 50_304), 1024 * 2048, 3.0e-4),
        (_neox("pythia-1.4b", 24, 2048, 16, 50_304), 1024 * 2048, 2.0e-4),
        (_neox("pythia-2.8b", 32, 2560, 32, 50_304), 1024 * 2048, 1.6e-4),
        (_neox("pythia-6.9b", 32, 4096, 32, 50_432), 1024 * 2048, 1.2e-4),
        (_neox("pythia-12b", 36, 5120, 40, 50_688), 1024 * 2048, 1.2e-4),
    ),
    source="Biderman et al. 2023 (arXiv 2304.01373), table 1 and EleutherAI/pythia's configurations", licence=_APACHE,
)  # fmt: skip

_OPT_ENTRIES = table(
    (
        (_opt("opt-125m", 12, 768, 12), 256 * 2048, 6.0e-4),
        (_opt("opt-1.3b", 24, 2048, 32), 512 * 2048, 2.0e-4),
        (_opt("opt-2.7b", 32, 2560, 32), 512 * 2048, 1.6e-4),
        (_opt("opt-6.7b", 32, 4096, 32), 1024 * 2048, 1.2e-4),
        (_opt("opt-13b", 40, 5120, 40), 2048 * 2048, 1.0e-4),
        (_opt("opt-30b", 48, 7168, 56), 2048 * 2048, 1.0e-4),
        (_opt("opt-66b", 64, 9216, 72), 1024 * 2048, 0.8e-4),
    ),
    source="Zhang et al. 2022 (arXiv 2205.01068), table 1; facebook/opt-* config.json",
    licence="OPT-175B licence, for research",
    note="OPT-350M is not among them: it is post-norm and projects its embeddings, another architecture",
)  # fmt: skip

_V1, _V3 = 32_000, 128_256  # the vocabularies of Llama 1 and 2, and of Llama 3
_LLAMA_ENTRIES = (
    table(
        (
            (_llama("llama-7b", 32, 4096, 32, 32, 11_008, _V1, 2048, eps=1e-6), 2048 * 2048, 3.0e-4),
            (_llama("llama-13b", 40, 5120, 40, 40, 13_824, _V1, 2048, eps=1e-6), 2048 * 2048, 3.0e-4),
            (_llama("llama-33b", 60, 6656, 52, 52, 17_920, _V1, 2048, eps=1e-6), 2048 * 2048, 1.5e-4),
            (_llama("llama-65b", 80, 8192, 64, 64, 22_016, _V1, 2048, eps=1e-6), 2048 * 2048, 1.5e-4),
        ),
        source="Touvron et al. 2023 (arXiv 2302.13971), table 2; widths of the MLP as released",
        licence="Llama 1 licence, for research",
    )
    + table(
        (
            (_llama("llama-2-7b", 32, 4096, 32, 32, 11_008, _V1, 4096), 1024 * 4096, 3.0e-4),
            (_llama("llama-2-13b", 40, 5120, 40, 40, 13_824, _V1, 4096), 1024 * 4096, 3.0e-4),
            (_llama("llama-2-70b", 80, 8192, 64, 8, 28_672, _V1, 4096), 1024 * 4096, 1.5e-4),
        ),
        source="Touvron et al. 2023 (arXiv 2307.09288), table 1; meta-llama/Llama-2-*-hf config.json",
        licence="Llama 2 community licence",
    )
    + table(
        (
            (_llama("llama-3-8b", 32, 4096, 32, 8, 14_336, _V3, 8192, theta=5e5), None, 3.0e-4),
            (_llama("llama-3-70b", 80, 8192, 64, 8, 28_672, _V3, 8192, theta=5e5), None, 1.5e-4),
        ),
        source="Grattafiori et al. 2024 (arXiv 2407.21783), table 3; meta-llama/Meta-Llama-3-* config.json",
        licence="Llama 3 community licence",
    )
    + table(
        (
            (_llama("llama-3.1-8b", 32, 4096, 32, 8, 14_336, _V3, 131_072, theta=5e5, stretched=8.0), None, 3.0e-4),
            (_llama("llama-3.1-70b", 80, 8192, 64, 8, 28_672, _V3, 131_072, theta=5e5, stretched=8.0), None, 1.5e-4),
            (
                _llama("llama-3.1-405b", 126, 16_384, 128, 8, 53_248, _V3, 131_072, theta=5e5, stretched=8.0),
                2048 * 8192,  # its largest, "16M", at 8,192 tokens a sequence (section 3.4.1)
                0.8e-4,
            ),
        ),
        source="Grattafiori et al. 2024 (arXiv 2407.21783), table 3; meta-llama/Llama-3.1-* config.json",
        licence="Llama 3.1 community licence",
        seq_length=8192,
    )
    + table(
        (
            (
                _llama("llama-3.2-1b", 16, 2048, 32, 8, 8192, _V3, 131_072, tied=True, theta=5e5, stretched=32.0),
                None,
                None,
            ),
            (
                _llama("llama-3.2-3b", 28, 3072, 24, 8, 8192, _V3, 131_072, tied=True, theta=5e5, stretched=32.0),
                None,
                None,
            ),
        ),
        source="meta-llama/Llama-3.2-* config.json; pruned from Llama 3.1 8B and distilled",
        licence="Llama 3.2 community licence",
        seq_length=8192,
    )
    + table(
        ((_llama("tinyllama-1.1b", 22, 2048, 32, 4, 5632, _V1, 2048), 1024 * 2048, 4.0e-4),),
        source="Zhang et al. 2024 (arXiv 2401.02385), section 2; TinyLlama/TinyLlama-1.1B config.json",
        licence=_APACHE,
    )
)

_MISTRAL_ENTRIES = table(
    (
        (
            _llama("mistral-7b-v0.3", 32, 4096, 32, 8, 14_336, 32_768, 32_768, family="mistral", theta=1e6),
            None,
            None,
        ),
    ),
    source="Jiang et al. 2023 (arXiv 2310.06825), table 1; mistralai/Mistral-7B-v0.3 config.json",
    licence=_APACHE,
    note="version 0.3, whose attention has no window",
) + table(
    (
        (
            _llama(
                "mixtral-8x7b", 32, 4096, 32, 8, 14_336, 32_000, 32_768, family="mixtral", experts=(8, 2), theta=1e6
            ),
            None,
            None,
        ),
        (
            _llama(
                "mixtral-8x22b", 56, 6144, 48, 8, 16_384, 32_000, 65_536, family="mixtral", experts=(8, 2), theta=1e6
            ),
            None,
            None,
        ),
    ),
    source="Jiang et al. 2024 (arXiv 2401.04088), table 1; mistralai/Mixtral-*-v0.1 config.json",
    licence=_APACHE,
)

_QWEN2 = "Yang et al. 2024 (arXiv 2407.10671), table 1; Qwen/Qwen2-* config.json"
_QWEN25 = "Qwen team 2024 (arXiv 2412.15115), table 1; Qwen/Qwen2.5-* config.json"
_SMALL, _LARGE = 151_936, 152_064  # vocabularies: the large models' is padded further
_QWEN_ENTRIES = (
    table(
        (
            (_qwen2("qwen2-0.5b", 24, 896, 14, 2, 4864, _SMALL, 131_072, tied=True), None, None),
            (_qwen2("qwen2-1.5b", 28, 1536, 12, 2, 8960, _SMALL, 131_072, tied=True), None, None),
            (_qwen2("qwen2-7b", 28, 3584, 28, 4, 18_944, _LARGE, 131_072), None, None),
        ),
        source=_QWEN2, licence=_APACHE, seq_length=4096,
    )
    + table(
        ((_qwen2("qwen2-72b", 80, 8192, 64, 8, 29_568, _LARGE, 131_072, eps=1e-5), None, None),),
        source=_QWEN2, licence="Tongyi Qianwen licence", seq_length=4096,
    )
    + table(
        (
            (_qwen2("qwen2.5-0.5b", 24, 896, 14, 2, 4864, _SMALL, 32_768, tied=True), None, None),
            (_qwen2("qwen2.5-1.5b", 28, 1536, 12, 2, 8960, _SMALL, 131_072, tied=True), None, None),
            (_qwen2("qwen2.5-7b", 28, 3584, 28, 4, 18_944, _LARGE, 131_072), None, None),
            (_qwen2("qwen2.5-14b", 48, 5120, 40, 8, 13_824, _LARGE, 131_072, eps=1e-5), None, None),
            (_qwen2("qwen2.5-32b", 64, 5120, 40, 8, 27_648, _LARGE, 131_072, eps=1e-5), None, None),
        ),
        source=_QWEN25, licence=_APACHE, seq_length=4096,
    )
    + table(
        ((_qwen2("qwen2.5-3b", 36, 2048, 16, 2, 11_008, _SMALL, 32_768, tied=True), None, None),),
        source=_QWEN25, licence="Qwen research licence", seq_length=4096,
    )
    + table(
        ((_qwen2("qwen2.5-72b", 80, 8192, 64, 8, 29_568, _LARGE, 131_072, eps=1e-5), None, None),),
        source=_QWEN25, licence="Qwen licence", seq_length=4096,
    )
    + table(
        (
            (_qwen3("qwen3-0.6b", 28, 1024, 16, 3072, tied=True), None, None),
            (_qwen3("qwen3-1.7b", 28, 2048, 16, 6144, tied=True), None, None),
            (_qwen3("qwen3-4b", 36, 2560, 32, 9728, tied=True), None, None),
            (_qwen3("qwen3-8b", 36, 4096, 32, 12_288), None, None),
            (_qwen3("qwen3-14b", 40, 5120, 40, 17_408), None, None),
            (_qwen3("qwen3-32b", 64, 5120, 64, 25_600), None, None),
        ),
        source="Yang et al. 2025 (arXiv 2505.09388), table 1; Qwen/Qwen3-*-Base config.json",
        licence=_APACHE, seq_length=4096,
    )
)  # fmt: skip

_DEMO_ENTRIES = table(
    (
        (gpt("gpt-demo", 4, 256, 4, 128, vocab=2048), 32 * 128, 2.0e-3),
        (_llama("llama-demo", 4, 256, 4, 2, 640, 2048, 128), 32 * 128, None),
        (_llama("mixtral-demo", 4, 128, 4, 2, 256, 2048, 128, family="mixtral", experts=(4, 2)), 32 * 128, None),
    ),
    source=OURS, licence="no weights published",
)  # fmt: skip

DECODERS = (
    _GPT3_ENTRIES + _GPT2_ENTRIES + _NEOX_ENTRIES + _OPT_ENTRIES + _LLAMA_ENTRIES + _MISTRAL_ENTRIES + _QWEN_ENTRIES
    + _DEMO_ENTRIES
)  # fmt: skip
