"""Counts, sizes and durations as people write them."""

import re
import time
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaling.errors import InputError
from scaling.units import GIB, format_bytes, format_count, format_duration, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512", 512),
        (512, 512),
        ("64k", 64_000),
        ("350M", 350_000_000),
        ("1.3B", 1_300_000_000),
        ("1.3b", 1_300_000_000),
        ("1.3G", 1_300_000_000),
        ("1.3 B", 1_300_000_000),
        ("2e9", 2_000_000_000),
        ("1T", 10**12),
        ("1_000_000", 10**6),
        (" 7 ", 7),
        ("0.001k", 1),
        ("1000000T", 10**18),
    ],
)
def test_a_count_is_read_as_people_write_it(text, value):
    assert parse_count(text, "tokens") == value


@pytest.mark.parametrize(
    "text",
    [
        "banana", "-1", "0", "", " ", "1.5", "1e400", "1e-3", "inf", "nan", "½", "٣", "1,3B", "1.3X", "B", ".", "1..2",
        "0x10", "1.3BB", "1e", "+1", "0.0B", "1000001T", "1.00000001k", "9" * 5000, "x" * 5000, "1\n2", "None",
    ],
)  # fmt: skip
def test_anything_but_a_positive_whole_number_is_an_input_error_naming_the_field(text):
    with pytest.raises(InputError) as caught:
        parse_count(text, "tokens")
    assert caught.value.field == "tokens"
    assert caught.value.message.startswith("tokens: ")
    assert "1.3B" in caught.value.hint


def test_a_fraction_is_refused_however_small():
    # Decimal's context keeps 28 digits: a product rounds the rest away in silence.
    with pytest.raises(InputError, match="whole"):
        parse_count("1." + "0" * 40 + "1", "tokens")


def test_a_long_wrong_text_is_refused_at_once():
    started_at = time.process_time()
    with pytest.raises(InputError):
        parse_count("9" * 8000 + "x", "tokens")
    assert time.process_time() - started_at < 0.5


@given(st.text(max_size=20))
def test_no_text_whatever_raises_anything_but_input_error(text):
    with suppress(InputError):
        assert 1 <= parse_count(text, "tokens") <= 10**18


@given(st.integers(1, 10**18))
def test_plain_digits_come_back_as_they_were(value):
    assert parse_count(str(value), "tokens") == parse_count(f"{value:_}", "tokens") == value


@given(st.integers(1, 10**6), st.sampled_from(["k", "M", "B", "T"]))
def test_a_suffix_multiplies_by_a_power_of_a_thousand(value, suffix):
    assert parse_count(f"{value}{suffix}", "tokens") == value * 1000 ** (" kMBT".index(suffix))


@given(st.integers(1, 999 * 10**12))
@example(999_999)
def test_a_formatted_count_reads_back_within_half_of_its_third_digit(value):
    text = format_count(value)
    # At most three significant digits and one of the suffixes that parse_count knows, never an exponent.
    assert re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?[kMBT]?", text)
    assert parse_count(text, "tokens") == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (999_499, "999k"), (1_000_000, "1M"),
        (1_315_575_808, "1.32B"), (26e12, "26T"),
        # Rounded up to a thousand of a unit: that is one of the next.
        (999_500, "1M"), (999_600_000, "1B"), (999_999_999_999, "1T"),
    ],
)  # fmt: skip
def test_a_count_has_three_digits_and_the_largest_suffix(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (80 * GIB, "80.0 GiB"), (GIB, "1.0 GiB"), (GIB // 2, "512.0 MiB"), (2**20, "1.0 MiB"), (2**19, "512.0 KiB"),
        (512, "0.5 KiB"), (0, "0.0 KiB"), (2048 * GIB, "2048.0 GiB"),
    ],
)  # fmt: skip
def test_a_size_is_in_the_largest_binary_unit_that_fits(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"), (0.5, "500 ms"), (1, "1 s"), (5.21, "5.21 s"), (60, "1 min"), (90, "1.5 min"),
        (3600, "1 h"), (86_400, "1 days"), (365.25 * 86_400, "1 years"), (100 * 365.25 * 86_400, "100 years"),
    ],
)  # fmt: skip
def test_a_duration_is_in_the_largest_unit_that_fits(seconds, text):
    assert format_duration(seconds) == text


@given(st.floats(1e-6, 900 * 365.25 * 86_400))
@example(0.9996)
def test_a_duration_is_written_without_exponents_and_within_half_of_its_third_digit(seconds):
    number, unit = format_duration(seconds).split()
    size = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86_400, "years": 365.25 * 86_400}[unit]
    assert float(number) * size == pytest.approx(seconds, rel=0.005)
    assert "e+" not in number
