"""Weights that were trained before: a transformers directory -> the model of a shape, with everything accounted for.

transformers' own loader reads them, which knows how each architecture's files are spelt: safetensors, lazily, each
tensor into its place, so that a host holds the model once (5.23.0, core_model_loading.py). It is lenient, which is not
for training: what it found no place for, and what it made up, is refused here or said.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from scaling.errors import FileProblems, InputError
from scaling.models.build import HEADS, build, config_of
from scaling.registry import shape_of
from scaling.shape import Shape

_FIELD = "initial_weights"
_HINT = "give the weights of this very model, or initial_weights: random"
# Parts of a model that no task here trains, and that stand in files of a base model.
_LEFT_OUT = ("pooler.", "bert.pooler.", "roberta.pooler.", "vit.pooler.", "cls.seq_relationship.")
# Settings that say how weights are drawn, which these are not.
_OF_DRAWING = ("init",)
_MOST_NAMED = 4


def pretrained(shape: Shape, folder: Path, *, dropout: float = 0.0, seed: int = 0) -> tuple[PreTrainedModel, str]:
    """(the model of `shape` in fp32 with the weights in `folder`, a sentence on what was taken).

    A head that the folder lacks, as that of a base model does, is initialised from the seed, and the sentence says so.
    Raises InputError where there are no safetensors, FileProblems where the folder is of another model: a value of its
    config.json that changes a logit, a tensor that fits no parameter or is of another shape, one that is missing.
    """
    config = config_of(shape, dropout=dropout)
    _require_same_model(folder, shape)
    logging.set_verbosity_error()  # its report of what it did not find: ours follows
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = HEADS[shape.traits.kind].from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            problem = f"has no weights that can be read: {str(error).splitlines()[0]}"
            hint = "model.save_pretrained(folder) writes model.safetensors"
            raise InputError(_FIELD, str(folder), problem, hint=hint) from None
    left_out = sorted(name for name in info["unexpected_keys"] if name.startswith(_LEFT_OUT))
    unexpected = sorted(set(info["unexpected_keys"]) - set(left_out))
    missing = sorted(info["missing_keys"])
    initialised = [name for name in missing if _is_of_head(model, name)]
    problems = [f"{name} fits no parameter of a {type(model).__name__}" for name in unexpected]
    problems += [f"{name} is missing" for name in missing if name not in initialised]
    problems += [
        f"{name} is of {list(found)}, and the model's of {list(wanted)}"
        for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems += [str(message) for message in info["error_msgs"]]
    if problems:
        raise FileProblems(f"{_FIELD}: {folder}", problems, hint=_HINT)
    taken = len(dict(model.named_parameters())) - len(initialised)
    # A tensor that no file has, as Marian's sinusoids, is made anew by transformers 5.23.0 as one that is trained.
    for name, parameter in build(shape, initialised=False).named_parameters():
        model.get_parameter(name).requires_grad_(parameter.requires_grad)
    said = f"weights: {taken} tensors of {folder}"
    said += _named(left_out, "left out, having no part in the task")
    return model.train(), said + _named(initialised, "newly initialised, the folder having none")


def _require_same_model(folder: Path, ours: Shape) -> None:
    """Raises ScaleError where the folder's config.json says that its weights are of another function."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(_FIELD, str(folder), "is not a transformers directory: it has no config.json", hint=_HINT)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = f"has a config.json that cannot be read: {str(error).splitlines()[0]}"
        raise InputError(_FIELD, str(folder), problem, hint=_HINT) from None
    theirs = shape_of(config, ours.name, _FIELD)
    if theirs.family != ours.family:
        raise InputError(_FIELD, str(folder), f"holds a {theirs.family}, and the model is a {ours.family}", hint=_HINT)
    wanted, found = _mathematics(ours), _mathematics(theirs)
    problems = [
        f"{key} is {found[key]!r} in its config.json, and the model's {wanted[key]!r}"
        for key in wanted
        if found[key] != wanted[key]
    ]
    if problems:
        raise FileProblems(f"{_FIELD}: {folder}", problems, hint=_HINT)


def _mathematics(shape: Shape) -> dict[str, Any]:
    """All that a logit depends on beside the weights."""
    dimensions = {field.name: getattr(shape, field.name) for field in fields(shape)}
    del dimensions["name"], dimensions["settings"]
    dimensions["explicit_head_dim"] = shape.head_dim
    settings = {key: value for key, value in shape.all_settings.items() if not key.startswith(_OF_DRAWING)}
    return dimensions | settings


def _is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor stands outside the base model; T5 is its own."""
    if model.base_model is model:
        return name == "lm_head.weight"
    return not name.startswith(f"{model.base_model_prefix}.")


def _named(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"; {what}: {', '.join(names[:_MOST_NAMED])}{more}"
