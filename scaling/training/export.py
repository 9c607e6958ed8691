"""A checkpoint as a transformers directory: config.json, model.safetensors and the tokenizer."""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from scaling import manifest, models
from scaling.errors import InputError
from scaling.recipe import Recipe
from scaling.training import universal
from scaling.training.shards import load as load_shard

_WRAPPED = "model."  # models.WithLoss holds the transformers model under this name


def export(run: Path, out: Path) -> Path:
    """Writes the newest checkpoint of `run` (or the one that `run` is) to `out`, in fp32, and returns `out`.

    `out` must not exist or be empty; it appears whole or not at all.
    """
    source = manifest.find(run, "run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("out", str(out), "exists and is not an empty folder")
    tokenizer = source.parent.parent / "tokenizer"
    if not tokenizer.is_dir():
        raise InputError("run", str(run), f"has no tokenizer: {tokenizer} is missing")
    recipe = Recipe.model_validate(manifest.require_whole(source, "run").recipe)
    model = models.build(recipe.shape, seed=recipe.seed)
    _load(model, _weights(source))
    models.prepare_for_use(model, _token_ids(tokenizer))
    disable_progress_bar()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            built = Path(scratch) / "model"
            model.save_pretrained(built)
            shutil.copytree(tokenizer, built, dirs_exist_ok=True)
            if out.exists():
                out.rmdir()
            built.rename(out)
    except OSError as error:
        raise InputError("out", str(out), f"cannot be written: {error.strerror or error}") from None
    return out


def _weights(source: Path) -> dict[str, torch.Tensor]:
    """The fp32 weights of a checkpoint by name: where it was trained in 16 bit, their master copy."""
    if universal.read_map(source, "run"):
        saved = universal.Saved(source, "run")
        weights = {name: saved.whole(name) for name in saved.names}
        if (source / universal.BUFFERS).is_file():
            weights |= load_shard(source / universal.BUFFERS, map_location="cpu")
        return weights
    if manifest.read(source, "run").plan.get("expert_parallel_size", 1) > 1:
        raise InputError("run", str(source), "has experts spread over ranks at ZeRO-0, which are not put together",
                         hint="checkpoints written at ZeRO 1, 2 and 3 are exported")  # fmt: skip
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # bars and banners
        return get_fp32_state_dict_from_zero_checkpoint(str(source.parent), tag=source.name)


def _token_ids(tokenizer: Path) -> dict[str, int | None]:
    """The ids that config.json names, of the tokenizer in a folder; none where it holds what prepares images."""
    if not (tokenizer / "tokenizer.json").is_file():
        return {}
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    ids = {name: getattr(loaded, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    start_id = json.loads((tokenizer / "tokenizer_config.json").read_text()).get("decoder_start_token_id")
    return ids | {"decoder_start_token_id": start_id}


def _load(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Every weight of the model from the checkpoint and none left over, tied ones apart."""
    found = {name.removeprefix(_WRAPPED): weight for name, weight in weights.items()}
    result = model.load_state_dict(found, strict=False)
    tied = set(model.all_tied_weights_keys)
    # Frozen, and so not in a checkpoint's map: the sinusoids, which the model has made anew.
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    missing = [name for name in result.missing_keys if name not in tied | frozen]
    if missing or result.unexpected_keys:
        raise InputError(
            "run", "checkpoint", f"does not match its model: missing {missing}, unexpected {result.unexpected_keys}"
        )
