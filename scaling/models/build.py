"""Shape -> a transformers model, initialised from a seed. transformers' classes, so that exports load anywhere."""

import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.initialization import no_init_weights

from scaling.shape import Shape


def build(shape: Shape, *, dropout: float = 0.0, seed: int = 0, initialised: bool = True) -> PreTrainedModel:
    """The model of `shape` in fp32 on the CPU; the same seed gives the same weights on every rank.

    Initialisation is transformers': N(0, 0.02), and for GPT-2 the output projections at 0.02 / sqrt(2 L)
    (Radford et al. 2019, section 2.3). A model that is not `initialised` takes no memory until its weights are written:
    the operating system gives untouched pages none.
    """
    if not initialised:
        with no_init_weights():
            model = build(shape, dropout=dropout)
        model.tie_weights()  # which the context leaves out, too
        return model
    common = {"attn_implementation": "sdpa", "use_cache": False}
    # Forking keeps the caller's random state: building a model must not shift anybody's dropout.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shape.family == "gpt2":
            config = GPT2Config(
                vocab_size=shape.vocab_size,
                n_positions=shape.max_position_embeddings,
                n_embd=shape.hidden_size,
                n_layer=shape.num_layers,
                n_head=shape.num_attention_heads,
                n_inner=shape.intermediate_size,
                # GPT-2's tanh GELU in one kernel: "gelu_new" is the same function in five, each saving a tensor.
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
                bos_token_id=None,
                eos_token_id=None,
                **common,
            )
            return GPT2LMHeadModel(config)
        return BertForMaskedLM(
            BertConfig(
                vocab_size=shape.vocab_size,
                max_position_embeddings=shape.max_position_embeddings,
                hidden_size=shape.hidden_size,
                num_hidden_layers=shape.num_layers,
                num_attention_heads=shape.num_attention_heads,
                intermediate_size=shape.intermediate_size,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                pad_token_id=None,
                **common,
            )
        )


def prepare_for_use(model: PreTrainedModel) -> None:
    """Sets what training leaves open and whoever loads the model relies on: the cache and the end of text."""
    model.config.use_cache = True
    if isinstance(model, GPT2LMHeadModel):
        # Token 0 closes every document: scaling/data/tokenizer.py.
        model.config.bos_token_id = model.config.eos_token_id = 0
        model.generation_config.bos_token_id = model.generation_config.eos_token_id = 0
