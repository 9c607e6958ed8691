"""What a recipe may say: its fields, what each means, and which of them go together.

A recipe fixes model, data, task, global batch, optimizer, schedule and precision; nothing in it depends on the
machine. Where a plan and a recipe meet, the recipe's numbers win or the run is refused.
"""

from collections.abc import Mapping
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from scaling import registry
from scaling.errors import InputError
from scaling.family import FAMILIES, Task
from scaling.recipe.spans import Spans, spans_of
from scaling.shape import Shape

EMBEDDED_CORPUS = "embedded:docstrings"
EMBEDDED_IMAGES = "embedded:glyphs"
RANDOM_WEIGHTS = "random"
_MOST_INCREMENTS = 10_000  # of a batch or a length: they are kept as a table


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _known_family(value: str) -> str:
    if value not in FAMILIES:
        raise InputError("model.family", value, f"is not one of {', '.join(FAMILIES)}")
    return value


class Model(_Strict):
    """The dimensions of a model that no registry row has; the fields of `Shape`."""

    name: str
    family: Annotated[str, AfterValidator(_known_family)]
    num_layers: Positive
    hidden_size: Positive
    num_attention_heads: Positive
    intermediate_size: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    num_decoder_layers: Positive | None = None
    num_key_value_heads: Annotated[int, Field(ge=0)] = 0
    explicit_head_dim: Positive | None = None
    num_experts: Positive = 1
    experts_per_token: Positive = 1
    gated_mlp: bool | None = None
    tied_embeddings: bool | None = None
    image_size: Annotated[int, Field(ge=0)] = 0
    patch_size: Annotated[int, Field(ge=0)] = 0
    num_channels: Annotated[int, Field(ge=0)] = 0
    settings: dict[str, str | int | float | bool] = {}

    @model_validator(mode="after")
    def _buildable(self) -> "Model":
        self.shape.require_buildable()
        return self

    @property
    def shape(self) -> Shape:
        return Shape(**{**self.model_dump(), "settings": tuple(self.settings.items())})


def _known_model(value: str | Model) -> str | Model:
    if isinstance(value, str):
        registry.find(value)
        return registry.absolute(value)
    return value


class Growth(_Strict):
    """What grows with the samples seen: from `start` by equal `increment`s, to its end once `samples` were.

    Each value holds for the same number of samples, as by Megatron-LM's --rampup-batch-size START INCREMENT SAMPLES;
    scaling/course.py has the arithmetic.
    """

    start: Positive
    increment: Positive
    samples: Positive


class Data(_Strict):
    """What is trained on, and how it becomes samples of `seq_length` tokens.

    Text: `corpus` lists UTF-8 files, relative to the recipe, or "embedded:docstrings", the docstrings and language
    topics of the running Python; it is one document stream, packed. `masking_fraction` is the share of tokens that a
    masked LM predicts, and that span corruption takes out in spans of `mean_span_length` on average; there `seq_length`
    is the encoder's, and the decoder's follows (scaling/recipe/spans.py). With a `curriculum` a sample is cut to its
    first tokens, ever more until all are taken (Li, Zhang & He 2022, arXiv 2108.06084).

    Images: `corpus` lists .npz files with `images`, uint8 of [N, H, W, C], and `labels`, integers of [N], or
    "embedded:glyphs", digits drawn by code. A token is a position of the model, a patch or the class token, and
    `seq_length` their number.
    """

    corpus: Annotated[list[str], Field(min_length=1)]
    seq_length: Positive
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    masking_fraction: Fraction = 0.15
    mean_span_length: Annotated[float, Field(ge=1)] = 3.0
    curriculum: Growth | None = None  # of the tokens taken of a sample


