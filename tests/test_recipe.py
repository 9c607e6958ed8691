"""Strict YAML in, every problem reported at once."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaling.errors import FileProblems, InputError, ScaleError
from scaling.recipe import Model, changed, dump, load, model_of, parse
from scaling.registry import MODELS

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

# A whole recipe, one key a line, so that a test can change a line and name it.
_LINES = [
    "name: small",  # line 1
    "model: gpt-demo",
    "task: causal-lm",
    "data:",
    "  corpus: [a.txt, /b.txt, 'embedded:docstrings']",  # line 5
    "  seq_length: 128",
    "  validation_fraction: 0.05",
    "global_batch_size: 32",
    "num_steps: 400",
    "optimizer:",  # line 10
    "  name: adamw",
    "  lr: 1e-3",
    "  betas: [0.9, 0.95]",
    "  eps: 1e-8",
    "  weight_decay: 0.1",  # line 15
    "schedule: {name: cosine, warmup_steps: 40, min_lr_fraction: 0.1}",
    "precision: bf16",
    "gradient_clipping: 1.0",
    "seed: 1234",  # line 19
]


def _with(*changes):
    """The recipe above with some lines, counted from 1, put otherwise; line 20 is one more."""
    lines = [*_LINES, ""]
    for number, text in changes:
        lines[number - 1] = text
    return "\n".join(lines)


def _problems(text):
    with pytest.raises(FileProblems) as caught:
        parse(text, "r.yaml")
    return caught.value.problems


def test_there_are_recipes_to_test():
    assert {path.stem for path in RECIPES} >= {"gpt_demo", "bert_demo"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_strictly_is_named_like_its_file_and_survives_dump(path, tmp_path):
    recipe = load(path)
    assert recipe.name == path.stem
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_opens_with_what_you_get_on_what_and_how_to_start(path):
    header = path.read_text().split("name:")[0]
    for label in ("What you get", "Runs on", "Start"):
        assert label in header
    assert f"recipes/{path.name}" in header


def test_a_number_with_an_exponent_is_a_number():
    # YAML 1.1 reads 1e-3, without a dot, as text; YAML 1.2 and everybody else as a number.
    recipe = parse(_with(), "r.yaml")
    assert recipe.optimizer.lr == 0.001
    assert parse(_with((12, "  lr: 2E+0")), "r.yaml").optimizer.lr == 2.0
    assert parse(_with((12, "  lr: 1")), "r.yaml").optimizer.lr == 1.0


def test_corpus_files_are_relative_to_the_recipe_and_made_absolute_by_load(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text(_with())
    expected = [str(tmp_path / "sub" / "a.txt"), "/b.txt", "embedded:docstrings"]
    assert load(tmp_path / "sub" / "r.yaml").data.corpus == expected
    monkeypatch.chdir(tmp_path)
    assert load("sub/r.yaml").data.corpus == expected


_NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,11}\Z")
_POSITIVE = st.floats(1e-12, 1e3, allow_nan=False)
_FRACTION = st.floats(0, 0.999)


@given(name=_NAMES, lr=_POSITIVE, eps=_POSITIVE, beta=_FRACTION, corpus=st.text(min_size=1, max_size=12))
# Each is text that some YAML reader takes for a number, a truth value, a date or nothing.
@example(name="1e3", lr=1e-5, eps=1e-8, beta=0.0, corpus="1e3")
@example(name="12", lr=1e-5, eps=1e-8, beta=0.0, corpus="null")
@example(name="0x1F", lr=1e22, eps=1e-300, beta=0.5, corpus="~")
@example(name="yes", lr=1.0, eps=1.0, beta=0.5, corpus="2024-01-01")
@example(name="1.5", lr=1.0, eps=1.0, beta=0.5, corpus=" - a: b\n")
@example(name="null", lr=1.0, eps=1.0, beta=0.5, corpus="é½\x85\u2028")
def test_what_dump_writes_parse_reads_back_the_same(name, lr, eps, beta, corpus):
    recipe = parse(_with(), "r.yaml")
    optimizer = {**recipe.optimizer.model_dump(), "lr": lr, "eps": eps, "betas": [beta, 0.5]}
    data = {**recipe.data.model_dump(), "corpus": [corpus]}
    varied = changed(recipe, {"name": name, "optimizer": optimizer, "data": data})
    assert parse(dump(varied), "r.yaml") == varied


_LAMB = {"name": "lamb", "lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01}


def test_lamb_is_the_papers_unless_said_and_survives_dump():
    recipe = changed(parse(_with(), "r.yaml"), {"optimizer": {**_LAMB, "trust_clip": [0.0, 10.0]}})
    lamb = recipe.optimizer
    assert (lamb.bias_correction, lamb.always_adapt, lamb.normalize_gradients) == ("moments", False, False)
    assert lamb.trust_clip == [0.0, 10.0]
    assert parse(dump(recipe), "r.yaml") == recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(11, "  name: lamb\n  trust_clpi: [0, 1]")], r"^line 12: optimizer.trust_clpi: .*did you mean 'trust_clip'"),
        ([(11, "  name: lamb\n  trust_clip: [2.0, 1.0]")], r"^line 12: optimizer.trust_clip: .* the wrong way round"),
        ([(11, "  name: lamb\n  bias_correction: yes")], r"^line 12: optimizer.bias_correction: True is wrong"),
        ([(11, "  name: lamb\n  normalize_gradients: true")], r"gradient_clipping: 1.0 has no meaning"),
        ([(15, "  weight_decay: 0.1\n  always_adapt: true")], r"optimizer.always_adapt: unknown key; known: betas"),
        ([(11, "")], r"^line 10: optimizer.name: required key is missing"),
    ],
)  # fmt: skip
def test_what_lamb_cannot_be_is_one_problem_at_its_line(changes, said):
    problems = _problems(_with(*changes))
    assert len(problems) == 1
    assert re.search(said, problems[0]), problems[0]


def test_a_model_by_its_dimensions_survives_dump_and_a_registered_one_is_named():
    shape = MODELS["gpt-demo"].shape
    assert model_of(shape) == "gpt-demo"
    other = model_of(replace(shape, name="mine", num_layers=5))
    assert isinstance(other, Model)
    recipe = changed(parse(_with(), "r.yaml"), {"model": other.model_dump()})
    assert recipe.shape.num_layers == 5
    assert parse(dump(recipe), "r.yaml") == recipe


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (19, "sead: 1234", r"^line 19: sead: unknown key; did you mean 'seed'"),
        (6, "  seq_lenght: 128", r"^line 6: data.seq_lenght: unknown key; did you mean 'seq_length'"),
        (20, "strategy: zero2", r"^line 20: strategy: unknown key"),
        (20, "zero_stage: 2", r"^line 20: zero_stage: unknown key"),
        (20, "Model: x", r"^line 20: Model: unknown key; did you mean 'model'"),
        (16, "schedule: {name: cosine, warmup_steps: 4, stretch: 1}", r"^line 16: schedule.stretch: unknown key"),
        (16, "schedule: {name: polynomial, warmup_steps: 4}", r"^line 16: schedule.power: required key is missing"),
        (
            16,
            "schedule: {name: constant, warmup_steps: 4, min_lr_fraction: 0.1}",
            r"^line 16: schedule.min_lr_fraction: unknown key; known: name, warmup_steps",
        ),
        (
            16,
            "schedule: {name: cosine, warmup_steps: 4, power: 2.0}",
            r"^line 16: schedule.power: unknown key; known: ",
        ),
        (
            16,
            "schedule: {name: linear, warmup_steps: 4, decay_steps: 9}",
            r"^line 16: schedule.decay_steps: unknown key",
        ),
        (
            16,
            "schedule: {name: polynomial, power: 0.5, decay_from: begin, warmup_steps: 4}",
            r"^line 16: schedule.decay_from: 'begin' is wrong: .*'warmup' or 'start'",
        ),
        (16, "schedule: {name: inverse-sqrt, warmup_steps: 0}", r"^line 16: schedule.warmup_steps: 0 is wrong"),
        (
            16,
            "schedule: {name: warmup-stable-decay, warmup_steps: 40, decay_steps: 361}",
            r"^schedule.decay_steps: 361 is more than the 360 of 400 steps that the warm-up leaves",
        ),
        (
            16,
            "schedule: {name: step, warmup_steps: 4}",
            r"^line 16: schedule.name: 'step' is wrong: .*'warmup-stable-decay'",
        ),
        (16, "schedule: {warmup_steps: 4}", r"^line 16: schedule.name: required key is missing"),
        (20, "batch_ramp: {start: 8, increment: 5, samples: 9}", r"^batch_ramp.increment: 5 .*; nearest: 4 and 6"),
        (20, "batch_ramp: {start: 8, incremnet: 5, samples: 9}", r"^line 20: batch_ramp.incremnet: .* 'increment'"),
        (20, "batch_ramp: {start: 0, increment: 8, samples: 9}", r"^line 20: batch_ramp.start: 0 is wrong"),
        (20, "batch_ramp: 8", r"^line 20: batch_ramp: 8 is wrong"),
        (
            7,
            "  validation_fraction: 0.05\n  curriculum: {start: 128, increment: 8, samples: 9}",
            r"^data.curriculum.start: 128 is not below data.seq_length 128; start lower",
        ),
        (
            7,
            "  validation_fraction: 0.05\n  curriculum: {begin: 8, start: 8, increment: 8, samples: 9}",
            r"^line 8: data.curriculum.begin: unknown key; known: increment, samples, start",
        ),
        (8, 'global_batch_size: "32"', r"^line 8: global_batch_size: '32' is wrong"),
        (8, "global_batch_size: 32.0", r"^line 8: global_batch_size: 32.0 is wrong"),
        (8, "global_batch_size: 0", r"^line 8: global_batch_size: 0 is wrong"),
        (8, "global_batch_size: -8", r"^line 8: global_batch_size: -8 is wrong"),
        (8, "global_batch_size: .nan", r"^line 8: global_batch_size: nan is wrong"),
        (8, "global_batch_size:", r"^line 8: global_batch_size: None is wrong"),
        (8, "", r"^global_batch_size: required key is missing"),
        (19, "seed: true", r"^line 19: seed: True is wrong"),
        (19, "seed: 2147483648", r"^line 19: seed: 2147483648 is wrong"),
        (9, "num_steps: yes", r"^line 9: num_steps: True is wrong"),
        (12, "  lr: .nan", r"^line 12: optimizer.lr: nan is wrong"),
        (12, "  lr: .inf", r"^line 12: optimizer.lr: inf is wrong"),
        (12, "  lr: 1e999", r"^line 12: optimizer.lr: inf is wrong"),
        (12, "  lr: 0", r"^line 12: optimizer.lr: 0 is wrong"),
        (12, "  lr: '1e-3'", r"^line 12: optimizer.lr: '1e-3' is wrong"),
        (12, "  lr: true", r"^line 12: optimizer.lr: True is wrong"),
        (13, "  betas: [0.9]", r"^line 13: optimizer.betas: "),
        (13, "  betas: [0.9, 1.0]", r"^line 13: optimizer.betas.1: 1.0 is wrong"),
        (18, "gradient_clipping: -1.0", r"^line 18: gradient_clipping: -1.0 is wrong"),
        (11, "  name: soap", r"^line 11: optimizer.name: 'soap' is wrong: .*'adamw', 'lamb'.*'lion'"),
        (17, "precision: fp8", r"^line 17: precision: 'fp8' is wrong: .*bf16"),
        (1, "name: a/b", r"^line 1: name: 'a/b' is wrong"),
        (1, "name: ..", r"^line 1: name: '\.\.' is wrong"),
        (1, "name: 2024-12-25", r"^line 1: name: .* is wrong"),
        (2, "model: gpt-dmeo", r"^line 2: model: 'gpt-dmeo' is not a known model; did you mean 'gpt-demo'"),
        (2, "model: [gpt-demo]", r"^line 2: model: "),
        (5, "  corpus: []", r"^line 5: data.corpus: "),
        (5, "  corpus: a.txt", r"^line 5: data.corpus: 'a.txt' is wrong"),
        (7, "  validation_fraction: 0", r"^line 7: data.validation_fraction: 0 is wrong"),
        (4, "data: 3\nd2:", r"^line 4: data: 3 is wrong"),
        # What no single key is to blame for.
        (3, "task: masked-lm", r"task: 'masked-lm' does not fit gpt-demo, which is trained as 'causal-lm'"),
        (6, "  seq_length: 129", r"data.seq_length: 129 is beyond the 128 positions of gpt-demo"),
        (9, "num_steps: 39", r"schedule.warmup_steps: 40 is more than num_steps 39"),
    ],
)
def test_a_problem_names_its_key_its_line_and_what_would_work(line, text, said):
    problems = _problems(_with((line, text)))
    assert any(re.search(said, problem) for problem in problems), problems


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("num_layers: 0", "model.num_layers: 0 is wrong"),
        ("num_layers: '2'", "model.num_layers: '2' is wrong"),
        ("num_attention_heads: 3", "model.num_attention_heads: 3 does not divide hidden_size 64"),
        ("hidden: 64", "model.hidden: unknown key; did you mean 'hidden_size'"),
        ("family: mamba", "model.family: 'mamba' is not one of gpt2, "),
        ("vocab_size:", "model.vocab_size: None is wrong"),
        ("strange: 1", "model.strange: unknown key"),
    ],
)
def test_a_problem_inside_a_model_of_ones_own_is_told_once_and_at_its_line(model, said):
    keys = {
        "name": "mine", "family": "gpt2", "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        "intermediate_size": 256, "vocab_size": 100, "max_position_embeddings": 128,
    }  # fmt: skip
    key, _, value = model.partition(":")
    body = "\n".join(f"  {name}: {was}" for name, was in {**keys, key: value.strip()}.items())
    problems = _problems(_with((2, f"model:\n{body}")))
    assert len(problems) == 1
    assert said in problems[0]
    # The whole mapping is at fault where two of its keys disagree.
    assert int(re.match(r"line (\d+): ", problems[0])[1]) in range(2, 12)


def test_several_problems_are_reported_at_once_in_the_order_of_their_lines():
    text = _with((19, "seed: true"), (2, "model: nope"), (12, "  lr: -1"), (6, "  seq_lenght: 128"), (17, ""))
    with pytest.raises(FileProblems) as caught:
        parse(text, "r.yaml")
    numbers = [re.match(r"line (\d+): ", problem) for problem in caught.value.problems]
    # A missing key stands at the line of the mapping that lacks it, or first where that is the file.
    assert [int(match[1]) if match else 0 for match in numbers] == [0, 2, 4, 6, 12, 19]
    assert caught.value.problems[0] == "precision: required key is missing"
    assert caught.value.problems[2] == "line 4: data.seq_length: required key is missing"
    assert caught.value.message.startswith("r.yaml: 6 problems\n")
    assert all(problem in caught.value.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\n" + _with(), 20, "seed"),
        (_with((15, "  lr: 2")), 15, "lr"),
        (_with((16, "schedule: {name: a, name: b}")), 16, "name"),
    ],
)
def test_a_key_that_stands_twice_is_refused_at_its_second_line(text, line, key):
    with pytest.raises(FileProblems, match=f"^r.yaml:{line}: .*'{key}' appears twice"):
        parse(text, "r.yaml")


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "- name: small\n", "small", "12", "~", "[]"])
def test_yaml_that_is_not_a_mapping_is_refused_with_an_example(text):
    with pytest.raises(FileProblems, match=r"^r.yaml: not a recipe") as caught:
        parse(text, "r.yaml")
    assert "recipes/" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: b: c", ":1"), ("a: [1, 2", ":1"), ("\n\tname: x", ":2"), ("a: 1\n---\nb: 2", ":2"), ("a: \0", ""),
        ("a: 'x", ":1"), ("&", ":1"), ("a: *nobody", ":1"), ("%YAML 9.0\n--- a", ":1"),
    ],
)  # fmt: skip
def test_text_that_is_not_yaml_is_refused_at_its_line(text, place):
    with pytest.raises(FileProblems) as caught:
        parse(text, "r.yaml")
    assert caught.value.message.startswith(f"r.yaml{place}: not valid YAML: ")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/object/new:os.system ['touch pwned']",
        "!!python/object:pathlib.Path {}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!mine x",
    ],
)
def test_a_python_tag_is_refused_and_not_executed(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, key in ((1, "name"), (2, "model"), (20, "extra")):
        with pytest.raises(FileProblems, match=rf"^r.yaml:{number}: not valid YAML"):
            parse(_with((number, f"{key}: {tag}")), "r.yaml")
    assert not list(tmp_path.iterdir())


def _bomb(levels, key):
    """Ten aliases of ten aliases of ...: 10 ** levels leaves in a file of a few hundred bytes."""
    lines = [f"k{i}: &k{i} [" + ", ".join(([f"*k{i - 1}"] if i else ["x"]) * 10) + "]" for i in range(levels)]
    return "\n".join([*lines, f"{key}: *k{levels - 1}"])


_HOSTILE = {
    "a list as a key": _with((20, "? [a, b]\n: 1")),
    "a mapping as a key": _with((20, "? {a: b}\n: 1")),
    "a number as a key": _with((20, "1: 2")),
    "a mapping that holds itself": _with((1, "name: &x {y: *x}")),
    "a list that holds itself": _with((1, "name: &x [*x]")),
    "a date that there is not": _with((1, "name: 2024-13-45")),
    "a tagged int that is none": _with((19, "seed: !!int banana")),
    "a tagged float that is none": _with((19, "seed: !!float banana")),
    "a tagged timestamp that is none": _with((19, "seed: !!timestamp banana")),
    "a binary number without digits": _with((19, "seed: 0b_")),
    "more digits than int() takes": _with((19, "seed: " + "1" * 5000)),
    "a merge key": _with((20, "<<: {seed: 3}")),
    "5000 open lists": "[" * 5000,
    "5000 open mappings": "{a: " * 5000,
    "5000 nested lists": "- " * 5000,
    "a million leaves under an unknown key": _bomb(6, "other"),
    "a million leaves under a known key": _bomb(6, "name"),
}


@pytest.mark.parametrize("text", _HOSTILE.values(), ids=list(_HOSTILE))
def test_no_text_however_hostile_raises_anything_but_file_problems(text):
    with pytest.raises(FileProblems) as caught:
        parse(text, "r.yaml")
    assert len(caught.value.message) < 20_000


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n1.", max_size=30))
def test_no_text_whatever_raises_anything_but_file_problems(text):
    with pytest.raises(FileProblems):
        parse(text, "r.yaml")


def test_a_file_that_cannot_be_read_is_an_input_error_naming_recipe(tmp_path):
    for path in (tmp_path, tmp_path / "nope.yaml"):
        with pytest.raises(InputError) as caught:
            load(path)
        assert caught.value.field == "recipe"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"precision": "int8"}, "precision"),
        ({"task": "masked-lm"}, "task"),
        ({"model": "nope"}, "model"),
        ({"num_steps": 10}, "schedule.warmup_steps"),
    ],
)
def test_a_changed_recipe_is_validated_anew_and_the_first_problem_names_its_field(changes, field):
    recipe = parse(_with(), "r.yaml")
    with pytest.raises(InputError) as caught:
        changed(recipe, changes)
    assert caught.value.field == field
    assert isinstance(caught.value, ScaleError)


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        parse(_with(), "r.yaml").seed = 3


def test_a_masked_lm_predicts_its_share_of_positions_and_a_causal_one_all():
    bert = {"model": "bert-demo", "task": "masked-lm"}
    recipe = parse(_with(), "r.yaml")
    assert recipe.predicted_fraction == 1.0
    assert recipe.tokens_per_step == 32 * 128
    assert changed(recipe, bert).predicted_fraction == 0.15
    nothing = {**bert, "data": {**recipe.data.model_dump(), "masking_fraction": 0.0}}
    with pytest.raises(InputError, match="leaves nothing to predict"):
        changed(recipe, nothing)


def test_a_misspelt_guard_is_named_with_the_right_one():
    text = RECIPES[0].read_text() + "guards: {non_finit: skip}\n"
    with pytest.raises(FileProblems, match=r"guards\.non_finit.*did you mean 'non_finite'"):
        parse(text, "r.yaml")


def test_initial_weights_are_relative_to_the_recipe_and_random_is_no_folder(tmp_path):
    recipe = load(next(path for path in RECIPES if path.stem == "gpt_demo"))
    assert recipe.weights is None
    for said, wanted in (("random", None), ("there", tmp_path / "there"), ("/there", Path("/there"))):
        (tmp_path / "r.yaml").write_text(dump(recipe) + f"initial_weights: {said}\n")
        found = load(tmp_path / "r.yaml")
        assert found.weights == wanted
        assert parse(dump(found), "again.yaml") == found
