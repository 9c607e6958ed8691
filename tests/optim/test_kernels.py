"""The three kernels are one optimizer, none needs what is not there, and other people's LAMB agrees with it."""

import copy
import logging
import os

import pytest
import torch
from torch import Tensor

from scaling.errors import ScaleError
from scaling.optim import CONVENTIONS, Lamb, Lans, Lars
from scaling.optim.kernels import choose, native
from tests.optim.papers import Moments, lamb

# Odd sizes, one beyond a kernel's block and one beyond an eager batch.
SIZES = [(7,), (33, 5), (300, 401), (257, 600), (1,)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(size, generator=generator) for size in SIZES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [0.1 * torch.randn(size, generator=generator) for size in SIZES]


def stepped(weights: list[Tensor], steps=5, **arguments) -> list[Tensor]:
    rest = [w for w in weights if w.ndim < 2]
    optimizer = Lamb(weights, lr=0.02, exclude=rest, **arguments)
    for step in range(steps):
        for w, g in zip(weights, gradients(step), strict=True):
            w.grad = g.to(w.dtype)
        optimizer.step()
        for w, g in zip(weights, gradients(step), strict=True):
            torch.testing.assert_close(w.grad, g.to(w.dtype), rtol=0, atol=0)  # left as it was
    return weights


def by_the_paper(steps=5, **arguments) -> list[Tensor]:
    weights = [w.double() for w in parameters()]
    kept = [Moments(w) for w in weights]
    for step in range(steps):
        norm = sum(float(g.double().square().sum()) for g in gradients(step)) ** 0.5
        scale = 1 / norm if arguments.get("normalize_gradients") else 1.0
        for w, g, k in zip(weights, gradients(step), kept, strict=True):
            lamb(w, g.double() * scale, k, step + 1, **{"lr": 0.02, **arguments, "decays": w.ndim >= 2})
    return weights


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("kernel", ["native", "eager", "compiled"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_is_the_formula_in_float64(kernel, convention, threads):
    if kernel == "native" and native.obstacle(torch.ones(1)):
        pytest.skip(native.obstacle(torch.ones(1)))
    arguments = {"weight_decay": 0.01, **CONVENTIONS[convention]}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = stepped(parameters(), kernel=kernel, **arguments)
    finally:
        torch.set_num_threads(before)
    for w, exact in zip(ours, by_the_paper(**arguments), strict=True):
        assert float((w - exact).norm() / exact.norm()) < 5e-7


def test_float64_and_bf16_parameters_take_the_eager_kernel():
    doubles = stepped([w.double() for w in parameters()])
    for w, exact in zip(doubles, by_the_paper(weight_decay=0.01), strict=True):
        assert float((w - exact).norm() / exact.norm()) < 1e-9
    halves = stepped([w.bfloat16() for w in parameters()])
    for w, exact in zip(halves, by_the_paper(weight_decay=0.01), strict=True):
        assert w.dtype == torch.bfloat16
        assert float((w.double() - exact).norm() / exact.norm()) < 2e-2  # 8 bits, rounded five times


def test_a_large_tensors_norm_is_right_where_torchs_own_in_fp32_is_not():
    # A running sum in fp32 stops growing: a vocabulary of BERT's, 23 million elements.
    w = torch.full((30522, 768), 0.02)
    expected = 0.02 * (30522 * 768) ** 0.5
    assert abs(float(torch.linalg.vector_norm(w)) / expected - 1) > 1e-4
    w.grad = torch.full_like(w, 0.01)
    optimizer = Lamb([w], lr=1e-3)
    optimizer.step()
    # u = 1 + 0.01 x 0.02 everywhere, so that the ratio is the weights' size to the update's.
    assert float(optimizer.trust_ratios) == pytest.approx(0.02 / (1 / (1 + 1e-6 / 0.01) + 0.01 * 0.02), rel=1e-6)


def test_without_a_compiler_it_is_eager_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("scaling.optim.kernels._said", set())
    with caplog.at_level(logging.INFO, "scaling.optim"):
        assert choose("auto", torch.ones(1)).__name__.endswith("eager")
    assert "no C compiler was found" in caplog.text
    with pytest.raises(ScaleError, match="no C compiler was found"):
        choose("native", torch.ones(1))


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false"])
def test_a_compiler_that_fails_is_no_failure(compiler, monkeypatch):
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    monkeypatch.setenv("CC", compiler)
    assert choose("auto", torch.ones(1)).__name__.endswith("eager")


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(ScaleError, match="kernel"):
        stepped(parameters(), kernel="triton")


def test_what_it_cannot_follow_it_refuses():
    turned = torch.nn.Parameter(torch.randn(4, 6).t())
    turned.grad = torch.randn(6, 4)
    with pytest.raises(ScaleError, match="not contiguous"):
        Lamb([turned], lr=0.1).step()
    optimizer = Lamb(parameters(), lr=0.1)
    with pytest.raises(ScaleError, match="a group cannot be added"):
        optimizer.add_param_group({"params": [torch.ones(3)]})
    with pytest.raises(ScaleError, match="bias_correction"):
        Lamb(parameters(), lr=0.1, bias_correction="moment")


@pytest.mark.parametrize("make", [Lamb, Lars, Lans])
def test_a_copy_goes_on_as_its_original(make):
    def step(optimizer, number):
        for w, g in zip(optimizer.parameters, gradients(number), strict=True):
            w.grad = g.clone()
        optimizer.step()

    original = make([torch.nn.Parameter(w) for w in parameters()], lr=0.02)
    original.step()  # with no gradient anywhere it does nothing
    step(original, 0)
    copied = copy.deepcopy(original)
    for optimizer in (original, copied):
        step(optimizer, 1)
    for w, other in zip(original.parameters, copied.parameters, strict=True):
        torch.testing.assert_close(w, other, rtol=0, atol=0)


# Where strangers define LAMB otherwise, by package: what to ask of ours.
STRANGERS = {
    # Adapts every tensor; max_grad_norm None is no clipping.
    "timm.optim": ({"weight_decay": 0.01, "max_grad_norm": None}, {"always_adapt": True}),
    # By default AdamW's decay beside the ratio, and a step divided by 1 - b1^t alone, which adam_debias leaves out; |w|
    # is held below 10, and eps is added to |u|.
    "pytorch_optimizer": (
        {"weight_decay": 0.01, "weight_decouple": False, "max_grad_norm": 0.0, "adam_debias": True},
        {"always_adapt": True, "bias_correction": "none"},
    ),
}


@pytest.mark.parametrize("package", STRANGERS)
def test_it_agrees_with_other_peoples_lamb(package):
    theirs = pytest.importorskip(package).Lamb
    their_arguments, our_arguments = STRANGERS[package]
    weights = [torch.nn.Parameter(w * min(1, 5 / float(w.norm()))) for w in parameters() if w.ndim >= 2]
    others = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    optimizers = [Lamb(weights, lr=0.02, **our_arguments), theirs(others, lr=0.02, **their_arguments)]
    for step in range(5):
        for side in (weights, others):
            for w, g in zip(side, [g for g in gradients(step) if g.ndim >= 2], strict=True):
                w.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    for w, other in zip(weights, others, strict=True):
        assert float((w - other).norm() / other.norm()) < 1e-6
