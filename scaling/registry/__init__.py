"""Names for shapes: published sizes as data, each with its source, sizes in between, and models of one's own."""

from scaling.registry.config_file import shape_of
from scaling.registry.decoders import GPT2_VOCAB
from scaling.registry.encoders import BERT_VOCAB
from scaling.registry.entry import Entry
from scaling.registry.models import MODELS, find, known
from scaling.registry.sizes import nearest, nearest_gpt, nearest_gpt3
from scaling.registry.users import absolute

__all__ = [
    "BERT_VOCAB",
    "GPT2_VOCAB",
    "MODELS",
    "Entry",
    "absolute",
    "find",
    "known",
    "nearest",
    "nearest_gpt",
    "nearest_gpt3",
    "shape_of",
]
