"""What layers keep for their backward: the same gradients whatever it is, and as much as the estimate says."""

import pytest
import torch
from torch.utils import checkpoint as torchs

from scaling import models, registry
from scaling.cost import Job
from scaling.cost.activations import decoder_selected_elements, selected_elements
from scaling.family import FAMILIES
from scaling.models import checkpointing
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


SHAPES = {family: shape_of(family) for family in sorted(FAMILIES)} | {"gated t5": shape_of("t5", gated_mlp=True)}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SHAPES)
def test_a_selective_layer_keeps_its_odd_matmuls_and_attention(monkeypatch, name, dropout):
    """Beside its input; the last matmul's output apart. A decoder reads a quarter as many tokens as its encoder."""
    storages = []

    def created(policy, storage):
        storages.append(storage)
        return original(policy, storage)

    original = checkpointing._Keeping
    monkeypatch.setattr(checkpointing, "_Keeping", created)
    shape = SHAPES[name]
    model = models.build(shape, dropout=dropout).train()
    models.checkpoint_layers(model, "selective", dropout=dropout)
    length, share = shape.max_position_embeddings, 0.25 if shape.num_decoder_layers else 1.0
    if shape.traits.kind == "vision":
        inputs = {"pixel_values": torch.ones(2, shape.num_channels, shape.image_size, shape.image_size)}
    else:
        inputs = {"input_ids": torch.arange(2 * length).view(2, length)}
    if shape.num_decoder_layers:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, : length // 4]
    logits = model(**inputs).logits
    assert len(storages) == shape.num_layers + (shape.num_decoder_layers or 0)

    def kept(storage, least):
        """Elements for each token of the encoder or of the only stack, in tensors of at least `least` for each."""
        entries = [entry for found in storage.values() for entry in found.values() if entry is not torchs._RECOMPUTE]
        values = [
            wrapper.val for entry in entries for wrapper in (entry if isinstance(entry, tuple | list) else (entry,))
        ]
        sizes = [value.numel() / 2 / length for value in values if isinstance(value, torch.Tensor)]
        return sum(size for size in sizes if size >= least)

    job = Job(shape=shape, seq_length=length, precision="fp32", dropout=dropout, predicted_fraction=share, on_cpu=True)
    # Attention's statistics are fewer: a number for each head.
    assert kept(storages[0], shape.key_value_size) == selected_elements(job)
    if shape.num_decoder_layers:
        assert kept(storages[-1], share * shape.key_value_size) == decoder_selected_elements(job)
    logits.sum().backward()
