"""Weights in and out: what a folder of transformers holds is what is trained, and what is exported."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertModel

from scaling import data, ds_config, models
from scaling.data import tokenizer
from scaling.errors import FileProblems, InputError
from scaling.family import FAMILIES
from scaling.models.build import HEADS
from scaling.training import ranks
from scaling.training.checkpoint import Reached, Saver, load
from scaling.training.engine import make_engine
from scaling.training.export import export
from tests.parallel.families import model_of, recipe_of, shape_of
from tests.ranks import SOAK, on_ranks
from tests.training.runs import layout, losses, run

SMALL = {"num_layers": 2}


def strangers(family, folder):
    """A folder as transformers writes it, of a model of this family in which no tensor is zero or one."""
    model = models.build(shape_of(family, **SMALL), seed=99)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.requires_grad or name == "final_logits_bias":
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def small_recipe_of(family, folder, weights):
    return recipe_of(family, folder, model=model_of(family, **SMALL), initial_weights=str(weights))


def saved_at_step_0(cases):
    """A checkpoint of what each recipe starts from, by the engine, before any step."""
    ranks.complete_environment()
    here = ranks.join()
    said = []
    for folder, recipe, strategy in cases:
        _save(folder, recipe, strategy, here, said.append)
    ranks.leave()
    return said


def _save(folder, recipe, strategy, here, say=print):
    config, _ = ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)
    engine = make_engine(recipe, config, strategy, say=say)
    saver = Saver(engine, folder / "checkpoints", recipe, strategy, here, in_background=False)
    saver.save(Reached(step=0, samples_seen=0))


def inputs_of(family):
    if family == "vit":
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}
    ids = torch.arange(5, 29).view(2, 12)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if FAMILIES[family].kind == "encoder-decoder" else {})


@pytest.mark.parametrize("stage", [1, 3] if SOAK else [3])
def test_weights_of_every_family_come_out_as_they_went_in_bit_for_bit(stage, tmp_path):
    cases, originals = [], {}
    for family in FAMILIES:
        originals[family] = strangers(family, tmp_path / family / "weights")
        recipe = small_recipe_of(family, tmp_path, tmp_path / family / "weights")
        cases.append((tmp_path / family / "run", recipe, layout(2, stage)))
    said = on_ranks(2, saved_at_step_0, cases)
    assert len(said[0]) == len(FAMILIES)
    assert not any("initialised" in sentence or "left out" in sentence for sentence in said[0])
    assert len(said[1]) == (0 if stage == 3 else len(FAMILIES))  # at stage 3 the first rank alone reads
    bpe, vocabulary = tokenizer.train(["some text " * 9], 300, 3)
    for family in FAMILIES:
        folder = tmp_path / family
        tokenizer.save(bpe, vocabulary, folder / "run" / "tokenizer")
        export(folder / "run", folder / "out")
        ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("out", "weights"))
        assert ours.keys() == theirs.keys(), family
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), family
        kind = FAMILIES[family].kind
        loaded = HEADS[kind].from_pretrained(folder / "out").eval()
        with torch.no_grad():
            logits = loaded(**inputs_of(family)).logits
            assert torch.equal(logits, originals[family](**inputs_of(family)).logits), family
        config = AutoConfig.from_pretrained(folder / "out")
        if kind != "vision":
            assert (config.eos_token_id, config.pad_token_id) == (0, 1)
            assert kind == "encoder" or config.use_cache
        if kind == "encoder-decoder":
            assert loaded.generation_config.decoder_start_token_id == config.decoder_start_token_id == 0
            assert loaded.generate(inputs_of(family)["input_ids"], max_new_tokens=3).shape[1] <= 4


def moved_to(strategy, recipe, saved):
    """The tensors of the model that goes on in another layout from what `saved` writes."""
    ranks.complete_environment()
    here = ranks.join()
    folder, _, before = saved
    _save(folder, recipe, before, here)
    config, _ = ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)
    engine = make_engine(recipe, config, strategy, resumes=True)
    _, relaid = load(engine, folder / "checkpoints" / "step_000000", strategy)
    state = {name: tensor.clone() for name, tensor in engine.module.model.state_dict().items()}
    ranks.leave()
    return relaid, {name: tensor.numpy() for name, tensor in state.items()}


def test_what_no_optimizer_steps_goes_along_into_another_layout(tmp_path):
    original = strangers("bart", tmp_path / "weights").state_dict()
    recipe = small_recipe_of("bart", tmp_path, tmp_path / "weights")
    for relaid, found in on_ranks(2, moved_to, layout(2, 1), recipe, (tmp_path, recipe, layout(2, 3))):
        assert relaid == "laid out anew from 2 ranks at ZeRO-3"
        assert found["final_logits_bias"].any()
        for name, tensor in original.items():
            assert torch.equal(torch.from_numpy(found[name]), tensor), name


@pytest.fixture
def folder(tmp_path):
    """A BERT's weights."""
    strangers("bert", tmp_path / "weights")
    return tmp_path / "weights"


