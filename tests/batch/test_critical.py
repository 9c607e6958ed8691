"""Critical batches against the figures of those who fitted them, and of others who computed with them."""

from dataclasses import replace

import pytest

from scaling.batch.critical import (
    DEEPSEEK,
    KAPLAN,
    STEP_LAW,
    ZHANG,
    Estimate,
    Judgement,
    Training,
    trade_off,
    zhang_critical_tokens,
    zhang_tokens,
)
from scaling.errors import InputError
from scaling.registry import MODELS
from scaling.shape import Shape

GPT3_XL = MODELS["gpt3-1.3b"].shape

# Zhang et al. 2024, plots/chinchilla.ipynb at c5b509d: steps of 256 sequences of 512 that each model was given, the
# batch of 20 % overhead in sequences, and the steps to one loss with 64, 128, ... 16,384 sequences.
ZHANG_RUNS = {
    "85M": (13_282, 745.32, [46000, 23000, 13282, 7000, 3840, 2528, 1917, 1600, 1600]),
    "151M": (23_438, 955.16, [96000, 49000, 24000, 12000, 7128, 4350, 2940, 2400, 2300]),
    "302M": (46_875, 1393.73, [196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879]),
    "604M": (93_750, 1888.52, [311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800]),
    "1.2B": (187_500, 2533.41, [642000, 331000, 176000, 94000, 46500, 25000, 15360, 8900, 6500]),
}  # fmt: skip


def training_of(shape=GPT3_XL, num_tokens=24_000_000_000, seq_length=2048, **known):
    return Training(shape=shape, num_tokens=num_tokens, seq_length=seq_length, **known)


@pytest.mark.parametrize(("steps", "batch", "_"), ZHANG_RUNS.values(), ids=ZHANG_RUNS)
def test_zhangs_fit_gives_zhangs_own_table(steps, batch, _):
    # Their power law is within 3.1 % of the five points that it was fitted to.
    assert zhang_tokens(steps * 256 * 512) / 512 == pytest.approx(batch, rel=0.035)


@pytest.mark.parametrize(("_", "batch", "steps"), ZHANG_RUNS.values(), ids=ZHANG_RUNS)
def test_the_trade_off_gives_the_steps_that_zhang_measured(_, batch, steps):
    critical = zhang_critical_tokens(batch * 512) / 512
    for index, measured in enumerate(steps):
        fewer = trade_off(64 * 2**index, critical)[0] / trade_off(64, critical)[0]
        assert fewer == pytest.approx(measured / steps[0], rel=0.2)


def test_the_trade_off_is_mccandlishs_hyperbola():
    # McCandlish et al. 2018: (S / S_min - 1) (E / E_min - 1) = 1, both 2 at the critical batch.
    for batch in (1, 10, 1000, 10**7):
        steps, samples = trade_off(batch, 1000)
        assert (steps - 1) * (samples - 1) == pytest.approx(1)
    assert trade_off(1000, 1000) == (2, 2)


# Others' arithmetic with equation 5.3 of Kaplan et al. 2020, to the digits that they give.
@pytest.mark.parametrize(("loss", "tokens"), [(6, 40e3), (5, 94e3), (4, 267e3), (3, 1e6)])
def test_kaplans_critical_batch_is_what_others_compute(loss, tokens):
    training = training_of(given_loss=float(loss))
    assert KAPLAN.batch_tokens(training) == pytest.approx(tokens, rel=0.08)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "kv_heads", "intermediate", "batch", "lr"),
    # deepseek-ai/DeepSeek-LLM, README: batches of 2,304 and 4,608 sequences of 4,096, 2T tokens each.
    [(30, 4096, 32, 32, 11008, 2304, 4.2e-4), (95, 8192, 64, 8, 22016, 4608, 3.2e-4)],
)
def test_deepseeks_fit_gives_what_its_models_were_trained_with(
    layers, hidden, heads, kv_heads, intermediate, batch, lr
):
    shape = Shape(
        name="deepseek", family="llama", num_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=intermediate, vocab_size=102_400, max_position_embeddings=4096,
    )  # fmt: skip
    training = training_of(shape, 2_000_000_000_000, 4096)
    assert DEEPSEEK.batch_tokens(training) == pytest.approx(batch * 4096, rel=0.06)
    assert DEEPSEEK.lr(training) == pytest.approx(lr, rel=0.03)


