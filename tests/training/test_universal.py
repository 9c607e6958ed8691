"""A run goes on under another number of ranks, stage, order or place of its states: the same tensors, bit for bit.

What was saved is asked of the engine that saved it by DeepSpeed's own accessors, which know nothing of layout.json, and
so is what was loaded.
"""

import contextlib
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from scaling import data, ds_config, manifest, models, train
from scaling.errors import FileProblems, ScaleError
from scaling.optim import layout as cuts
from scaling.training import checkpoint, universal
from scaling.training.export import export
from tests.ranks import SOAK, on_ranks
from tests.training.runs import files, layout, losses, run, tiny_recipe

# Odd sizes throughout, so that both two and three ranks leave padding.
MODEL = {
    "family": "gpt2", "name": "odd", "num_layers": 2, "hidden_size": 33, "num_attention_heads": 3,
    "intermediate_size": 131, "vocab_size": 385, "max_position_embeddings": 32,
}  # fmt: skip
OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    "lamb": {"name": "lamb", "lr": 1e-2, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1, "trust_clip": None},
}
BEFORE, AFTER = 3, 3  # steps


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to lay a run out; `zero` goes into the ds_config's block of that name. With `micro` steps are summed."""

    ranks: int
    stage: int
    micro: int | None = None
    offload: str = "none"
    round_robin: bool = False
    sub_groups: bool = False

    @property
    def strategy(self):
        strategy = layout(self.ranks, self.stage, micro=self.micro or 12 // self.ranks, batch=12)
        return replace(strategy, offload_optimizer=self.offload)

    def config(self, recipe):
        config = ds_config.emit(recipe, self.strategy)
        if self.round_robin:
            config["zero_optimization"]["round_robin_gradients"] = True
        if self.sub_groups:
            config["zero_optimization"]["sub_group_size"] = 6000
        if self.stage == 0 and recipe.precision == "bf16":  # refused by name in train.py, where AdamW is not itself
            return config
        return ds_config.reconcile(config, recipe, self.strategy)[0]


@dataclass(kw_only=True)
class Outcome:
    """The tensors when the checkpoint was written or read, by parameter and state, and the losses that followed.

    `spoiled` are the elements of padding that were made NaN before.
    """

    tensors: dict
    losses: list
    decays: list
    loss_scale: float | None = None
    spoiled: int = 0


def engines(folder, recipe, writes, reads, frozen=()):
    """On one set of ranks: trains each of `writes` and saves it, then loads each of `reads` and goes on."""
    from deepspeed.accelerator import get_accelerator

    from scaling.training import ranks

    here = ranks.join()
    if recipe.precision == "fp16":
        type(get_accelerator()).is_fp16_supported = lambda self: True  # slow on a CPU, but it works
    build = models.build

    def built(*args, **kwargs):
        model = build(*args, **kwargs)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (frozen and name.endswith(frozen)))
        return model

    corpus = data.prepare(recipe, base=folder, cache=folder / "cache")
    with mock.patch.object(models, "build", built):
        wrote = {name: written(folder / name, recipe, where, corpus, here) for name, where in writes.items()}
        read = {key: loaded(folder / key[0], recipe, where, corpus, here) for key, where in reads.items()}
    ranks.leave()
    return wrote, read


def training(folder, recipe, where, corpus, here):
    from scaling.training.engine import make_engine
    from scaling.training.guards import Judge
    from scaling.training.loop import Training
    from scaling.training.memory import MemoryGauge
    from scaling.training.noise_scale import GradientNoise
    from scaling.training.signals import StopRequest
    from scaling.training.watch import Watch
    from scaling.training.watchdog import Watchdog

    engine = make_engine(recipe, where.config(recipe), where.strategy)
    return Training(
        recipe=recipe, strategy=where.strategy, ranks=here, engine=engine, corpus=corpus, folder=folder, talk=None,
        metrics=None, gauge=MemoryGauge(here.device), noise=GradientNoise(engine, where.strategy, here.device),
        saver=checkpoint.Saver(engine, folder, recipe, where.strategy, here), judge=Judge(recipe.guards),
        watch=Watch(recipe, here, engine, MemoryGauge(here.device), {}),
        watchdog=Watchdog(folder, here, None, hint=""), request=StopRequest(), hint="", step=0,
        stop_step=BEFORE + AFTER,
    )  # fmt: skip


