"""Every family: the loss is transformers', chunked or not, checkpointed or not."""

import pytest
import torch

from scaling import data, models
from scaling.family import FAMILIES
from scaling.models.loss import IGNORED
from tests.parallel.families import recipe_of, shape_of

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder"]


@pytest.fixture(scope="module")
def batch_of(tmp_path_factory):
    """A batch of six samples for a family."""
    folder = tmp_path_factory.mktemp("batches")

    def batch(family):
        corpus = data.prepare(recipe_of(family, folder), base=folder, cache=folder / "cache")
        return corpus.train.batch(range(6))

    return batch


def loss_and_gradients(family, batch, *, checkpointing="none", **loss):
    model = models.build(shape_of(family), seed=3).train()
    models.checkpoint_layers(model, checkpointing)
    total = models.WithLoss(model, **loss)(**batch)
    total.backward()
    return float(total.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def require_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)) < tolerance, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_over_targets_is_transformers_own_loss_times_their_number(family, batch_of):
    batch = batch_of(family)
    model = models.build(shape_of(family), seed=3).eval()
    ours = models.WithLoss(model)(**batch)
    # Decoders shift labels, unless told the shift.
    told = {"shift_labels": batch["labels"]} if FAMILIES[family].kind == "decoder" else {}
    with torch.no_grad():
        mean = float(model(**batch, **told).loss)
    targets = int((batch["labels"] != IGNORED).sum())
    assert float(ours.detach()) == pytest.approx(mean * targets, rel=1e-5)
    assert mean == pytest.approx(float(torch.tensor(shape_of(family).vocab_size).log()), rel=0.6)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_neither_loss_nor_gradients(family, batch_of):
    batch = batch_of(family)
    loss, gradients = loss_and_gradients(family, batch)
    for choice in ("full", "selective"):
        found, others = loss_and_gradients(family, batch, checkpointing=choice)
        assert found == pytest.approx(loss, rel=1e-6), choice
        require_close(others, gradients, 1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_a_chunked_loss_is_the_full_one_with_the_same_gradients(family, batch_of):
    batch = batch_of(family)
    loss, gradients = loss_and_gradients(family, batch)
    found, others = loss_and_gradients(family, batch, loss_kernel="chunked", chunk_tokens=50)
    assert found == pytest.approx(loss, rel=1e-6)
    # The chunked head has another parameter object under the same name.
    require_close(others, gradients, 1e-5)
