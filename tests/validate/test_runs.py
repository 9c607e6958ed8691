"""Rows of a published table: what each becomes, and why a row is skipped."""

import csv
import re

import pytest

from scaling.cost.job import Adapter
from scaling.cost.profile import PROFILES
from scaling.errors import FileProblems, InputError
from scaling.shape import Shape
from scaling.strategy import layers_per_rank
from scaling.units import GIB
from scaling.validate import load
from scaling.validate.runs import COLUMNS, UNKNOWN_GPU
from scaling.validate.stacks import DIMENSIONS
from tests.validate import LLAMA_3_8B, MEGATRON, PUBLISHED, needs_published, row, write_runs


@pytest.fixture
def read(tmp_path):
    """A function from the changes of one row to its Run."""

    def of(stack=None, **changes):
        runs, skipped = load(write_runs(tmp_path / "runs.csv", row(**changes)), stack=stack)
        assert not skipped, skipped
        return runs[0]

    return of


@pytest.fixture
def reason(tmp_path):
    """A function from the changes of one row to the reason why it is skipped."""

    def of(**changes):
        runs, skipped = load(write_runs(tmp_path / "runs.csv", row(**changes)))
        assert runs == []
        (only,) = skipped
        assert only.id == changes.get("id", "tt-1")
        return only.reason

    return of


def test_a_complete_row_is_a_job_a_strategy_and_a_cluster(read):
    run = read(gpus="16", grad_accum="4", sharding="zero1 (distributed optimizer)", act_ckpt="selective")
    # transformers' LlamaForCausalLM on meta-llama/Meta-Llama-3-8B.
    assert run.job.shape.num_params == 8_030_261_248
    assert (run.job.seq_length, run.job.precision, run.job.optimizer, run.job.attention) == (
        8192, "bf16", "adamw", "flash",
    )  # fmt: skip
    assert (run.strategy.zero_stage, run.strategy.data_parallel_size, run.strategy.micro_batch_size) == (1, 16, 1)
    assert (run.strategy.gradient_accumulation_steps, run.strategy.activation_checkpointing) == (4, "selective")
    assert (run.cluster.num_nodes, run.cluster.gpus_per_node, run.cluster.accelerator.name) == (2, 8, "h100")
    assert run.measured_peak_bytes == 40 * GIB
    assert run.tokens_per_second == 16 * 6000  # the table's are per GPU
    assert run.ran is True


_COUNTS = ("layers", "hidden", "heads", "ffn", "vocab", "seq_len", "gpus", "tp", "pp", "micro_batch")


@pytest.mark.parametrize("field", _COUNTS)
def test_a_number_that_is_not_given_is_a_reason_that_names_it(reason, field):
    assert reason(**{field: ""}) == f"{field} is not given"


@pytest.mark.parametrize("value", ["24/24", "0", "-8", "1.5", "many"])
@pytest.mark.parametrize("field", ["layers", "kv_heads", "micro_batch", "grad_accum", "gpus", "seq_len"])
def test_a_number_that_is_no_count_is_a_reason_that_names_it(reason, field, value):
    assert reason(**{field: value}) == f"{field} is {value!r}"