def edited(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


FAULTS = {
    "missing": (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), r"layer\.1\.output\.dense\.bias is missing"),
    "left over": (lambda t: t.update(extra=torch.ones(2)), "extra fits no parameter of a BertForMaskedLM"),
    "shape": (
        lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.ones(3)}),
        r"LayerNorm\.bias is of \[3\], and the model's of \[64\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused_by_name(folder, fault):
    edit, said = FAULTS[fault]
    edited(folder, edit)
    with pytest.raises(FileProblems, match=said):
        models.pretrained(shape_of("bert", **SMALL), folder)


def test_another_models_config_is_refused_with_what_differs(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(InputError, match="hidden_act: 'relu' is not 'gelu'"):
        models.pretrained(shape_of("bert", **SMALL), folder)
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    with pytest.raises(FileProblems, match=r"layer_norm_eps is 0\.001"):
        models.pretrained(shape_of("bert", **SMALL), folder)
    # What no logit depends on is no difference.
    (folder / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5, "use_cache": False}))
    models.pretrained(shape_of("bert", **SMALL), folder)
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    with pytest.raises(InputError, match="holds a bert, and the model is a gpt2"):
        models.pretrained(shape_of("gpt2", **SMALL), folder)
    (folder / "model.safetensors").write_bytes(b"nonsense")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no weights that can be read"):
        models.pretrained(shape_of("bert", **SMALL), folder)
    with pytest.raises(InputError, match=r"has no config\.json"):
        models.pretrained(shape_of("bert", **SMALL), tmp_path)


def test_a_base_models_weights_are_taken_and_the_head_is_said_to_be_new(folder):
    base = BertModel.from_pretrained(folder)
    base.half().save_pretrained(folder)  # with a pooler, in 16 bit
    model, said = models.pretrained(shape_of("bert", **SMALL), folder, seed=5)
    again, _ = models.pretrained(shape_of("bert", **SMALL), folder, seed=5)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    for name, tensor in base.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(state[f"bert.{name}"], tensor.float()), name
    assert "left out, having no part in the task: bert.pooler.dense.bias" in said or "pooler.dense.bias" in said
    assert "newly initialised, the folder having none: cls.predictions" in said


def test_a_run_starts_from_its_weights_and_tokenizer_and_goes_on_without_reading_them_again(tmp_path):
    first = recipe_of("gpt2", tmp_path, num_steps=3, name="first")
    run(tmp_path / "first", first, layout(1, 1, micro=8))
    weights = export(tmp_path / "first", tmp_path / "weights")
    recipe = recipe_of("gpt2", tmp_path, num_steps=4, initial_weights=str(weights), seed=5)
    corpus = data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    assert corpus.fingerprint == data.prepare(first, base=tmp_path, cache=tmp_path / "cache").fingerprint
    model, _ = models.pretrained(recipe.shape, weights)
    with torch.no_grad():
        wanted = float(models.WithLoss(model)(**corpus.train.batch(range(8)))) / (8 * 32)
    straight = [line["loss"] for line in run(tmp_path / "straight", recipe, layout(2, 3))]
    assert straight[0] == pytest.approx(wanted, rel=1e-5)
    run(tmp_path / "stopped", recipe, layout(2, 3), "--max_steps", "2")
    (weights / "model.safetensors").unlink()
    run(tmp_path / "stopped", recipe, layout(2, 3))
    assert losses(tmp_path / "stopped") == straight
    with pytest.raises(AssertionError, match="SystemExit: 2"):
        run(tmp_path / "anew", recipe, layout(2, 3))


def test_weights_without_their_tokenizer_are_refused(folder, tmp_path):
    recipe = small_recipe_of("bert", tmp_path, folder)
    with pytest.raises(InputError, match="has no tokenizer that can be read"):
        data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")


MINILM = os.environ.get("SCALE_TEST_MINILM")


@pytest.mark.skipif(not MINILM, reason="SCALE_TEST_MINILM names a folder of all-MiniLM-L6-v2")
def test_real_weights_load_under_zero_3_and_export_bit_equal(tmp_path):
    source = Path(MINILM)
    size = {"name": "minilm", "num_layers": 6, "hidden_size": 384, "num_attention_heads": 12,
            "intermediate_size": 1536, "vocab_size": 30_522, "max_position_embeddings": 512}  # fmt: skip
    recipe = recipe_of("bert", tmp_path, model=model_of("bert", **size), initial_weights=str(source))
    said = on_ranks(2, saved_at_step_0, [(tmp_path / "run", recipe, layout(2, 3))])
    assert "newly initialised" in said[0][0]
    corpus = data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    assert corpus.vocab_size == 30_522
    assert corpus.num_tokens > 100 * 128  # its tokenizer.json would cut the document at 128
    shutil.copytree(corpus.preprocessor_dir, tmp_path / "run" / "tokenizer")
    export(tmp_path / "run", tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    with safe_open(source / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if "pooler" not in name and "position_ids" not in name]  # noqa: SIM118
        assert len(names) == 101
        for name in names:
            assert torch.equal(ours[f"bert.{name}"], file.get_tensor(name)), name
