"""A pipeline of stages trains to the losses of one process: every family that is cut, by DeepSpeed's 1F1B."""

import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import safetensors.torch
import torch

from scaling import data, ds_config, models
from scaling.cost.stages import shares_of_layers
from scaling.errors import FileProblems
from scaling.family import FAMILIES
from scaling.parallelism import PARALLELISMS, unsplittable
from tests.parallel.families import recipe_of
from tests.ranks import SOAK, on_ranks
from tests.training.runs import layout
from tests.training.test_same_loss import reference

FAMILIES_CUT = [name for name in FAMILIES if "pipeline" in PARALLELISMS[name].runnable]
LONG = FAMILIES_CUT if SOAK else ["gpt2", "bert"]


def recipes_of(folder):
    return {name: recipe_of(name, folder, num_steps=10 if name in LONG else 6) for name in FAMILIES_CUT}


def training(folder, recipe, strategy, here):
    """A run without the program around it, on the ranks that are there."""
    from scaling.training import checkpoint
    from scaling.training.engine import make_engine
    from scaling.training.guards import Judge
    from scaling.training.loop import Training
    from scaling.training.memory import MemoryGauge
    from scaling.training.noise_scale import GradientNoise
    from scaling.training.signals import StopRequest
    from scaling.training.watch import Watch
    from scaling.training.watchdog import Watchdog

    config, _ = ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)
    engine, gauge = make_engine(recipe, config, strategy), MemoryGauge(here.device)
    return Training(
        recipe=recipe, strategy=strategy, ranks=here, engine=engine, folder=folder, talk=None, metrics=None,
        corpus=data.prepare(recipe, base=folder, cache=folder / "cache"), gauge=gauge,
        noise=GradientNoise(engine, strategy, here.device), watch=Watch(recipe, here, engine, gauge, {}),
        saver=checkpoint.Saver(engine, folder / "checkpoints", recipe, strategy, here), judge=Judge(recipe.guards),
        watchdog=Watchdog(folder, here, None, hint=""), request=StopRequest(), hint="", step=0,
        stop_step=recipe.num_steps,
    )  # fmt: skip


def trained(folder, cases):
    """Each of `cases` from its first step to its last: {name: (losses, norms, validation loss, weights at the end)}."""
    from scaling.training import ranks

    here, found = ranks.join(), {}
    for name, (recipe, strategy) in cases.items():
        found[name] = steps_of(training(folder, recipe, strategy, here), recipe.num_steps)
    ranks.leave()
    return found


def steps_of(going, num_steps):
    from scaling.training.pipeline import named_parameters

    lines = [going.optimizer_step() for _ in range(num_steps)]
    weights = {name: p.detach().float().numpy().copy() for name, p in named_parameters(going.engine).items()}
    losses, norms = ([line[key] for line in lines] for key in ("loss", "grad_norm"))
    noises = [line.get("gradient_noise") for line in lines]
    return losses, norms, going.evaluate()["validation_loss"], weights, noises


def require_same(found, expected, name, tolerance=1e-5):
    losses, norms, validation = expected
    for theirs, their_norms, evaluated, *_ in found:
        assert theirs == pytest.approx(losses, rel=tolerance), name
        assert their_norms == pytest.approx(norms, rel=10 * tolerance), name
        assert evaluated == pytest.approx(validation, rel=tolerance), name


# Two stages, alone and twice side by side; the families between them at both ZeRO stages, the two first at both each.
SIDE_BY_SIDE = {1: layout(2, 0, micro=2, pipeline=2), 2: layout(4, 1, micro=2, pipeline=2)}


@pytest.mark.parametrize("data_parallel_size", [1, 2] if SOAK else [1])
def test_every_family_gives_the_losses_of_a_plain_torch_loop(data_parallel_size, tmp_path):
    recipes, strategy = recipes_of(tmp_path), SIDE_BY_SIDE[data_parallel_size]
    cases = {name: (recipe, strategy) for name, recipe in recipes.items()}
    other = replace(strategy, zero_stage=1 - strategy.zero_stage)
    cases |= {f"{name}, other stage": (recipes[name], other) for name in LONG}
    everyones = on_ranks(strategy.world_size, trained, tmp_path, cases)
    for name, (recipe, _) in cases.items():
        expected = reference(recipe, tmp_path)
        if recipe.shape.family != "vit":  # to which so few images teach too little to see
            assert expected[0][-1] < expected[0][0] - 0.05, name
        found = [each[name] for each in everyones]
        require_same(found, expected, name)
        first, last = found[0][3], found[-1][3]
        for shared in first.keys() & last.keys():  # the embedding that is the head, after the update
            assert first[shared] == pytest.approx(last[shared], rel=1e-6, abs=1e-7)
        assert bool(first.keys() & last.keys()) == recipe.shape.tied_embeddings
        assert set().union(*(each[3] for each in found)) == {
            f"model.{parameter}" for parameter, _ in models.build(recipe.shape).named_parameters()
        }


