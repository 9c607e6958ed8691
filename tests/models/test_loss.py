"""The summed loss against transformers' own, for the same weights."""

import os

import pytest
import torch
import torch.nn.functional as F

from scaling import models, registry
from scaling.models.loss import IGNORED, ligers_cross_entropy, summed_cross_entropy


@pytest.mark.parametrize("name", ["gpt-demo", "bert-demo"])
def test_the_sum_over_targets_is_transformers_mean_times_their_number(name):
    shape = registry.find(name).shape
    model = models.build(shape, seed=3)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab_size, (3, 16), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.3, ids, IGNORED)
    ours = models.WithLoss(model)(input_ids=ids, labels=labels)
    # BertForMaskedLM compares logits and labels position by position; GPT2LMHeadModel shifts, unless told the shift.
    shift = {"shift_labels": labels} if shape.family == "gpt2" else {}
    mean = model(input_ids=ids, labels=labels, **shift).loss
    assert float(ours.detach()) == pytest.approx(float(mean.detach()) * int((labels != IGNORED).sum()), rel=1e-5)


def _gradients(shape, dtype, ids, labels, **loss):
    """(loss, gradients by name) of the mean over 33 targets of a model from one seed."""
    model = models.WithLoss(models.build(shape, seed=3).to(dtype), **loss)
    total = model(input_ids=ids, labels=labels)
    (total / 33).backward()
    return float(total.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_chunked_loss_is_the_full_one_with_the_same_gradients(dtype, tolerance):
    # In fp32 to rounding; in bf16 both are as far from the fp32 gradient as bf16 is: 0.5 to 1 %.
    shape = registry.find("gpt-demo").shape
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab_size, (3, 16), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.7, ids, IGNORED)
    full, gradients = _gradients(shape, dtype, ids, labels)
    chunked, others = _gradients(shape, dtype, ids, labels, loss_kernel="chunked", chunk_tokens=7)  # 48 = 6 x 7 + 6
    assert chunked == pytest.approx(full, rel=1e-5)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        off = (others[name].float() - gradient.float()).norm() / gradient.float().norm()
        assert float(off) < tolerance, name
        assert others[name].dtype == gradient.dtype


def test_a_chunked_loss_evaluates_to_the_same_and_leaves_the_names_of_weights_alone():
    shape = registry.find("gpt-demo").shape
    ids = torch.arange(24).view(2, 12)
    full, chunked = (
        models.WithLoss(models.build(shape), loss_kernel=kernel, chunk_tokens=5) for kernel in ("full", "chunked")
    )
    with torch.no_grad():
        assert float(chunked(input_ids=ids, labels=ids)) == pytest.approx(
            float(full(input_ids=ids, labels=ids)), rel=1e-6
        )
    assert chunked.state_dict().keys() == full.state_dict().keys()


def test_a_batch_without_targets_costs_nothing_and_still_has_a_gradient():
    model = models.WithLoss(models.build(registry.find("bert-demo").shape))
    ids = torch.zeros(2, 8, dtype=torch.long)
    loss = model(input_ids=ids, labels=torch.full_like(ids, IGNORED))
    assert float(loss.detach()) == 0
    loss.backward()


@pytest.mark.parametrize("name", ["gpt-demo", "bert-demo"])
def test_a_seed_is_a_model_and_building_it_leaves_the_callers_random_state(name):
    shape = registry.find(name).shape
    before = torch.get_rng_state()
    first, second, other = (models.build(shape, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_gpt2s_output_projections_start_smaller_by_the_depth():
    """Radford et al. 2019, 2.3: residual layers are scaled by 1 / sqrt(N), N being 2 L here."""
    shape = registry.find("gpt-demo").shape
    state = models.build(shape, seed=0).state_dict()
    expected = 0.02 / (2 * shape.num_layers) ** 0.5
    for name in ("attn.c_proj", "mlp.c_proj"):
        assert float(state[f"transformer.h.0.{name}.weight"].std()) == pytest.approx(expected, rel=0.03)
    assert float(state["transformer.h.0.mlp.c_fc.weight"].std()) == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_ligers_loss_and_gradients_are_those_of_all_logits_at_once(dtype, tolerance):
    """On a GPU; or on a CPU where TRITON_INTERPRET=1 has triton's interpreter run the kernels, which is slow."""
    pytest.importorskip("liger_kernel", reason="the extra [liger], which needs triton")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(40, 16, generator=generator).to(device, dtype)
    weight = (0.3 * torch.randn(96, 16, generator=generator)).to(device, dtype)
    labels = torch.randint(0, 96, (40,), generator=generator).to(device)
    labels[::3] = IGNORED

    def found(loss_of):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = loss_of(*leaves)
        return loss.detach(), *torch.autograd.grad(loss * 0.125, leaves)

    ours = found(lambda h, w: summed_cross_entropy(F.linear(h, w), labels))
    theirs = found(lambda h, w: ligers_cross_entropy(h, w, labels))
    assert theirs[0].dtype == torch.float32
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm() / mine.norm()) < tolerance
    with torch.no_grad():
        assert float(ligers_cross_entropy(hidden, weight, labels)) == pytest.approx(float(ours[0]), rel=tolerance)
