"""Whatever is wrong with a recipe's text is one error that names data.corpus and says what would work."""

import inspect
import json

import pytest

from scaling.data.corpus import documents
from scaling.errors import InputError
from scaling.recipe import EMBEDDED_CORPUS


@pytest.mark.parametrize(
    ("name", "content", "problem", "hint"),
    [
        ("missing.txt", None, "does not exist", "notes.txt"),
        ("nowhere/text.txt", None, "does not exist", "UTF-8"),
        ("folder", None, "is a directory", "UTF-8"),
        ("text.txt", b"", "is empty", "UTF-8"),
        ("text.txt", b" \n\t\n", "holds only whitespace", "UTF-8"),
        ("text.txt", b"abc\0def", "is binary (a NUL at character 3)", "UTF-8"),
        ("text.txt", "Gr\u00fc\u00dfe".encode("latin-1"), "is not UTF-8 text (byte 2)", EMBEDDED_CORPUS),
        ("embedded:docstring", None, "is not an embedded corpus", "did you mean 'embedded:docstrings'"),
    ],
)
def test_a_bad_name_is_one_error_that_says_what_would_work(tmp_path, name, content, problem, hint):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        documents(["notes.txt", name], tmp_path, tmp_path / "cache")
    assert caught.value.field == "data.corpus"
    assert name in caught.value.message
    assert problem in caught.value.message
    assert hint in caught.value.hint


def test_a_text_given_twice_is_refused_for_it_could_be_trained_on_and_validated_on(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    with pytest.raises(InputError, match=r"data\.corpus: 'b\.txt' repeats text of 'a\.txt'"):
        documents(["a.txt", "b.txt"], tmp_path, tmp_path / "cache")


def test_a_file_is_one_document_and_kept_to_the_byte(tmp_path):
    text = "\ufeffone\r\n\r\ntwo\u2028three \U0001f642\n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    assert documents(["text.txt"], tmp_path, tmp_path / "cache") == [text]


def test_the_embedded_corpus_is_this_pythons_documentation(tmp_path):
    texts = documents([EMBEDDED_CORPUS], tmp_path, tmp_path / "cache")
    assert inspect.getdoc(json.dumps) in texts
    assert any("The `if` statement" in text or 'The "if" statement' in text for text in texts)
    assert texts == sorted(set(texts))
    assert 1_500_000 < sum(len(text.encode()) for text in texts) < 3_000_000


def test_the_embedded_corpus_is_parsed_once_and_read_back_the_same(tmp_path):
    first = documents([EMBEDDED_CORPUS], tmp_path, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("embedded-docstrings-*.json")
    assert documents([EMBEDDED_CORPUS], tmp_path, tmp_path / "cache") == first
    kept.write_text("[cut sho")
    assert documents([EMBEDDED_CORPUS], tmp_path, tmp_path / "cache") == first
