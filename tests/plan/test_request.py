"""From what a user typed to a whole recipe, with every assumption said."""

import pytest

from scaling.errors import InputError, ScaleError
from scaling.plan.request import overridden, recipe_for


def _said(assumptions, field):
    return next(sentence for sentence in assumptions if sentence.startswith(f"{field}: "))


def test_1_3b_alone_is_gpt3_xl_as_published_and_every_default_is_said(cluster_like):
    recipe, said = recipe_for(cluster_like(), params="1.3B")
    # Brown et al. 2020, table 2.1: 24 x 2048, batch 1M tokens, learning rate 2e-4, context 2048.
    assert recipe.shape.name == "gpt3-1.3b"
    assert recipe.data.seq_length == 2048
    assert recipe.tokens_per_step == 2**20
    assert recipe.optimizer.lr == 2.0e-4
    # Hoffmann et al. 2022: about 20 tokens per parameter.
    assert recipe.num_steps * recipe.tokens_per_step == pytest.approx(20 * 1.3157e9, rel=0.001)
    assert recipe.precision == "bf16"
    for field in ("model", "precision", "seq_length", "global_batch_size", "tokens", "optimizer"):
        assert _said(said, field)
    assert "2005.14165" in _said(said, "model")
    assert "16 heads" in " ".join(said)  # the misprint that the registry corrects


def test_what_was_asked_is_taken_and_not_said_to_be_assumed(cluster_like):
    recipe, said = recipe_for(
        cluster_like(), model="gpt2-xl", seq_length=512, global_batch_size=64, tokens="1B", precision="fp16"
    )
    assert (recipe.shape.name, recipe.data.seq_length, recipe.global_batch_size) == ("gpt2-xl", 512, 64)
    assert recipe.precision == "fp16"
    assert recipe.num_steps * recipe.tokens_per_step == pytest.approx(1e9, abs=recipe.tokens_per_step / 2)
    for field in ("precision", "seq_length", "global_batch_size", "tokens"):
        assert not [sentence for sentence in said if sentence.startswith(f"{field}: ")]


def test_a_bert_is_a_masked_lm_of_its_paper(cluster_like):
    recipe, _ = recipe_for(cluster_like(), model="bert-base")
    # Devlin et al. 2018, appendix A.2: 256 sequences of 512 tokens, 15 % masked.
    assert (recipe.task, recipe.global_batch_size, recipe.data.seq_length) == ("masked-lm", 256, 512)
    assert recipe.predicted_fraction == 0.15


def test_a_gpu_without_bf16_gets_fp16_and_says_so(cluster_like):
    recipe, said = recipe_for(cluster_like("v100-32gb"), params="125M")
    assert recipe.precision == "fp16"
    assert _said(said, "precision") == "precision: fp16"


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (1, 8), (3, 8), (1, 7), (125, 8)])
def test_the_published_batch_is_rounded_up_to_whole_ranks_and_says_so(cluster_like, nodes, gpus):
    recipe, said = recipe_for(cluster_like(nodes=nodes, gpus=gpus), params="1.3B")
    ranks = nodes * gpus
    assert recipe.global_batch_size % ranks == 0
    assert 512 <= recipe.global_batch_size < 512 + ranks
    assert ("rounded up" in _said(said, "global_batch_size")) == (512 % ranks != 0)


def test_the_published_batch_keeps_its_tokens_at_another_sequence_length(cluster_like):
    recipe, _ = recipe_for(cluster_like(), params="1.3B", seq_length=1024)
    assert recipe.global_batch_size == 1024


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"params": "banana"}, "params"),
        ({"params": "-1"}, "params"),
        ({"params": "0"}, "params"),
        ({"params": "1000"}, "params"),
        ({"params": "1.3B", "model": "gpt2"}, "params"),
        ({"model": "gpt5"}, "model"),
        ({"params": "1.3B", "seq_length": 4096}, "data.seq_length"),
        ({"params": "1.3B", "seq_length": 0}, "seq_length"),
        ({"params": "1.3B", "seq_length": -1}, "seq_length"),
        ({"params": "1.3B", "global_batch_size": 0}, "global_batch_size"),
        ({"params": "1.3B", "global_batch_size": -8}, "global_batch_size"),
        ({"params": "1.3B", "tokens": "many"}, "tokens"),
        ({"params": "1.3B", "tokens": "0"}, "tokens"),
        ({"params": "1.3B", "precision": "int8"}, "precision"),
        ({"params": "1.3B", "optimizer": "adamw8bit"}, "optimizer"),
        ({"params": "1.3B", "optimizer": "sgd"}, "optimizer"),
    ],
)
def test_what_cannot_be_is_refused_by_field(cluster_like, asked, field):
    with pytest.raises(InputError) as caught:
        recipe_for(cluster_like(), **asked)
    assert caught.value.field.removeprefix("data.") == field.removeprefix("data.")