@pytest.mark.parametrize("value", ["1e400", "inf", "nan"])
def test_a_count_that_is_not_finite_is_a_reason_that_names_it(reason, value):
    assert reason(layers=value) == f"layers is {value!r}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("measured_peak_gib", "n/a"), ("measured_peak_gib", "0"), ("measured_peak_gib", "-40"),
        ("measured_peak_gib", "nan"), ("tokens_per_s_per_gpu", "n/a"), ("tokens_per_s_per_gpu", "0"),
        ("gpu_mem_gib", "n/a"), ("gpu_mem_gib", "0"), ("params", "8B"),
    ],
)  # fmt: skip
def test_a_quantity_that_is_no_positive_number_is_a_reason_that_names_it(reason, field, value):
    said = reason(**{field: value})
    assert field in said
    assert value in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_heads": "3"}, "num_key_value_heads"),
        ({"heads": "33"}, "num_attention_heads"),
        ({"gpus": "12", "tp": "8"}, "12 GPUs are not a multiple of tp 8"),
        ({"gpus": "8", "tp": "2", "pp": "2", "sp_or_cp": "cp4"}, "8 GPUs are not a multiple of tp 2 x pp 2 x 4"),
        ({"pp": "64", "gpus": "64"}, "pp 64 is more than 32 layers"),
        (
            {"id": "mcore-1", "notes": "num-experts=16 expert-model-parallel-size=16"},
            "not a multiple of 16 for experts",
        ),
        ({"sharding": ""}, "sharding is not given"),
        ({"sharding": "gemini"}, "sharding is 'gemini'"),
        ({"act_ckpt": ""}, "act_ckpt is not given"),
        ({"act_ckpt": "every second layer"}, "act_ckpt is 'every second layer'"),
        ({"attention": ""}, "attention is not given"),
        ({"optimizer": ""}, "optimizer is not given"),
        ({"optimizer": "Shampoo"}, "optimizer is 'Shampoo'"),
        ({"precision": ""}, "precision is not given"),
        ({"pp": "2", "grad_accum": ""}, "grad_accum is not given"),  # how many are in flight hangs on it
        ({"measured_peak_gib": "", "fits": "", "tokens_per_s_per_gpu": ""}, "nothing was measured"),
        ({"id": "xyz-7"}, "no profile for the stack of 'xyz' rows; name one with --stack"),
    ],
)
def test_a_row_that_cannot_be_is_skipped_with_a_reason_that_names_the_field(reason, changes, said):
    assert said in reason(**changes)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("layers", "24+24", "encoder-decoders"),
        ("notes", "QLoRA, 4-bit base", "quantised frozen weights"),
        ("notes", "LoRA", "the adapters' rank and targets are not given"),
        ("notes", "multi-latent-attention=True", "multi-latent attention"),
        ("notes", "mtp-num-layers=1", "multi-token prediction"),
        ("notes", "full; some full yamls list devices 2", "how many devices"),
        ("notes", "UNRELIABLE", "the source itself is doubtful"),
        ("notes", "which is odd", "the source itself is doubtful"),
        ("notes", "lengths vary", "sequence length"),
        ("notes", "variable length samples", "sequence length"),
        ("notes", "seq not stated", "sequence length"),
        ("optimizer", "PagedAdamW8bit", "paged optimizer states"),
        ("optimizer", "AdamW4bit", "4-bit optimizer states"),  # torchao: 33.2 GiB against 51.6, and no fp32 AdamW
        ("offload", "zero3 cpu", "this offload"),
        ("offload", "zero-offload", "this offload"),
        ("offload", "ao CPUOffloadOptimizer", "this offload"),
        ("compile", "thunder", "Thunder"),
        ("sp_or_cp", "fpdt8", "FPDT"),
    ],
)
def test_what_is_not_modelled_is_skipped_and_said(reason, field, value, said):
    assert said in reason(**{field: value})
    ends = ("not modelled", "not certain", "doubtful", "not stated", "not given", "is on the device")
    assert reason(**{field: value}).endswith(ends)


def test_only_a_full_run_of_torchtunes_yaml_is_uncertain_of_its_devices(read):
    # tune-001 to -004, "full; some full yamls list devices 2": its LoRA and single-device rows are certain.
    assert read(notes="some full yamls list devices 2").strategy.data_parallel_size == 8


@pytest.mark.parametrize("value", ["ring4", "cp0"])
def test_a_split_of_the_sequence_that_is_not_understood_is_a_reason_and_no_guess(reason, value):
    assert "sp_or_cp" in reason(sp_or_cp=value)


def test_the_other_rows_of_a_table_are_kept_when_one_is_skipped(tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(id="tt-1"), row(id="tt-2", layers="24+24"), row(id="tt-3"))
    runs, skipped = load(path)
    assert [run.id for run in runs] == ["tt-1", "tt-3"]
    assert [(one.id, one.reason) for one in skipped] == [("tt-2", "encoder-decoders are not modelled")]


@pytest.mark.parametrize("without", [["seq_len"], ["id", "heads", "notes"], list(COLUMNS)])
def test_missing_columns_are_all_named_at_once(tmp_path, without):
    columns = [name for name in COLUMNS if name not in without]
    with pytest.raises(FileProblems) as caught:
        load(write_runs(tmp_path / "runs.csv", row(), columns=columns))
    assert caught.value.problems == [f"column {name!r} is missing" for name in without]


def test_an_empty_file_misses_every_column(tmp_path):
    (tmp_path / "runs.csv").write_text("")
    with pytest.raises(FileProblems) as caught:
        load(tmp_path / "runs.csv")
    assert len(caught.value.problems) == len(COLUMNS)


def test_further_columns_and_a_row_that_is_too_long_do_no_harm(tmp_path):
    path = write_runs(tmp_path / "runs.csv", {**row(), "mfu": "41"}, columns=(*COLUMNS, "mfu"))
    path.write_text(path.read_text().rstrip() + ",more,and more\n")
    runs, skipped = load(path)
    assert (len(runs), skipped) == (1, [])


