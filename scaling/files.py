"""Files at the edges: small user files read with one clear error, outputs written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.errors import InputError, did_you_mean

_LARGEST_FILE_BYTES = 1 << 20


def read_text(path: str | Path, field: str) -> str:
    """The UTF-8 text of a small user file; every way in which that can fail is one InputError naming `field`."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(field, str(path), "is a folder, not a file")
        with open(path, "rb") as file:  # not by its size: /dev/zero has none
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise InputError(field, str(path), f"is larger than {_LARGEST_FILE_BYTES} bytes")
        return content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(field, str(path), "does not exist", hint=_neighbours(path)) from None
    except UnicodeDecodeError:
        raise InputError(field, str(path), "is not a text file (not UTF-8)") from None
    except OSError as error:
        raise InputError(field, str(path), f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except ValueError as error:  # a NUL in the name
        raise InputError(field, str(path), f"cannot be read: {error}") from None


def read_json_lines(path: str | Path, field: str) -> list[dict[str, Any]]:
    """The objects of a file with one in each line, however many. A last line without its end is left out: it is being
    written, or a crash has cut it. Raises InputError naming `field` where the file or a line cannot be read.
    """
    found: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    break
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise InputError(field, str(path), f"has a line {number} that is not a JSON object")
                found.append(value)
    except OSError as error:
        raise InputError(field, str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(field, str(path), "is not a text file (not UTF-8)") from None
    except json.JSONDecodeError as error:
        raise InputError(field, str(path), f"has a line {number} that is not JSON: {error.msg}") from None
    return found


def _neighbours(path: Path) -> str:
    """A hint from the files of the same kind that stand where `path` was looked for."""
    near = []
    with contextlib.suppress(OSError):
        near = [entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix]
    return did_you_mean(path.name, near[:20]) if near else f"there is no {path.suffix or 'such'} file in {path.parent}"


def write_folder(folder: Path, texts: Mapping[str, str], field: str) -> None:
    """Writes `texts` (name -> content) into `folder`, all or none: what was there comes back where one fails.

    Raises InputError naming `field` where the folder cannot be written.
    """
    contents = {name: text.encode("utf-8") for name, text in texts.items()}
    fresh: dict[Path, Path] = {}  # final -> its new content, beside it
    saved: dict[Path, Path] = {}  # final -> its old content, beside it
    replaced: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for final in (folder / name for name in contents):
            if final.exists() and not (final.is_file() or final.is_dir()):
                # A rename would put a file in its place, for root in that of /dev/null too.
                raise InputError(field, str(final), "is a device or a pipe", hint="name a file")
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            fresh[folder / name] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for final, temporary_path in fresh.items():
            if final.exists():
                backup = temporary_path.with_name(temporary_path.name + ".old")
                os.link(final, backup)
                saved[final] = backup
            os.replace(temporary_path, final)
            replaced.append(final)
    except OSError as error:
        for final in replaced:
            if final in saved:
                os.replace(saved[final], final)
            else:
                final.unlink(missing_ok=True)
        raise InputError(field, str(folder), f"cannot be written: {error.strerror}",
                         hint="choose a folder that you may write to") from None  # fmt: skip
    finally:
        for leftover in (*fresh.values(), *saved.values()):
            leftover.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """`text` at `path`, by rename, on the disk with its name when this returns. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in `folder` on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
