"""`scale batch` as a person and as a program meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaling import course, recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GPT, LAMB = RECIPES / "gpt_demo.yaml", RECIPES / "bert_lamb.yaml"


def test_the_answer_comes_first_with_every_fit_its_source_and_its_range(scale):
    code, out, err = scale("batch", "--params", "1.3B", "--tokens", "26B")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("run      gpt3-1.3b")
    assert lines[1].startswith("batch    512 samples of 2048")
    assert lines[2].startswith("worth    up to 244 by Kaplan 2020 or 586 by Zhang 2024, extrapolated")
    for source in ("2001.08361", "2410.21676", "2505.23971", "2503.04715", "2401.02954"):
        assert source in out
    assert "Zhang 2024: num_tokens 26B is not within 1.74B to 24.6B" in out
    for assumed in ("model: gpt3-1.3b", "seq_length: 2048", "global_batch_size: 512, as published", "loss: 2.51"):
        assert assumed in out.split("assumed")[1]
    assert "tokens:" not in out.split("assumed")[1]


def test_json_has_what_a_program_needs(scale):
    code, out, err = scale(
        "batch", "--params", "1.3B", "--tokens", "24B", "--noise-scale", "1000", "--ramp", "doubling",
        "--multiple-of", "64", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["global_batch_size"] == 512
    assert answer["decided_by"] == ["noise scale", "Zhang 2024"]
    rows = {row["fit"]: row for row in answer["fits"]}
    assert list(rows) == ["noise scale", "Kaplan 2020", "Zhang 2024", "Merrill 2025", "Step Law", "DeepSeek 2024"]
    # McCandlish et al. 2018: at 512 of a critical 1,000 steps are 1 + 1000 / 512 of the fewest.
    assert rows["noise scale"]["steps_over_least"] == pytest.approx(1 + 1000 / 512)
    assert rows["noise scale"]["samples_over_least"] == pytest.approx(1.512)
    assert rows["Merrill 2025"]["batch"] is None
    assert all(row["source"] for row in rows.values())
    stages = answer["ramp"]["stages"]
    assert all(stage["batch"] % 64 == 0 for stage in stages)
    assert "leaves the rate to the schedule" in answer["ramp"]["note"]
    assert answer["ramp"]["batch_ramp"] is None


def test_a_batch_beyond_every_fit_is_exit_1(scale):
    arguments = ("batch", "--params", "1.3B", "--tokens", "24B", "--global-batch-size")
    code, out, _ = scale(*arguments, 5000)
    assert code == 1
    assert "answer   5000 is not worth using: more than twice the samples" in out
    assert scale(*arguments, 2500)[0] == 0
    assert json.loads(scale(*arguments, 5000, "--json")[1])["worth_using"] is False


def test_a_linear_ramp_is_printed_as_what_a_recipe_says(scale):
    _, out, _ = scale("batch", "--params", "1.3B", "--tokens", "24B", "--ramp", "linear", "--multiple-of", "64")
    table = out.split("linear ramp")[1]
    assert "Brown et al. 2020" in table
    # 24B tokens in samples of 2,048, 4 % of them.
    assert "batch_ramp: {start: 64, increment: 64, samples: 468750} and num_steps: 24686" in table
    assert "advice only" not in table


def test_a_recipe_is_written_with_the_ramp_and_plans(scale, tmp_path):
    big = tmp_path / "big.yaml"
    big.write_text(Path(GPT).read_text().replace("size: 32 ", "size: 1024 ").replace("steps: 240", "steps: 2000"))
    code, out, _ = scale(
        "batch", "--recipe", big, "--ramp", "linear", "--multiple-of", "32", "--out", tmp_path / "ramped.yaml"
    )
    text = (tmp_path / "ramped.yaml").read_text()
    written = recipe.load(tmp_path / "ramped.yaml")
    assert str(tmp_path / "ramped.yaml") in out.replace("\n", "")
    assert text.startswith(
        "# big.yaml, with a batch that grows, by `scale batch`:\n# batch_ramp: none -> from 224 by 160 "
    )
    assert written.batch_ramp.model_dump() == {"start": 224, "increment": 160, "samples": 81920}
    assert course.num_samples(written) == pytest.approx(2000 * 1024, abs=512)
    code, out, _ = scale("plan", "--recipe", tmp_path / "ramped.yaml", "--gpu", "cpu", "--gpus", "2", "--json")
    plan = json.loads(out)
    assert (code, plan["fits"]) == (0, True)
    assert 32 % (2 * plan["strategy"]["micro_batch_size"]) == 0
    assert plan["batch"]["num_tokens"] == course.num_tokens(written)


def test_a_recipe_is_judged_by_its_own_numbers(scale):
    code, out, _ = scale("batch", "--recipe", GPT)
    assert code == 0
    assert "batch    32 samples of 128 (4.1k tokens): 240 steps" in out
    assert "global_batch_size: 32, the recipe's" in out
    assert "measure the gradient noise scale" in scale("batch", "--recipe", LAMB)[1]


def test_a_moved_recipe_shows_before_after_and_rule_and_is_written_whole(scale):
    code, out, err = scale("batch", "--recipe", LAMB, "--to", 128, "--out", "here/moved.yaml")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["optimizer.lr"][1:3] == ["0.01", "0.02"]
    assert rows["num_steps"][1:3] == ["400", "100"]
    assert rows["schedule.warmup_steps"][1:3] == ["60", "60"]
    assert "wrote    here/moved.yaml" in out
    moved, before = recipe.load("here/moved.yaml"), recipe.load(LAMB)
    assert (moved.global_batch_size, moved.num_steps, moved.optimizer.lr) == (128, 100, 0.02)
    assert moved.optimizer.model_dump(exclude={"lr"}) == before.optimizer.model_dump(exclude={"lr"})
    head = Path("here/moved.yaml").read_text()
    assert "# optimizer.lr: 0.01 -> 0.02, x k^0.5: sqrt" in head


def test_json_of_a_moved_recipe_is_the_recipe_with_its_changes(scale):
    code, out, _ = scale("batch", "--recipe", GPT, "--to", 64, "--rule", "sqrt-betas", "--json")
    assert code == 0
    answer = json.loads(out)
    changes = {change["field"]: (change["before"], change["after"]) for change in answer["changes"]}
    assert changes["optimizer.betas"] == ([0.9, 0.95], [0.8, 0.9])
    assert answer["recipe"]["optimizer"]["betas"] == [0.8, 0.9]
    assert answer["rule"]["source"].startswith("Malladi")
    assert not list(Path.cwd().iterdir())


def test_moving_back_gives_the_recipe_again(scale):
    scale("batch", "--recipe", GPT, "--to", 64, "--rule", "linear", "--out", "there.yaml")
    scale("batch", "--recipe", "there.yaml", "--to", 32, "--rule", "linear", "--out", "back.yaml")
    assert recipe.load("back.yaml") == recipe.load(GPT)


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        ([], "params: no model to judge a batch for", "--recipe FILE"),
        (["--params", "banana"], "params: 'banana' is not a positive number", "1.3B"),
        (["--params", "1.3B", "--model", "gpt2"], "params: '1.3B' and --model exclude each other", ""),
        (["--model", "gpt5"], "model: 'gpt5' is not a known model", "'gpt2'"),
        (["--model", "gpt2", "--seq-length", "0"], "seq_length: 0 is not between 1 and the 1024 positions", ""),
        (["--model", "gpt2", "--seq-length", "2048"], "seq_length: 2048 is not between 1", ""),
        (["--model", "gpt2", "--tokens", "0"], "tokens: '0' must be greater than zero", ""),
        (["--model", "gpt2", "--tokens", "100"], "tokens: '100' are less than one sample of 1024", "at least 1024"),
        (["--model", "gpt2", "--tokens", "10k"], "global_batch_size: 512 is not between 1 and the 9 samples", ""),
        (["--model", "gpt2", "--global-batch-size", "-1"], "global_batch_size: -1 is not between 1", ""),
        (["--model", "gpt2", "--loss", "nan"], "loss: nan is not between 0.1 and 100", "nats"),
        (["--model", "gpt2", "--loss", "0"], "loss: 0.0 is not between", "nats"),
        (["--model", "gpt2", "--noise-scale", "inf"], "noise_scale: inf is not between", "samples"),
        (["--model", "gpt2", "--noise-scale", "1e-300"], "noise_scale: 1e-300 is not between", "samples"),
        (["--model", "gpt2", "--ramp", "cubic"], "ramp: 'cubic' is not a known way", "doubling, linear"),
        (["--model", "gpt2", "--multiple-of", "8"], "multiple_of: 8 has nothing to act on", "--ramp linear"),
        (["--model", "gpt2", "--ramp", "linear", "--multiple-of", "0"], "multiple_of: 0 must be at least 1", ""),
        (["--model", "gpt2", "--ramp", "linear", "--multiple-of", "7"], "is not a multiple of", "511 and 518"),
        (["--model", "bert-base", "--ramp", "doubling"], "needs a critical batch to follow", "--noise-scale"),
        (["--model", "gpt2", "--rule", "sqrt"], "rule: 'sqrt' has nothing to act on", "--to BATCH"),
        (["--recipe", GPT, "--out", "x.yaml"], "out: 'x.yaml' has nothing to act on", "--to BATCH"),
        (["--recipe", GPT, "--ramp", "linear", "--out", "x.yaml"], "multiple_of: missing", "--multiple-of N"),
        (
            ["--recipe", GPT, "--ramp", "linear", "--multiple-of", "2", "--out", "x.yaml"],
            "has no batch that the linear ramp grows to", "a larger global_batch_size",
        ),
        (["--recipe", GPT, "--tokens", "1B"], "and --tokens exclude each other", ""),
        (["--to", "64"], "recipe: no recipe to move", "--recipe FILE"),
        (["--recipe", GPT, "--to", "64", "--loss", "3"], "to: 64 and --loss exclude each other", ""),
        (["--recipe", "none.yaml", "--to", "64"], "recipe: 'none.yaml' does not exist", ""),
        (["--recipe", GPT, "--to", "0"], "to: 0 is not between 1 and 7680", ""),
        (["--recipe", GPT, "--to", "1" + "0" * 30], "is not between 1 and 7680", ""),
        (["--recipe", GPT, "--to", "512", "--rule", "sqrt-betas"], "optimizer.betas: 0.9 becomes", "below 320"),
        (["--recipe", LAMB, "--to", "64", "--rule", "sqrt-betas"], "rule: 'sqrt-betas' is not derived for lamb", ""),
        (["--recipe", LAMB, "--to", "512"], "schedule.warmup_steps: 60 kept, is more than the 25", "up to 213"),
        (["--recipe", GPT, "--to", "64", "--out", "."], "out: '.' is a folder", "recipe.yaml"),
        (["--recipe", GPT, "--to", "64", "--out", GPT], "is the recipe itself", "another file"),
        (["--recipe", GPT, "--to", "64", "--out", "/proc/none/x.yaml"], "cannot be written", ""),
        (["--recipe", GPT, "--to", "64", "--out", "n" * 300], "cannot be written: File name too long", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_wrong_usage_is_exit_2_with_what_would_work(scale, arguments, said, hint, as_json):
    before = GPT.read_bytes()
    code, out, err = scale("batch", *arguments, *as_json)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert hint in err
    assert GPT.read_bytes() == before


def a_run(folder, measured):
    """A run directory of recipes/gpt_demo.yaml whose noise is 300 times its signal."""
    folder.mkdir()
    (folder / "recipe.yaml").write_bytes(GPT.read_bytes())
    signals = [1.0 + 0.1 * (step % 3) for step in range(80)]
    lines = [
        {"step": n + 1, **({"gradient_signal": s, "gradient_noise": 300 * s} if measured else {})}
        for n, s in enumerate(signals)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_judged_by_the_noise_scale_that_it_measured(scale, tmp_path):
    code, out, err = scale("batch", "--run", a_run(tmp_path / "run", True), "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["model"], answer["decided_by"][0]) == (recipe.load(GPT).shape.name, "noise scale")
    (row,) = [row for row in answer["fits"] if row["fit"] == "noise scale"]
    assert row["critical_batch"] == pytest.approx(300)
    assert any("steps 41 to 80: 300 samples" in sentence for sentence in answer["assumptions"])


def test_a_run_without_one_says_so(scale, tmp_path):
    code, out, _ = scale("batch", "--run", a_run(tmp_path / "run", False))
    assert code == 0
    assert "noise scale: none in" in out


def test_what_is_no_run_is_an_error(scale, tmp_path):
    for arguments in (["--run", tmp_path], ["--run", a_run(tmp_path / "run", True), "--noise-scale", "3"]):
        code, out, err = scale("batch", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{nonsense\n")
    code, _, err = scale("batch", "--run", tmp_path / "run")
    assert code == 2
    assert "has a line 1 that is not JSON" in err


def test_a_model_that_is_no_causal_lm_is_told_that_the_loss_is_of_those(scale):
    for name, task in (("bert-base", "masked-lm"), ("t5-base", "span-corruption")):
        code, out, _ = scale("batch", "--model", name)
        assert code == 0
        assert f"size and tokens; of causal LMs, and this is {task}" in out
    assert "of causal LMs" not in scale("batch", "--model", "gpt2")[1]


def test_relative_positions_have_no_end_and_others_do(scale):
    assert scale("batch", "--model", "t5-base", "--seq-length", "2048")[0] == 0
    assert "seq_length: 0 is below 1" in scale("batch", "--model", "t5-base", "--seq-length", "0")[2]
    code, _, err = scale("batch", "--model", "bert-base", "--seq-length", "2048")
    assert (code, "is not between 1 and the 512 positions of bert-base" in err) == (2, True)


def test_it_answers_without_torch():
    program = "import sys; from scaling.cli import main; sys.argv = ['scale', 'batch', '--model', 'gpt2']\n"
    program += (
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
