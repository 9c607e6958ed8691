"""Every entry by its name."""

from scaling.errors import InputError, did_you_mean
from scaling.registry.decoders import DECODERS
from scaling.registry.encoders import ENCODERS
from scaling.registry.entry import Entry

MODELS: dict[str, Entry] = {entry.shape.name: entry for entry in (*DECODERS, *ENCODERS)}


def find(name: str, field: str = "model") -> Entry:
    """The entry called `name`. Raises InputError with the closest names."""
    if name not in MODELS:
        raise InputError(field, name, "is not a known model", hint=did_you_mean(name, MODELS))
    return MODELS[name]