def test_bf16_losses_of_every_family_are_those_of_one_rank_to_bf16_rounding(tmp_path):
    recipes = {name: recipe_of(name, tmp_path, num_steps=3, precision="bf16") for name in FAMILIES_CUT}
    staged, whole = layout(2, 1, micro=2, pipeline=2), layout(1, 1, micro=8)
    everyones = on_ranks(2, trained, tmp_path, {name: (recipe, staged) for name, recipe in recipes.items()})
    (alone,) = on_ranks(1, trained, tmp_path, {name: (recipe, whole) for name, recipe in recipes.items()})
    for name in recipes:
        require_same([each[name] for each in everyones], alone[name][:3], name, 5e-3)


RAMP = {"start": 4, "increment": 4, "samples": 40}
CURRICULUM = {"start": 8, "increment": 8, "samples": 36}


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
def test_machinery_changes_no_loss(tmp_path):
    """What a plan or a recipe may ask for beside the stages, in two stages and in four."""
    plain = recipe_of("gpt2", tmp_path, num_steps=5)
    grown = recipe_of(
        "gpt2", tmp_path, num_steps=8, global_batch_size=16, batch_ramp=RAMP,
        data={**plain.data.model_dump(), "curriculum": CURRICULUM},
    )  # fmt: skip
    llama = recipe_of("llama", tmp_path, num_steps=5)
    lamb = {"name": "lamb", "lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1}
    lamb = recipe_of("gpt2", tmp_path, num_steps=5, optimizer=lamb, gradient_clipping=0.0)
    bf16 = recipe_of("gpt2", tmp_path, num_steps=5, precision="bf16")
    cases = {
        "fewer micro steps than stages": (plain, layout(2, 0, micro=8, pipeline=2)),
        "full checkpointing": (plain, layout(2, 1, micro=2, pipeline=2, checkpointing="full")),
        "selective checkpointing, chunked loss": (
            llama, layout(2, 0, micro=2, pipeline=2, checkpointing="selective", loss="chunked")
        ),
        "growing": (grown, layout(2, 0, micro=2, pipeline=2, batch=16)),
        "growing at stage 1": (grown, layout(2, 1, micro=4, pipeline=2, batch=16)),
        "lamb": (lamb, layout(2, 1, micro=2, pipeline=2)),
        "bf16": (bf16, layout(2, 1, micro=2, pipeline=2)),
        "bf16, one micro step": (bf16, layout(2, 1, micro=8, pipeline=2)),
    }  # fmt: skip
    four = {
        "four stages": (plain, layout(4, 0, micro=1, pipeline=4)),
        "four stages, two micro steps": (plain, layout(4, 1, micro=4, pipeline=4)),
        "lamb, sharded": (lamb, layout(4, 1, micro=2, pipeline=2)),
    }
    alone = {name: (recipe, layout(1, 1, micro=8)) for name, recipe in (("lamb", lamb), ("bf16", bf16))}
    alone["llama"] = llama, layout(1, 0, micro=2)
    everyones, fours = on_ranks(2, trained, tmp_path, cases), on_ranks(4, trained, tmp_path, four)
    (single,) = on_ranks(1, trained, tmp_path, alone)
    references = {
        id(plain): reference(plain, tmp_path, (8,) * 5, (32,) * 5),
        id(llama): reference(llama, tmp_path, (8,) * 5, (32,) * 5),
        id(grown): reference(grown, tmp_path, [4, 4, 4, 4, 8, 8, 12, 16], [8, 8, 8, 16, 16, 24, 24, 32]),
        id(lamb): single["lamb"][:3],
        id(bf16): single["bf16"][:3],
    }
    for found, asked in ((everyones, cases), (fours, four)):
        for name, (recipe, _) in asked.items():
            tolerance = 2e-3 if recipe is bf16 else 1e-5
            require_same([each[name] for each in found], references[id(recipe)], name, tolerance)
    untied, tied = everyones[1]["selective checkpointing, chunked loss"][4], everyones[1]["full checkpointing"][4]
    assert untied == pytest.approx(single["llama"][4], rel=1e-3)
    assert tied == [None] * 5  # one stage's part of that weight's gradient does not say its norm


def lives(folder, recipe, strategy):
    """Three steps, a checkpoint and three more; then the checkpoint in another engine, and three more from there."""
    from scaling import manifest
    from scaling.training import checkpoint, ranks

    here = ranks.join()
    going = training(folder, recipe, strategy, here)
    steps_of(going, 3)
    going.saver.save(checkpoint.Reached(step=3, samples_seen=24))
    straight = steps_of(going, 3)
    again = training(folder, recipe, strategy, here)
    newest = manifest.find(folder, "run")
    checkpoint.require_match(newest, recipe, strategy)
    reached, relaid = checkpoint.load(again.engine, newest, strategy)
    again.step = reached.step
    resumed = steps_of(again, 3)
    ranks.leave()
    return straight, resumed, relaid


def goes_on(folder, recipe, strategy):
    """Three steps from the checkpoint that is there, in another layout."""
    from scaling import manifest
    from scaling.training import checkpoint, ranks

    here, newest = ranks.join(), manifest.find(folder, "run")
    going = training(folder / "elsewhere", recipe, strategy, here)
    checkpoint.require_match(newest, recipe, strategy)
    reached, relaid = checkpoint.load(going.engine, newest, strategy)
    going.step = reached.step
    found = steps_of(going, 3)
    ranks.leave()
    return found, relaid


@pytest.mark.parametrize("stage", [0, 1])
def test_a_checkpoint_goes_on_bit_for_bit_elsewhere_too_and_is_exported(stage, tmp_path):
    recipe = recipe_of("bert" if stage else "gpt2", tmp_path, num_steps=6)
    size = 2 + 2 * stage
    strategy = layout(size, stage, micro=2, pipeline=2)
    folder = tmp_path / "run"
    everyones = on_ranks(size, lives, folder, recipe, strategy)
    for straight, resumed, relaid in everyones:
        assert straight[:3] == resumed[:3]
        assert not relaid
        assert all((straight[3][name] == resumed[3][name]).all() for name in straight[3])
    expected = everyones[0][0][:3]

    ((found, relaid),) = on_ranks(1, goes_on, folder, recipe, layout(1, stage, micro=4))
    assert "laid out anew from" in relaid
    require_same([found], expected, "on one rank")

    from scaling import manifest
    from scaling.training import export

    corpus = data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    shutil.copytree(corpus.preprocessor_dir, folder / "tokenizer")
    exported = export.export(folder, tmp_path / "model")
    weights = safetensors.torch.load_file(exported / "model.safetensors")
    (alone,) = on_ranks(1, lives, tmp_path / "alone", recipe, layout(1, stage, micro=4))
    shutil.copytree(corpus.preprocessor_dir, tmp_path / "alone" / "tokenizer")
    plain = safetensors.torch.load_file(export.export(tmp_path / "alone", tmp_path / "plain") / "model.safetensors")
    assert weights.keys() == plain.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-4, atol=1e-5)

    # The other way: what one rank wrote, on the stages.
    for found, relaid in on_ranks(2, goes_on, tmp_path / "alone", recipe, layout(2, stage, micro=2, pipeline=2)):
        assert "laid out anew from 1 rank" in relaid
        require_same([found], alone[0][:3], "on two stages")

    named = manifest.read(manifest.find(folder, "run")).files
    there = {path.name for path in manifest.find(folder, "run").iterdir()} - {manifest.NAME}
    assert there == named.keys()


