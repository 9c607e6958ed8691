"""Every entry by its name."""

from scaling.errors import InputError, did_you_mean
from scaling.registry import users
from scaling.registry.decoders import DECODERS
from scaling.registry.encoders import ENCODERS
from scaling.registry.entry import Entry

MODELS: dict[str, Entry] = {entry.shape.name: entry for entry in (*DECODERS, *ENCODERS)}


def find(name: str, field: str = "model") -> Entry:
    """The entry called `name`: one of ours, of an installed package, or one's own as scaling/registry/users.py has it.

    Raises InputError with the closest names.
    """
    if name in MODELS:
        return MODELS[name]
    if users.is_of_ones_own(name):
        return users.own(name, field)
    theirs = users.installed(MODELS)
    if name not in theirs:
        hint = did_you_mean(name, [*MODELS, *theirs])
        if name.endswith(".py"):
            hint = f"write {name}:FUNCTION, the one that returns the model's shape"
        elif "/" in name:
            hint = f"write hf:{name} for a folder, or a name on the hub"
        raise InputError(field, name, "is not a known model", hint=hint)
    return theirs[name]


def known() -> dict[str, Entry]:
    """Every named entry, installed packages' included."""
    return MODELS | users.installed(MODELS)