def _in_order(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise InputError("optimizer.trust_clip", bounds, "has its bounds the wrong way round")
    return bounds


Bounds = Annotated[list[NonNegative], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


Above0 = Annotated[float, Field(gt=0)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class _Optimizer(_Strict):
    """What all have: `lr` at its peak, and the decay of matrices. Biases and norms are never decayed."""

    lr: Above0
    weight_decay: NonNegative


class AdamW(_Optimizer):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    betas: Betas
    eps: Above0


class Lamb(_Optimizer):
    """LAMB (You et al. 2020), exact under every plan.

    The last four are what implementations disagree about; the defaults are the paper's. `scaling/optim/lamb.py` lists
    what Google's, NVIDIA's and DeepSpeed's do.
    """

    name: Literal["lamb"]
    betas: Betas
    eps: Above0
    bias_correction: Literal["moments", "step", "none"] = "moments"
    trust_clip: Bounds | None = None  # of the trust ratio
    always_adapt: bool = False  # biases and norms take a trust ratio too, instead of 1
    normalize_gradients: bool = False  # to a global norm of 1, before the moments


class Lars(_Optimizer):
    """LARS (You, Gitman & Ginsburg 2017), exact under every plan. Biases and norms take SGD's step with momentum."""

    name: Literal["lars"]
    momentum: Fraction
    trust_coefficient: Above0


class Lans(_Optimizer):
    """LANS (Zheng et al. 2020), exact under every plan. It divides each gradient by its tensor's norm."""

    name: Literal["lans"]
    betas: Betas
    eps: Above0


class Lion(_Optimizer):
    """Lion (Chen et al. 2023): the sign of an average of gradients. A kernel of DeepSpeed's, for GPUs or offloaded."""

    name: Literal["lion"]
    betas: Betas


class Muon(_Optimizer):
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW at `adam_lr` for embeddings, biases and norms.

    A matrix's step is `lr` x sqrt(max(1, outputs / inputs)) long in each direction, with Nesterov's momentum.
    """

    name: Literal["muon"]
    momentum: Fraction
    adam_lr: Above0
    adam_betas: Betas
    adam_eps: Above0


class Adafactor(_Optimizer):
    """Adafactor (Shazeer & Stern 2018) without momentum, on whole tensors only: at stage 0.

    The step is relative to the tensor: at most the smaller of `lr` and 1 / sqrt(step), times its root mean square or
    the second of `eps` if that is larger. The defaults are the paper's (section 9).
    """

    name: Literal["adafactor"]
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    eps: Annotated[list[Above0], Field(min_length=2, max_length=2)] = [1e-30, 1e-3]
    clipping_threshold: Annotated[float, Field(ge=1)] = 1.0  # of an update's root mean square


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum. The decay is part of the gradient."""

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Sgd":
        if self.nesterov and not self.momentum:
            raise InputError("optimizer.nesterov", True, "needs a momentum above 0")
        return self


Optimizer = Annotated[AdamW | Lamb | Lars | Lans | Lion | Muon | Adafactor | Sgd, Field(discriminator="name")]


class _Schedule(_Strict):
    """What all have: a linear warm-up from zero, which reaches the optimizer's `lr` at step `warmup_steps`."""

    warmup_steps: Annotated[int, Field(ge=0)]


class _Decay(_Schedule):
    """Down to `min_lr_fraction` of the peak at the last step."""

    min_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0


class Constant(_Schedule):
    name: Literal["constant"]


class Linear(_Decay):
    name: Literal["linear"]


class Cosine(_Decay):
    """Half a cosine (Loshchilov & Hutter 2017), without restarts."""

    name: Literal["cosine"]


class Polynomial(_Decay):
    """(1 - progress)^power. BERT's and NVIDIA's count progress from the start of the run, not from the warm-up's end.

    So the rate drops as the warm-up ends: with NVIDIA's 28 % of warm-up and power 0.5 from 6e-3 to 5.08e-3
    (DeepLearningExamples, PyTorch/LanguageModeling/BERT/schedulers.py, PolyWarmUpScheduler).
    """

    name: Literal["polynomial"]
    power: Above0
    decay_from: Literal["warmup", "start"] = "warmup"


class InverseSqrt(_Schedule):
    """The peak x sqrt(warm-up / samples seen) (Vaswani et al. 2017, 5.3), whatever the length of the run."""

    name: Literal["inverse-sqrt"]
    warmup_steps: Positive


class WarmupStableDecay(_Decay):
    """The peak until the last `decay_steps` (Hu et al. 2024, MiniCPM), which go with 1 - sqrt(progress).

    Haegele et al. 2024 (arXiv 2405.18392) find that shape better than a linear one throughout.
    """

    name: Literal["warmup-stable-decay"]
    decay_steps: Positive


Schedule = Annotated[
    Constant | Linear | Cosine | Polynomial | InverseSqrt | WarmupStableDecay, Field(discriminator="name")
]


class Guards(_Strict):
    """What to do about a step that is not to be trusted, before it changes the weights.

    "skip" leaves out its update; "rollback" goes back to the newest checkpoint and leaves out every batch since, this
    one included (Chowdhery et al. 2022, PaLM, section 5.1); "stop" ends the run with exit code 76; "warn" says so and
    trains on it. `non_finite` is for a loss or gradient that is not a number, `loss_spike` for a loss more than
    `spike_deviations` above the median of the last 64: standard deviations, estimated by 1.48 times the median
    absolute deviation. After `most` skipped steps in a row, or rollbacks in the run, it stops.
    """

    non_finite: Literal["skip", "rollback", "stop"] = "skip"
    loss_spike: Literal["warn", "skip", "rollback", "stop"] = "warn"
    spike_deviations: Above0 = 10.0
    most: Positive = 5


class Recipe(_Strict):
    """One training run, machine apart. `global_batch_size` is in samples of `data.seq_length` tokens.

    With a `batch_ramp` it is the batch in the end. `num_steps` and all other steps are optimizer steps of any batch.
    `initial_weights` is what a run starts from: "random", by its seed, or a transformers directory of the same model,
    relative to the recipe, whose tokenizer is taken too. Left out, it is the model's own weights where it comes with
    some, else random.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: Annotated[str | Model, AfterValidator(_known_model)]
    task: Task
    data: Data
    global_batch_size: Positive
    batch_ramp: Growth | None = None  # of the batch
    num_steps: Positive
    optimizer: Optimizer
    schedule: Schedule
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_clipping: Annotated[float, Field(ge=0)]  # of the global norm; 0 is off
    dropout: Fraction = 0.0
    initial_weights: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    evaluate_every_steps: Positive = 100
    checkpoint_every_steps: Positive = 100
    keep_checkpoints: Positive = 3  # the newest, beside the one of the lowest validation loss
    guards: Guards = Guards()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        shape, steps = self.shape, self.schedule.warmup_steps
        wanted = shape.traits.task
        if self.task != wanted:
            raise InputError("task", self.task, f"does not fit {shape.name}, which is trained as {wanted!r}")
        longest = shape.longest_sequence
        if longest is not None and self.data.seq_length > longest:
            problem = f"is beyond the {longest} positions of {shape.name}"
            raise InputError("data.seq_length", self.data.seq_length, problem)
        if self.task in ("masked-lm", "span-corruption") and self.data.masking_fraction == 0:
            raise InputError("data.masking_fraction", 0.0, "leaves nothing to predict", hint="0.15 is BERT's and T5's")
        if self.spans and longest is not None and self.spans.target_length > longest:
            problem = f"asks for {self.spans.target_length} positions of the decoder, which has {longest}"
            raise InputError("data.masking_fraction", self.data.masking_fraction, problem, hint="0.15 is T5's")
        if self.spans and self.data.curriculum:  # where the first samples have no room for a span, too
            spans_of(self.data.curriculum.start, self.data.masking_fraction, self.data.mean_span_length)
        _require_data_of_task(self.task, self.data, shape)
        if self.gradient_clipping and isinstance(self.optimizer, Lamb) and self.optimizer.normalize_gradients:
            problem = "has no meaning where gradients are normalized"
            raise InputError("gradient_clipping", self.gradient_clipping, problem, hint="0")
        if self.gradient_clipping and isinstance(self.optimizer, Muon):
            # deepspeed 0.19.8, runtime/zero/stage_1_and_2.py step(): the norm is taken after Muon's update.
            problem = "would clip gradients at stage 0 and, from stage 1, what DeepSpeed's Muon has made of them"
            raise InputError("gradient_clipping", self.gradient_clipping, problem, hint="0")
        if steps > self.num_steps:
            raise InputError("schedule.warmup_steps", steps, f"is more than num_steps {self.num_steps}")
        if isinstance(self.schedule, WarmupStableDecay) and steps + self.schedule.decay_steps > self.num_steps:
            problem = f"is more than the {self.num_steps - steps} of {self.num_steps} steps that the warm-up leaves"
            raise InputError("schedule.decay_steps", self.schedule.decay_steps, problem)
        _require_growth("batch_ramp", self.batch_ramp, "global_batch_size", self.global_batch_size)
        _require_growth("data.curriculum", self.data.curriculum, "data.seq_length", self.data.seq_length)
        return self

    @cached_property
    def shape(self) -> Shape:
        if isinstance(self.model, str):
            return registry.find(self.model).shape
        return self.model.shape

    @property
    def tokens_per_step(self) -> int:
        """Of the largest step, which is every step where nothing grows."""
        return self.global_batch_size * self.data.seq_length

    @property
    def batch_divisor(self) -> int:
        """What the batch of every step is a multiple of, and so what micro batch x data parallel has to divide."""
        ramp = self.batch_ramp
        return gcd(ramp.start, ramp.increment) if ramp else self.global_batch_size

    @cached_property
    def spans(self) -> Spans | None:
        """What span corruption makes of a sample; None for another task."""
        if self.task != "span-corruption":
            return None
        return spans_of(self.data.seq_length, self.data.masking_fraction, self.data.mean_span_length)

    @property
    def seq_divisor(self) -> int:
        """What the length of every sample is a multiple of, and so what sequence parallel ranks have to divide."""
        curriculum = self.data.curriculum
        return gcd(curriculum.start, curriculum.increment) if curriculum else self.data.seq_length

    @property
    def predicted_fraction(self) -> float:
        """Targets per token of `data.seq_length`: logits are computed for as many."""
        match self.task:
            case "causal-lm":
                return 1.0
            case "image-classification":
                return 1 / self.data.seq_length
        return self.spans.target_length / self.data.seq_length if self.spans else self.data.masking_fraction

    @property
    def weights(self) -> Path | None:
        """The transformers directory that a run starts from; None where it starts from random weights."""
        if self.initial_weights is not None:
            return None if self.initial_weights == RANDOM_WEIGHTS else Path(self.initial_weights)
        own = getattr(registry.find(self.model), "weights", None) if isinstance(self.model, str) else None
        return Path(own) if own else None


def _require_data_of_task(task: Task, data: Data, shape: Shape) -> None:
    """Raises InputError for a corpus of another kind, and for what has no meaning with images."""
    images = [name for name in data.corpus if name == EMBEDDED_IMAGES or name.endswith(".npz")]
    if task != "image-classification":
        if images:
            raise InputError("data.corpus", images[0], f"holds images, and the task is {task}", hint=EMBEDDED_CORPUS)
        return
    for name in data.corpus:
        if name not in images:
            hint = f"list .npz files, or {EMBEDDED_IMAGES!r}"
            raise InputError("data.corpus", name, "holds no images, which the task classifies", hint=hint)
    if data.seq_length != shape.max_position_embeddings:
        problem = f"is not the {shape.max_position_embeddings} positions of {shape.name}, patches and class token"
        raise InputError("data.seq_length", data.seq_length, problem, hint=str(shape.max_position_embeddings))
    if data.curriculum:
        problem = "cuts samples short, which an image is not"
        raise InputError("data.curriculum.start", data.curriculum.start, problem, hint="leave data.curriculum out")


def _require_growth(field: str, growth: Growth | None, end_field: str, end: int) -> None:
    if growth is None:
        return
    way = end - growth.start
    if way <= 0:
        hint = f"start lower, or leave {field} out"
        raise InputError(f"{field}.start", growth.start, f"is not below {end_field} {end}", hint=hint)
    if way % growth.increment or way // growth.increment > _MOST_INCREMENTS:
        fitting = [way // number for number in range(1, _MOST_INCREMENTS + 1) if way % number == 0]
        near = {*[size for size in fitting if size < growth.increment][:1]}
        near |= {*[size for size in fitting if size > growth.increment][-1:]}
        problem = f"does not lead from {growth.start} to {end_field} {end} in up to {_MOST_INCREMENTS:,} whole steps"
        hint = f"nearest: {' and '.join(map(str, sorted(near)))}"
        raise InputError(f"{field}.increment", growth.increment, problem, hint=hint)


def model_of(shape: Shape) -> str | Model:
    """How a recipe names `shape`: by the registry where it stands there, else by its dimensions."""
    if shape.name in registry.MODELS and registry.MODELS[shape.name].shape == shape:
        return shape.name
    return Model(**{**{name: getattr(shape, name) for name in Model.model_fields}, "settings": dict(shape.settings)})


def validated(fields: Mapping[str, Any]) -> Recipe:
    """A recipe of `fields`. The first problem is an InputError: this is for flags, where each has one cause."""
    try:
        return Recipe.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from None
        raise InputError(".".join(map(str, first["loc"])), first["input"], f"is wrong: {first['msg']}") from None


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """`recipe` with other values for some of its top-level keys, validated anew."""
    return validated({**recipe.model_dump(), **changes})