@pytest.mark.parametrize(
    ("prefix", "stack"),
    # The prefixes of the published table: its README.
    [
        ("mcore", "megatron-core"), ("brg", "megatron-core"), ("nano", "nanotron"), ("tt", "torchtitan"),
        ("ao", "torchtitan"), ("lit", "litgpt"), ("lt", "litgpt"), ("tune", "torchtune"), ("hf", "transformers"),
        ("peft", "transformers-bf16"), ("stas", "deepspeed-defaults"), ("alst", "deepspeed-defaults"),
        ("ds", "deepspeed-defaults"), ("cai", "colossalai"), ("mpt", "llm-foundry"), ("nemo", "megatron-core"),
        ("mlm", "megatron-core"), ("tl", "litgpt"), ("mbert", "llm-foundry"), ("bert", "nvidia-bert"),
        ("ie", "internevo"), ("fms", "fms-fsdp"),
    ],
)  # fmt: skip
def test_the_prefix_of_an_id_names_the_stack(read, prefix, stack):
    run = read(id=f"{prefix}-007")
    assert run.stack == stack
    assert run.profile == PROFILES[stack]


def test_stack_names_the_profile_of_rows_whose_id_names_none_and_of_no_others(read):
    assert read(stack="nanotron", id="mine-1").stack == "nanotron"
    assert read(stack="nanotron", id="tt-1").stack == "torchtitan"


def test_an_unknown_stack_is_an_error_with_the_closest_name(tmp_path):
    with pytest.raises(InputError) as caught:
        load(write_runs(tmp_path / "runs.csv", row()), stack="megatron-cor")
    assert caught.value.field == "stack"
    assert caught.value.hint == "did you mean 'megatron-core'?"


@pytest.mark.parametrize(
    ("changes", "stack"),
    [
        ({"id": "hf-1", "precision": "fp16-amp"}, "transformers-amp"),
        ({"id": "hf-1", "precision": "fp32"}, "transformers"),
        ({"id": "bert-1", "precision": "fp16-amp"}, "nvidia-bert-amp"),
        ({"id": "bert-1", "precision": "tf32"}, "nvidia-bert"),
        ({"id": "ds-1", "notes": "FPDT table, strategy UL"}, "megatron-deepspeed"),
    ],
)
def test_precision_and_notes_tell_variants_of_a_stack_apart(read, changes, stack):
    assert read(**changes).stack == stack


@pytest.mark.parametrize(
    ("notes", "kind"),
    # The published table's README: hf NVML's process total, DeepSpeed's screenshots nvidia-smi, torchtitan reserved,
    # litgpt max_memory_allocated, nanotron does not say.
    [
        ("NVML process total", "process"),
        ("read off nvidia-smi", "process"),
        ("peak reserved (torchtitan metrics)", "reserved"),
        ("max Reserved over ranks", "reserved"),
        ("max_memory_allocated", "allocated"),
        ("not said whether allocated or reserved", "allocated"),
        ("", "allocated"),
    ],
)
def test_the_notes_say_what_a_peak_is(read, notes, kind):
    assert read(notes=notes).peak_kind == kind


def test_a_blank_vocabulary_of_megatrons_tests_is_gpt2s_and_said(read):
    # GPT-2's 50,257 rounded up to a multiple of 128 is 50,304: --make-vocab-size-divisible-by, Megatron-LM.
    run = read(**MEGATRON)
    assert run.job.shape.vocab_size == 50_304
    assert any("50257" in said for said in run.assumptions)


# Megatron-LM, megatron/training/tokenizer: multiples of 128 x tensor parallel size; 51,200 is the vocabulary of
# Korthikanti et al. 2022, section 6.
_padded = pytest.mark.parametrize(("tp", "padded"), [("1", 50_304), ("2", 50_432), ("8", 51_200)])


@_padded
def test_the_vocabulary_of_megatron_is_padded(read, tp, padded):
    assert read(**{**MEGATRON, "vocab": "50257", "tp": tp}).job.shape.vocab_size == padded


@_padded
def test_the_padding_of_megatrons_vocabulary_is_listed_as_an_assumption(read, tp, padded):
    said = read(**{**MEGATRON, "vocab": "50257", "tp": tp}).assumptions
    assert any(str(padded) in one or "pad" in one for one in said)


def test_other_stacks_keep_their_vocabulary_and_need_no_assumption(read):
    run = read()
    assert run.job.shape.vocab_size == 128_256
    assert run.assumptions == ()


def test_the_memory_of_an_unknown_gpu_is_not_made_up_in_silence(tmp_path):
    runs, skipped = load(write_runs(tmp_path / "runs.csv", row(gpu_type="TPU-v9", gpu_mem_gib="")))
    assert skipped or any("gpu" in said.lower() for said in runs[0].assumptions)


