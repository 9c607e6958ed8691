"""From what a user typed to a whole recipe: defaults are filled in from published runs, and each one is said."""

from dataclasses import replace
from typing import Any

from scaling import course, registry
from scaling import recipe as recipes
from scaling.errors import InputError, ScaleError, did_you_mean
from scaling.hardware import Cluster
from scaling.optimizers import OPTIMIZERS, TRAINABLE, Name
from scaling.recipe import (
    EMBEDDED_CORPUS,
    EMBEDDED_IMAGES,
    Adafactor,
    AdamW,
    Cosine,
    Data,
    Lamb,
    Lion,
    Optimizer,
    Recipe,
    model_of,
)
from scaling.registry import Entry
from scaling.units import format_count, parse_count

# Hoffmann et al. 2022 (arXiv 2203.15556): compute-optimal training uses about 20 tokens per parameter.
_TOKENS_PER_PARAM = 20
# GPT-3 warms up over 375M tokens; 1 % of the steps is Pythia's rule and scales with the run.
_WARMUP_FRACTION = 0.01
# You et al. 2020 (arXiv 1904.00962), untuned LAMB for BERT-Large: from 512 to 32k sequences the rate goes with the root
# of the batch up to 5e-3, and the share of the steps that warm it up with the batch itself, up to a fifth.
_LAMB_LR, _LAMB_WARMUP_FRACTION, _LAMB_BATCH = 5e-3, 1 / 5, 32768
# Chen et al. 2023 (arXiv 2302.06675, section 5): a rate 3 to 10 times smaller than AdamW's and a decay larger by as
# much; between them, 5.
_LION_FRACTION = 1 / 5
# Optimizers for which no learning rate is published that a Transformer's size or its batch would give.
_WITHOUT_A_RULE: dict[Name, str] = {
    "lars": "published rates are for convolutional networks",
    "lans": "rates are published for BERT-Large at two batches, with a schedule of their own",
    "muon": "published rates are tuned model by model",
    "sgd": "its rate is tuned model by model",
}


def recipe_for(
    cluster: Cluster,
    *,
    params: str | None = None,
    model: str | None = None,
    seq_length: int | None = None,
    global_batch_size: int | None = None,
    tokens: str | None = None,
    precision: str | None = None,
    optimizer: str = "adamw",
    family: str | None = None,
) -> tuple[Recipe, list[str]]:
    """A recipe for a model by size or by name, and a sentence for everything that had to be assumed.

    `family` is of a model by size; GPT's unless given.
    """
    assumptions = []
    if params is None and model is None:
        raise ScaleError("params: nothing to plan for", hint="give --params 1.3B, --model gpt2-xl or --recipe FILE")
    if params is not None and model is not None:
        raise InputError("params", params, "and --model exclude each other", hint="give one of the two")
    if family is not None and params is None:
        raise InputError("family", family, "goes with a size", hint="give --params 1.3B, or leave --family out")
    if params is not None:
        entry, sentence = registry.nearest(parse_count(params, "params"), family or "gpt2")
        assumptions.append(f"model: {sentence}")
    else:
        entry = registry.find(str(model))
        assumptions.append(f"model: {entry.shape.name}, {entry.source}")
    for field, value in (("seq_length", seq_length), ("global_batch_size", global_batch_size)):
        if value is not None and value < 1:
            raise InputError(field, value, "must be at least 1")
    if entry.note:
        assumptions.append(f"model: {entry.note}")
    entry, said = with_batch_and_rate(entry)
    known = require_optimizer(optimizer)
    if precision is None and OPTIMIZERS[known].stages == (0,):
        precision = "fp32"
        assumptions.append(f"precision: fp32, since {optimizer} needs stage 0")
    elif precision is None:
        precision = "bf16" if cluster.accelerator.supports_bf16 else "fp16"
        assumptions.append(f"precision: {precision}")
    shape = entry.shape
    if seq_length is None:
        seq_length, whose = usual_length(entry)
        assumptions.append(f"seq_length: {seq_length}, {whose}")
    if global_batch_size is None:
        global_batch_size, sentence = _published_batch(entry, seq_length, cluster.world_size, said["batch_tokens"])
        assumptions.append(sentence)
    if tokens is None:
        num_tokens = _TOKENS_PER_PARAM * shape.num_params
        assumptions.append(f"tokens: {format_count(num_tokens)}, {_TOKENS_PER_PARAM} per parameter")
    else:
        num_tokens = parse_count(tokens, "tokens")
    num_steps = max(1, round(num_tokens / (global_batch_size * seq_length)))
    update, warmup_fraction, sentence = _published_optimizer(known, entry, global_batch_size, said["lr"])
    assumptions.append(sentence)
    if shape.traits.kind == "vision":
        corpus = EMBEDDED_IMAGES
        what = f"drawn on 8 to 64 pixels a side, not this model's {shape.image_size}; .npz files"
    else:
        corpus, what = EMBEDDED_CORPUS, "2 MB of Python's documentation, to try a run with; text files"
    assumptions.append(f"data: {corpus}, {what} of your own are named in the recipe")
    fields = dict(
        name=shape.name,
        # One's own stays what it was called, and keeps its weights.
        model=registry.absolute(model) if model is not None else model_of(shape),
        task=shape.traits.task,
        data=Data(corpus=[corpus], seq_length=seq_length, validation_fraction=0.05),
        global_batch_size=global_batch_size,
        num_steps=num_steps,
        optimizer=update,
        schedule=Cosine(name="cosine", warmup_steps=max(1, round(warmup_fraction * num_steps)), min_lr_fraction=0.1),
        precision=precision,
        gradient_clipping=1.0,
        evaluate_every_steps=500,
        checkpoint_every_steps=500,
    )
    return recipes.validated(fields), assumptions


