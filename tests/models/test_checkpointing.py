"""What layers keep for their backward: the same gradients whatever it is, and as much as the estimate says."""

import pytest
import torch
from torch.utils import checkpoint as torchs

from scaling import models, registry
from scaling.cost import Job
from scaling.cost.activations import selected_elements
from scaling.family import FAMILIES
from scaling.strategy import Checkpointing
from tests.parallel.families import shape_of

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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_selective_layer_keeps_its_odd_matmuls_and_attention(monkeypatch, family, dropout):
    storages = []
    original = torchs.create_selective_checkpoint_contexts

    def create(policy, **options):
        contexts = original(policy, **options)
        storages.append(contexts[0].storage)
        return contexts

    monkeypatch.setattr("scaling.models.checkpointing.create_selective_checkpoint_contexts", create)
    shape = shape_of(family)
    model = models.build(shape, dropout=dropout).train()
    models.checkpoint_layers(model, "selective", dropout=dropout)
    length = shape.max_position_embeddings
    least = 2 * length * shape.key_value_size  # elements; attention's statistics and the router's logits are fewer
    if shape.traits.kind == "vision":
        inputs = {"pixel_values": torch.ones(2, shape.num_channels, shape.image_size, shape.image_size)}
    else:
        inputs = {"input_ids": torch.arange(2 * length).view(2, length)}
    if shape.num_decoder_layers:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    logits = model(**inputs).logits
    assert len(storages) == shape.num_layers + (shape.num_decoder_layers or 0)
    kept = [
        wrapper.val.numel()
        for entries in storages[0].values() for entry in entries.values() if entry is not torchs._RECOMPUTE
        for wrapper in (entry if isinstance(entry, tuple | list) else (entry,))
        if isinstance(getattr(wrapper, "val", None), torch.Tensor) and wrapper.val.numel() >= least
    ]  # fmt: skip
    job = Job(shape=shape, seq_length=length, precision="fp32", dropout=dropout, on_cpu=True)
    assert sum(kept) == 2 * length * sum(selected_elements(job))
    logits.sum().backward()