def test_nothing_asked_is_refused_with_the_ways_to_ask(cluster_like):
    with pytest.raises(ScaleError) as caught:
        recipe_for(cluster_like())
    for flag in ("--params", "--model", "--recipe"):
        assert flag in caught.value.hint


@pytest.mark.parametrize(
    ("batch", "lr", "warmup"),
    # You et al. 2020, untuned LAMB for BERT: 5 / (2^3 x 10^3) at 512 sequences, 5 / 2^1.5 at 4k, 5 / 2^0 at 32k;
    # warm-up over 1/320, 1/40 and 1/5 of the steps. Never less than the share that warms up AdamW, 1 %.
    [(512, 6.25e-4, 0.01), (4096, 1.77e-3, 1 / 40), (32768, 5e-3, 1 / 5), (65536, 5e-3, 1 / 5)],
)
def test_lambs_learning_rate_and_warmup_follow_the_published_root_rule(cluster_like, batch, lr, warmup):
    recipe, said = recipe_for(
        cluster_like(), model="bert-large", global_batch_size=batch, tokens="300B", optimizer="lamb"
    )
    assert recipe.optimizer.name == "lamb"
    assert recipe.optimizer.lr == pytest.approx(lr, rel=0.02)
    assert recipe.schedule.warmup_steps / recipe.num_steps == pytest.approx(warmup, rel=0.02)
    assert "You et al. 2020" in _said(said, "optimizer")


def test_lions_rate_and_decay_stay_within_what_its_authors_say(cluster_like):
    # Chen et al. 2023, section 5: the rate 3 to 10 times smaller than AdamW's, the decay larger by as much, so that
    # their product stays.
    adamw, lion = (recipe_for(cluster_like(), params="1.3B", optimizer=name)[0].optimizer for name in ("adamw", "lion"))
    assert 3 <= adamw.lr / lion.lr <= 10
    assert lion.lr * lion.weight_decay == pytest.approx(adamw.lr * adamw.weight_decay)
    assert "Chen et al. 2023" in _said(recipe_for(cluster_like(), params="1.3B", optimizer="lion")[1], "optimizer")


def test_adafactor_is_planned_in_fp32_with_its_papers_values(cluster_like):
    recipe, said = recipe_for(cluster_like(), params="125M", optimizer="adafactor")
    assert recipe.precision == "fp32"
    assert "stage 0" in _said(said, "precision")
    # Shazeer & Stern 2018, section 9: eps 1e-30 and 1e-3, d 1, rho 1e-2, beta2 1 - t^-0.8.
    assert recipe.optimizer.model_dump() == {
        "name": "adafactor", "lr": 1e-2, "weight_decay": 0.0, "beta2_decay": -0.8, "eps": [1e-30, 1e-3],
        "clipping_threshold": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["lars", "lans", "muon", "sgd"])
def test_an_optimizer_without_a_published_rate_wants_a_recipe(cluster_like, name):
    with pytest.raises(InputError, match=f"{name}' has no learning rate to assume") as caught:
        recipe_for(cluster_like(), params="1.3B", optimizer=name)
    assert "--recipe" in caught.value.hint


def test_flags_override_a_recipe_and_each_says_so(planned_recipe):
    recipe = planned_recipe("gpt-demo", global_batch_size=32)
    changed, said = overridden(recipe, global_batch_size=64, precision="fp32", seq_length=64, tokens="1M")
    assert (changed.global_batch_size, changed.precision, changed.data.seq_length) == (64, "fp32", 64)
    assert changed.num_steps == round(1e6 / (64 * 64))
    assert changed.data.corpus == recipe.data.corpus
    for word in ("global_batch_size: 64", "precision: fp32", "num_steps: 244", "seq_length: 64"):
        assert any(word in sentence and "instead of the recipe's" in sentence for sentence in said)


def test_without_flags_a_recipe_stays_as_it_is(planned_recipe):
    assert overridden(planned_recipe()) == (planned_recipe(), [])


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"global_batch_size": 0, "tokens": "1M"}, "global_batch_size"),
        ({"seq_length": 256}, "data.seq_length"),
        ({"seq_length": 0, "tokens": "1M"}, "data.seq_length"),
        ({"precision": "int8"}, "precision"),
        ({"tokens": "banana"}, "tokens"),
        ({"tokens": "1"}, "schedule.warmup_steps"),  # one step, and the recipe warms up over ten
        ({"optimizer": "lamb"}, "optimizer"),
    ],
)
def test_an_override_that_cannot_be_is_refused_by_field(planned_recipe, asked, field):
    with pytest.raises(InputError) as caught:
        overridden(planned_recipe("gpt-demo"), **asked)
    assert caught.value.field == field
