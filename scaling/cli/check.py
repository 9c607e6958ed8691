"""`scale check`: what is wrong with a ds_config, what DeepSpeed would do with it, and what to write instead."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scaling.ds_config.check import Context, Document, Finding


class Trainer(StrEnum):
    NONE = "none"
    HF = "hf"
    ACCELERATE = "accelerate"


def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", help="ds_configs, ours or not.")] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="Ranks of the run.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of `scale plan`, for its heads.")] = None,
    gpu: Annotated[str | None, typer.Option(help="An accelerator of `scale hardware`.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="What the script passes to initialize(): adamw, lamb, ...; none if nothing.")
    ] = None,
    deepspeed_version: Annotated[str | None, typer.Option(help="The release that will read the file.")] = None,
    trainer: Annotated[
        Trainer, typer.Option(help='Who fills "auto" in before: transformers\' Trainer (hf), accelerate, or nobody.')
    ] = Trainer.NONE,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what has one right answer; the old file stays beside it as FILE.bak.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="With --fix: show the changes and write nothing.")] = False,
    explain: Annotated[str | None, typer.Option(metavar="RULE", help="All about one rule, such as SZ005.")] = None,
) -> None:
    """What is wrong, what DeepSpeed would do with it, and what to write instead. Exit 1 where there is an error."""
    from scaling.errors import InputError, ScaleError

    if explain is not None:
        _explain(explain)
        return
    if not files:
        raise ScaleError("FILE: none given", hint="scale check ds_config.json")
    if diff and not fix:
        raise InputError("diff", True, "shows what --fix would do", hint="--fix --diff")
    context = _context(world_size, model, gpu, optimizer, deepspeed_version, trainer)
    reports = [_report(path, context, fix=fix, write=not diff) for path in files]
    if as_json:
        print(json.dumps({"deepspeed_version": context.deepspeed_version, "files": reports}, indent=2))
    else:
        for report in reports:
            _show(report, context, diff=diff)
        _sum_up(reports, diff=diff)
    if any("problem" in report for report in reports):
        raise typer.Exit(2)
    if any(finding["severity"] == "error" for report in reports for finding in report["findings"]):
        raise typer.Exit(1)


def _context(
    world_size: int | None, model: str | None, gpu: str | None, optimizer: str | None, release: str | None, trainer: str
) -> "Context":
    from scaling import hardware, registry
    from scaling.ds_config.check import Context
    from scaling.ds_config.check.version import LATEST
    from scaling.ds_config.check.version import release as known_release

    return Context(
        world_size=world_size,
        model=registry.find(model).shape if model else None,
        gpu=hardware.find_accelerator(gpu) if gpu else None,
        optimizer=optimizer or None,
        deepspeed_version=known_release(release) if release else LATEST,
        trainer=str(trainer),  # type: ignore[arg-type]  # the enum's values are the literals
    )


def _report(path: Path, context: "Context", *, fix: bool, write: bool) -> dict[str, Any]:
    """One file's findings; what was mended, if asked; or the problem that kept it from being read."""
    from scaling.ds_config.check import SyntaxProblem, apply, mended, read_object
    from scaling.ds_config.check.reader import line_starts, place
    from scaling.errors import ScaleError
    from scaling.files import read_text

    report: dict[str, Any] = {"file": str(path), "findings": []}
    text = ""
    try:
        text = read_text(path, "ds_config")
        if fix:
            after, done = mended(text, context)
            report["mended"] = [finding.rule.id for finding in done]
            if after != text:
                report["diff"] = _diff(path, text, after)
                if write:
                    report["backup"] = _write(path, text, after)
                    text = after
        document = read_object(text)
        report["findings"] = [_row(finding, document) for finding in apply(document, context)]
    except SyntaxProblem as problem:
        line, column = place(line_starts(text), problem.offset)
        report |= {"problem": problem.problem, "line": line, "column": column, "hint": problem.mend}
    except ScaleError as error:
        report |= {"problem": error.message, "hint": error.hint}
    return report


def _row(finding: "Finding", document: "Document") -> dict[str, Any]:
    from scaling.ds_config.check import spelt

    return {
        "rule": finding.rule.id,
        "severity": finding.severity.word,
        "path": spelt(finding.path),
        "line": finding.line,
        "column": finding.column,
        "message": finding.says,
        "outcome": str(finding.outcome),
        "deepspeed": finding.does,
        "write": finding.mend,
        "fixable": bool(finding.edits),
    }


def _diff(path: Path, before: str, after: str) -> str:
    from difflib import unified_diff

    lines = unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), f"{path} (mended)"
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _write(path: Path, before: str, after: str) -> str:
    """The mended text in the file's place and the old one beside it, both or neither; the name of the latter."""
    from scaling.files import write_folder

    real = path.resolve()  # the file that a link names
    mode = real.stat().st_mode & 0o7777
    backup = real.with_name(real.name + ".bak")
    number = 1
    while backup.exists():
        number += 1
        backup = real.with_name(f"{real.name}.bak{number}")
    write_folder(real.parent, {backup.name: before, real.name: after}, "FILE")
    for written in (real, backup):
        written.chmod(mode)
    return str(backup)


def _show(report: dict[str, Any], context: "Context", *, diff: bool) -> None:
    if "problem" in report:
        place = f":{report['line']}:{report['column']}" if "line" in report else ""
        print(f"{report['file']}{place}: {report['problem']}", file=sys.stderr)
        if report["hint"]:
            print(f"hint: {report['hint']}", file=sys.stderr)
        return
    if diff:
        print(report.get("diff", ""), end="")
        return
    if report.get("backup"):
        print(f"{report['file']}: mended {', '.join(report['mended'])}; the old file is {report['backup']}")
    for row in report["findings"]:
        where = f"{report['file']}:{row['line']}:{row['column']}"
        subject = f" {row['path']}" if row["path"] else ""
        print(f"{where}: {row['severity']} {row['rule']}{subject}: {row['message']}")
        print(f"    DeepSpeed {context.deepspeed_version} {row['outcome']}: {row['deepspeed']}")
        label = "" if row["write"].endswith("?") else "write: "
        print(f"    {label}{row['write']}" + ("  [--fix]" if row["fixable"] else ""))


def _sum_up(reports: list[dict[str, Any]], *, diff: bool) -> None:
    rows = [row for report in reports for row in report["findings"]]
    counts = [(sum(row["severity"] == word for row in rows), word) for word in ("error", "warning", "note")]
    words = (
        ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts if count) or "nothing to say"
    )
    fixable = sum(row["fixable"] for row in rows)
    hint = f"; {fixable} with one right answer: --fix" if fixable and not diff else ""
    read = sum("problem" not in report for report in reports)
    print(f"{words} in {read} file{'s' if read != 1 else ''}{hint}", file=sys.stderr)


def _explain(name: str) -> None:
    from scaling.ds_config.check import RULES, page
    from scaling.errors import InputError, did_you_mean

    if name.upper() not in RULES:
        raise InputError("explain", name, "is no rule", hint=did_you_mean(name.upper(), RULES))
    print(page.explained(RULES[name.upper()]))