def usual_length(entry: Entry) -> tuple[int, str]:
    """(tokens of a sample where nobody says how many, whose number that is)."""
    if entry.seq_length:
        return entry.seq_length, f"as published; the model's context is {entry.shape.max_position_embeddings}"
    return entry.shape.max_position_embeddings, "the model's context"


def with_batch_and_rate(entry: Entry) -> tuple[Entry, dict[str, str]]:
    """`entry` with what nobody published filled in, and for each of the two whose it is: "as published".

    GPT-3's, of the row nearest in size: no other family has both for as many sizes, nor a rule between them.
    """
    like, said = registry.nearest_gpt3(entry.shape.num_params), {}
    for field in ("batch_tokens", "lr"):
        _, derived, closest = entry.source.partition("derived in the proportions of ")
        said[field] = f"as {closest}'s" if derived else "as published"
        if getattr(entry, field) is None:
            entry = replace(entry, **{field: getattr(like, field)})
            said[field] = f"as {like.shape.name}'s by size, since none is published for {entry.shape.name}"
    return entry, said


def overridden(
    recipe: Recipe,
    *,
    seq_length: int | None = None,
    global_batch_size: int | None = None,
    tokens: str | None = None,
    precision: str | None = None,
    optimizer: str | None = None,
) -> tuple[Recipe, list[str]]:
    """`recipe` with what the command line says instead, and a sentence per change."""
    if optimizer is not None:
        require_optimizer(optimizer)
        if optimizer != recipe.optimizer.name:
            problem = f"is not the recipe's, {recipe.optimizer.name}, and needs a learning rate of its own"
            raise InputError("optimizer", optimizer, problem, hint="write it into the recipe")
    changes: dict[str, Any] = {"global_batch_size": global_batch_size, "precision": precision}
    if seq_length is not None:
        changes["data"] = {**recipe.data.model_dump(), "seq_length": seq_length}
    changes = {key: value for key, value in changes.items() if value is not None}
    if tokens is not None:
        course_of = recipes.changed(recipe, changes)
        changes["num_steps"] = course.steps_until_tokens(course_of, parse_count(tokens, "tokens"))
    said = {**changes, "seq_length": seq_length} if seq_length else changes
    sentences = [f"{key}: {value} instead of the recipe's" for key, value in said.items() if key != "data"]
    return recipes.changed(recipe, changes), sentences


def require_optimizer(name: str) -> Name:
    """The optimizer of this name. Raises InputError for one that this version cannot train with."""
    for known in TRAINABLE:
        if known == name:
            return known
    raise InputError("optimizer", name, "is none that scale/train.py has", hint=did_you_mean(name, TRAINABLE))


def _published_optimizer(name: Name, entry: Entry, batch: int, whose: str) -> tuple[Optimizer, float, str]:
    """(the optimizer, the share of the steps that warm it up, what was assumed) for `batch` sequences.

    `whose` says where the entry's rate is from. Raises InputError where nothing published says.
    """
    rate = entry.lr or 0.0  # with_batch_and_rate() has filled it in
    whose = f"{whose} for this size" if whose == "as published" else whose
    match name:
        case "adamw":
            return (
                AdamW(name="adamw", lr=rate, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1),
                _WARMUP_FRACTION,
                f"optimizer: adamw, lr {rate:g} {whose}, betas 0.9 and 0.95, weight decay 0.1",
            )
        case "lion":
            lr, decay = float(f"{rate * _LION_FRACTION:.2g}"), 0.1 / _LION_FRACTION
            return (
                Lion(name="lion", lr=lr, betas=[0.9, 0.99], weight_decay=decay),
                _WARMUP_FRACTION,
                f"optimizer: lion, lr {lr:g} and weight decay {decay:g}, a fifth and five times AdamW's, {whose}: "
                "Chen et al. 2023 say 3 to 10; betas 0.9 and 0.99",
            )
        case "adafactor":
            return (
                Adafactor(name="adafactor", lr=1e-2, weight_decay=0.0),
                _WARMUP_FRACTION,
                "optimizer: adafactor, lr 0.01 relative to each tensor, no weight decay, as Shazeer & Stern 2018 "
                "propose",
            )
        case other if other in _WITHOUT_A_RULE:
            problem = f"has no learning rate to assume: {_WITHOUT_A_RULE[other]}"
            raise InputError("optimizer", other, problem, hint="write a recipe that has one, and give --recipe FILE")
    share = min(1.0, batch / _LAMB_BATCH)
    lr, warmup = float(f"{_LAMB_LR * share**0.5:.2g}"), max(_WARMUP_FRACTION, _LAMB_WARMUP_FRACTION * share)
    return (
        Lamb(name="lamb", lr=lr, betas=[0.9, 0.999], eps=1e-6, weight_decay=0.01),
        warmup,
        f"optimizer: lamb, lr {lr:g} and {warmup:.1%} warm-up by the root rule of You et al. 2020 for BERT-Large, "
        "betas 0.9 and 0.999, weight decay 0.01",
    )


def _published_batch(entry: Entry, seq_length: int, world_size: int, whose: str) -> tuple[int, str]:
    """The published batch in sequences of `seq_length`, rounded up to whole ranks; `whose` says where it is from."""
    published = max(1, round((entry.batch_tokens or 0) / seq_length))
    batch = -(-published // world_size) * world_size
    sentence = f"global_batch_size: {batch} sequences ({format_count(batch * seq_length)} tokens), {whose}"
    if batch != published:
        sentence = f"{sentence} ({published}), rounded up to a multiple of {world_size} ranks"
    return batch, sentence