def test_step_law_is_what_its_paper_prints_in_round_numbers():
    # Li et al. 2025: lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 tokens.
    training = training_of()
    N, D = training.num_params, training.num_tokens
    assert STEP_LAW.lr(training) == pytest.approx(1.79 * N**-0.713 * D**0.307, rel=0.02)
    assert STEP_LAW.batch_tokens(training) == pytest.approx(0.58 * D**0.571, rel=0.01)


def test_parameters_are_counted_as_the_papers_do():
    # Zhang et al. call these 85M, 302M and 1.2B; with embeddings GPT-2's are 124M and 355M.
    for name, millions in (("gpt3-125m", 85), ("gpt3-350m", 302), ("gpt3-1.3b", 1208)):
        assert training_of(MODELS[name].shape).num_params / 1e6 == pytest.approx(millions, rel=0.005)
    # T5's encoder and decoder both: 223M with an embedding of 32,128 x 768 (Raffel et al. 2019 call it 220M).
    assert training_of(MODELS["t5-base"].shape).num_params / 1e6 == pytest.approx(198, rel=0.005)


def test_the_fitted_loss_is_chinchillas_and_never_worse_than_guessing():
    # Hoffmann et al. 2022: 70B on 1.4T tokens, 1.69 + 0.083 + 0.163.
    assert training_of(replace(GPT3_XL, num_layers=1390), 1_400_000_000_000).loss == pytest.approx(1.936, abs=0.005)
    small = training_of(MODELS["gpt-demo"].shape, 1_000_000, 128)
    assert small.loss == pytest.approx(7.62, abs=0.01)  # ln 2048


def test_a_run_outside_a_fits_range_is_told_so():
    judgement = Judgement(training=training_of(num_tokens=26_000_000_000), batch=512)
    said = {row.fit.name: "; ".join(row.outside) for row in judgement.estimates}
    assert "num_tokens 26B is not within 1.74B to 24.6B" in said["Zhang 2024"]
    assert "loss 2.51 is not within 3 to 10" in said["Kaplan 2020"]
    assert "flops" in said["DeepSeek 2024"]
    assert judgement.is_extrapolated
    assert [row.fit.name for row in judgement.deciding] == ["Kaplan 2020", "Zhang 2024"]


def test_fits_within_their_range_decide_alone():
    judgement = Judgement(training=training_of(), batch=512)
    assert [row.fit.name for row in judgement.deciding] == ["Zhang 2024"]
    assert not judgement.is_extrapolated


def test_a_batch_above_the_critical_one_is_not_worth_using_and_only_a_fit_in_range_says_so():
    (zhang,) = Judgement(training=training_of(), batch=1).deciding
    at_most = int(zhang.critical_batch)
    assert Judgement(training=training_of(), batch=at_most).is_worth_using
    assert not Judgement(training=training_of(), batch=at_most + 1).is_worth_using
    assert Judgement(training=training_of(num_tokens=26_000_000_000), batch=10 * at_most).is_worth_using


def test_a_measured_noise_scale_decides_for_any_model():
    training = training_of(MODELS["bert-large"].shape, 10**10, 512, noise_scale=2000.0)
    judgement = Judgement(training=training, batch=2001)
    assert [row.fit.name for row in judgement.deciding] == ["noise scale"]
    assert judgement.deciding[0].worthwhile_batch == pytest.approx(400)
    assert not judgement.is_worth_using
    assert judgement.growing.fit.name == "noise scale"


def test_no_fit_speaks_for_a_masked_lm():
    judgement = Judgement(training=training_of(MODELS["bert-large"].shape, 10**10, 512), batch=256)
    assert judgement.deciding == ()
    assert judgement.is_worth_using
    assert judgement.growing is None
    assert all("masked-lm; fitted to causal LMs" in row.outside[0] for row in judgement.estimates)


def test_below_zhangs_smallest_batch_there_is_no_critical_one():
    assert zhang_critical_tokens(1.2 * 256 * 512) is None
    row = Estimate(fit=ZHANG, training=training_of(num_tokens=10**8))
    assert row.batch > 0
    assert row.critical_batch is None
    assert row.trade_off(32) is None


@pytest.mark.parametrize(
    "known",
    [{"given_loss": x} for x in (0.0, -1.0, float("nan"), float("inf"), 1e-300)]
    + [{"noise_scale": x} for x in (0.0, -1.0, float("nan"), float("inf"), 1e300)],
)
def test_what_is_no_loss_or_noise_scale_is_refused(known):
    with pytest.raises(InputError):
        training_of(**known)
