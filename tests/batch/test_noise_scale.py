"""The estimator of McCandlish et al. 2018, appendix A.1, on gradients whose signal and noise are known."""

import math

import numpy as np
import pytest

from scaling.batch import noise_scale

_SIGNAL, _NOISE = 0.5, 200.0  # |G|^2 and tr(S): a noise scale of 400 samples
_SMALL, _NUM_SMALL, _DIMENSIONS = 8, 4, 100


def steps(rng, num_steps, signal=_SIGNAL):
    """(noises, signals) of steps over four micro batches of eight samples, their gradients Gaussian about G."""
    G = np.sqrt(signal / _DIMENSIONS)
    spread = np.sqrt(_NOISE / _DIMENSIONS / _SMALL)
    micro = G + spread * rng.standard_normal((num_steps, _NUM_SMALL, _DIMENSIONS))
    small = (micro**2).sum(-1).mean(-1)
    big = (micro.mean(1) ** 2).sum(-1)
    pairs = [
        noise_scale.signal_and_noise(
            small_squared_norm=s, big_squared_norm=b, small_batch=_SMALL, big_batch=_SMALL * _NUM_SMALL
        )
        for s, b in zip(small, big, strict=True)
    ]
    return [noise for _, noise in pairs], [signal for signal, _ in pairs]


def test_signal_and_noise_are_unbiased():
    noises, signals = steps(np.random.default_rng(0), 20_000)
    for values, truth in ((noises, _NOISE), (signals, _SIGNAL)):
        error = np.std(values) / math.sqrt(len(values))
        assert np.mean(values) == pytest.approx(truth, abs=4 * error)
        assert error < 0.05 * truth  # so that a bias would show


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(600):
        _, low, high = noise_scale.ratio(*steps(rng, 200))
        inside += low <= _NOISE / _SIGNAL <= high
    assert 0.925 <= inside / 600 <= 0.975  # 95 % give or take 2.8 standard errors


def test_the_interval_is_every_ratio_that_the_blocks_do_not_refute():
    """Fieller's quadratic against its definition: |noise - r signal| within 2.093 standard errors over 20 blocks."""
    noises, signals = steps(np.random.default_rng(2), 100)
    estimate, low, high = noise_scale.ratio(noises, signals)
    assert estimate == pytest.approx(np.mean(noises) / np.mean(signals))
    assert low < estimate < high < math.inf

    def refuted(r):
        blocks = (np.array(noises) - r * np.array(signals)).reshape(20, 5).mean(axis=1)
        return abs(blocks.mean()) > 2.093 * blocks.std(ddof=1) / math.sqrt(20)

    for bound, inwards in ((low, 1.001), (high, 0.999)):
        assert not refuted(bound * inwards)
        assert refuted(bound / inwards)


def test_no_signal_has_no_upper_bound_and_still_a_lower_one():
    noises, signals = steps(np.random.default_rng(3), 100, signal=0.0)
    _, low, high = noise_scale.ratio(noises, signals)
    assert high == math.inf
    assert low > 100
    lines = [
        {"step": i, "gradient_noise": n, "gradient_signal": -abs(s)}
        for i, (n, s) in enumerate(zip(noises, signals, strict=True), start=1)
    ]
    found = noise_scale.of_run(lines)
    assert found.samples == math.inf
    assert "above" in found.sentence(16)


def test_a_run_is_judged_by_its_second_half_and_not_by_a_few_steps():
    rng = np.random.default_rng(4)
    early, late = steps(rng, 100, signal=50.0), steps(rng, 100)
    noises, signals = ([*a, *b] for a, b in zip(early, late, strict=True))
    lines = [
        {"step": i, "gradient_noise": n, "gradient_signal": s}
        for i, (n, s) in enumerate(zip(noises, signals, strict=True), start=1)
    ]
    lines.insert(150, {"step": 0, "loss": 1.0})  # an overflow measures nothing
    found = noise_scale.of_run(lines)
    assert (found.first_step, found.last_step) == (101, 200)
    assert found.samples == pytest.approx(np.mean(late[0]) / np.mean(late[1]))
    assert f"{found.samples:,.0f} samples, {16 * found.samples:,.0f} tokens" in found.sentence(16)
    assert noise_scale.of_run(lines[:39]) is None
