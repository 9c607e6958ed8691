"""`scale` as its tests run it: in this process, from an empty folder, with what it prints kept."""

import sys

import pytest

from scaling import cli


@pytest.fixture
def scale(monkeypatch, capsys, tmp_path):
    """A function from arguments to (exit code, stdout, stderr), run in an empty folder that is `tmp_path`/cwd."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("SCALE_HARDWARE", raising=False)

    def of(*arguments):
        monkeypatch.setattr(sys, "argv", ["scale", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return of
