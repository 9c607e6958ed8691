"""What `scale export` writes is what was trained, for anyone with transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from scaling.errors import InputError
from scaling.models.generate import generate
from scaling.training.export import export
from tests.ranks import on_ranks
from tests.training.runs import files, layout, run, tiny_recipe

PROMPT = "Line 7: 7 squared is"


def logits_of_the_live_model(recipe_path, config_path, folder, ids):
    """Trains on this rank by the program's own steps, and answers with the engine's own logits after the last."""
    from scaling import train
    from scaling.training import loop

    answers = []
    save = loop.Training.save

    def save_and_ask(training, *args):
        paused_s = save(training, *args)
        model = training.engine.module.model.eval()
        with torch.no_grad():  # a forward is a collective at stage 3: all ranks make it
            answers.append(model(input_ids=torch.tensor(ids)).logits.float().numpy())
        return paused_s

    loop.Training.save = save_and_ask
    train.main(["--ds_config", config_path, "--recipe", recipe_path, "--run_dir", folder])
    return answers[-1]


@pytest.mark.parametrize(
    ("family", "strategy", "auto"),
    [
        ("gpt2", layout(1, 0, micro=8), AutoModelForCausalLM),
        ("gpt2", layout(2, 2, micro=2), AutoModelForCausalLM),
        ("bert", layout(2, 3), AutoModelForMaskedLM),
    ],
    ids=["gpt2 stage 0", "gpt2 stage 2", "bert stage 3"],
)
def test_from_pretrained_gives_the_logits_of_the_model_that_was_trained(family, strategy, auto, tmp_path):
    recipe = tiny_recipe(tmp_path, family=family, num_steps=3)
    recipe_path, config_path = files(tmp_path / "asked", recipe, strategy)
    ids = [[5, 9, 300, 17, 2, 44]]
    arguments = (str(recipe_path), str(config_path), str(tmp_path / "run"), ids)
    ours = on_ranks(strategy.data_parallel_size, logits_of_the_live_model, *arguments)[0]
    out = export(tmp_path / "run", tmp_path / "exported")
    loaded = auto.from_pretrained(out).eval()
    with torch.no_grad():
        theirs = loaded(input_ids=torch.tensor(ids)).logits.numpy()
    assert theirs == pytest.approx(ours, abs=1e-5)
    assert len(AutoTokenizer.from_pretrained(out)) <= recipe.shape.vocab_size


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for family in ("gpt2", "bert"):
        run(folder / family, tiny_recipe(folder, family=family, num_steps=2), layout(1, 0, micro=8))
        export(folder / family, folder / f"{family}-model")
    return folder


def test_the_same_seed_generates_the_same_text_and_another_does_not(exported):
    texts = [
        generate(exported / "gpt2-model", PROMPT, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(PROMPT)


def test_a_masked_lm_fills_its_masks_and_keeps_the_rest(exported):
    text = generate(exported / "bert-model", "Line <|mask|>: 7", max_new_tokens=1, temperature=0, seed=0)
    assert text.startswith("Line ")
    assert text.endswith(": 7")
    assert "<|mask|>" not in text
    with pytest.raises(InputError, match=r"no <\|mask\|> to fill"):
        generate(exported / "bert-model", PROMPT, max_new_tokens=1, temperature=0, seed=0)


def test_bad_requests_are_one_clear_error_and_write_nothing(exported, tmp_path):
    with pytest.raises(InputError, match="holds no complete checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "out")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        export(exported / "gpt2", full)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is not a transformers directory"):
        generate(tmp_path, PROMPT, max_new_tokens=1, temperature=0, seed=0)
    with pytest.raises(InputError, match="fills the model's 32 positions"):
        generate(exported / "gpt2-model", PROMPT * 20, max_new_tokens=1, temperature=0, seed=0)