def dropped_and_guarded(folder, recipe, dropping, strategy):
    """With dropout: losses of two runs, and what a micro batch draws. Then a step whose gradients are spoiled."""
    from scaling.training import ranks
    from scaling.training.pipeline import named_parameters

    here, twice = ranks.join(), []
    for _ in range(2):
        going = training(folder, dropping, strategy, here)
        twice.append([going.optimizer_step()["loss"] for _ in range(2)])
    going.seed_dropout(8)
    drawn = torch.rand(4).tolist()
    said = []
    going = training(folder, recipe, strategy, here)
    going.talk = SimpleNamespace(say=said.append)
    stage = going.passes.stage
    going.optimizer_step()
    forward = stage.forward

    def spoiled(inputs):
        outputs = forward(inputs)
        if not stage.is_last:
            outputs.register_hook(lambda gradient: gradient * float("nan"))
        return outputs

    before = {name: p.detach().clone() for name, p in named_parameters(going.engine).items()}
    with mock.patch.object(stage, "forward", spoiled):
        step = going.optimizer_step()
    kept = all(torch.equal(p, before[name]) for name, p in named_parameters(going.engine).items())
    after = going.optimizer_step()
    ranks.leave()
    return twice, drawn, said, step, kept, after["grad_norm"]


@pytest.mark.parametrize("stage", [0, 1])
def test_dropout_is_each_stages_own_and_a_spoiled_step_is_left_out(stage, tmp_path):
    recipe, strategy = recipe_of("gpt2", tmp_path, num_steps=6), layout(2, stage, micro=2, pipeline=2)
    dropping = recipe_of("gpt2", tmp_path, num_steps=6, dropout=0.1)
    first, last = on_ranks(2, dropped_and_guarded, tmp_path, recipe, dropping, strategy)
    losses, _, _ = reference(recipe, tmp_path)
    for twice, _, (said,), step, kept, norm in (first, last):
        assert twice[0] == twice[1] == first[0][0]
        assert twice[0] != pytest.approx(losses[:2], rel=1e-5)
        assert twice[0] == pytest.approx(losses[:2], rel=0.05)
        assert "gradients not finite on rank 0: model.transformer.h.1." in said  # where it began, on the first stage
        assert "rank 1" not in said
        assert step["loss"] == pytest.approx(losses[1], rel=1e-5)
        assert kept
        assert norm > recipe.gradient_clipping  # and the next is a step as ever
    assert first[1] != last[1]


