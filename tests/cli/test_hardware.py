"""`scale hardware` as a person and as a program meets it."""

import json
from pathlib import Path

import pytest

from scaling.hardware import ACCELERATORS, FIELDS

MINE = """\
h100:
  matmul_16bit_tflops: 650
  source: our nodes, capped at 500 W
h100-96gb:
  like: h100
  memory_gib: 96
"""


@pytest.fixture
def mine(scale):
    """A hardware file of one's own in the folder that `scale` runs in."""
    path = Path.cwd() / "mine.yaml"
    path.write_text(MINE)
    return path


def test_the_table_has_a_line_for_every_accelerator_and_fits_a_terminal(scale):
    code, out, err = scale("hardware")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(ACCELERATORS) + 1]] == list(ACCELERATORS)
    assert max(map(len, lines[: len(ACCELERATORS) + 1])) <= 80
    assert "cpu is measured" in out


def test_the_table_marks_what_is_assumed_and_what_lacks_bf16(scale):
    lines = {line.split()[0]: line for line in scale("hardware")[1].splitlines() if line}
    assert "271.2" in lines["a100-80gb"]
    assert "~" not in lines["a100-80gb"]
    assert "~604.8" in lines["h100-pcie"]
    assert "7 x 64" in lines["mi300x"]
    assert "v100-32gb *" in lines["v100-32gb"]
    assert "*" not in lines["a100-80gb"]


def test_one_accelerator_has_every_figure_with_its_unit_and_its_source(scale):
    code, out, err = scale("hardware", "B200")
    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert list(shown) == [field.key for field in FIELDS]
    # NVIDIA DGX B200 datasheet: 1440 GB and 64 TB/s for eight; stas00/ml-engineering for the ceiling.
    assert shown["memory_gib"].startswith("180 ")
    assert shown["memory_tb_per_s"].startswith("8 ")
    assert shown["peak_16bit_tflops"].startswith("2250 ")
    assert shown["matmul_16bit_tflops"].startswith("1745 ")
    assert shown["reported_memory_mib"].startswith("183359 ")
    assert shown["supports_bf16"].startswith("true ")
    assert shown["linked_devices"].startswith("- ")
    assert "stas00/ml-engineering" in shown["source"]
    assert "7.7 TB/s" in shown["note"]


def test_a_ceiling_that_nobody_measured_is_shown_as_assumed(scale):
    assert "assumed: nobody measured it" in scale("hardware", "l4")[1]
    assert "assumed: nobody" not in scale("hardware", "h100")[1]


def test_the_cpu_is_measured_when_asked_for(scale):
    code, out, _ = scale("hardware", "cpu")
    assert code == 0
    assert "timed on this machine" in out


def test_json_is_one_object_in_base_units(scale):
    code, out, err = scale("hardware", "a100-80gb", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == vars(ACCELERATORS["a100-80gb"])
    assert json.loads(out)["memory_bytes"] == 80 * 2**30
    assert json.loads(scale("hardware", "--json")[1]) == {name: vars(row) for name, row in ACCELERATORS.items()}


def test_rows_of_the_users_own_stand_beside_and_over_the_shipped(scale, mine, monkeypatch):
    _, out, _ = scale("hardware", "--hardware", mine)
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert " 650 " in lines["h100"]
    assert " 96 " in lines["h100-96gb"]
    assert "our nodes, capped at 500 W; else as h100: stas00" in scale("hardware", "h100", "--hardware", mine)[1]
    assert scale("hardware", "h100-96gb")[0] == 2
    monkeypatch.setenv("SCALE_HARDWARE", str(mine))
    assert json.loads(scale("hardware", "h100-96gb", "--json")[1])["memory_bytes"] == 96 * 2**30


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["h1000"], "gpu: 'h1000' is not a known accelerator", "did you mean 'h100'"),
        ([""], "gpu: '' is not a known accelerator", "known: a10, a100-40gb"),
        (["h100-96"], "'h100-96' is not a known accelerator", "'h100-96gb'"),
        (["--hardware", "none.yaml"], "hardware: 'none.yaml' does not exist", "'mine.yaml'"),
        (["--hardware", "."], "hardware: '.' is a folder", ""),
    ],
)
def test_what_is_not_known_is_exit_2_with_what_is(scale, mine, arguments, said, hint):
    arguments = [*arguments, "--hardware", mine] if arguments == ["h100-96"] else arguments
    code, out, err = scale("hardware", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert hint in err


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_wrong_file_is_exit_2_with_every_row_that_is_wrong(scale, as_json):
    Path("wrong.yaml").write_text("h100: {memroy_gib: 80}\nl40: {memory_gib: 48}\n")
    code, out, err = scale("hardware", "--hardware", "wrong.yaml", *as_json)
    assert (code, out) == (2, "")
    assert "wrong.yaml: 2 problems" in err
    assert "line 1: h100.memroy_gib: unknown key; did you mean 'memory_gib'" in err
    assert "line 2: l40: needs memory_tb_per_s" in err