# Counted by transformers on the meta device: tests/test_shape.py compares these shapes' counts with it.
_UNTIED_1B = {
    "model": "llama-1b", "layers": "16", "hidden": "2048", "heads": "32", "kv_heads": "8", "ffn": "8192",
    "vocab": "128256",
}  # fmt: skip


@pytest.mark.parametrize(
    ("params", "tied"),
    # meta-llama/Llama-3.2-1B has 1,235,814,400 parameters, head tied; untied it would have 128,256 x 2048 more.
    [("1235814400", True), ("1498482688", False), ("1.24e9", True), ("", False)],
)
def test_the_params_column_tells_a_tied_head_from_an_untied_one(read, params, tied):
    shape = read(**_UNTIED_1B, params=params).job.shape
    assert shape.tied_embeddings is tied
    assert shape.num_params == (1_235_814_400 if tied else 1_498_482_688)


@pytest.mark.parametrize(
    ("model", "family"),
    [("gpt2-xl", "gpt2"), ("mpt-7b", "gpt2"), ("phi-2", "gpt2"), ("bert-large", "bert"), ("Mistral-7B", "llama")],
)
def test_the_models_name_tells_the_family(read, model, family):
    assert read(model=model, params="").job.shape.family == family


@pytest.mark.parametrize(
    ("changes", "dropout"),
    # Megatron-LM's --hidden-dropout is 0.1 by default, as in BERT's config.json; Llama's code has none.
    [
        (MEGATRON, 0.1),
        ({**MEGATRON, "notes": "hidden-dropout=0.0"}, 0.0),
        ({}, 0.0),
        ({"id": "bert-1", "model": "bert-large"}, 0.1),
        ({"id": "hf-1", "model": "bert-large"}, 0.1),
    ],
)
def test_dropout_is_the_stacks_unless_a_row_says_that_there_is_none(read, changes, dropout):
    assert read(**changes).job.dropout == dropout


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"sharding": "none"}, "zero_stage", 0),
        ({"sharding": "zero2"}, "zero_stage", 2),
        ({"sharding": "fsdp-FULL_SHARD"}, "zero_stage", 3),
        # torch.distributed.fsdp.ShardingStrategy (torch 2.13): SHARD_GRAD_OP shards gradients and optimizer states and
        # "does not reshard [the parameters] after the forward", NO_SHARD replicates all as DDP does.
        ({"sharding": "fsdp-SHARD_GRAD_OP"}, "zero_stage", 2),
        ({"sharding": "fsdp-NO_SHARD"}, "zero_stage", 0),
        ({"sp_or_cp": "cp4"}, "sequence_parallel_size", 4),
        ({"sp_or_cp": "ulysses8"}, "sequence_parallel_size", 8),
        ({"sp_or_cp": "ulysses8"}, "data_parallel_size", 1),
        ({"sp_or_cp": "cp2tp-sp", "tp": "2"}, "tensor_parallel_sequences", True),
        ({"id": "nano-1", "tp": "2"}, "tensor_parallel_sequences", False),
        ({"tp": "2"}, "tensor_parallel_sequences", True),  # torchtitan's tensor parallelism always is
        ({"offload": "optimizer cpu"}, "offload_optimizer", "cpu"),
        ({"offload": "param+optimizer cpu"}, "offload_param", "cpu"),
        ({"offload": "activation ckpt cpu"}, "offload_activations", True),
        ({"offload": "optimizer cpu + activation ckpt cpu"}, "offload_optimizer", "cpu"),
        ({"offload": "optimizer cpu + activation ckpt cpu"}, "offload_activations", True),
        ({"offload": "optimizer cpu"}, "offload_activations", False),
        ({"sp_or_cp": "ulysses8"}, "sequence_parallelism", "ulysses"),
        ({"sp_or_cp": "cp4"}, "sequence_parallelism", "ring"),
        # NVIDIA's recipes give the global batch and the chunks: 512 sequences, two a micro batch, on 2 of 8 ranks.
        (
            {"tp": "2", "pp": "2", "micro_batch": "2", "grad_accum": "", "notes": "GBS 512, VP 4"},
            "gradient_accumulation_steps",
            512 // 2 // 2,
        ),
        ({"tp": "2", "pp": "2", "grad_accum": "", "notes": "GBS=512; VP=4"}, "virtual_pipeline_size", 4),
        ({"grad_accum": "", "notes": "VP 4"}, "virtual_pipeline_size", 1),  # of no pipeline there are no chunks
        ({"grad_accum": "3", "notes": "GBS 512"}, "gradient_accumulation_steps", 3),  # what stands in the column counts
        (
            {"id": "mcore-1", "notes": "num-experts=8 moe-router-topk=2 expert-model-parallel-size=4"},
            "expert_parallel_size",
            4,
        ),
        (
            {"id": "mcore-1", "tp": "2", "notes": "num-experts=8 moe-router-topk=2 expert-tensor-parallel-size=1"},
            "expert_tensor_parallel_size",
            1,
        ),
        # 32 layers on 4 ranks are 8 each, in chunks of 2: four.
        ({"pp": "4", "notes": "num-layers-per-virtual-pipeline-stage=2"}, "virtual_pipeline_size", 4),
    ],
)
def test_the_layout_of_a_row(read, changes, field, value):
    assert getattr(read(**changes).strategy, field) == value


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"optimizer": "Adam8bit"}, "optimizer", "adamw8bit"),
        ({"optimizer": "AdamW 8-bit"}, "optimizer", "adamw8bit"),
        ({"optimizer": "Adafactor"}, "optimizer", "adafactor"),
        ({"optimizer": "LAMB"}, "optimizer", "lamb"),
        ({"optimizer": "Muon"}, "optimizer", "muon"),
        ({"optimizer": "Lion"}, "optimizer", "lion"),
        ({"optimizer": "SGD momentum"}, "optimizer", "sgd"),
        ({"optimizer": "LARS"}, "optimizer", "lars"),
        ({"optimizer": "decoupled_adamw"}, "optimizer", "adamw"),
        ({"optimizer": "AdamW (in bwd)"}, "step_in_backward", True),
        ({"notes": "optimizer-in-backward"}, "step_in_backward", True),
        ({"optimizer": "AdamW"}, "step_in_backward", False),
        ({"notes": "ArcticTraining tiled mlp"}, "tiled_mlp", True),
        ({"precision": "tf32"}, "precision", "fp32"),
        ({"precision": "tf32"}, "matmul_precision", "tf32"),
        ({"precision": "bf16 + float8 rowwise"}, "matmul_precision", "fp8"),
        ({"precision": "FP8"}, "matmul_precision", "fp8"),
        ({"precision": "FP8"}, "precision", "bf16"),  # of what is not a matmul
        ({**MEGATRON, "notes": "fp8-format=hybrid"}, "matmul_precision", "fp8"),
        ({"precision": "nvfp4", "gpu_type": "GB300"}, "matmul_precision", "fp4"),
        ({"precision": "bf16"}, "matmul_precision", None),
        ({"attention": "eager (unfused)"}, "attention", "eager"),
        ({"attention": "sdpa"}, "attention", "flash"),
        ({"precision": "fp32"}, "precision", "fp32"),
        ({"notes": "Liger kernels"}, "fused_loss", True),
        ({"notes": "Liger-Kernel=no"}, "fused_loss", False),
        ({"notes": "sequence classification"}, "predicted_fraction", 0.0),
        ({"model": "bert-base"}, "causal", False),
    ],
)
def test_the_job_of_a_row(read, changes, field, value):
    assert getattr(read(**changes).job, field) == value


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({**MEGATRON, "notes": "allocated on the LAST rank", "pp": "2"}, "last"),
        ({"id": "nano-1", "pp": "2"}, "first"),
        ({"pp": "2"}, "any"),
    ],
)
def test_a_row_says_which_pipeline_rank_was_measured(read, changes, rank):
    assert read(**changes).rank == rank


