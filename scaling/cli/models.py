"""`scale models`: the models that a plan can be for, with the source of every size."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scaling.registry import Entry
    from scaling.shape import Shape


def models(
    name: Annotated[
        str | None, typer.Argument(help="One of them, such as llama-3-8b; or hf:PATH, or my_model.py:build.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Those of one family: gpt2, llama, t5, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, in parameters, FLOPs and bytes.")] = False,
) -> None:
    """The known models, or all that is known of one."""
    from scaling import registry
    from scaling.errors import InputError, did_you_mean
    from scaling.family import FAMILIES

    if name is not None and family is not None:
        raise InputError("family", family, "goes with no name", hint="give one of the two")
    if name is not None:
        entry = registry.find(name)
        print(json.dumps(_document(entry), indent=2)) if as_json else _show(entry)
        return
    if family is not None and family not in FAMILIES:
        raise InputError("family", family, "is not a known family", hint=did_you_mean(family, FAMILIES))
    entries = [entry for entry in registry.known().values() if family in (None, entry.shape.family)]
    if as_json:
        print(json.dumps({entry.shape.name: _document(entry) for entry in entries}, indent=2))
    else:
        _show_all(entries)


def _show_all(entries: "list[Entry]") -> None:
    """One line each, in plain text: narrow enough for 80 columns, and for grep."""
    from scaling.units import format_count

    head = ("", "family", "params", "layers", "width", "heads", "context", "batch", "lr")
    lines = [head] + [
        (
            (shape := entry.shape).name,
            shape.family,
            format_count(shape.num_params),
            _layers(shape),
            str(shape.hidden_size),
            _heads(shape),
            str(shape.max_position_embeddings),
            format_count(entry.batch_tokens) if entry.batch_tokens else "-",
            f"{entry.lr:.2g}" if entry.lr else "-",
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print(" ".join(cells))
    print("\nlayers: of encoder + decoder. heads: of queries / of keys. batch: tokens a step; lr: Adam's peak, as")
    print("published. `scale models NAME` shows one and its sources; hf:PATH and my_model.py:build are models, too.")


def _layers(shape: "Shape") -> str:
    return f"{shape.num_layers}+{shape.num_decoder_layers}" if shape.num_decoder_layers else str(shape.num_layers)


def _heads(shape: "Shape") -> str:
    grouped = shape.num_key_value_heads != shape.num_attention_heads
    return str(shape.num_attention_heads) + (f"/{shape.num_key_value_heads}" if grouped else "")


def _document(entry: "Entry") -> dict[str, Any]:
    """All that is known of a model, as `scale models NAME --json` prints it."""
    from dataclasses import asdict

    from scaling.parallelism import PARALLELISMS
    from scaling.plan.request import usual_length

    shape = entry.shape
    length, _ = usual_length(entry)
    kinds = {
        kind: {"runs": not reason, "reason": reason, "sizes": [] if reason else _sizes(shape, kind, length)}
        for kind, reason in vars(PARALLELISMS[shape.family]).items()
    }
    return {
        "name": shape.name,
        "family": shape.family,
        "task": shape.traits.task,
        "shape": {**asdict(shape), "settings": shape.all_settings},
        "num_params": shape.num_params,
        "params_by_part": shape.params_by_part,
        "trained_params": shape.num_params - shape.untrained_params,
        "active_params": shape.active_params,
        "seq_length": length,
        "flops_per_token": shape.flops_per_token(length),
        "model_states_bytes": _states(shape),
        "parallelism": kinds,
        "batch_tokens": entry.batch_tokens,
        "lr": entry.lr,
        "source": entry.source,
        "family_source": shape.traits.source,
        "licence": entry.licence,
        "note": entry.note,
        "weights": str(entry.weights) if entry.weights else None,
    }


def _sizes(shape: "Shape", kind: str, seq_length: int) -> list[int]:
    """The sizes above one, up to 64, by which a model divides."""
    from scaling.parallelism import indivisible

    return [size for size in range(2, 65) if not indivisible(kind, size, shape, seq_length)[0]]


# (precision, optimizer) whose states `scale models NAME` shows, and the ranks over which ZeRO divides them.
_STATES = (("bf16", "adamw"), ("fp32", "adamw"), ("bf16", "lion"))
_RANKS = 8


def _states(shape: "Shape") -> list[dict[str, Any]]:
    """Parameters, gradients and optimizer states in bytes on a rank, by ZeRO stage over _RANKS ranks."""
    from scaling.cost.job import Job
    from scaling.cost.model_states import held_parameters, model_states
    from scaling.strategy import Strategy

    found = []
    for precision, optimizer in _STATES:
        job = Job(shape=shape, seq_length=1, precision=precision, optimizer=optimizer)  # type: ignore[arg-type]
        stages = []
        for stage in range(4):
            strategy = Strategy(
                zero_stage=stage, offload_optimizer="none", data_parallel_size=_RANKS, micro_batch_size=1,
                gradient_accumulation_steps=1, activation_checkpointing="none", reduce_bucket_size=2,
                allgather_bucket_size=2,
            )  # fmt: skip
            stages.append(sum(model_states(job, strategy, *held_parameters(job, strategy))))
        found.append({
            "precision": precision, "optimizer": optimizer, "bytes_per_param": stages[0] / shape.num_params,
            "ranks": _RANKS, "bytes_by_zero_stage": stages,
        })  # fmt: skip
    return found


def _show(entry: "Entry") -> None:
    from scaling.units import GIB, format_count

    known, shape = _document(entry), entry.shape
    print(f"{shape.name}: a {shape.family}, trained as {shape.traits.task}")
    rows: list[tuple[str, str]] = [
        ("source", entry.source), ("family", shape.traits.source), ("licence", entry.licence),
        ("note", entry.note), ("weights", known["weights"] or ""),
        ("layers", _layers(shape)), ("hidden_size", str(shape.hidden_size)), ("heads", _heads(shape)),
        ("head_dim", str(shape.head_dim)),
        ("intermediate_size", f"{shape.intermediate_size}{', gated' if shape.gated_mlp else ''}"),
        ("experts", f"{shape.experts_per_token} of {shape.num_experts}" if shape.num_experts > 1 else ""),
        ("vocab_size", f"{shape.vocab_size}{'' if shape.tied_embeddings else ', a head of its own'}"),
        ("context", str(shape.max_position_embeddings)),
        ("settings", ", ".join(f"{key.split('.', 1)[-1]} {value}" for key, value in shape.settings)),
        ("batch_tokens", format_count(entry.batch_tokens) if entry.batch_tokens else "not published"),
        ("lr", f"{entry.lr:g}" if entry.lr else "not published for Adam"),
        ("parameters", f"{shape.num_params:,}"),
    ]  # fmt: skip
    rows += [(f"  {part}", f"{number:,}") for part, number in known["params_by_part"].items()]
    if shape.untrained_params:
        rows.append(("  trained", f"{known['trained_params']:,}"))
    if shape.num_experts > 1:
        rows.append(("  a token meets", f"{shape.active_params:,}"))
    rows.append(("FLOPs per token", f"{known['flops_per_token']:.4g} at {known['seq_length']} tokens"))
    for row in known["model_states_bytes"]:
        each = " / ".join(f"{size / GIB:.1f}" for size in row["bytes_by_zero_stage"])
        name = f"{row['precision']}, {row['optimizer']}"
        rows.append(
            (name, f"{row['bytes_per_param']:.0f} bytes each: {each} GiB at ZeRO 0 / 1 / 2 / 3 on {_RANKS} ranks")
        )
    for kind, how in known["parallelism"].items():
        sizes = ", ".join(map(str, how["sizes"])) or "no size above 1"
        rows.append((f"{kind} parallel", sizes if how["runs"] else f"no: {how['reason']}"))
    for key, text in rows:
        if text:
            print(f"  {key:<20} {text}")
