"""DeepSpeed's hostfile, read more strictly than DeepSpeed does."""

from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile, fetch_hostfile

from scaling.errors import FileProblems, InputError
from scaling.launch import parse_hostfile

EXAMPLE = Path(__file__).parents[2] / "hostfile.example"


@pytest.fixture
def hostfile(tmp_path):
    """A function from text to the path of a hostfile that holds it."""

    def of(text):
        (tmp_path / "hostfile").write_text(text)
        return tmp_path / "hostfile"

    return of


def test_the_example_has_two_hosts_of_8_and_deepspeed_reads_the_same():
    assert parse_hostfile(EXAMPLE) == [("worker-1", 8), ("worker-2", 8)] == list(fetch_hostfile(str(EXAMPLE)).items())


@pytest.mark.parametrize(
    "text",
    [
        "worker-1 slots=8\nworker-2 slots=4\n",
        "10.0.0.1 slots=8",
        "a slots=1\r\nb slots=2\r\n",
        "# hosts\n\n   node_1.cluster.example.org \t slots=16   # the big one\n#b slots=1\n",
        "z slots=1\na slots=1\nm slots=1",
        "h slots=999",
    ],
)
def test_what_is_accepted_deepspeed_reads_the_same_in_the_same_order(hostfile, text):
    path = hostfile(text)
    assert parse_hostfile(path) == list(fetch_hostfile(str(path)).items())


@pytest.mark.parametrize(
    "line",
    [
        "-oProxyCommand=x slots=2", "-oProxyCommand=touch${IFS}/tmp/pwned slots=2", "$(id) slots=1", "`id` slots=1",
        "node1;reboot slots=1", "a|b slots=1", "a&b slots=1", "h slots=0", "h slots=-1", "h slots=8x", "h slots=1000",
        "h slots=08", "h slots=٣", "h slots=1.5", "h slots=", "host:22 slots=1", "user@host slots=1", "h", "slots=8",
        "h slots=8 extra", "h slots = 8", "h slots=8 slots=8", "h,i slots=8", "hé slots=1", ".h slots=1", "h- slots=1",
        "a\x00b slots=1", "../h slots=1", "x" * 300 + " slots=1", "h max_slots=8", "h:8",
    ],
)  # fmt: skip
def test_a_line_that_is_not_host_and_slots_is_refused_by_number(hostfile, line):
    with pytest.raises(FileProblems) as caught:
        parse_hostfile(hostfile(f"# hosts\nworker-1 slots=8\n{line}\nworker-2 slots=8\n"))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("line 3: ")
    assert "hostfile.example" in caught.value.hint


def test_deepspeed_itself_accepts_what_ssh_would_execute():
    # The reason for the tests above; where a later DeepSpeed refuses it, launch/hostfile.py's opening is out of date.
    assert dict(_parse_hostfile(["-oProxyCommand=x slots=2", "h slots=0", "i slots=8x"])) == {
        "-oProxyCommand=x": 2, "h": 0, "i": 8,
    }  # fmt: skip


def test_every_bad_line_is_reported_at_once(hostfile):
    with pytest.raises(FileProblems) as caught:
        parse_hostfile(hostfile("a slots=8\nb\na slots=8\nc slots=0\n"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 2", "line 3", "line 4"]
    assert "host 'a' is listed twice" in caught.value.problems[1]


@pytest.mark.parametrize("text", ["", "\n\n", "# worker-1 slots=8\n"])
def test_a_file_without_hosts_is_refused(hostfile, text):
    with pytest.raises(InputError, match="lists no hosts") as caught:
        parse_hostfile(hostfile(text))
    assert caught.value.field == "hostfile"


def test_an_absent_hostfile_is_an_input_error_naming_the_field(tmp_path):
    with pytest.raises(InputError) as caught:
        parse_hostfile(tmp_path / "nope")
    assert caught.value.field == "hostfile"
