"""`scale hardware`: the accelerators that a plan can be for, with the source of every figure."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scaling.hardware import Accelerator


def hardware(
    name: Annotated[str | None, typer.Argument(help="One of them, such as h100; cpu is measured here.")] = None,
    hardware_file: Annotated[
        Path | None,
        typer.Option("--hardware", help="A YAML file with rows of yours. SCALE_HARDWARE names one for all commands."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON, in bytes, FLOP/s and bytes/s.")] = False,
) -> None:
    """The known accelerators, or all that is known of one."""
    from scaling.hardware import find_accelerator, known_accelerators

    rows = known_accelerators(hardware_file)
    row = find_accelerator(name, rows=rows) if name is not None else None
    if as_json:
        print(json.dumps(vars(row) if row else {key: vars(each) for key, each in rows.items()}, indent=2))
    elif row:
        _show(row)
    else:
        _show_all(rows)


def _show_all(rows: "dict[str, Accelerator]") -> None:
    """One line each, in plain text: wide enough for 80 columns, and for grep."""
    from scaling.units import GIB

    head = ("", "GiB", "TB/s", "TFLOP/s", "matmul", "fp8", "link GB/s", "net GB/s", "node")
    lines = [head] + [
        (
            row.name + ("" if row.supports_bf16 else " *"),
            _figure(row.memory_bytes, GIB),
            f"{row.memory_bytes_per_s / 1e12:.2f}",
            _figure(row.peak_flops_16bit, 1e12),
            ("" if row.matmul_is_measured else "~") + _figure(row.matmul_flops, 1e12),
            _figure(row.peak_flops_fp8, 1e12),
            (f"{row.mesh_links} x " if row.mesh_links > 1 else "") + _figure(row.link_bytes_per_s, 1e9),
            f"{row.network_bytes_per_s / 1e9:.1f}",
            str(row.gpus_per_node),
        )
        for row in rows.values()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *figures in lines:
        print(
            "  ".join([name.ljust(widths[0]), *(f.rjust(width) for f, width in zip(figures, widths[1:], strict=True))])
        )
    print("\nTFLOP/s: dense 16-bit peak. matmul: the most that anyone measured of it, ~ 80 % assumed. * fp16 only.")
    print("cpu is measured on each machine. `scale hardware NAME` shows all figures of one and their sources.")


def _show(row: "Accelerator") -> None:
    from scaling.hardware import FIELDS

    print(row.name)
    for field in FIELDS:
        value = getattr(row, field.attribute)
        about = field.about
        if field.key == "matmul_16bit_tflops" and not row.matmul_is_measured:
            about += ", assumed: nobody measured it"
        if field.kind == "text":
            if value:
                print(f"  {field.key:<20} {value}")
        else:
            print(f"  {field.key:<20} {_figure(value, field.scale):<10} {about}")


def _figure(value: float | None, scale: float) -> str:
    """A value in the unit that its key ends with."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value / scale:.0f}" if value % scale == 0 else f"{value / scale:.5g}"