@pytest.mark.parametrize("change", [{"compile": "yes"}, {"notes": "Liger kernels"}])
def test_fused_kernels_never_keep_more_than_the_stacks_usual_ones(read, change):
    usual, fused = read(id="hf-1").profile, read(id="hf-1", **change).profile
    kept = ("rms_uncut", "gated_tensors", "repeats_keys", "logit_bytes")
    assert all(getattr(fused, name) <= getattr(usual, name) for name in kept)
    assert fused != usual


@pytest.mark.parametrize(
    "change",
    [
        {"id": "tt-99"},
        {"notes": "a second try, on a Tuesday"},
        {"measured_peak_gib": "41"},
        {"tokens_per_s_per_gpu": ""},
        {"fits": ""},
        {"model": "llama-3-8b-again"},  # a name is not a dimension
    ],
)
def test_a_configuration_is_the_same_where_the_estimate_sees_no_difference(read, change):
    assert read(**change).configuration == read().configuration
    assert hash(read(**change).configuration) == hash(read().configuration)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "nano-1"}, {"compile": "yes"}, {"seq_len": "4096"}, {"micro_batch": "2"}, {"gpus": "16"},
        {"attention": "eager"}, {"act_ckpt": "none"}, {"sharding": "zero2"}, {"optimizer": "Adam8bit"},
        {"notes": "Liger kernels"}, {"gpu_mem_gib": "95"},
    ],
)  # fmt: skip
def test_a_configuration_differs_where_the_estimate_does(read, change):
    assert read(**change).configuration != read().configuration