def written(folder, recipe, where, corpus, here):
    going = training(folder, recipe, where, corpus, here)
    for _ in range(BEFORE):
        going.optimizer_step()
    spoiled = spoil_padding(going.engine)
    if recipe.precision == "fp16":
        going.engine.optimizer.loss_scale = 128.0
    outcome = observed(going.engine, where)
    outcome.spoiled = spoiled
    going.saver.save(checkpoint.Reached(step=BEFORE, samples_seen=BEFORE * recipe.global_batch_size))
    outcome.losses = [going.optimizer_step()["loss"] for _ in range(AFTER)]
    return outcome


def loaded(folder, recipe, where, corpus, here):
    going = training(folder, recipe, where, corpus, here)
    newest = manifest.find(folder, "run")
    checkpoint.require_match(newest, recipe, where.strategy)
    going.optimizer_step()  # an engine that has states, and gathered parameters, of its own
    reached, how = checkpoint.load(going.engine, newest, where.strategy)
    going.step = reached.step
    assert how.startswith("laid out anew")
    assert going.engine.global_steps == BEFORE
    outcome = observed(going.engine, where)
    outcome.losses = [going.optimizer_step()["loss"] for _ in range(AFTER)]
    return outcome


def spoil_padding(engine):
    """Writes NaN wherever a vector has no parameter's element, in weights and states alike; to how many elements."""
    spoiled = 0
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    for vector in cuts.held(engine, trained):
        padding = torch.ones(vector.tensor.numel(), dtype=torch.bool)
        for piece in vector.pieces.values():
            padding[piece.start : piece.stop] = False
        for tensor in (vector.tensor, *optimizer.state[vector.tensor].values()):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and padding.any():
                tensor.data.view(-1)[padding] = float("nan")
                spoiled += int(padding.sum())
    return spoiled


def observed(engine, where):
    """All weights and states by name, and what the groups say; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    wrapper = engine.optimizer
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    tensors = {}
    if where.stage == 0:
        masters = {id(p): p for p in trained.values()}
        if hasattr(wrapper, "fp32_groups"):
            groups = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
            masters = {id(p): master for pair in groups for p, master in zip(*pair, strict=True)}
        for name, p in trained.items():
            state = getattr(wrapper, "optimizer", wrapper).state[masters[id(p)]]
            tensors[name] = {"weight": masters[id(p)], **{key: state[key] for key in ("exp_avg", "exp_avg_sq")}}
    else:
        if where.stage < 3:
            linked_rightly(wrapper)
        for name, p in trained.items():
            states = {key: safe_get_full_optimizer_state(p, key) for key in ("exp_avg", "exp_avg_sq")}
            tensors[name] = {"weight": safe_get_full_fp32_param(p), **states}
    tensors = {
        name: {k: t.detach().float().flatten().numpy().copy() for k, t in of.items()} for name, of in tensors.items()
    }
    decays = sorted({group["weight_decay"] for group in wrapper.param_groups})
    return Outcome(
        tensors=tensors, losses=[], decays=decays, loss_scale=wrapper.loss_scale if engine.fp16_enabled() else None
    )


def linked_rightly(wrapper):
    """DeepSpeed's accessors below stage 3, without the two faults that docs/upstream shows."""
    if hasattr(wrapper, "round_robin_bit16_padding"):  # without any, parameters are looked for in another order
        padding, groups = wrapper.round_robin_bit16_padding, wrapper.round_robin_bit16_groups
        wrapper.round_robin_bit16_padding = [[1] * len(group) for group in groups]
        wrapper._link_all_hp_params()
        wrapper.round_robin_bit16_padding = padding
    wrapper._hp_optimizer_states_linked = False  # they were as the first group had been stepped, the others not yet
    wrapper._lazy_init_hp_params_optimizer_state()


