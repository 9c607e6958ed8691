"""Which matrices tensor parallelism cuts, and how, family by family: a table, in DeepSpeed's words a partition_config.

Left to itself AutoTP guesses by names (deepspeed 0.19.8, module_inject/auto_tp.py), does not know GPT-2 at all, and
would cut a fused matrix into a first and a second half. Here every cut is written out; what no pattern names stays
whole on every rank. The vocabulary is cut for every family alike: scaling/training/tensor.py, which reads this table.

Patterns match the names of transformers 5.23, behind any prefix. GPT-2's matrices are transposed before, to [out, in].
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scaling.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Table:
    """The cuts of one family's layers.

    `column`: outputs are cut, each rank has its own heads or its part of F. `row`: inputs are cut, and the ranks'
    outputs are summed before the bias is added. `fused`: column, so many matrices on top of one another, each of them
    cut. `by_head`: an embedding with a column for each head. `partial`: whole on every rank, but applied to its own
    heads alone, so that gradients are summed. `sizes` are attributes of attention modules that count all heads.
    """

    column: tuple[str, ...]
    row: tuple[str, ...]
    fused: Mapping[str, int] = field(default_factory=dict)
    by_head: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


_LLAMA = Table(
    column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    row=("self_attn.o_proj", "mlp.down_proj"),
)
_BERT = Table(
    column=("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"),
    row=("attention.output.dense", r"layer.\d+.output.dense"),
)
_BART = Table(
    column=("attn.q_proj", "attn.k_proj", "attn.v_proj", "fc1"),
    row=("attn.out_proj", "fc2"),
    sizes=("num_heads",),
)
TABLES: dict[str, Table] = {
    "gpt2": Table(
        column=("mlp.c_fc",),
        row=("attn.c_proj", "mlp.c_proj"),
        fused={"attn.c_attn": 3},
        sizes=("num_heads", "split_size"),
    ),
    # Each head's query, key and value stand together, so that a part of the rows is a part of the heads.
    "gpt-neox": Table(
        column=("attention.query_key_value", "mlp.dense_h_to_4h"), row=("attention.dense", "mlp.dense_4h_to_h")
    ),
    "opt": _BART,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, partial=("self_attn.q_norm", "self_attn.k_norm")),
    # Its experts are no nn.Linear, and cut in scaling/training/tensor.py.
    "mixtral": Table(column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), row=("self_attn.o_proj",)),
    "bert": _BERT,
    "roberta": _BERT,
    "modernbert": Table(column=(), row=("attn.Wo", "mlp.Wo"), fused={"attn.Wqkv": 3, "mlp.Wi": 2}),
    "t5": Table(
        column=("Attention.q", "Attention.k", "Attention.v", r"DenseReluDense.wi(_\d)?"),
        row=("Attention.o", "DenseReluDense.wo"),
        by_head=("relative_attention_bias",),
        sizes=("n_heads", "inner_dim"),
    ),
    "transformer": _BART,
    "bart": _BART,
    "vit": Table(
        column=("attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.fc1"),
        row=("attention.o_proj", "mlp.fc2"),
    ),
}


def partition_config(shape: Shape) -> dict[str, Any]:
    """The table of a shape's family as DeepSpeed 0.19.8 reads it (module_inject/autotp_config.py)."""
    table = TABLES[shape.family]
    specs: list[dict[str, Any]] = [
        *({"patterns": _patterns([name]), "partition_type": "column", "shape": [parts, -1], "partition_dim": 0}
          for name, parts in table.fused.items()),
        {"patterns": _patterns(table.column), "partition_type": "column"},
        {"patterns": _patterns(table.row), "partition_type": "row"},
        {"patterns": _patterns(table.by_head), "partition_type": "row"},  # of an embedding: the second dimension
        {"patterns": _patterns(table.partial), "partition_type": "skip", "grad_allreduce": True},
    ]  # fmt: skip
    return {"use_default_specs": False, "layer_specs": [spec for spec in specs if spec["patterns"]]}


def _patterns(names: Iterable[str]) -> list[str]:
    return [rf".*{name.replace('.', chr(92) + '.')}\.weight$" for name in names]
