"""The edges: small user files read with one clear error, outputs written whole or not at all."""

import os

import pytest

from scaling.errors import InputError
from scaling.files import read_text, write_folder


def test_a_text_file_is_read_as_utf8(tmp_path):
    (tmp_path / "a.yaml").write_bytes("naïve: ½\n".encode())
    assert read_text(tmp_path / "a.yaml", "recipe") == "naïve: ½\n"
    assert read_text(str(tmp_path / "a.yaml"), "recipe") == "naïve: ½\n"


def _unreadable(folder, kind):
    path = folder / "recipe.yaml"
    match kind:
        case "a folder":
            path.mkdir()
        case "binary":
            path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
        case "too large":
            with path.open("wb") as file:
                file.truncate((1 << 20) + 1)
        case "a link to itself":
            path.symlink_to(path)
        case "below a file":
            path.write_text("")
            path = path / "recipe.yaml"
        case "a name too long":
            path = folder / ("x" * 300)
        case "not readable":
            path.write_text("a: 1")
            path.chmod(0)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("absent", "does not exist"),
        ("a folder", "is a folder, not a file"),
        ("binary", "is not a text file"),
        ("too large", "is larger than 1048576 bytes"),
        ("a link to itself", "cannot be read: "),
        ("below a file", "cannot be read: Not a directory"),
        ("a name too long", "cannot be read: File name too long"),
        pytest.param(
            "not readable",
            "cannot be read: Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything"),
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_input_error_that_names_field_and_path(tmp_path, kind, said):
    path = _unreadable(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read_text(path, "recipe")
    assert caught.value.field == "recipe"
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_the_largest_file_allowed_is_read(tmp_path):
    (tmp_path / "a").write_text("x" * (1 << 20))
    assert len(read_text(tmp_path / "a", "recipe")) == 1 << 20


def test_an_absent_file_hints_at_its_neighbours_of_the_same_kind(tmp_path):
    for name in ("gpt_demo.yaml", "bert_demo.yaml", "gpt_demo.json"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "gtp_demo.yaml", "recipe")
    assert "did you mean 'gpt_demo.yaml'" in caught.value.hint
    assert "json" not in caught.value.hint


@pytest.mark.parametrize("name", ["nope.yaml", "nope", "nope.[", "nope.*", "nope.**", "no\0pe", "~nobody/x.yaml"])
def test_no_name_of_an_absent_file_is_too_strange_for_the_hint(tmp_path, name):
    with pytest.raises(InputError) as caught:
        read_text(f"{tmp_path}/{name}", "recipe")
    assert caught.value.field == "recipe"


def _snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")
    }  # fmt: skip


def test_a_folder_is_made_with_its_parents_and_holds_the_texts_and_nothing_else(tmp_path):
    write_folder(tmp_path / "a" / "b", {"one.json": "1\n", "two.yaml": "½\n"}, "out")
    assert _snapshot(tmp_path / "a" / "b") == {"one.json": "1\n", "two.yaml": "½\n"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "b").iterdir()} == {0o644}


def test_existing_files_are_replaced_and_others_are_left_alone(tmp_path):
    (tmp_path / "one.json").write_text("old and longer")
    (tmp_path / "mine.txt").write_text("mine")
    write_folder(tmp_path, {"one.json": "new"}, "out")
    assert _snapshot(tmp_path) == {"one.json": "new", "mine.txt": "mine"}


@pytest.mark.parametrize("obstacle", ["one.json", "two.json", "three.json"])
def test_where_one_file_cannot_be_replaced_none_is_and_no_temporary_stays(tmp_path, obstacle):
    # A folder of that name that is not empty: rename(2) refuses it for root too.
    for name in ("one.json", "two.json", "three.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / obstacle).unlink()
    (tmp_path / obstacle).mkdir()
    (tmp_path / obstacle / "kept").write_text("kept")
    before = _snapshot(tmp_path)
    with pytest.raises(InputError, match=r"^out: .* cannot be written"):
        write_folder(tmp_path, {name: "new" for name in ("one.json", "two.json", "three.json")}, "out")
    assert _snapshot(tmp_path) == before


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path):
    # `--out /dev/null`, typed by root, replaced the device itself.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"^out: .*pipe' is a device or a pipe"):
        write_folder(tmp_path, {"one.json": "new", "pipe": "new"}, "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_where_a_text_cannot_be_encoded_none_is_written_and_no_temporary_stays(tmp_path):
    (tmp_path / "one.json").write_text("old")
    with pytest.raises((InputError, UnicodeEncodeError)):  # a lone surrogate has no UTF-8
        write_folder(tmp_path, {"one.json": "new", "two.json": "\ud800"}, "out")
    assert _snapshot(tmp_path) == {"one.json": "old"}


@pytest.mark.parametrize(
    "where", ["below a file", "a file", "/proc/scale", "below a link to itself", "a name too long"]
)
def test_a_folder_that_cannot_be_is_an_input_error_naming_the_field(tmp_path, where):
    (tmp_path / "file").write_text("old")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folder = {
        "below a file": tmp_path / "file" / "plans",
        "a file": tmp_path / "file",
        "/proc/scale": tmp_path.__class__("/proc/scale"),  # not writable by anybody
        "below a link to itself": tmp_path / "loop" / "plans",
        "a name too long": tmp_path / ("x" * 300),
    }[where]
    with pytest.raises(InputError) as caught:
        write_folder(folder, {"one.json": "1"}, "out")
    assert caught.value.field == "out"
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]
