"""The reader against json, and its places against the text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.ds_config.check.reader import SyntaxProblem, read, spelt

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=12,
)


def nodes(node):
    yield node
    for inner in (*(member.node for member in node.members), *node.elements):
        yield from nodes(inner)


@given(value=_JSON, indent=st.sampled_from([None, 0, 3, "\t"]), escaped=st.booleans())
def test_it_reads_what_json_reads_and_every_value_stands_where_it_says(value, indent, escaped):
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    document = read(text)
    assert document.root.value == json.loads(text)
    assert not document.quirks
    for node in nodes(document.root):
        assert json.loads(text[node.start : node.end]) == node.value
        for member in node.members:
            assert json.loads(text[member.start : member.end]) == member.key


@given(text=st.text('{}[]",:0123456789eE.+-truefalsn \n\\u', max_size=25))
def test_it_refuses_what_json_refuses(text):
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        expected = SyntaxProblem
    try:
        document = read(text)
        got = SyntaxProblem if document.quirks else document.root.value
    except SyntaxProblem:
        got = SyntaxProblem
    assert got == expected or (isinstance(expected, dict) and len(expected) < text.count(":"))  # a repeated key


@pytest.mark.parametrize(
    ("text", "quirks"),
    [
        ('{"a": 1, // one\n "b": 2 # two\n}', [("comment", ("a",), 9), ("comment", ("b",), 24)]),
        ('{/* none */}', [("comment", (), 1)]),
        ('{"a": [1, 2,],}', [("trailing comma", ("a",), 11), ("trailing comma", (), 13)]),
        ('{"a": 1, "a": 2}', [("repeated key", ("a",), 9)]),
        ('{"a": {"b": NaN}}', [("not a number", ("a", "b"), 12)]),
        ('{"a": [-Infinity, 1e999]}', [("not a number", ("a", 0), 7), ("not a number", ("a", 1), 18)]),
    ],
)  # fmt: skip
def test_what_is_beyond_json_is_kept_with_its_place(text, quirks):
    found = read(text).quirks
    assert [(quirk.name, quirk.start) for quirk in found] == [(name, start) for name, _, start in quirks]
    paths = [quirk.path for quirk in found if quirk.name != "comment"]
    assert paths == [path for name, path, _ in quirks if name != "comment"]


def test_lines_and_columns_are_counted_from_1_in_characters():
    document = read('\ufeff{"ä": 1,\r\n  "b": {\n\t"c": true}}')
    assert document.place(document.offset(("b", "c"))) == (3, 2)
    assert document.place(document.offset(("b", "absent"))) == (2, 3)
    assert document.place(document.offset(("absent",))) == (1, 2)


def test_a_path_is_spelt_so_that_it_can_be_read_back():
    assert spelt(("zero_optimization", "stage")) == "zero_optimization.stage"
    assert spelt(("optimizer", "params", "betas", 1)) == "optimizer.params.betas[1]"
    assert spelt(("a.b", "c d")) == '"a.b"."c d"'
