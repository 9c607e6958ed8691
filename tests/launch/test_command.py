"""The command line that starts a plan, safe to paste into a shell."""

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.launch import command

# Anything that a path may hold: not NUL, and no lone surrogates.
_PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_NASTY = """a b it's "said" $(id) $HOME `id` ; | & > < * ~ ? [a] {a,b} \\ \t \n -x é ½ !! # %s"""


def _words(cluster, ds_config, run_dir, **where):
    """What a POSIX shell makes of the command."""
    return shlex.split(command(cluster, ds_config, run_dir, **where))


def test_in_a_checkout_the_program_is_the_door(cluster_like, tmp_path):
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "train.py").write_text("")
    assert command(cluster_like(), "plans/x/ds_config.json", "plans/x", here=tmp_path) == (
        "deepspeed --num_gpus 8 scale/train.py --ds_config plans/x/ds_config.json --run_dir plans/x"
    )


def test_elsewhere_it_is_the_module(cluster_like, tmp_path, monkeypatch):
    expected = "deepspeed --num_gpus 8 --module scaling.train --ds_config c --run_dir r"
    assert command(cluster_like(), "c", "r", here=tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    assert command(cluster_like(), "c", "r") == expected


def test_several_nodes_come_with_their_hostfile(cluster_like, tmp_path):
    words = _words(cluster_like(nodes=2, hostfile="my hosts"), "c", "r", here=tmp_path)
    assert words[words.index("--hostfile") + 1] == "my hosts"
    assert words[words.index("--num_nodes") + 1] == "2"
    assert words[words.index("--num_gpus") + 1] == "8"
    assert "hostfile" in _words(cluster_like(nodes=2), "c", "r", here=tmp_path)
    assert "--hostfile" not in _words(cluster_like(), "c", "r", here=tmp_path)


def test_on_a_cpu_deepspeed_is_told_so(cluster_like, tmp_path):
    line = command(cluster_like(name="cpu", gpus=2), "c", "r", here=tmp_path)
    assert line.startswith("DS_ACCELERATOR=cpu deepspeed --num_gpus 2 ")


@given(ds_config=_PATHS, run_dir=_PATHS, hostfile=_PATHS)
def test_every_path_reaches_the_program_as_it_was_given(cluster_like, ds_config, run_dir, hostfile):
    words = _words(cluster_like(nodes=2, hostfile=hostfile), ds_config, run_dir)
    assert words[words.index("--hostfile") + 1] == hostfile
    assert words[-4:] == ["--ds_config", ds_config, "--run_dir", run_dir]


def _through_sh(line):
    """The words that a real sh hands to a program: printf stands for deepspeed."""
    run = subprocess.run(["sh", "-c", line.replace("deepspeed", "printf '%s\\0'", 1)], capture_output=True, check=True)
    return run.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("path", [_NASTY, _NASTY.replace(" ", ""), "~", "*", "-n", "plain"])
def test_a_real_shell_hands_nasty_paths_over_unharmed(cluster_like, path, tmp_path):
    cluster = cluster_like(nodes=2, hostfile=path)
    assert _through_sh(command(cluster, path, path, here=tmp_path)) == [
        "--hostfile", path, "--num_nodes", "2", "--num_gpus", "8", "--module", "scaling.train", "--ds_config", path,
        "--run_dir", path,
    ]  # fmt: skip


@given(st.lists(_PATHS, min_size=2, max_size=2))
@settings(max_examples=25)
def test_a_real_shell_hands_any_path_over_unharmed(cluster_like, paths):
    assert _through_sh(command(cluster_like(), *paths))[-4:] == ["--ds_config", paths[0], "--run_dir", paths[1]]
