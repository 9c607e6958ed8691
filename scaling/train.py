"""`deepspeed scale/train.py --ds_config FILE`: parse, assemble, run. Also under torchrun and `python -m scaling.train`.

Flags take underscores, as DeepSpeed's launcher does. Everything about the user's input is checked before torch is
imported, so a mistake costs a second and not a minute.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from scaling import cost, ds_config, hardware, registry
from scaling import recipe as recipes
from scaling.errors import InputError, ScaleError, Stopped
from scaling.files import read_text, write_folder
from scaling.recipe import Recipe
from scaling.report import comparison, table
from scaling.strategy import Checkpointing, LossKernel, Strategy
from scaling.training import tracking

if TYPE_CHECKING:
    from scaling.data import Corpus
    from scaling.training.progress import Talk
    from scaling.training.ranks import Ranks
    from scaling.training.signals import StopRequest
    from scaling.training.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line means. `plan` is the plan.json beside the ds_config, where there is one."""

    config: dict[str, Any]
    config_path: Path
    recipe: Recipe
    recipe_path: Path
    plan: dict[str, Any] | None
    run_dir: Path
    resume: str
    max_steps: int | None
    loss_kernel: LossKernel
    activation_checkpointing: Checkpointing | None  # None: the ds_config's
    world_size: int
    patience_s: float | None
    save_in_background: bool
    track: tuple[str, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains; one message, from the first rank, where it cannot or stops early.

    Exit codes: 0 done, 2 the input is wrong, 75 asked to stop or bereft of a rank and saved (the same command goes on),
    76 stopped by a guard, 77 there is no checkpoint to go on from, or the last could not be written.
    """
    try:
        run(parse(argv))
    except ScaleError as error:
        stopped = isinstance(error, Stopped)
        if os.environ.get("RANK", "0") == "0" or (stopped and error.by_every_rank):
            hint = f"\nhint: {error.hint}" if error.hint else ""
            print(f"{'stopped' if stopped else 'error'}: {error.message}{hint}", file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(error.exit_code)


def parse(argv: Sequence[str] | None = None) -> Request:
    """Reads and checks everything that the command line names. Raises ScaleError."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train a recipe by a DeepSpeed configuration.")
    parser.add_argument("--ds_config", "--deepspeed_config", dest="ds_config", help="DeepSpeed's JSON file")
    parser.add_argument("--recipe", help="recipe YAML; default: the one named in the plan.json beside --ds_config")
    parser.add_argument("--model", help="a registry name, instead of the recipe's model")
    parser.add_argument("--run_dir", help="where the run lives; default: the plan's folder, or runs/NAME")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto, newest-whole (past damaged ones), never, or a run directory or checkpoint",
    )
    parser.add_argument("--max_steps", type=int, help="stop after this many steps of the recipe's schedule")
    parser.add_argument(
        "--loss_kernel", choices=get_args(LossKernel), help="full or chunked logits; default: the plan's, or full"
    )
    parser.add_argument(
        "--activation_checkpointing", choices=get_args(Checkpointing),
        help="what layers keep for their backward; default: the plan's, or full where the ds_config has the block",
    )  # fmt: skip
    parser.add_argument(
        "--save", choices=("background", "at_once"), default="background",
        help="background: copy the states, where the host has room, and write while training goes on",
    )  # fmt: skip
    parser.add_argument(
        "--patience_s", type=float, help="end the run when no rank has moved for so long; default: by its slowest step"
    )
    parser.add_argument(
        "--track", default=tracking.DEFAULT, help="beside metrics.jsonl: tensorboard, csv, wandb, trackio, or none"
    )
    parser.add_argument("--seed", type=int, help="instead of the recipe's seed")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help="set by launchers")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for launchers' sake; always on")
    args = parser.parse_args(argv)

    if args.ds_config is None:
        raise ScaleError("ds_config: --ds_config is missing", hint="`scale plan --out DIR` writes DIR/ds_config.json")
    config_path = Path(args.ds_config)
    config = ds_config.load(config_path)
    plan_path = config_path.with_name("plan.json")
    plan = _plan(plan_path) if plan_path.is_file() else None
    recipe_path = _recipe_path(args.recipe, plan, config_path)
    recipe = _with_overrides(recipes.load(recipe_path), model=args.model, seed=args.seed)
    if args.max_steps is not None and args.max_steps < 1:
        raise InputError("max_steps", args.max_steps, "must be at least 1")
    if args.patience_s is not None and not args.patience_s > 0:
        raise InputError("patience_s", args.patience_s, "must be above 0")
    planned = plan is not None
    return Request(
        config=config,
        config_path=config_path,
        recipe=recipe,
        recipe_path=recipe_path,
        plan=plan if plan and plan.get("ds_config") == config else None,
        run_dir=Path(args.run_dir or (config_path.parent if planned else Path("runs") / recipe.name)),
        resume=args.resume,
        max_steps=args.max_steps,
        loss_kernel=args.loss_kernel or ("chunked" if _planned(plan, "loss_kernel") == "chunked" else "full"),
        activation_checkpointing=args.activation_checkpointing
        or ("selective" if _planned(plan, "activation_checkpointing") == "selective" else None),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        patience_s=args.patience_s,
        save_in_background=args.save == "background",
        # Only the first rank tracks, and only there must a tracker be installed.
        track=tracking.names_of(args.track) if os.environ.get("RANK", "0") == "0" else (),
        command=(sys.argv[0], *(sys.argv[1:] if argv is None else argv)),
    )


