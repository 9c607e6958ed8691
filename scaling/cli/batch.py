"""`scale batch`: what batch is worth using, and a recipe moved to another."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scaling.batch.critical import Judgement
    from scaling.batch.learning_rate import Change
    from scaling.batch.ramp import Stage
    from scaling.recipe import Recipe


def batch(
    params: Annotated[str | None, typer.Option(help="Parameters, such as 1.3B.")] = None,
    model: Annotated[str | None, typer.Option(help="A model by name, such as gpt2-xl.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, such as 26B.")] = None,
    seq_length: Annotated[int | None, typer.Option(help="Tokens per sample.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(help="The batch to judge, in samples.")] = None,
    loss: Annotated[float | None, typer.Option(help="The loss at the end in nats per token, where known.")] = None,
    noise_scale: Annotated[
        float | None, typer.Option(help="The gradient noise scale that a run measured, in samples.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run directory, for its recipe and the noise scale that it measured.")
    ] = None,
    ramp: Annotated[str | None, typer.Option(help="Also a batch that grows in the run: linear or doubling.")] = None,
    multiple_of: Annotated[
        int | None, typer.Option(help="What each batch of a ramp is a multiple of: data-parallel size x micro batch.")
    ] = None,
    to: Annotated[int | None, typer.Option(help="Move the recipe to this batch instead, in samples.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="How the rate follows: sqrt (AdamW's and LAMB's default), sqrt-betas or linear.")
    ] = None,
    warmup: Annotated[
        str | None, typer.Option(help="What the warm-up keeps: samples (AdamW's default) or steps (LAMB's).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the recipe, moved or with a linear ramp.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """What batch is worth using, by published fits; with --to, a recipe's optimizer and schedule at another batch.

    Exit 1: by every fit whose range covers the run, the batch takes more than twice the samples of the smallest.
    """
    from scaling.errors import ScaleError

    if to is not None:
        judging = dict(
            params=params, model=model, tokens=tokens, seq_length=seq_length, global_batch_size=global_batch_size,
            loss=loss, noise_scale=noise_scale, run=run, ramp=ramp, multiple_of=multiple_of,
        )  # fmt: skip
        _exclude("to", to, **judging)
        _move(recipe, to, rule, warmup, out, as_json=as_json)
    else:
        _need("recipe FILE and --to BATCH", rule=rule, warmup=warmup)
        if ramp is None:
            _need("ramp linear or --ramp doubling", multiple_of=multiple_of)
        if recipe is None or ramp != "linear":
            _need("recipe FILE, and --to BATCH or --ramp linear", out=out)
        if out is not None and multiple_of is None:
            raise ScaleError(
                "multiple_of: missing, and a recipe's ramp has to fit its ranks",
                hint="--multiple-of N, which is data-parallel size x micro batch",
            )
        measured = []
        if run is not None:
            _exclude("run", run, params=params, model=model, recipe=recipe, noise_scale=noise_scale)
            recipe, noise_scale, sentence = _measured(run)
            measured.append(sentence)
        judgement, assumptions = _judgement(
            params, model, recipe, tokens, seq_length, global_batch_size, loss=loss, noise_scale=noise_scale
        )
        said = [*measured, *assumptions]
        _judge(judgement, ramp, 1 if multiple_of is None else multiple_of, said, recipe, out, as_json=as_json)


def _exclude(field: str, value: object, **others: object) -> None:
    """Raises InputError where one of `others` was given beside `field`."""
    from scaling.errors import InputError

    for name, other in others.items():
        if other is not None:
            problem = f"and --{name.replace('_', '-')} exclude each other"
            raise InputError(field, _plain(value), problem, hint="give one of the two")


def _need(what: str, **given: object) -> None:
    """Raises InputError for the first of `given` that was given without `what`."""
    from scaling.errors import InputError

    for name, value in given.items():
        if value is not None:
            raise InputError(name, _plain(value), "has nothing to act on", hint=f"add --{what}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _measured(run: Path) -> tuple[Path, float | None, str]:
    """A run's recipe, its gradient noise scale in samples where there is one, and what is to be said of it."""
    from scaling import recipe
    from scaling.batch.noise_scale import of_run
    from scaling.errors import InputError
    from scaling.files import read_json_lines

    path, metrics = run / "recipe.yaml", run / "metrics.jsonl"
    if not (path.is_file() and metrics.is_file()):
        raise InputError("run", str(run), "is no run directory", hint="one that scale/train.py wrote to")
    try:
        found = of_run(read_json_lines(metrics, "run"))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("run", str(metrics), f"has a line that is no step's: {error!r}") from None
    if found is None:
        return path, None, f"noise scale: none in {metrics}, which takes 40 steps of more than one micro batch"
    sentence = found.sentence(recipe.load(path).data.seq_length).replace("gradient noise scale", "noise scale", 1)
    samples = found.samples if found.samples != float("inf") else found.low_samples
    return path, samples, sentence.replace(" of steps", ": steps", 1)


