"""Every rule against DeepSpeed itself: it does what the rule says, and `scale check` sees it."""

from dataclasses import replace

import pytest

from scaling import hardware
from scaling.ds_config.check import Context, check
from scaling.ds_config.check.outcome import ACCEPTS, AT_START, AT_STEP, ERROR, LATER
from scaling.ds_config.check.rules import RULES
from scaling.registry import MODELS
from tests.ds_config.check import reality
from tests.ds_config.check.cases import CASES
from tests.ranks import on_ranks

_MODULE = "tests.ds_config.check.cases"
_SHAPES = {
    "three heads": replace(MODELS["gpt3-125m"].shape, name="three heads", num_attention_heads=3, num_key_value_heads=3),
    "multi-query": replace(MODELS["gpt3-125m"].shape, name="multi-query", family="llama", num_key_value_heads=1),
}


@pytest.fixture(scope="module")
def seen():
    """{case: its outcome on each rank}: DeepSpeedConfig here, engines in one launch for each number of ranks."""
    found = {case.name: [reality.outcome(case)] for case in CASES if case.how == "config"}
    for num_ranks in sorted({case.ranks for case in CASES}):
        per_rank = on_ranks(num_ranks, reality.outcomes, _MODULE, num_ranks)
        found |= {name: [rank[name] for rank in per_rank] for name in per_rank[0]}
    return found


def context_of(case):
    given = dict(case.context)
    if "gpu" in given:
        given["gpu"] = replace(next(iter(hardware.ACCELERATORS.values())), name="cpu") if given["gpu"] == "cpu" \
            else hardware.find_accelerator(given["gpu"])  # fmt: skip
    if "model" in given:
        given["model"] = _SHAPES[given["model"]]
    return Context(**given)


def found_by(config, case):
    return [each for each in check(reality.text(config), context_of(case)) if each.rule.id == case.rule]


def test_every_rule_has_a_case_and_every_case_a_rule():
    assert {case.rule for case in CASES} == set(RULES)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_deepspeed_does_what_the_rule_says(case, seen):
    for kind, answer in seen[case.name]:
        if case.raises:
            assert kind == case.raises, f"{case.rule}: {answer}"
            assert case.says in answer, case.rule
        elif case.shows:
            assert (kind, answer) == ("", True), case.rule
        else:  # a rule that ended before this release
            assert kind == "", f"{case.rule}: {answer}"
            assert not RULES[case.rule].applies_to(Context().release)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scale_check_finds_it_and_not_in_the_mended_file(case):
    assert found_by(case.config, case), case.config
    assert not found_by(case.mended, case), case.mended


def test_a_split_that_scale_train_refuses_is_told_at_its_key_and_a_stage_once():
    t5 = Context(model=MODELS["t5-base"].shape)
    both = {"tensor_parallel": {"autotp_size": 2}, "sequence_parallel_size": 2}
    (found,) = [each for each in check(reality.text(both), t5) if each.rule.id == "SP033"]
    assert found.path == ("sequence_parallel_size",)
    staged = {"pipeline": {"stages": 2}, "zero_optimization": {"stage": 2}}
    ids = [each.rule.id for each in check(reality.text(staged), Context(model=MODELS["gpt2"].shape))]
    assert ("SP001" in ids, "SP033" in ids) == (True, False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_outcome_that_is_printed_is_the_one_that_is_seen(case):
    (finding, *_) = found_by(case.config, case)
    stops = finding.outcome in (AT_START, AT_STEP, LATER)
    if RULES[case.rule].until or case.rule in ("SC026", "SZ023"):  # of another release, another reader, a return value
        return
    assert stops == bool(case.raises)
    assert (finding.outcome == ACCEPTS) <= (finding.severity < ERROR)