def run(request: Request) -> None:
    """Checks what needs torch to check, joins the other ranks, and trains. Nothing is written before all is checked."""
    recipe = request.recipe
    strategy = ds_config.strategy_of(request.config, recipe, request.world_size)
    strategy = replace(
        strategy,
        loss_kernel=request.loss_kernel,
        activation_checkpointing=request.activation_checkpointing or strategy.activation_checkpointing,
    )
    config, notes = ds_config.reconcile(request.config, recipe, strategy)
    _require_kernel_of_kind(recipe, request.loss_kernel)

    from scaling import data
    from scaling.training import checkpoint, environment, ranks, run
    from scaling.training.progress import Talk
    from scaling.training.signals import StopRequest
    from scaling.training.watchdog import Watchdog

    ranks.complete_environment()
    folder = request.run_dir
    candidates = checkpoint.to_resume(folder, request.resume)
    if candidates:
        with contextlib.suppress(checkpoint.Damaged):  # of which all ranks will speak
            checkpoint.require_same_recipe(candidates[0], recipe, strategy)
    cache = Path(os.environ.get("SCALE_CACHE") or Path.home() / ".cache" / "deepspeed-scaling")
    prepared = partial(data.prepare, recipe, base=request.recipe_path.parent, cache=cache)
    # The first rank of each node builds the corpus; the others find it built when the barrier opens.
    corpus = prepared() if os.environ["LOCAL_RANK"] == "0" else None
    hint = _how_to_go_on(request, strategy)
    with StopRequest().heeded() as stop_request:
        here = ranks.join()
        watchdog = Watchdog(folder / "logs", here, request.patience_s, hint=hint)
        try:
            with watchdog, _a_lost_rank_told(here, watchdog, hint):
                fits = partial(checkpoint.require_match, recipe=recipe, strategy=strategy)
                resume_from = checkpoint.first_whole(candidates, here, fits, notes.append, watchdog.tick)
                said, problem = here.from_first(_prepared_folder, request, resume_from)
                if problem:
                    raise problem
                environment.record(folder, here, request.command)
                with run.quiet(folder / "logs" / f"rank_{here.rank}.log") as stream:
                    talk = Talk(stream, speaks=here.is_first)
                    for note in (*notes, *said):
                        talk.say(note)
                    job = _Job(here=here, talk=talk, watchdog=watchdog, stop_request=stop_request, hint=hint)
                    _train(request, strategy, config, corpus or prepared(), resume_from, job)
        finally:
            ranks.leave()


def _require_kernel_of_kind(recipe: Recipe, loss_kernel: LossKernel) -> None:
    """Raises InputError where no logits can be chunked as asked; a masked-LM head has few, and stays as it is."""
    kind = recipe.shape.traits.kind
    if loss_kernel == "chunked" and kind in ("encoder-decoder", "vision"):
        problem = f"is for decoders: a {recipe.shape.family} has logits for its targets alone"
        raise InputError("loss_kernel", loss_kernel, problem, hint="full")


