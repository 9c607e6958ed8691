"""The command line: `scale COMMAND`. Parses and prints; the answers come from the floors below.

stdout is data, stderr is talk. Exit 0 done, 1 the answer is no, 2 wrong usage. Commands import what they need
inside, so that `scale --help` stays quick and nothing here ever loads torch by itself.
"""

import sys

import typer

from scaling.cli import (
    batch,
    calibrate,
    check,
    checkpoints,
    export,
    generate,
    hardware,
    memory,
    models,
    plan,
    report,
    validate,
)
from scaling.errors import ScaleError

app = typer.Typer(
    name="scale",
    help="Plan, configure and run large-batch Transformer training on DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts in half the time of the boxed one
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("plan")(plan.plan)
app.command("memory")(memory.memory)
app.command("models")(models.models)
app.command("hardware")(hardware.hardware)
app.command("export")(export.export)
app.command("generate")(generate.generate)
app.command("checkpoints")(checkpoints.checkpoints)
app.command("report")(report.report)
app.command("validate")(validate.validate)
app.command("calibrate")(calibrate.calibrate)
app.command("check")(check.check)
app.command("batch")(batch.batch)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from scaling import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """The console script. A ScaleError is two lines on stderr and its exit code, never a traceback."""
    try:
        app()
    except ScaleError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `scale plan | head`
        sys.stderr.close()
        sys.exit(0)
