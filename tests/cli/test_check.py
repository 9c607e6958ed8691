"""`scale check` as a user meets it: what it prints, how it leaves, what it writes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.ds_config.check import RULES, page
from tests.ds_config.check.cases import CASES
from tests.ds_config.check.reality import text

CHECKOUT = Path(__file__).resolve().parents[2]
RIGHT = '{"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0}\n'
WRONG = '{\n  "train_micro_batch_size_per_gpu": 1,\n  "zero_optimisation": {"stage": 2}\n}\n'


@pytest.fixture
def file(tmp_path):
    def write(content, name="ds_config.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_finding_says_where_what_deepspeed_does_and_what_to_write(scale, file):
    path = file(WRONG)
    code, out, err = scale("check", path)
    assert code == 1
    lines = out.splitlines()
    at = lines.index(f"{path}:3:3: error SC006 zero_optimisation: "
                     '"zero_optimisation" at the top level is no key of DeepSpeed\'s')  # fmt: skip
    assert lines[at + 1].startswith("    DeepSpeed 0.19.8 silently ignores: ")
    assert lines[at + 2] == '    did you mean "zero_optimization"?  [--fix]'
    assert err.startswith("1 error, 1 note in 1 file; 1 with one right answer: --fix")


def test_a_right_file_leaves_with_0_and_no_word_on_stdout(scale, file):
    assert scale("check", file(RIGHT))[:2] == (0, "")


def test_json_has_every_field(scale, file):
    code, out, _ = scale("check", file(WRONG), "--json")
    assert code == 1
    report = json.loads(out)
    finding = next(each for each in report["files"][0]["findings"] if each["rule"] == "SC006")
    assert finding == {
        "rule": "SC006", "severity": "error", "path": "zero_optimisation", "line": 3, "column": 3,
        "message": '"zero_optimisation" at the top level is no key of DeepSpeed\'s', "outcome": "silently ignores",
        "deepspeed": RULES["SC006"].does, "write": 'did you mean "zero_optimization"?', "fixable": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "ds_config.json:1:1: the file is empty"),
        ("[1]", "ds_config.json:1:1: a ds_config is a JSON object"),
        ('{"a": BATCH}', "ds_config.json:1:7: BATCH is no JSON value"),
        ('{"a": 1\n "b": 2}', "ds_config.json:2:2: a ',' or '}' was expected"),
        ('{"a": True}', "ds_config.json:1:7: True is no JSON value\nhint: true"),
        ("{'a': 1}", "ds_config.json:1:2: a key in double quotes was expected"),
        ('{"a": ' + "[" * 200, "nested deeper than 50 levels"),
        (b"\xff\xfe{}", "is not a text file"),
        (b'{"a": ' + b"1" * 2_000_000 + b"}", "is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error_that_names_it(scale, file, content, said):
    code, out, err = scale("check", file(content))
    assert (code, out) == (2, "")
    assert "ds_config.json" in err
    assert said in err


def test_a_broken_file_does_not_hide_the_others(scale, file, tmp_path):
    code, out, err = scale("check", tmp_path / "absent.json", file(WRONG))
    assert code == 2
    assert "absent.json' does not exist" in err
    assert "SC006" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "FILE: none given"),
        (["x.json", "--diff"], "hint: --fix --diff"),
        (["x.json", "--gpu", "a101"], "did you mean"),
        (["x.json", "--model", "gpt5"], "gpt5"),
        (["x.json", "--deepspeed-version", "0.3.1"], "0.16.0 to 0.19.8"),
        (["x.json", "--deepspeed-version", "new"], "is not a release"),
        (["--explain", "SZ0055"], "did you mean"),
    ],
)
def test_wrong_usage_names_what_is_wrong_and_what_works(scale, arguments, said):
    code, _, err = scale("check", *arguments)
    assert code == 2
    assert said in err


def test_the_context_decides(scale, file):
    sizes = file('{"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}')
    assert scale("check", sizes, "--world-size", 4)[0] == 0
    assert scale("check", sizes, "--world-size", 8)[0] == 1
    bf16 = file('{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "zero_optimization": {"stage": 1}}')
    assert scale("check", bf16, "--gpu", "a100-80gb")[0] == 0
    assert scale("check", bf16, "--gpu", "v100-32gb")[0] == 1
    lamb = file('{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, '
                '"zero_allow_untested_optimizer": true}')  # fmt: skip
    assert scale("check", lamb, "--optimizer", "adamw")[0] == 0
    assert scale("check", lamb, "--optimizer", "lamb")[0] == 1
    old = file('{"train_micro_batch_size_per_gpu": 1, "elasticity": {"enabled": false}}')
    assert scale("check", old, "--deepspeed-version", "0.19.7")[0] == 0
    assert scale("check", old)[0] == 1
    auto = file('{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 1}}')
    assert scale("check", auto)[0] == 1
    assert scale("check", auto, "--trainer", "hf")[0] == 0


def test_fix_mends_the_file_keeps_the_old_one_and_its_mode(scale, file):
    path = file(WRONG)
    path.chmod(0o640)
    code, out, _ = scale("check", path, "--fix")
    assert code == 0
    assert path.read_text() == WRONG.replace("optimisation", "optimization")
    backup = path.with_name("ds_config.json.bak")
    assert backup.read_text() == WRONG
    assert [stat.st_mode & 0o777 for stat in (path.stat(), backup.stat())] == [0o640, 0o640]
    assert f"{path}: mended SC006; the old file is {backup}" in out
    assert scale("check", path, "--fix")[0] == 0  # nothing to mend: no second backup
    assert sorted(each.name for each in path.parent.glob("ds_config*")) == ["ds_config.json", "ds_config.json.bak"]


def test_fix_never_overwrites_a_backup_and_follows_a_link(scale, file, tmp_path):
    path = file(WRONG)
    file("precious", "ds_config.json.bak")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    assert scale("check", link, "--fix")[0] == 0
    assert link.is_symlink()
    assert "zero_optimization" in path.read_text()
    assert path.with_name("ds_config.json.bak").read_text() == "precious"
    assert path.with_name("ds_config.json.bak2").read_text() == WRONG


def test_fix_with_diff_writes_nothing(scale, file):
    path = file(WRONG)
    code, out, _ = scale("check", path, "--fix", "--diff")
    assert code == 1
    assert '-  "zero_optimisation": {"stage": 2}\n+  "zero_optimization": {"stage": 2}\n' in out
    assert path.read_text() == WRONG
    assert [each.name for each in path.parent.glob("ds_config*")] == ["ds_config.json"]


def test_a_fix_that_cannot_be_written_leaves_everything_as_it_was(scale, file, monkeypatch):
    path = file(WRONG)
    replaced = []

    def full(source, target):
        replaced.append(target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = scale("check", path, "--fix")
    assert code == 2
    assert "No space left" in err
    assert replaced
    assert path.read_text() == WRONG
    assert [each.name for each in path.parent.glob("*ds_config*")] == ["ds_config.json"]


def test_explain_says_all_of_a_rule(scale):
    code, out, _ = scale("check", "--explain", "sz005")
    assert code == 0
    rule = RULES["SZ005"]
    for words in (rule.id, rule.title, rule.does, rule.mend, rule.source):
        assert words in out


def test_the_page_of_all_rules_is_what_the_table_gives():
    """`python -m scaling.ds_config.check.page docs/rules.md` writes it anew."""
    assert (CHECKOUT / "docs/rules.md").read_text() == page.page()


def test_100_files_are_checked_within_a_second_of_process_time_and_without_torch(file):
    paths = [str(file(text(case.config), f"{number}.json")) for number, case in enumerate(CASES[:100])]
    assert len(paths) == 100
    program = (
        "import sys; from scaling import cli\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules, 'deepspeed' in sys.modules, file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run([sys.executable, "-c", program, "check", *paths], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 1
    assert "in 100 files" in process.stderr
    assert process.stderr.endswith("False False\n")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
