"""Rows of a published table: what each becomes, and why a row is skipped."""

import csv

import pytest

from scaling.cost.profile import PROFILES
from scaling.errors import FileProblems, InputError
from scaling.shape import Shape
from scaling.units import GIB
from scaling.validate import load
from scaling.validate.runs import COLUMNS
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


@pytest.mark.parametrize("value", ["24+24", "0", "-8", "1.5", "many"])
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
        ({"pp": "5", "gpus": "5"}, "32 layers do not divide by pp 5"),
        ({"sharding": ""}, "sharding is not given"),
        ({"sharding": "gemini"}, "sharding is 'gemini'"),
        ({"act_ckpt": ""}, "act_ckpt is not given"),
        ({"act_ckpt": "every second layer"}, "act_ckpt is 'every second layer'"),
        ({"attention": ""}, "attention is not given"),
        ({"optimizer": ""}, "optimizer is not given"),
        ({"optimizer": "SGD"}, "optimizer is 'SGD'"),
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
        ("notes", "LoRA r=16", "LoRA"),
        ("notes", "QLoRA, 4-bit base", "LoRA"),
        ("notes", "num-experts=8", "mixture of experts"),
        ("notes", "moe-router-topk=2", "mixture of experts"),
        ("notes", "multi-latent-attention=True", "multi-latent attention"),
        ("notes", "mtp-num-layers=1", "multi-token prediction"),
        ("notes", "fp8-format=hybrid", "8-bit compute"),
        ("notes", "optimizer-in-backward", "optimizer step within the backward"),
        ("notes", "ArcticTraining tiled MLP", "tiled MLPs"),
        ("notes", "some full yamls list devices 2", "how many devices"),
        ("notes", "UNRELIABLE", "the source itself is doubtful"),
        ("notes", "which is odd", "the source itself is doubtful"),
        ("notes", "lengths vary", "sequence length"),
        ("notes", "variable length samples", "sequence length"),
        ("notes", "seq not stated", "sequence length"),
        ("precision", "bf16 + float8 rowwise", "8-bit compute"),
        ("precision", "FP8", "8-bit compute"),
        ("precision", "nvfp4", "8-bit compute"),
        ("optimizer", "AdamW in bwd", "optimizer step within the backward"),
        ("optimizer", "Muon", "optimizer is not modelled"),
        ("optimizer", "PagedAdamW8bit", "optimizer is not modelled"),
        ("offload", "activations", "activation offload"),
        ("offload", "act cpu", "activation offload"),
        ("offload", "zero3 cpu", "this offload"),
        ("offload", "zero-offload", "this offload"),
        ("compile", "thunder", "Thunder"),
        ("sp_or_cp", "fpdt8", "FPDT"),
    ],
)
def test_what_is_not_modelled_is_skipped_and_said(reason, field, value, said):
    assert said in reason(**{field: value})
    assert reason(**{field: value}).endswith(("not modelled", "not certain", "doubtful", "not stated"))


@pytest.mark.parametrize("value", ["ring4", "cp0"])
def test_a_split_of_the_sequence_that_is_not_understood_is_a_reason_and_no_guess(reason, value):
    assert "sp_or_cp" in reason(sp_or_cp=value)


def test_the_other_rows_of_a_table_are_kept_when_one_is_skipped(tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(id="tt-1"), row(id="tt-2", layers="24+24"), row(id="tt-3"))
    runs, skipped = load(path)
    assert [run.id for run in runs] == ["tt-1", "tt-3"]
    assert [(one.id, one.reason) for one in skipped] == [("tt-2", "layers is '24+24'")]


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
    # The prefixes of the published table: shared/ground_truth/README.md.
    [
        ("mcore", "megatron-core"), ("brg", "megatron-core"), ("nano", "nanotron"), ("tt", "torchtitan"),
        ("ao", "torchtitan"), ("lit", "litgpt"), ("lt", "litgpt"), ("tune", "torchtune"), ("hf", "transformers"),
        ("peft", "transformers-bf16"), ("stas", "deepspeed-defaults"), ("alst", "deepspeed-defaults"),
        ("ds", "deepspeed-defaults"), ("cai", "colossalai"), ("mpt", "llm-foundry"),
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
        ({"id": "ds-1", "notes": "FPDT table, strategy UL"}, "megatron-deepspeed"),
    ],
)
def test_precision_and_notes_tell_variants_of_a_stack_apart(read, changes, stack):
    assert read(**changes).stack == stack


@pytest.mark.parametrize(
    ("notes", "kind"),
    # shared/ground_truth/README.md: hf NVML's process total, DeepSpeed's screenshots nvidia-smi, torchtitan reserved,
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
    # Megatron-LM's --hidden-dropout is 0.1 by default; Llama's code has none.
    [(MEGATRON, 0.1), ({**MEGATRON, "notes": "hidden-dropout=0.0"}, 0.0), ({}, 0.0), ({"model": "bert-base"}, 0.1)],
)
def test_dropout_is_that_of_the_stack_and_the_model(read, changes, dropout):
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
        ({"optimizer": "LAMB"}, "optimizer", "adamw"),
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
    kept = ("rms_uncut", "gated_tensors", "context_copies", "logit_bytes")
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


@needs_published
def test_the_shapes_of_the_published_table_have_the_published_number_of_parameters():
    # Rows that give both dimensions and a count; Megatron's give none. 3 % covers counts rounded to two digits and the
    # biases and position tables in which gpt-like families differ.
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        published = {line["id"]: line["params"] for line in csv.DictReader(file) if line["params"]}
    runs = [run for run in load(PUBLISHED)[0] if run.id in published]
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
