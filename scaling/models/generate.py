"""Text from a transformers directory: a decoder goes on from a prompt, the others fill what is left out of it."""

import re
from pathlib import Path
from typing import Any

import torch

from scaling.errors import InputError
from scaling.family import FAMILIES, Kind

_SENTINEL = re.compile(r"<extra_id_\d+>")


def generate(folder: Path, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """`prompt` continued by up to `max_new_tokens`; or with each mask filled, or each sentinel by its span.

    Sampling is from the 50 likeliest tokens at `temperature`; at 0 the likeliest is taken. The same seed gives the same
    text. Raises InputError for a model of images, and for a prompt that leaves nothing to do.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            "model", str(folder), "is not a transformers directory", hint="`scale export RUN --out DIR` writes one"
        )
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = _kind(folder, AutoConfig.from_pretrained(folder).model_type)
    if not prompt:
        raise InputError("prompt", prompt, "is empty")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 50} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    with torch.no_grad():
        return _ANSWERS[kind](folder, prompt, tokenizer, ids, {"max_new_tokens": max_new_tokens, **sampling})


def _kind(folder: Path, model_type: str) -> Kind:
    kinds = {family.model_type: family.kind for family in FAMILIES.values()}
    kind = kinds.get(model_type, "decoder")
    if kind == "vision":
        raise InputError("model", str(folder), f"is a {model_type}, which takes images and has no text to give")
    return kind


def _continued(folder: Path, prompt: str, tokenizer: Any, ids: torch.Tensor, how: dict[str, Any]) -> str:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < 1:
        raise InputError("prompt", prompt, f"fills the model's {model.config.max_position_embeddings} positions")
    how["max_new_tokens"] = min(how["max_new_tokens"], room)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.pad_token_id, **how)
    return str(tokenizer.decode(out[0], skip_special_tokens=True))


def _unmasked(folder: Path, prompt: str, tokenizer: Any, ids: torch.Tensor, how: dict[str, Any]) -> str:
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    masks = ids == tokenizer.mask_token_id
    if not masks.any():
        raise InputError("prompt", prompt, f"has no {tokenizer.mask_token} to fill, which is all a masked LM can do")
    ids[masks] = model(input_ids=ids).logits[masks].argmax(-1)
    return str(tokenizer.decode(ids[0]))


def _filled(folder: Path, prompt: str, tokenizer: Any, ids: torch.Tensor, how: dict[str, Any]) -> str:
    """What the decoder says behind each sentinel, in the sentinel's place."""
    from transformers import AutoModelForSeq2SeqLM

    asked = _SENTINEL.findall(prompt)
    if not asked:
        raise InputError("prompt", prompt, "has no <extra_id_0> to fill, which is what the model was trained to do")
    unknown = [name for name in asked if name not in tokenizer.get_vocab()]
    if unknown:
        raise InputError(
            "prompt", prompt, f"has {unknown[0]}, which the model's tokenizer has not", hint="<extra_id_0>"
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    positions = getattr(model.config, "max_position_embeddings", ids.shape[1])  # T5's are relative
    if ids.shape[1] > positions:
        raise InputError("prompt", prompt, f"fills the model's {positions} positions")
    if hasattr(model.config, "max_position_embeddings"):
        how["max_new_tokens"] = min(how["max_new_tokens"], positions - 1)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=tokenizer.pad_token_id, **how)
    said = tokenizer.decode(out[0]).replace(tokenizer.eos_token, "")
    # "a<extra_id_0>b" and "<extra_id_0>xy<extra_id_1>z" make "axyb".
    spans = dict(zip(_SENTINEL.findall(said), _SENTINEL.split(said)[1:], strict=True))
    return _SENTINEL.sub(lambda match: spans.get(match[0], ""), prompt)


_ANSWERS = {"decoder": _continued, "encoder": _unmasked, "encoder-decoder": _filled}
