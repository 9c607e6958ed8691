"""Files at the edges: small user files read with one clear error, outputs written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scaling.errors import InputError, did_you_mean

_LARGEST_FILE_BYTES = 1 << 20


def read_text(path: str | Path, field: str) -> str:
    """The UTF-8 text of a small user file; every way in which that can fail is one InputError naming `field`."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(field, str(path), "is a folder, not a file")
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise InputError(field, str(path), f"is larger than {_LARGEST_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}"))[:20]
        hint = did_you_mean(path.name, near) if near else f"there is no {path.suffix or 'such'} file in {path.parent}"
        raise InputError(field, str(path), "does not exist", hint=hint) from None
    except UnicodeDecodeError:
        raise InputError(field, str(path), "is not a text file (not UTF-8)") from None
    except OSError as error:
        raise InputError(field, str(path), f"cannot be read: {error.strerror}") from None


def write_folder(folder: Path, texts: Mapping[str, str], field: str) -> None:
    """Writes `texts` (name -> content) into `folder`: every temporary first, then every rename.

    Raises InputError naming `field` where the folder cannot be written; then no file has changed.
    """
    temporaries: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            temporaries.append((temporary, folder / name))
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for temporary, final in temporaries:
            os.replace(temporary, final)
    except OSError as error:
        for temporary, _ in temporaries:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(field, str(folder), f"cannot be written: {error.strerror}",
                         hint="choose a folder that you may write to") from None  # fmt: skip
