"""What layers keep for their backward: the same gradients whatever it is, and as much as the estimate says."""

import pytest
import torch
from torch.utils import checkpoint as torchs

from scaling import models, registry
from scaling.strategy import Checkpointing

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _loss_and_gradients(name: str, choice: Checkpointing, dropout: float) -> tuple[float, dict[str, torch.Tensor]]:
    shape = registry.find(name).shape
    model = models.build(shape, seed=3, dropout=dropout)
    models.checkpoint_layers(model, choice, dropout=dropout)
    wrapped = models.WithLoss(model).to(_DEVICE, torch.bfloat16 if _DEVICE == "cuda" else torch.float32).train()
    ids = torch.arange(64).view(2, 32).to(_DEVICE)
    torch.manual_seed(5)
    loss = wrapped(input_ids=ids, labels=ids) / 64
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in wrapped.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("choice", ["selective", "full"])
@pytest.mark.parametrize("name", ["gpt-demo", "bert-demo"])
def test_checkpointing_changes_neither_loss_nor_gradients(name, choice, dropout):
    # With dropout on a GPU, where attention draws its own masks, a kept attention would shift those behind it.
    loss, gradients = _loss_and_gradients(name, "none", dropout)
    found, others = _loss_and_gradients(name, choice, dropout)
    assert found == loss
    for key, gradient in gradients.items():
        off = (others[key].float() - gradient.float()).norm() / gradient.float().norm().clamp(min=1e-9)
        assert float(off) < 1e-6, key


@pytest.mark.parametrize(("dropout", "attention"), [(0.0, 1), (0.1, 0)])
@pytest.mark.parametrize(("name", "queries_keys_values"), [("gpt-demo", 3), ("bert-demo", 2)])
def test_a_selective_layer_keeps_its_odd_matmuls_and_attention(
    monkeypatch, name, queries_keys_values, dropout, attention
):
    # GPT-2's one matrix makes query, key and value; of BERT's three the key's, the second, is made again.
    storages = []

    original = torchs.create_selective_checkpoint_contexts

    def create(policy, **options):
        contexts = original(policy, **options)
        storages.append(contexts[0].storage)
        return contexts

    monkeypatch.setattr("scaling.models.checkpointing.create_selective_checkpoint_contexts", create)
    shape = registry.find(name).shape
    model = models.build(shape, dropout=dropout).train()
    models.checkpoint_layers(model, "selective", dropout=dropout)
    ids = torch.arange(64).view(2, 32)
    loss = models.WithLoss(model)(input_ids=ids, labels=ids)
    assert len(storages) == shape.num_layers
    D, F = shape.hidden_size, shape.intermediate_size
    kept = [
        wrapper.val.numel()
        for entries in storages[0].values() for entry in entries.values() if entry is not torchs._RECOMPUTE
        for wrapper in (entry if isinstance(entry, tuple | list) else (entry,))
        if isinstance(wrapper.val, torch.Tensor) and wrapper.val.numel() >= 64 * D
    ]  # fmt: skip
    assert sum(kept) == 64 * ((queries_keys_values + attention) * D + F)
    loss.backward()