@needs_published
def test_no_row_of_the_published_table_is_lost():
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        ids = [line["id"] for line in csv.DictReader(file)]
    runs, skipped = load(PUBLISHED)
    assert sorted(ids) == sorted([run.id for run in runs] + [one.id for one in skipped])
    assert all(one.reason.strip() for one in skipped)


def test_a_pipeline_that_its_layers_do_not_divide_is_a_run(read):
    # Llama-3 405B's 126 layers on 16 stages: brg-004 and its like.
    run = read(layers="126", pp="16", gpus="16", params="")
    assert (run.job.shape.num_layers, run.strategy.pipeline_parallel_size) == (126, 16)
    assert layers_per_rank(run.job.shape, run.strategy) == 8  # of the fullest; two ranks have seven


def test_a_global_batch_that_the_ranks_do_not_divide_is_a_reason_and_no_guess(reason):
    assert "GBS 100" in reason(micro_batch="3", grad_accum="", notes="GBS 100")


# Mixtral-8x7B's config.json: 8 experts of 14,336, 2 a token.
_MIXTRAL = {
    "id": "mcore-1", "model": "mixtral-8x7b", "params": "", "vocab": "32000",
    "notes": "normalization=RMSNorm num-experts=8 moe-router-topk=2 untie-embeddings-and-output-weights=True",
}  # fmt: skip


def test_a_mixture_of_experts_is_read_from_its_notes(read):
    shape = read(**_MIXTRAL).job.shape
    assert (shape.num_experts, shape.experts_per_token) == (8, 2)
    # mistralai/Mixtral-8x7B-v0.1 as transformers counts it.
    assert shape.num_params == 46_702_792_704


def test_an_expert_count_without_its_top_k_is_one_expert_a_token(read):
    assert read(id="mcore-1", notes="num-experts=4").job.shape.experts_per_token == 1


# LoRA.


def test_lora_of_a_litgpt_row_is_its_recipes_and_an_assumption(read):
    # litgpt config_hub/finetune/llama-3-8b/lora.yaml: lora_r 32, query and value, dropout 0.05.
    run = read(id="lit-8", notes="lora; Alpaca2k")
    assert run.job.adapter == Adapter(rank=32, targets=frozenset({"query", "value"}), dropout=0.05)
    assert "adapters of rank 32 on query, value: its recipe" in run.assumptions


@pytest.mark.parametrize(
    ("model", "rank", "targets", "dropout"),
    # litgpt config_hub/finetune/{gemma-2b,gemma-7b,phi-2,tiny-llama}/lora.yaml: all six lora_* switches on.
    [("gemma-2b", 8, 5, 0.1), ("gemma-7b", 16, 5, 0.1), ("phi-2", 8, 5, 0.05), ("tinyllama-1.1b", 32, 5, 0.05),
     ("mistral-7b", 32, 2, 0.05)],
)  # fmt: skip
def test_each_model_of_litgpt_has_the_adapters_of_its_own_recipe(read, model, rank, targets, dropout):
    adapter = read(id="lit-8", model=model, params="", notes="lora").job.adapter
    assert (adapter.rank, len(adapter.targets), adapter.dropout) == (rank, targets, dropout)


def test_adapters_that_a_row_gives_are_its_own_and_no_assumption(read):
    run = read(id="lit-26", notes="LoRA (q,v r=8); seq = longest Alpaca sample")
    assert (run.job.adapter.rank, run.job.adapter.targets) == (8, {"query", "value"})
    assert not any("adapter" in said for said in run.assumptions)


def test_a_row_without_lora_trains_everything(read):
    assert read(id="lit-8", notes="full; exploration of colours").job.adapter is None  # "lora" is a word of its own


# What a stack or a model's name fixes.


def test_published_dimensions_fill_blanks_each_an_assumption_with_its_source(read):
    run = read(id="ie-1", model="InternLM-7B", params="", layers="", hidden="", heads="", kv_heads="", ffn="", vocab="")
    # internlm/internlm-7b: 7.32B parameters by its model card.
    assert run.job.shape.num_params / 1e9 == pytest.approx(7.32, rel=0.005)
    for said in ("layers 32", "hidden 4096", "heads 32", "ffn 11008", "vocab 103168"):
        assert f"{said}: internlm/internlm-7b config.json" in run.assumptions


