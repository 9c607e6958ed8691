"""Where text comes from: the user's files, or the documentation that every Python carries.

The embedded corpus is what lets a first run, a test and a demo need no network: about 2 MB of real English
about one subject, the same for everyone on the same version of Python.
"""

import ast
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics

from scaling.errors import InputError, did_you_mean
from scaling.recipe import EMBEDDED_CORPUS

# Installed packages, tests, and what Linux distributions package apart from the standard library.
_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "distutils",
    "idlelib",
    "lib2to3",
    "tkinter",
    "turtledemo",
}


def documents(names: Sequence[str], base: Path, cache: Path) -> list[str]:
    """The texts that `names` stand for, in their order: a file is one, the embedded corpus is thousands.

    A name is a UTF-8 text file, relative to `base`, or "embedded:docstrings", whose texts are kept under `cache`.
    All text is held in memory.
    Raises InputError on "data.corpus" for a name that is unknown, unreadable, binary or empty, and for a text
    given twice: one copy could land in the validation part while the model trains on the other.
    """
    source_of: dict[str, str] = {}
    for name in names:
        for text in _embedded(name, cache) if name.startswith("embedded:") else [_text(name, base)]:
            if text in source_of:
                raise _wrong(name, f"repeats text of {source_of[text]!r}", "list each text once")
            source_of[text] = name
    return list(source_of)


def _embedded(name: str, cache: Path) -> list[str]:
    """The embedded corpus: parsed once for each Python, in three seconds, and read back in a tenth."""
    if name != EMBEDDED_CORPUS:
        raise _wrong(name, "is not an embedded corpus", did_you_mean(name, [EMBEDDED_CORPUS]))
    stdlib = Path(sysconfig.get_path("stdlib"))
    python = sha256(f"{sys.version} {stdlib}".encode()).hexdigest()[:16]
    kept = cache / f"embedded-docstrings-{python}.json"
    with suppress(OSError, ValueError):
        return list(json.loads(kept.read_text(encoding="utf-8")))
    texts = sorted({*_docstrings(stdlib), *topics.values()})
    with suppress(OSError):  # a cache that cannot be written is reported where the tokens need it
        cache.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".building-", dir=cache)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(texts, file)
        os.replace(temporary, kept)
    return texts


def _docstrings(root: Path) -> Iterator[str]:
    """Every docstring in the sources under `root`, indentation removed."""
    for path in root.rglob("*.py"):
        if _SKIPPED.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node)  # cleaned by inspect.cleandoc
                    if text:
                        yield text


def _text(name: str, base: Path) -> str:
    path = base / name
    hint = f"list UTF-8 text files, relative to {base}, or {EMBEDDED_CORPUS!r}"
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        raise _wrong(name, "does not exist", did_you_mean(path.name, near) if near else hint) from None
    except IsADirectoryError:
        raise _wrong(name, "is a directory", hint) from None
    except UnicodeDecodeError as error:
        raise _wrong(name, f"is not UTF-8 text (byte {error.start:,})", hint) from None
    except OSError as error:
        raise _wrong(name, f"cannot be read: {error.strerror}", hint) from None
    if "\0" in text:
        raise _wrong(name, f"is binary (a NUL at character {text.index(chr(0)):,})", hint)
    if not text.strip():
        raise _wrong(name, "holds only whitespace" if text else "is empty", hint)
    return text


def _wrong(name: str, problem: str, hint: str) -> InputError:
    return InputError("data.corpus", name, problem, hint=hint)