def prepared(folder, **changes):
    recipe = tiny_recipe(folder, model=MODEL, global_batch_size=12, **changes)
    data.prepare(recipe, base=folder, cache=folder / "cache")
    return recipe


def require_same(wrote, read, tolerance=1e-5):
    """Every reader has what the writer had, bit for bit, and its losses to `tolerance`."""
    for (name, how), outcome in read.items():
        source = wrote[name]
        for parameter, tensors in outcome.tensors.items():
            for key, tensor in tensors.items():
                same = (tensor == source.tensors[parameter][key]).all()
                assert same, f"{name} -> {how}: {parameter} {key}"
        assert outcome.losses == pytest.approx(source.losses, rel=tolerance), f"{name} -> {how}"
        assert outcome.decays == [0.0, 0.1]
        off = max(abs(a - b) / b for a, b in zip(outcome.losses, source.losses, strict=True))
        print(f"{name} -> {how}: losses to {off:.1e}")  # noqa: T201


@pytest.mark.parametrize("optimizer", OPTIMIZERS if SOAK else ["adamw"])
def test_another_number_of_ranks_or_another_stage_has_the_same_tensors_and_goes_on_with_the_same_losses(
    optimizer, tmp_path
):
    recipe = prepared(tmp_path, optimizer=OPTIMIZERS[optimizer])
    one = {"0 alone": Layout(ranks=1, stage=0), "3 alone": Layout(ranks=1, stage=3, sub_groups=True)}
    two = {
        "0": Layout(ranks=2, stage=0),
        "1": Layout(ranks=2, stage=1),
        "2, round robin": Layout(ranks=2, stage=2, round_robin=True),
        "3, sub-groups": Layout(ranks=2, stage=3, sub_groups=True),
    }
    on_two = {
        ("0 alone", "1"): two["1"],
        ("3 alone", "3"): Layout(ranks=2, stage=3),
        ("0", "2, round robin"): two["2, round robin"],
        ("1", "3, sub-groups"): two["3, sub-groups"],
        ("2, round robin", "0"): two["0"],
        ("3, sub-groups", "1"): two["1"],
        ("3, sub-groups", "3"): Layout(ranks=2, stage=3),
    }
    on_three = {
        ("1", "2, round robin"): Layout(ranks=3, stage=2, round_robin=True),
        ("2, round robin", "1"): Layout(ranks=3, stage=1),
        ("3, sub-groups", "3"): Layout(ranks=3, stage=3),
    }
    on_one = {("2, round robin", "3"): Layout(ranks=1, stage=3), ("3, sub-groups", "0"): Layout(ranks=1, stage=0)}
    wrote, _ = on_ranks(1, engines, tmp_path, recipe, one, {})[0]
    more, read = on_ranks(2, engines, tmp_path, recipe, two, on_two)[-1]  # the last rank has the padding
    assert more["1"].spoiled > 0
    assert more["3, sub-groups"].spoiled > 0
    wrote |= more
    read |= {(name, f"{how} on 3"): outcome for (name, how), outcome in read_on(3, tmp_path, recipe, on_three).items()}
    read |= {(name, f"{how} on 1"): outcome for (name, how), outcome in read_on(1, tmp_path, recipe, on_one).items()}
    require_same(wrote, read)


def test_master_weights_of_bf16_are_exact_under_every_wrapper_wherever_the_optimizer_is(tmp_path):
    recipe = prepared(tmp_path, optimizer=OPTIMIZERS["lamb"], precision="bf16")
    layouts = {
        "0 (FP16_UnfusedOptimizer)": Layout(ranks=2, stage=0),
        "1, summed in fp32 (BF16_Optimizer)": Layout(ranks=2, stage=1, micro=3),
        "1": Layout(ranks=2, stage=1),
        "2, offloaded": Layout(ranks=2, stage=2, offload="cpu"),
        "3, offloaded": Layout(ranks=2, stage=3, offload="cpu", sub_groups=True),
    }
    names = list(layouts)
    reads = {(name, into): layouts[into] for name, into in zip(names, [*names[1:], names[0]], strict=True)}
    require_same(*on_ranks(2, engines, tmp_path, recipe, layouts, reads)[0], tolerance=2e-3)


