"""DeepSpeed's releases, as numbers that can be compared."""

import re
from functools import cache
from typing import TypeAlias

from scaling.errors import InputError

Version: TypeAlias = tuple[int, ...]

LATEST = "0.19.8"  # the pinned release; the rules were read off it and are tested on it
OLDEST = "0.16.0"  # before that the tags were not read


@cache
def version(text: str) -> Version:
    """`0.19.8` as numbers; the empty text is older than any release."""
    return tuple(int(part) for part in text.split(".")) if text else ()


def release(text: str, field: str = "deepspeed-version") -> str:
    """A release that a user names. Raises InputError: not a release, or one that the rules do not know."""
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}", text, re.ASCII):
        raise InputError(field, text, "is not a release of DeepSpeed", hint=f"such as {LATEST}")
    if not version(OLDEST) <= version(text) <= version(LATEST):
        raise InputError(field, text, "is outside what the rules know", hint=f"{OLDEST} to {LATEST}")
    return text
