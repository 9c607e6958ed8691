"""A cache of folders that are whole or not there: what a corpus becomes, made once and mapped into memory.

A folder's name is a hash of everything that decides its contents, so it is never out of date. It is written beside its
place and renamed into it, so a folder that can be seen is whole; `.building-*` is never read.
"""

import json
import os
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from scaling.errors import FileProblems, InputError


def built(
    cache: Path, contents: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """(the folder of `contents` under `cache`, what `build` said of it); `build` fills the folder where there is none.

    Raises InputError for a cache that cannot be written, FileProblems for a folder that is damaged.
    """
    folder = cache / sha256(json.dumps(contents).encode()).hexdigest()
    if not folder.exists():
        try:
            _make(folder, build)
        except OSError as error:
            problem = f"cannot hold the tokens: {error.strerror or error}"
            hint = "choose a folder that you may write to, on a disk with room"
            raise InputError("cache", str(cache), problem, hint=hint) from error
    return folder, _read(folder)


def _make(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    """Makes `folder` appear whole, or leaves it to a builder that was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "built"  # TemporaryDirectory itself is readable for its owner alone
        fresh.mkdir()
        meta = build(fresh)
        (fresh / "meta.json").write_text(json.dumps({**meta, "sizes": _sizes(fresh)}, indent=2) + "\n")
        sync(*fresh.rglob("*"), fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another builder was first: same key, same contents
                raise
        sync(folder.parent)


def sync(*paths: Path) -> None:
    """To the disk, so that a power cut cannot keep a name and lose what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in `folder`, apart from meta.json."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "meta.json")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _read(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, [f"meta.json cannot be read: {error}"]) from None
    found = _sizes(folder)
    wrong = {name: size for name, size in meta["sizes"].items() if found.get(name) != size}
    if wrong:
        problems = [f"{name} has {found.get(name, 0):,} bytes, not {size:,}" for name, size in wrong.items()]
        raise _damaged(folder, problems)
    return dict(meta)


def _damaged(folder: Path, problems: list[str]) -> FileProblems:
    return FileProblems(str(folder), problems, hint="delete that directory; the next run builds it again")