def _judgement(
    params: str | None, model: str | None, path: Path | None, tokens: str | None, seq_length: int | None,
    global_batch_size: int | None, *, loss: float | None, noise_scale: float | None,
) -> "tuple[Judgement, list[str]]":  # fmt: skip
    """The run and the batch that the flags mean, and what had to be assumed."""
    from scaling import course, recipe, registry
    from scaling.batch.critical import Judgement, Training
    from scaling.errors import InputError, ScaleError
    from scaling.plan import request
    from scaling.units import format_count, parse_count

    said = []
    if path is not None:
        _exclude("recipe", path, params=params, model=model, tokens=tokens, seq_length=seq_length)
        found = recipe.load(path)
        shape, seq_length = found.shape, found.data.seq_length
        num_tokens = course.num_samples(found) * seq_length
        usual, whose = found.global_batch_size, "the recipe's"
    else:
        if params is not None:
            _exclude("params", params, model=model)
            entry, sentence = registry.nearest_gpt(parse_count(params, "params"))
        elif model is not None:
            entry = registry.find(model)
            sentence = f"{entry.shape.name}, {entry.source}"
        else:
            hint = "give --params 1.3B, --model gpt2-xl or --recipe FILE"
            raise ScaleError("params: no model to judge a batch for", hint=hint)
        shape = entry.shape
        said.append(f"model: {sentence}")
        if seq_length is None:
            seq_length, whose = request.usual_length(entry)
            said.append(f"seq_length: {seq_length}, {whose}")
        elif not 1 <= seq_length <= (shape.longest_sequence or seq_length):
            longest = shape.longest_sequence
            problem = f"is not between 1 and the {longest} positions of {shape.name}" if longest else "is below 1"
            raise InputError("seq_length", seq_length, problem)
        if tokens is None:
            num_tokens = 20 * shape.num_params  # Hoffmann et al. 2022 (arXiv 2203.15556)
            said.append(f"tokens: {format_count(num_tokens)}, 20 per parameter")
        else:
            num_tokens = parse_count(tokens, "tokens")
        entry, whose_of = request.with_batch_and_rate(entry)
        usual, whose = max(1, round((entry.batch_tokens or 0) / seq_length)), whose_of["batch_tokens"]
    if global_batch_size is None:
        global_batch_size = usual
        said.append(f"global_batch_size: {usual}, {whose}")
    samples = num_tokens // seq_length
    if samples < 1:
        raise InputError("tokens", tokens, f"are less than one sample of {seq_length}", hint=f"at least {seq_length}")
    if not 1 <= global_batch_size <= samples:
        problem = f"is not between 1 and the {samples} samples of {format_count(num_tokens)} tokens"
        raise InputError(
            "global_batch_size", global_batch_size, problem, hint="give --global-batch-size, or more --tokens"
        )
    training = Training(
        shape=shape, num_tokens=num_tokens, seq_length=seq_length, given_loss=loss, noise_scale=noise_scale
    )
    if loss is None:
        whose = "" if shape.traits.kind == "decoder" else f"; of causal LMs, and this is {shape.traits.task}"
        fit = f"by the fit of Hoffmann et al. 2022 to size and tokens{whose}"
        said.append(f"loss: {training.loss:.2f} nats at the end, {fit}")
    return Judgement(training=training, batch=global_batch_size), said


def _judge(
    judgement: "Judgement", way: str | None, multiple_of: int, said: list[str], path: Path | None, out: Path | None,
    *, as_json: bool,
) -> None:  # fmt: skip
    """Prints the answer; with `out` writes the recipe in `path` with its batch growing."""
    from scaling import recipe
    from scaling.batch.ramp import Run, linear, ramp, ramped
    from scaling.cli import batch_text
    from scaling.errors import InputError

    training, growing = judgement.training, judgement.growing
    stages: tuple[Stage, ...] = ()
    growth = None
    if way is not None:
        run = Run(
            num_samples=training.num_tokens // training.seq_length,
            seq_length=training.seq_length,
            batch=judgement.batch,
            multiple_of=multiple_of,
            worthwhile_batch=growing.worthwhile_batch if growing else None,
        )
        stages = ramp(run, way)
        growth = linear(run) if way == "linear" else None
    if out is not None and path is not None:
        found = recipe.load(path)
        if growth is None or judgement.batch != found.global_batch_size:
            problem = "has no batch that the linear ramp grows to"
            raise InputError("recipe", str(path), problem, hint="a larger global_batch_size in the recipe, or --to")
        _write(*ramped(found, growth), "with a batch that grows", path, out)
    if as_json:
        document = batch_text.ramp_document(way, stages, growth) if way else None
        print(json.dumps(batch_text.judgement_document(judgement, document, said), indent=2))
    else:
        batch_text.show_judgement(judgement, way, stages, growth, said, out)
    if not judgement.is_worth_using:
        raise typer.Exit(1)


def _move(path: Path | None, to: int, rule: str | None, warmup: str | None, out: Path | None, *, as_json: bool) -> None:
    from scaling import recipe
    from scaling.batch.learning_rate import scaled
    from scaling.cli import batch_text
    from scaling.errors import ScaleError

    if path is None:
        raise ScaleError("recipe: no recipe to move", hint="give --recipe FILE")
    moved = scaled(recipe.load(path), to, rule=rule, warmup=warmup)
    if out is not None:
        _write(moved.recipe, moved.changes, "moved to another batch", path, out)
    if as_json:
        print(json.dumps(batch_text.scaled_document(moved), indent=2))
    else:
        batch_text.show_scaled(moved, out)


def _write(moved: "Recipe", changes: "Sequence[Change]", how: str, source: Path, out: Path) -> None:
    """Writes the recipe to `out` under a comment of what moved. Raises InputError where it may not."""
    from scaling import recipe
    from scaling.cli.batch_text import value
    from scaling.errors import InputError
    from scaling.files import write_folder

    if os.path.isdir(out):  # False, not an error, for a name too long
        raise InputError("out", str(out), "is a folder", hint=f"name a file, such as {out / 'recipe.yaml'}")
    if out.resolve() == source.resolve():
        raise InputError("out", str(out), "is the recipe itself", hint="its comments would be lost: name another file")
    head = [f"# {source.name}, {how}, by `scale batch`:"]
    head += [f"# {each.field}: {value(each.before)} -> {value(each.after)}, {each.rule}" for each in changes]
    write_folder(out.parent, {out.name: "\n".join(head) + "\n" + recipe.dump(moved)}, "out")