def _how_to_go_on(request: Request, strategy: Strategy) -> str:
    if strategy.uses_nvme:
        return "a run with states on NVMe cannot go on: DeepSpeed 0.19.8 does not restore them"
    how = "the same command" if request.resume in ("auto", "newest-whole") else "the same command with --resume auto"
    return f"{how} goes on from the newest checkpoint in {request.run_dir / 'checkpoints'}"


@contextlib.contextmanager
def _a_lost_rank_told(here: "Ranks", watchdog: "Watchdog", hint: str) -> Iterator[None]:
    """Turns a collective that broke off because another rank is gone into one line, from each that is left."""
    from scaling.training.ranks import lost_another

    try:
        yield
    except Exception as error:
        if not lost_another(error):
            raise
        message = f"rank {here.rank}, in {watchdog.doing_now}: another rank is gone ({str(error).splitlines()[0]})"
        raise Stopped(message, exit_code=75, hint=hint, by_every_rank=True) from None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """This rank of a start of the program, and what watches over it."""

    here: "Ranks"
    talk: "Talk"
    watchdog: "Watchdog"
    stop_request: "StopRequest"
    hint: str


def _prepared_folder(request: Request, resume_from: Path | None) -> tuple[list[str], ScaleError | None]:
    """The run's folder made ready on the first rank: sentences to say, or what all ranks are to raise."""
    from scaling.training import checkpoint, run

    folder = request.run_dir
    try:
        notes = run.prepare(folder, request.recipe, _copies(request), anew=request.resume == "never")
        return notes + (checkpoint.set_aside_after(folder / "checkpoints", resume_from) if resume_from else []), None
    except ScaleError as error:
        return [], error
    except OSError as error:
        return [], InputError("run_dir", str(folder), f"cannot be written: {error.strerror}")


def _train(
    request: Request,
    strategy: Strategy,
    config: dict[str, Any],
    corpus: "Corpus",
    resume_from: Path | None,
    job: _Job,
) -> None:
    from scaling.training import checkpoint
    from scaling.training.engine import make_engine
    from scaling.training.guards import Judge
    from scaling.training.loop import Training
    from scaling.training.memory import MemoryGauge
    from scaling.training.noise_scale import GradientNoise
    from scaling.training.run import read_metrics
    from scaling.training.watch import Watch

    here, talk, watchdog = job.here, job.talk, job.watchdog
    recipe, shape, folder = request.recipe, request.recipe.shape, request.run_dir
    engine = make_engine(recipe, config, strategy, resumes=resume_from is not None, say=talk.say)
    judge, step, relaid = Judge(recipe.guards), 0, ""
    if resume_from:
        reached, relaid = checkpoint.load(engine, resume_from, strategy)
        step, judge.recent_losses, judge.rollbacks = reached.step, reached.recent_losses, reached.rollbacks
        judge.skipped_in_a_row = reached.skipped_in_a_row
    stop = min(recipe.num_steps, request.max_steps or recipe.num_steps)
    talk.say(f"{recipe.name}: {shape.name}, {shape.num_params:,} parameters, {recipe.precision}; {strategy}")
    talk.say(strategy.batch_equation)
    for field, growth in (("batch_ramp", recipe.batch_ramp), ("data.curriculum", recipe.data.curriculum)):
        if growth:
            talk.say(f"{field}: from {growth.start} by {growth.increment} over {growth.samples:,} samples")
    talk.say(f"corpus: {corpus}")
    talk.say(f"resumed from {resume_from} at step {step}" if resume_from else "starting at step 0")
    if relaid:
        talk.say(f"{relaid}, weights and states bit for bit")
    if step >= stop:
        talk.say(f"already at step {step} of {stop}: nothing to do")
        return
    metrics: tracking.Tracking | None = None
    predicted: dict[str, float] = {}
    gauge = MemoryGauge(here.device)

    def begun() -> ScaleError | None:
        nonlocal metrics, predicted
        asked = recipe.model_dump(mode="json")
        tracked = tracking.Run(folder=folder, name=recipe.name, config=asked, resumed_step=step)
        try:
            shutil.copytree(corpus.preprocessor_dir, folder / "tokenizer", dirs_exist_ok=True)
            metrics = tracking.Tracking(tracked, request.track, talk.say)
        except ScaleError as error:
            return error
        except OSError as error:
            return InputError("run_dir", str(folder), f"cannot be written: {error}")
        predicted = _prediction(request, strategy, here)
        return None

    if problem := here.from_first(begun):
        raise problem
    watch = Watch(recipe, here, engine, gauge, predicted)
    if here.is_first:
        talk.say(str(watch))
    saver = checkpoint.Saver(
        engine, folder / "checkpoints", recipe, strategy, here,
        in_background=request.save_in_background, say=talk.say, tick=watchdog.tick,
    )  # fmt: skip
    training = Training(
        recipe=recipe, strategy=strategy, ranks=here, engine=engine, corpus=corpus, folder=folder, talk=talk,
        metrics=metrics, gauge=gauge, noise=GradientNoise(engine, strategy, here.device), watch=watch, saver=saver,
        judge=judge, watchdog=watchdog, request=job.stop_request, hint=job.hint, step=step, stop_step=stop,
    )  # fmt: skip
    try:
        training.run()
    finally:
        if metrics:
            metrics.close()
    if here.is_first:
        measured = training.measured()
        if request.plan is None:
            measured = {name: {**entry, "predicted": predicted.get(name)} for name, entry in measured.items()}
        write_folder(folder, {"measured.json": json.dumps(measured, indent=2) + "\n"}, "run_dir")
        talk.say(table(comparison(folder)))
        talk.say(training.noise.report(read_metrics(folder / "metrics.jsonl"), recipe.data.seq_length))