def test_what_is_not_split_is_refused_with_what_works(tmp_path):
    recipe, t5 = recipe_of("gpt2", tmp_path), recipe_of("t5", tmp_path)
    for what, strategy, problem, hint in (
        (recipe, layout(8, 0, micro=1, pipeline=8), "pipeline_parallel_size 8 exceeds the 4 layers", "1 to 4"),
        (recipe, layout(2, 2, pipeline=2), "DeepSpeed's pipeline does not run at ZeRO stage 2", "stages 0 and 1"),
        (recipe, layout(2, 3, pipeline=2), "DeepSpeed's pipeline does not run at ZeRO stage 3", "stages 0 and 1"),
        (t5, layout(2, 1, pipeline=2), "pipeline parallelism of a t5 would carry the encoder's", "of the others"),
    ):
        said, offered = unsplittable(what.shape, strategy, 32)
        assert problem in said
        assert hint in offered
    two = layout(2, 1, pipeline=2)
    muon = {
        "name": "muon", "lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "adam_lr": 3e-4, "adam_betas": [0.9, 0.95],
        "adam_eps": 1e-8,
    }  # fmt: skip
    for changes, keys, problem in (
        ({"optimizer": muon, "gradient_clipping": 0.0}, {}, "optimizer: DeepSpeed's Muon"),
        ({}, {"wall_clock_breakdown": True}, "wall_clock_breakdown: breaks off"),
    ):
        asked = recipe_of("gpt2", tmp_path, **changes)
        with pytest.raises(FileProblems, match=problem):
            ds_config.reconcile(ds_config.emit(asked, two) | keys, asked, two)


def test_stages_are_as_even_as_whole_layers_are():
    def counts(*asked):
        return [len(share) for share in shares_of_layers(*asked)]

    # GPT-2 of 124M: the head's 768 x 50257 are 5.45 layers of 12 x 768^2, so 9 and 3 + 5.45 beat 6 and 6 + 5.45.
    assert counts(12, 2, 5.45) == [9, 3]
    assert counts(24, 4, 0.1) == [6, 6, 6, 6]
    assert counts(7, 3, 0.1) == [3, 2, 2]
    assert counts(4, 4, 9.0) == [1, 1, 1, 1]
    assert shares_of_layers(5, 2, 1.0) == [range(3), range(3, 5)]
