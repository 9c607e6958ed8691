"""The sentence that the project stands on: a plan never changes the loss."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from scaling import course, data, models
from scaling.training.loop import Training
from scaling.training.optimizer import parameter_groups
from scaling.training.schedule import learning_rate
from tests.ranks import SOAK
from tests.training.runs import layout, run, run_each, tiny_recipe

# Every stage, one and two ranks, with and without accumulation and activation checkpointing.
LAYOUTS = {
    "1 rank, stage 0": layout(1, 0, micro=8),
    "1 rank, stage 0, accumulation 4, checkpointing": layout(1, 0, micro=2, checkpointing="full"),
    "1 rank, stage 3, accumulation 2": layout(1, 3, micro=4),
    "2 ranks, stage 0": layout(2, 0),
    "2 ranks, stage 0, accumulation 4": layout(2, 0, micro=1),
    "2 ranks, stage 1": layout(2, 1),
    "2 ranks, stage 1, accumulation 2, checkpointing": layout(2, 1, micro=2, checkpointing="full"),
    "2 ranks, stage 2, accumulation 4": layout(2, 2, micro=1),
    "2 ranks, stage 2, checkpointing": layout(2, 2, checkpointing="full"),
    "2 ranks, stage 3": layout(2, 3),
    "2 ranks, stage 3, accumulation 4, checkpointing": layout(2, 3, micro=1, checkpointing="full"),
    "1 rank, stage 0, chunked loss": layout(1, 0, micro=8, loss="chunked"),
    "2 ranks, stage 2, chunked loss, checkpointing": layout(2, 2, loss="chunked", checkpointing="full"),
    "2 ranks, stage 3, accumulation 2, chunked loss": layout(2, 3, micro=2, loss="chunked"),
    "1 rank, stage 0, accumulation 4, selective": layout(1, 0, micro=2, checkpointing="selective"),
    "2 ranks, stage 2, accumulation 2, selective": layout(2, 2, micro=2, checkpointing="selective"),
    "2 ranks, stage 3, accumulation 2, selective, chunked loss": layout(
        2, 3, micro=2, checkpointing="selective", loss="chunked"
    ),
}


def reference(recipe, tmp_path, batches=None, seq_lengths=None):
    """The same run in plain torch: the whole batch at once, transformers' logits, torch's AdamW and clipping.

    Returns (losses, gradient norms, validation loss after the last step).
    """
    batches = batches or [recipe.global_batch_size] * recipe.num_steps
    seq_lengths = seq_lengths or [recipe.data.seq_length] * recipe.num_steps
    corpus = data.prepare(recipe, base=tmp_path, cache=tmp_path / "cache")
    model = models.build(recipe.shape, seed=recipe.seed)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.optimizer.weight_decay), betas=recipe.optimizer.betas, eps=recipe.optimizer.eps
    )

    def mean_loss(batch):
        labels = batch.pop("labels")
        return F.cross_entropy(model(**batch).logits.flatten(0, -2), labels.flatten())  # where there is a target: -100

    losses, norms = [], []
    for step in range(recipe.num_steps):
        first = sum(batches[:step])
        loss = mean_loss(corpus.train.batch(range(first, first + batches[step]), seq_lengths[step]))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clipping)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step + 1)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        validation = mean_loss(corpus.validation.batch(range(corpus.validation.num_samples)))
    return losses, norms, float(validation)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_every_layout_gives_the_losses_of_a_plain_torch_loop(family, tmp_path):
    recipe = tiny_recipe(tmp_path, family=family, num_steps=6)
    losses, norms, validation = reference(recipe, tmp_path)
    assert losses[-1] < losses[0] - 0.3  # it learns, so that a frozen model would not pass
    assert min(norms) > recipe.gradient_clipping  # it clips
    layouts = LAYOUTS if family == "gpt2" else dict(list(LAYOUTS.items())[1::3])
    cases = {tmp_path / str(number): (recipe, strategy) for number, strategy in enumerate(layouts.values())}
    for name, lines in zip(layouts, run_each(cases).values(), strict=True):
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), name
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), name
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), name


RAMP = {"start": 4, "increment": 4, "samples": 40}
RAMPED = [4, 4, 4, 4, 8, 8, 12, 16]  # at samples 0, 4, 8, 12, 16, 24, 32 and 44
RAMP_LAYOUTS = {
    "1 rank, stage 0, accumulation 1 to 4": layout(1, 0, micro=4, batch=16),
    "2 ranks, stage 0, accumulation 1 to 4": layout(2, 0, micro=2, batch=16),
    "2 ranks, stage 1, accumulation 1 to 4": layout(2, 1, micro=2, batch=16),
    "2 ranks, stage 2, accumulation 2 to 8, checkpointing": layout(2, 2, micro=1, batch=16, checkpointing="full"),
    "2 ranks, stage 2, accumulation 1 to 4": layout(2, 2, micro=2, batch=16),
    "2 ranks, stage 3, accumulation 1 to 4": layout(2, 3, micro=2, batch=16),
    "2 ranks, stage 3, accumulation 2 to 8, chunked loss": layout(2, 3, micro=1, batch=16, loss="chunked"),
}


def test_every_layout_gives_the_losses_of_a_plain_torch_loop_while_the_batch_grows(tmp_path):
    recipe = tiny_recipe(tmp_path, num_steps=8, global_batch_size=16, batch_ramp=RAMP)
    losses, norms, validation = reference(recipe, tmp_path, RAMPED, (32,) * 8)
    assert losses[-1] < losses[0] - 0.3
    cases = {tmp_path / str(number): (recipe, strategy) for number, strategy in enumerate(RAMP_LAYOUTS.values())}
    for name, lines in zip(RAMP_LAYOUTS, run_each(cases).values(), strict=True):
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), name
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), name
        assert [line["samples"] for line in lines] == [4, 8, 12, 16, 24, 32, 44, 60]
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), name


@pytest.mark.parametrize("family", ["gpt2", "bert"] if SOAK else ["bert"])
def test_every_layout_gives_the_losses_of_a_plain_torch_loop_while_samples_and_batch_grow(family, tmp_path):
    seq_lengths = [8, 8, 8, 16, 16, 24, 24, 32]  # at the samples above, from 8 by 8 over 36
    corpus = {**tiny_recipe(tmp_path).data.model_dump(), "curriculum": {"start": 8, "increment": 8, "samples": 36}}
    recipe = tiny_recipe(
        tmp_path, family=family, num_steps=8, global_batch_size=16, batch_ramp=RAMP, data=corpus
    )  # fmt: skip
    losses, norms, validation = reference(recipe, tmp_path, RAMPED, seq_lengths)
    assert losses[-1] < losses[0] - 0.2
    for name, strategy in list(RAMP_LAYOUTS.items())[::3]:
        lines = run(tmp_path / name.replace(",", "").replace(" ", "_"), recipe, strategy)
        assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5), name
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), name
        tokens = [batch * T for batch, T in zip(RAMPED, seq_lengths, strict=True)]
        assert [line["tokens"] for line in lines] == [sum(tokens[: step + 1]) for step in range(8)]
        speeds = [line["tokens_per_second"] * line["elapsed_s"] for line in lines]
        assert speeds == pytest.approx(tokens)
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), name


def test_dropout_is_seeded_anew_for_every_micro_batch_of_a_ramp(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, num_steps=30, dropout=0.1, global_batch_size=16, batch_ramp=RAMP)
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed % 2**32))  # what torch's CPU keeps of it
    for rank in (0, 1):
        ranks = SimpleNamespace(rank=rank, world_size=2)
        training = SimpleNamespace(
            recipe=recipe, strategy=layout(2, 0, micro=1, batch=16), ranks=ranks, moved=lambda batch: batch,
            corpus=SimpleNamespace(train=SimpleNamespace(batch=lambda *_: None)),
        )  # fmt: skip
        for number in range(30):
            for first_sample, _ in Training.micro_batches(training, course.at(recipe, number)):
                Training.seed_dropout(training, first_sample)
    assert len(seeds) == len(set(seeds)) == course.num_samples(recipe)


def test_bf16_losses_agree_between_stages_and_splits_to_bf16_rounding(tmp_path):
    recipe = tiny_recipe(tmp_path, precision="bf16")
    runs = {
        name: [line["loss"] for line in run(tmp_path / str(number), recipe, strategy)]
        for number, (name, strategy) in enumerate(
            {
                "1 rank, stage 1": layout(1, 1, micro=8),
                "2 ranks, stage 1, accumulation 4": layout(2, 1, micro=1),
                "2 ranks, stage 2, accumulation 2": layout(2, 2, micro=2),
                "2 ranks, stage 3, accumulation 4": layout(2, 3, micro=1),
            }.items()
        )
    }
    first, *others = runs.values()
    assert first[-1] < first[0] - 0.3
    for other in others:
        assert other == pytest.approx(first, rel=2e-3)  # a bf16 number carries 8 bits, 4e-3
