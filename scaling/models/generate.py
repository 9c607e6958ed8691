"""Text from a transformers directory: a decoder goes on from a prompt, a masked LM fills its masks."""

from pathlib import Path

import torch

from scaling.errors import InputError


def generate(folder: Path, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """`prompt` continued by up to `max_new_tokens`, or with each <|mask|> filled; the same seed gives the same text.

    Sampling is from the 50 likeliest tokens at `temperature`; at 0 the likeliest is taken.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            "model", str(folder), "is not a transformers directory", hint="`scale export RUN --out DIR` writes one"
        )
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not prompt:
        raise InputError("prompt", prompt, "is empty")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    torch.manual_seed(seed)
    if AutoConfig.from_pretrained(folder).model_type == "bert":
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        masks = ids == tokenizer.mask_token_id
        if not masks.any():
            raise InputError(
                "prompt", prompt, f"has no {tokenizer.mask_token} to fill, which is all a masked LM can do"
            )
        with torch.no_grad():
            ids[masks] = model(input_ids=ids).logits[masks].argmax(-1)
        return tokenizer.decode(ids[0])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < 1:
        raise InputError("prompt", prompt, f"fills the model's {model.config.max_position_embeddings} positions")
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 50} if temperature else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(max_new_tokens, room),
                             pad_token_id=tokenizer.pad_token_id, **sampling)  # fmt: skip
    return tokenizer.decode(out[0], skip_special_tokens=True)