def _prediction(request: Request, strategy: Strategy, here: "Ranks") -> dict[str, float]:
    """What the plan says of this run; without one the estimator, for this machine; nothing of a GPU unknown to it."""
    if request.plan:
        plan = request.plan
        found = {
            "peak_allocated_bytes": plan.get("memory", {}).get("peak_allocated_bytes"),
            "tokens_per_second": plan.get("time", {}).get("tokens_per_second"),
        }
        return {name: value for name, value in found.items() if value is not None}
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or here.world_size)
    nodes = here.world_size // per_node
    try:
        cluster, _ = hardware.cluster_of("cpu" if here.on_cpu else None, per_node, nodes, None, None)
    except ScaleError:
        return {}
    job = cost.Job.of(request.recipe)
    return {
        "peak_allocated_bytes": cost.memory(job, strategy, cluster).peak_allocated_bytes,
        "tokens_per_second": cost.step_time(job, strategy, cluster).tokens_per_second,
    }


def _copies(request: Request) -> dict[str, str]:
    """The files that a run keeps of what was asked for."""
    copies = {"ds_config.json": read_text(request.config_path, "ds_config")}
    if request.plan:
        copies["plan.json"] = json.dumps(request.plan, indent=2) + "\n"
    return copies


def _plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(read_text(path, "plan"))
    except json.JSONDecodeError as error:
        raise InputError(
            "plan", str(path), f"is not JSON: {error.msg}", hint="write it anew with `scale plan`"
        ) from None
    if not isinstance(plan, dict):
        raise InputError("plan", str(path), "is not a JSON object", hint="write it anew with `scale plan`")
    return plan


def _planned(plan: dict[str, Any] | None, choice: str) -> Any:
    """What the plan's strategy chose, where no key of a ds_config can carry it: DeepSpeed has none of its own."""
    strategy = plan.get("strategy") if plan else None
    return strategy.get(choice) if isinstance(strategy, dict) else None


def _recipe_path(asked: str | None, plan: dict[str, Any] | None, config_path: Path) -> Path:
    if asked is not None:
        return Path(asked)
    if plan and isinstance(plan.get("recipe"), str):
        return config_path.parent / plan["recipe"]
    raise ScaleError(
        f"recipe: --recipe is missing, and no plan.json beside {config_path} names one",
        hint="give --recipe recipes/gpt_demo.yaml, or a ds_config written by `scale plan`",
    )


def _with_overrides(recipe: Recipe, *, model: str | None, seed: int | None) -> Recipe:
    changes: dict[str, Any] = {}
    if model is not None:
        registry.find(model)
        changes["model"] = model
    if seed is not None:
        if not 0 <= seed < 2**31:
            raise InputError("seed", seed, "must be between 0 and 2^31 - 1")
        changes["seed"] = seed
    return recipes.changed(recipe, changes)


if __name__ == "__main__":
    main()