@pytest.mark.skipif(not os.environ.get("SCALE_TEST_OFFLOAD"), reason="compiles for minutes: SCALE_TEST_OFFLOAD=cpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adamw_goes_between_torch_on_the_device_and_deepspeed_on_the_host(precision, tmp_path):
    recipe = prepared(tmp_path, optimizer=OPTIMIZERS["adamw"], precision=precision)
    layouts = {
        "2": Layout(ranks=2, stage=2),
        "2, offloaded": Layout(ranks=2, stage=2, offload="cpu"),
        "3, offloaded": Layout(ranks=2, stage=3, offload="cpu"),
    }
    reads = {("2", "2, offloaded"), ("2, offloaded", "3, offloaded"), ("3, offloaded", "2")}
    outcomes = on_ranks(2, engines, tmp_path, recipe, layouts, {key: layouts[key[1]] for key in sorted(reads)})[0]
    require_same(*outcomes, tolerance=1e-5 if precision == "fp32" else 2e-3)


def test_in_fp16_the_loss_scale_goes_on(tmp_path):
    recipe = prepared(tmp_path, optimizer=OPTIMIZERS["lamb"], precision="fp16")
    layouts = {str(stage): Layout(ranks=2, stage=stage) for stage in (2, 3)}
    wrote, read = on_ranks(2, engines, tmp_path, recipe, layouts, {("2", "3"): layouts["3"], ("3", "2"): layouts["2"]})[
        0
    ]
    require_same(wrote, read, tolerance=2e-3)
    assert [outcome.loss_scale for outcome in read.values()] == [128.0, 128.0]


def test_beside_frozen_parameters_the_trained_ones_go_on(tmp_path):
    recipe = prepared(tmp_path, optimizer=OPTIMIZERS["lamb"])
    layouts = {str(stage): Layout(ranks=2, stage=stage) for stage in (0, 1, 3)}
    reads = {("1", "3"): layouts["3"], ("3", "0"): layouts["0"]}
    frozen = ("ln_1.weight", "c_fc.weight")
    require_same(*on_ranks(2, engines, tmp_path, recipe, layouts, reads, frozen)[0])


def read_on(world_size, folder, recipe, reads):
    return on_ranks(world_size, engines, folder, recipe, {}, reads)[0][1]


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """(folder, recipe): `straight` ran to the end on two ranks at ZeRO-2, `broken` stopped after two steps of it."""
    folder = tmp_path_factory.mktemp("half_way")
    recipe = tiny_recipe(folder, num_steps=4)
    run(folder / "straight", recipe, layout(2, 2))
    run(folder / "broken", recipe, layout(2, 2), "--max_steps", "2")
    return folder, recipe


def said_by_the_program(argv):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        train.main(argv)
    return said.getvalue()


def test_a_run_goes_on_under_another_plan_and_says_so(half_way, tmp_path):
    folder, recipe = half_way
    shutil.copytree(folder / "broken", tmp_path / "broken")
    recipe_path, config_path = files(tmp_path / "asked", recipe, layout(1, 3, micro=4))
    flags = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(tmp_path / "broken")]
    said = on_ranks(1, said_by_the_program, flags)[0]
    assert "laid out anew from 2 ranks at ZeRO-2" in said
    assert losses(tmp_path / "broken") == pytest.approx(losses(folder / "straight"), rel=1e-5)
    # And what it then is, is what the uninterrupted one is: an AdamW that lost its moments is off by the learning rate.
    paths = [export(of, tmp_path / name) for of, name in ((folder / "straight", "one"), (tmp_path / "broken", "other"))]
    one, other = (safetensors.torch.load_file(path / "model.safetensors") for path in paths)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-6)