def test_a_dimension_that_a_row_gives_is_its_own(read):
    run = read(id="ie-1", model="internlm-7b", params="", kv_heads="", ffn="", vocab="50000")
    assert run.job.shape.vocab_size == 50_000
    assert [said for said in run.assumptions if ":" in said] == ["ffn 11008: internlm/internlm-7b config.json"]


@pytest.mark.parametrize("name", DIMENSIONS)
def test_published_dimensions_are_of_the_size_that_the_name_says(name):
    # "llama-34b" has 34 billion parameters: two digits, so 9 %; gpt3's "5b" and "20b" are NeMo's round names.
    _, dimensions = DIMENSIONS[name]
    layers, D, F, V = (dimensions[key] for key in ("layers", "hidden", "ffn", "vocab"))
    gpt = name.startswith(("gpt", "nemotron"))
    shape = Shape(
        name=name, family="gpt2" if gpt else "llama", num_layers=layers, hidden_size=D, intermediate_size=F,
        num_attention_heads=dimensions["heads"], num_key_value_heads=dimensions.get("kv_heads", 0), vocab_size=V,
        max_position_embeddings=1, tied_embeddings=name.startswith("gpt"),
    )  # fmt: skip
    billions = float(re.search(r"(\d+)b$", name)[1])
    assert shape.num_params / 1e9 == pytest.approx(billions, rel=0.09)


@pytest.mark.parametrize(("model", "head_dim"), [("gemma-7b", 256), ("qwen3-32b", 128), ("llama3-8b", 128)])
def test_a_head_dim_of_its_own_is_known_by_the_models_name(read, model, head_dim):
    # google/gemma-7b: 16 heads of 256 in 3072; Qwen/Qwen3-32B: 64 of 128 in 5120; Llama-3-8B: 4096 / 32.
    assert read(model=model, params="").job.shape.head_dim == head_dim


def test_assumed_checkpointing_gives_a_speed_but_no_verdict_on_memory(read):
    # NeMo's and Megatron-Bridge's performance recipes recompute where they say so.
    run = read(id="brg-1", act_ckpt="", measured_peak_gib="")
    assert run.strategy.activation_checkpointing == "none"
    assert (run.ran, run.tokens_per_second) == (None, 8 * 6000)
    assert read(id="brg-1", act_ckpt="full").ran is True


def test_a_peak_under_assumed_checkpointing_is_not_compared(read):
    assert read(id="brg-1", act_ckpt="").measured_peak_bytes is None
    assert read(id="brg-1", act_ckpt="none").measured_peak_bytes == 40 * GIB


@pytest.mark.parametrize("sharding", ["zero1(group 8)", "hsdp"])
def test_states_sharded_over_some_of_the_ranks_say_nothing_of_memory(read, sharding):
    run = read(sharding=sharding)
    assert (run.ran, run.measured_peak_bytes) == (None, None)
    assert run.tokens_per_second == 8 * 6000
    assert any("nothing is said of memory" in said for said in run.assumptions)


def test_the_speed_of_a_deterministic_mode_is_not_compared(read):
    # Megatron-LM's functional tests run with --deterministic-mode: 2 to 4 times slower.
    run = read(**{**MEGATRON, "notes": "deterministic mode"})
    assert run.tokens_per_second is None
    assert run.measured_peak_bytes == 40 * GIB
    assert any("deterministic" in said for said in run.assumptions)
    # A row of nothing but such a speed is kept, and counts for nothing.
    slow = read(**{**MEGATRON, "measured_peak_gib": "", "fits": "", "notes": "deterministic mode"})
    assert (slow.measured_peak_bytes, slow.ran, slow.tokens_per_second) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100-80GB", "h100"), ("H100", "h100"), ("H100-96GB-HBM2e-500W", "h100"), ("H100-PCIe", "h100-pcie"),
        ("H100-SXM5-80GB", "h100"), ("A100-40GB", "a100-40gb"), ("A100-SXM4-80GB", "a100-80gb"),
        ("A100-80GB-PCIe", "a100-80gb-pcie"), ("A800-80GB", "a800-80gb"), ("H800-80GB", "h800"),
        ("B200 (power limited)", "b200"), ("GB300", "gb300"), ("A10G-24GB", "a10g"), ("MI300X", "mi300x"),
        ("V100-16GB", "v100-16gb"), ("A100", UNKNOWN_GPU), ("A1000", UNKNOWN_GPU), ("H1000", UNKNOWN_GPU),
        ("", UNKNOWN_GPU),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_the_longest_name_that_its_own_begins_with(read, text, name):
    # "A100" alone is of 40 or of 80 GB, and no A10.
    run = read(gpu_type=text, gpu_mem_gib="")
    assert run.cluster.accelerator.name == name
    assert (run.ran is None) == (name == UNKNOWN_GPU)
    assert run.gpu == text


