"""What a step tells of itself, by hand: its time by part, MFU, trust ratios."""

import pytest
import torch
from torch import nn

from scaling import hardware
from scaling.errors import InputError
from scaling.optim import Lamb
from scaling.training import watch
from scaling.training.ranks import Ranks
from scaling.training.watch import Stopwatch, Yardstick, trust_quantiles
from tests.training.runs import layout, run, tiny_recipe

CUDA = torch.device("cuda", 0)


def ranks(device, world_size=8):
    return Ranks(rank=0, world_size=world_size, local_rank=0, local_world_size=world_size, device=device)


@pytest.mark.parametrize(("precision", "peak"), [("bf16", 989.4e12), ("fp16", 989.4e12), ("fp32", 66.9e12)])
def test_mfu_is_a_count_by_hand_over_the_published_dense_peak(precision, peak, tmp_path, monkeypatch):
    """NVIDIA H100 datasheet, SXM: 1,979 TFLOP/s in 16 bit with sparsity, half of it dense; 67 in fp32."""
    monkeypatch.setattr(hardware, "detected_gpus", lambda: (hardware.ACCELERATORS["h100"], 8))
    found = Yardstick.of(tiny_recipe(tmp_path, precision=precision), ranks(CUDA))
    layers, hidden, inner, vocabulary, length = 2, 64, 256, 384, 32
    matrices = layers * (4 * hidden * hidden + 2 * hidden * inner) + vocabulary * hidden
    flops_per_token = 6 * matrices + 12 * layers * hidden * length
    assert found.flops_per_token == flops_per_token
    assert found.mfu_fraction(1e9) == pytest.approx(flops_per_token * 1e9 / (8 * peak), rel=2e-3)
    assert f"8 x h100, dense {precision}" in str(found)


def test_where_no_peak_is_known_mfu_is_unknown_and_says_why(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    on_cpu = Yardstick.of(recipe, ranks(torch.device("cpu")))
    assert on_cpu.mfu_fraction(1e6) is None
    assert str(on_cpu).startswith("MFU unknown: no peak is published for a CPU")

    def refused():
        raise InputError("gpu", "Tesla K80, 11441", "is on this machine but not in the table")

    for found, why in ((refused, "Tesla K80"), (lambda: None, "the hardware table knows no such device")):
        monkeypatch.setattr(hardware, "detected_gpus", found)
        yardstick = Yardstick.of(recipe, ranks(CUDA))
        assert yardstick.peak_flops is None
        assert why in str(yardstick)


def test_the_parts_of_a_steps_time_add_up_to_it(tmp_path):
    for line in run(tmp_path, tiny_recipe(tmp_path), layout(2, 2, micro=2)):
        parts = {name: line[f"{name}_s"] for name in (*watch.PARTS, "rest")}
        assert all(seconds >= 0 for seconds in parts.values())
        assert sum(parts.values()) == pytest.approx(line["elapsed_s"], rel=1e-9)
        assert parts["forward"] > 0
        assert parts["backward"] > 0
        assert parts["optimizer"] > 0


def test_on_cuda_a_lap_is_an_event_and_nothing_waits_for_it_before_the_step_has_ended(monkeypatch):
    clock = iter(range(0, 1000, 10))  # milliseconds of the device
    read = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(clock)

        def elapsed_time(self, later):
            read.append(later)
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.delattr(torch.cuda, "synchronize")
    stopwatch = Stopwatch(CUDA)
    for _ in range(2):
        stopwatch.start()
        stopwatch.lap("data")
        for _micro_step in range(3):
            for part in ("rest", "forward", "backward", "optimizer"):
                stopwatch.lap(part)
        assert not read
        found = stopwatch.split(elapsed_s=0.150)
        read.clear()
    in_ms = {name: round(1e3 * seconds) for name, seconds in found.items()}
    assert in_ms == {"data_s": 10, "forward_s": 30, "backward_s": 30, "optimizer_s": 30, "rest_s": 50}


def test_trust_quantiles_are_those_of_the_parameters_that_have_a_ratio():
    """LAMB's first step from zero moments: u = sign(g) + decay w, so that the ratios are known by hand."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(8, 4) * size) for size in (0.1, 1.0, 3.0)]
    bias = nn.Parameter(torch.randn(8))
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = Lamb(groups, lr=1e-3, eps=0.0)
    for parameter in (*weights, bias):
        parameter.grad = torch.randn_like(parameter)
    held = [weight.detach().clone() for weight in weights]
    updates = [weight.grad.sign() + 0.01 * w for weight, w in zip(weights, held, strict=True)]
    by_hand = [float(w.norm() / u.norm()) for w, u in zip(held, updates, strict=True)]
    optimizer.step()
    found = trust_quantiles(optimizer)
    assert found["trust_ratio_min"] == pytest.approx(min(by_hand), rel=1e-5)
    assert found["trust_ratio_median"] == pytest.approx(sorted(by_hand)[1], rel=1e-5)
    assert found["trust_ratio_max"] == pytest.approx(max(by_hand), rel=1e-5)


def test_trust_ratios_are_sampled_and_the_same_at_every_stage(tmp_path):
    lamb = {"name": "lamb", "lr": 3e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01}
    recipe = tiny_recipe(tmp_path, num_steps=2 * watch.TRUST_EVERY_STEPS, optimizer=lamb)
    found = []
    for stage in (0, 2, 3):
        lines = run(tmp_path / str(stage), recipe, layout(2, stage))
        sampled = [line for line in lines if "trust_ratio_median" in line]
        assert [line["step"] for line in sampled] == [10, 20]
        found.append([sampled[0][f"trust_ratio_{name}"] for name in watch.TRUST_QUANTILES])
        assert found[-1] == sorted(found[-1])
        assert found[-1] == pytest.approx(found[0], rel=1e-3)