def test_as_it_was_written_a_checkpoint_is_read_by_deepspeed_itself(half_way, tmp_path):
    folder, recipe = half_way
    shutil.copytree(folder / "broken", tmp_path / "broken")
    recipe_path, config_path = files(tmp_path / "asked", recipe, layout(2, 2))
    flags = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(tmp_path / "broken")]
    said = on_ranks(2, said_by_the_program, flags)[0]
    assert "resumed from" in said
    assert "laid out anew" not in said
    assert losses(tmp_path / "broken") == losses(folder / "straight")


SHARD = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def replaced(path):
    torch.save({"optimizer_state_dict": Path("/")}, path)  # a class that DeepSpeed does not write: it could do anything


def shortened(path):
    content = torch.load(path, weights_only=False)
    vectors = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    vectors[0] = vectors[0][:-1].clone()
    torch.save(content, path)


@pytest.fixture
def again(half_way, tmp_path):
    """(a copy of the checkpoint of `broken`, recipe)"""
    folder, recipe = half_way
    shutil.copytree(folder / "broken", tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "step_000002", recipe


@pytest.mark.parametrize(
    ("damage", "said"), [(cut, "cannot be read"), (replaced, "cannot be read"), (shortened, "vector 0 has")]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_shard_that_is_not_what_the_map_says_is_refused_by_name(damage, said, ranks, again):
    path, recipe = again
    damage(path / SHARD)
    resealed(path)
    with pytest.raises(FileProblems, match=f"{SHARD}.*{said}"):
        checkpoint.require_match(path, recipe, layout(ranks, 2, micro=8 // ranks))


def test_a_shard_that_the_manifest_does_not_name_is_not_read(again):
    path, recipe = again
    found = manifest.read(path)
    files = {name: file for name, file in found.files.items() if name != SHARD}
    (path / manifest.NAME).write_text(replace(found, files=files).dump())
    with pytest.raises(FileProblems, match=f"{SHARD} is not named"):
        checkpoint.require_match(path, recipe, layout(1, 2, micro=8))


def test_a_state_that_is_not_one_number_per_element_is_read_only_as_it_was_written(again):
    path, recipe = again
    content = torch.load(path / SHARD, weights_only=False)
    content["optimizer_state_dict"]["base_optimizer_state"]["state"][0]["row_sums"] = torch.ones(3)
    torch.save(content, path / SHARD)
    resealed(path)
    checkpoint.require_match(path, recipe, layout(2, 2))
    with pytest.raises(ScaleError, match="row_sums cannot be laid out anew"):
        checkpoint.require_match(path, recipe, layout(1, 2, micro=8))


def test_a_map_that_lacks_an_element_is_refused_by_the_name_of_its_parameter(again):
    path, recipe = again
    content = json.loads((path / universal.MAP).read_text())
    name, stretches = next(iter(content["shards"][0]["vectors"][0].items()))
    stretches[0][1] -= 1
    (path / universal.MAP).write_text(json.dumps(content))
    resealed(path)
    with pytest.raises(ScaleError, match=f"not every element of {name} once"):
        checkpoint.require_match(path, recipe, layout(1, 2, micro=8))


def test_without_a_map_only_the_layout_that_wrote_it_can_read_it(again):
    path, recipe = again
    (path / universal.MAP).unlink()
    resealed(path)
    with pytest.raises(ScaleError, match=f"has no {universal.MAP}"):
        checkpoint.require_match(path, recipe, layout(1, 2, micro=8))


def resealed(path):
    """The checkpoint with a manifest of its files as they are now: of one that was always so."""
    found = manifest.read(path)
    there = {name: manifest.File(num_bytes=(path / name).stat().st_size, sha256=manifest.sha256(path / name))
             for name in found.files if (path / name).exists()}  # fmt: skip
    (path / manifest.NAME).write_text(replace(found, files=there).dump())
