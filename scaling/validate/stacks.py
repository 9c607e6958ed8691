"""The code bases that published tables come from, by the prefix of a row's id, and what each fixes without printing it.

What fills a blank of a row is listed with the row as an assumption.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from scaling.cost.job import Adapter, AdapterTarget
from scaling.registry import GPT2_VOCAB
from scaling.strategy import Rank

PeakKind = Literal["allocated", "reserved", "process"]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One code base. `profile` prices it, `amp_profile` its runs with autocast over fp32 weights.

    `attention` and `checkpointing` are what its recipes use where a row does not say; a row without the second says
    nothing of memory. `vocab_size` is its test vocabulary, padded to a multiple of `vocab_multiple` per
    tensor-parallel rank. `dropout` is its default, `predicted_fraction` what its masked-LM head computes.
    `compiled_logit_bytes` is what its loss keeps of a logit where torch.compile ran, since the month `compiled_since`.
    `splits_sequences`: tensor parallelism is always of sequences, too. `unties`: a head of its own, always.
    """

    profile: str
    amp_profile: str = ""
    attention: str = ""
    checkpointing: str = ""
    vocab_size: int | None = None
    vocab_multiple: int = 1
    dropout: float = 0.0
    predicted_fraction: float = 1.0
    compiled_logit_bytes: float | None = None
    compiled_since: str = ""
    splits_sequences: bool = False
    unties: bool = False
    rank: Rank = "any"
    peak_kind: PeakKind = "allocated"


_MEGATRON_TESTS = Stack(profile="megatron-core", vocab_size=GPT2_VOCAB, vocab_multiple=128, dropout=0.1)
# NeMo and Megatron-Bridge performance recipes: Transformer Engine's attention, sequence parallelism with tensor
# parallelism, recomputation only where a recipe names it.
_NEMO = Stack(
    profile="megatron-core", vocab_multiple=128, attention="flash", checkpointing="none", splits_sequences=True
)
# It compiles its loss, too, since February 2025: what stays are the logits, their gradient and a copy, in 16 bit.
_TORCHTITAN = Stack(profile="torchtitan", splits_sequences=True, compiled_logit_bytes=6.0, compiled_since="202502")
_DEEPSPEED = Stack(profile="deepspeed-defaults")
_LITGPT = Stack(profile="litgpt", unties=True)

STACKS = {
    "mcore": _MEGATRON_TESTS,
    "brg": _NEMO,
    "nemo": _NEMO,
    "mlm": _NEMO,
    "nano": Stack(profile="nanotron", rank="first"),
    "tt": _TORCHTITAN,
    "ao": _TORCHTITAN,
    "lit": _LITGPT,
    "lt": _LITGPT,
    "tl": _LITGPT,
    "tune": Stack(profile="torchtune"),
    "hf": Stack(profile="transformers", amp_profile="transformers-amp", dropout=0.1),
    "peft": Stack(profile="transformers-bf16"),
    "stas": _DEEPSPEED,
    "alst": _DEEPSPEED,
    "ds": _DEEPSPEED,
    "cai": Stack(profile="colossalai"),
    "mpt": Stack(profile="llm-foundry"),
    "mbert": Stack(profile="llm-foundry"),
    # max_predictions_per_seq: 20 of 128 positions, 80 of 512 (DeepLearningExamples BERT, modeling.py).
    "bert": Stack(profile="nvidia-bert", amp_profile="nvidia-bert-amp", dropout=0.1, predicted_fraction=80 / 512),
    "ie": Stack(profile="internevo", peak_kind="reserved"),
    "fms": Stack(profile="fms-fsdp"),
}

# Published dimensions of models that tables give by name alone: where they stand, and the columns of a table.
DIMENSIONS: dict[str, tuple[str, dict[str, int]]] = {
    "internlm-7b": (
        "internlm/internlm-7b config.json",
        dict(layers=32, hidden=4096, heads=32, ffn=11_008, vocab=103_168),
    ),
    "internlm-20b": (
        "internlm/internlm-20b config.json",
        dict(layers=60, hidden=5120, heads=40, ffn=13_824, vocab=103_168),
    ),
    "llama-34b": (
        "codellama/CodeLlama-34b-hf config.json",
        dict(layers=48, hidden=8192, heads=64, kv_heads=8, ffn=22_016, vocab=32_000),
    ),
    "gpt3-5b": ("NeMo's gpt3/5b recipe", dict(layers=24, hidden=4096, heads=32, ffn=16_384, vocab=GPT2_VOCAB)),
    "gpt3-20b": ("NeMo's gpt3/20b recipe", dict(layers=44, hidden=6144, heads=48, ffn=24_576, vocab=GPT2_VOCAB)),
    "gpt3-175b": (
        "Brown et al. 2020, table 2.1",
        dict(layers=96, hidden=12_288, heads=96, ffn=49_152, vocab=GPT2_VOCAB),
    ),
    "nemotron-8b": ("nvidia/nemotron-3-8b", dict(layers=32, hidden=4096, heads=32, ffn=16_384, vocab=256_000)),
    "nemotron-340b": (
        "nvidia/Nemotron-4-340B",
        dict(layers=96, hidden=18_432, heads=96, kv_heads=8, ffn=73_728, vocab=256_000),
    ),
}
# Where it is not hidden / heads: google/gemma-7b, Qwen/Qwen3-32B config.json.
HEAD_DIMS = {"gemma-7b": 256, "qwen3-32b": 128}

# LoRA where a row does not give it, by prefix and the start of a model's name, from litgpt's
# config_hub/finetune/*/lora.yaml.
_ALL: frozenset[AdapterTarget] = frozenset(get_args(AdapterTarget))
ADAPTERS = {
    "lit": {
        "gemma-2b": Adapter(rank=8, targets=_ALL, dropout=0.1),
        "gemma-7b": Adapter(rank=16, targets=_ALL, dropout=0.1),
        "phi-2": Adapter(rank=8, targets=_ALL, dropout=0.05),
        "tinyllama": Adapter(rank=32, targets=_ALL, dropout=0.05),
        "": Adapter(rank=32, targets=frozenset({"query", "value"}), dropout=0.05),
    }
}