@pytest.mark.parametrize(("gpus", "nodes", "per_node"), [("4", 1, 4), ("8", 1, 8), ("12", 3, 4), ("64", 8, 8)])
def test_a_cluster_has_as_many_gpus_as_its_row(read, gpus, nodes, per_node):
    cluster = read(gpus=gpus).cluster
    assert (cluster.num_nodes, cluster.gpus_per_node, cluster.world_size) == (nodes, per_node, int(gpus))


def test_the_memory_that_a_row_gives_is_its_gpus(read):
    run = read(gpu_type="H100-96GB-HBM2e-500W", gpu_mem_gib="95")
    assert run.cluster.accelerator.usable_memory_bytes == 95 * GIB


def test_the_network_that_a_row_gives_is_its_clusters(read):
    # InternEvo: nodes with 4 x 100 Gb/s RoCE, eight GPUs.
    run = read(id="ie-1", gpu_type="A800-80GB", notes="4x100Gb RoCE")
    assert run.cluster.accelerator.network_bytes_per_s == 4 * 100e9 / 8 / 8


def _table_with_source(path, source, **changes):
    return write_runs(path, {**row(**changes), "source": source}, columns=(*COLUMNS, "source"))


@pytest.mark.parametrize(
    ("source", "logit_bytes", "assumed"),
    # torchtitan benchmarks/llama3_h100_202412_torchtitan.md and its successors; its loss is compiled since 2025-02.
    [
        ("benchmarks/llama3_h100_202412_torchtitan.md", 14.0, False),
        ("benchmarks/llama3-8b_h200_202506_torchtitan.md", 6.0, False),
        ("a blog", 6.0, True),
    ],
)
def test_torchtitan_compiles_its_loss_since_february_2025(tmp_path, source, logit_bytes, assumed):
    (run,), _ = load(_table_with_source(tmp_path / "runs.csv", source, compile="yes"))
    assert run.profile.logit_bytes == logit_bytes
    assert ("software of 202502 or later, which compiles the loss" in run.assumptions) is assumed


def test_without_compiling_there_is_no_compiled_loss(read):
    assert read(compile="no").profile.logit_bytes == PROFILES["torchtitan"].logit_bytes
    assert read(id="tune-1", compile="yes").profile.logit_bytes == PROFILES["torchtune"].logit_bytes


@pytest.mark.parametrize(
    ("gpu", "precision", "said"),
    [
        ("A100-80GB", "fp8", "has no published rate"), ("V100-32GB", "tf32", "has no published rate"),
        ("H100-80GB", "nvfp4", "has no published rate"), ("A100", "bf16", "gpu 'A100' is not known"),
        ("TPU-v9", "fp8", "gpu 'TPU-v9' is not known"),
    ],
)  # fmt: skip
def test_a_speed_that_cannot_be_predicted_is_not_compared_and_the_peak_is(read, gpu, precision, said):
    # One such row ended `scale validate` for the whole table, and `scale calibrate` took the pace of an A100 for it.
    run = read(gpu_type=gpu, precision=precision)
    assert (run.tokens_per_second, run.measured_peak_bytes) == (None, 40 * GIB)
    assert any(one.startswith("its speed is not compared: ") and said in one for one in run.assumptions)


@needs_published
def test_the_shapes_of_the_published_table_have_the_published_number_of_parameters():
    # Rows that give both dimensions and a count; Megatron's give none. 3 % covers counts rounded to two digits and the
    # biases and position tables in which gpt-like families differ.
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        published = {line["id"]: line["params"] for line in csv.DictReader(file) if line["params"]}
    # litgpt unties every head (its GPT has an lm_head of its own), so that its Llama-3.2-1B is larger than published.
    runs = [run for run in load(PUBLISHED)[0] if run.id in published and run.stack != "litgpt"]
    assert len(runs) > 100
    off = {run.id: run.job.shape.num_params / float(published[run.id]) - 1 for run in runs}
    assert {id_: round(error, 3) for id_, error in off.items() if abs(error) > 0.03} == {}


def test_the_complete_row_is_the_shape_that_its_source_publishes():
    # A guard of the fixture itself: meta-llama/Meta-Llama-3-8B counts 8,030,261,248.
    shape = Shape(
        name="x", family="llama", num_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128_256, max_position_embeddings=8192,
    )  # fmt: skip
    assert str(shape.num_params) == LLAMA_3_8B["params"]
