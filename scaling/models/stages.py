"""A model cut into the stages of a pipeline: transformers' own model on each, with the other stages' modules taken out.

A stage runs the whole model's forward, so masks, rotary positions and checkpointing are transformers' own, and its
parameters keep the whole model's names. What another stage has is replaced by a module without parameters: a layer
elsewhere passes its input on, positions that were added before are nothing to add.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from scaling.models.loss import WithLoss
from scaling.strategy import LossKernel


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where a family's model is cut, by the names of its modules.

    `layers` is the list that is shared out. What is `before` it is on the first stage alone, what is `after` it on the
    last; of `added` modules the outputs are added to a layer's input.
    """

    layers: str
    before: tuple[str, ...]
    added: tuple[str, ...] = ()
    after: tuple[str, ...]


_LLAMA = Cuts(layers="model.layers", before=("model.embed_tokens",), after=("model.norm", "lm_head"))
# By transformers' names (5.23.0, models/*/modeling_*.py).
_CUTS: dict[str, Cuts] = {
    "gpt2": Cuts(
        layers="transformer.h", before=("transformer.wte", "transformer.drop"), added=("transformer.wpe",),
        after=("transformer.ln_f", "lm_head"),
    ),
    "gpt_neox": Cuts(
        layers="gpt_neox.layers", before=("gpt_neox.embed_in", "gpt_neox.emb_dropout"),
        after=("gpt_neox.final_layer_norm", "lm_head"),
    ),
    "opt": Cuts(
        layers="model.decoder.layers", before=("model.decoder.embed_tokens",), added=("model.decoder.embed_positions",),
        after=("model.decoder.final_layer_norm", "lm_head"),
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "mixtral"), _LLAMA),
    "bert": Cuts(layers="bert.encoder.layer", before=("bert.embeddings",), after=("cls",)),
    "roberta": Cuts(layers="roberta.encoder.layer", before=("roberta.embeddings",), after=("lm_head",)),
    "modernbert": Cuts(
        layers="model.layers", before=("model.embeddings",), after=("model.final_norm", "head", "decoder")
    ),
    "vit": Cuts(layers="vit.layers", before=("vit.embeddings",), after=("vit.layernorm", "classifier")),
}  # fmt: skip


class Stage(WithLoss):
    """`model` with those of its layers from `begin` to `end`, and what stands before or after them where it is an end.

    forward(inputs) takes token ids, images, or the hidden states [B, T, D] of the stage before; it returns hidden
    states, or at the last stage the summed loss of `labels`, which whoever runs it sets: a pipeline hands a module
    nothing but its inputs. `shared` is the weight that the first and the last stage both have, on those two, where the
    head's is the embedding's.
    """

    def __init__(self, model: PreTrainedModel, begin: int, end: int, *, loss_kernel: LossKernel = "full") -> None:
        cuts = _CUTS[model.config.model_type]
        is_first, is_last = begin == 0, end == len(model.get_submodule(cuts.layers))
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head is not None and head.weight is embedding.weight
        _cut(model, cuts, range(begin, end), is_first=is_first, is_last=is_last, keeps=embedding if tied else None)
        super().__init__(model, loss_kernel=loss_kernel if is_last else "full")
        self.is_last = is_last
        self.shared: list[nn.Parameter] = [embedding.weight] if tied and is_first != is_last else []
        self.labels: torch.Tensor | None = None
        images = model.main_input_name == "pixel_values"
        self.takes = "pixel_values" if images else "input_ids" if is_first else "inputs_embeds"

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_last:
            return super().forward(labels=self.labels, **{self.takes: inputs})
        return self.model.base_model(**{self.takes: inputs}).last_hidden_state


def _cut(
    model: PreTrainedModel, cuts: Cuts, kept: range, *, is_first: bool, is_last: bool, keeps: nn.Module | None
) -> None:
    """Takes out of `model` what other stages have; the embedding that it `keeps` stays where its weight is the head's.

    It is then not run, and there so that the weight has its name of the whole model.
    """
    layers = model.get_submodule(cuts.layers)
    for number, layer in enumerate(layers):
        if number not in kept:
            layers[number] = _Passing(attention_type=getattr(layer, "attention_type", None))
    place = next((name for name, module in model.named_modules() if module is keeps), None)
    if not is_first:
        like = next(layers[kept.start].parameters())
        for name in cuts.before:
            model.set_submodule(name, _Passing(like=like))
        for name in cuts.added:
            model.set_submodule(name, _Nothing())
    if not is_last:
        for name in cuts.after:
            model.set_submodule(name, _Passing())
    elif place and not is_first:
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, keeps)


class _Passing(nn.Module):
    """In the place of a layer, an embedding or a norm of another stage: the hidden states that it is given."""

    def __init__(self, attention_type: str | None = None, like: nn.Parameter | None = None) -> None:
        super().__init__()
        self.attention_type = attention_type  # by which ModernBERT picks each layer's mask
        self.like = [like]  # a parameter of this stage, in a list so that it is not registered twice

    def forward(
        self, hidden_BTD: torch.Tensor | None = None, *args: Any, inputs_embeds: torch.Tensor | None = None, **rest: Any
    ) -> torch.Tensor | None:
        return inputs_embeds if hidden_BTD is None else hidden_BTD

    @property
    def patch_embeddings(self) -> "_Passing":
        return self

    projection = patch_embeddings

    @property
    def weight(self) -> nn.Parameter | None:
        """Whose dtype ViT's images take, by its name in an embedding, and so the hidden states in their place."""
        return self.like[0]


class _Nothing(nn.Module):
    """In the place of positions that the first stage has added."""

    def forward(self, *args: Any, **rest: Any) -> torch.Tensor:
        return torch.zeros(())
