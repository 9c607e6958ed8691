"""The tokenizer of a corpus: byte-level BPE (Radford et al. 2019, section 2.2), trained on the corpus itself.

Nothing is downloaded, and no text is out of vocabulary: the 256 bytes are always entries. Weights that were trained
before come with a tokenizer of their own, without which they mean nothing: there that one is taken.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from scaling.errors import InputError
from scaling.family import Task

END_OF_TEXT, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
SPECIALS = (END_OF_TEXT, PAD, MASK)  # entries 0, 1 and 2 of every vocabulary that is trained here
END_OF_TEXT_ID, PAD_ID, MASK_ID = range(3)
_SMALLEST_VOCAB = len(SPECIALS) + 256


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What samples know of a tokenizer: its `size` and the ids that mean something of their own.

    `end_id` closes a document, `start_id` is a decoder's first input beside an encoder, `sentinel_ids` stand for the
    spans that are left out, the first one's first. `special_ids` are all that no text spells.
    """

    size: int
    end_id: int = END_OF_TEXT_ID
    start_id: int = END_OF_TEXT_ID
    mask_id: int | None = MASK_ID
    pad_id: int | None = PAD_ID
    sentinel_ids: tuple[int, ...] = ()
    special_ids: tuple[int, ...] = tuple(range(len(SPECIALS)))
    names: tuple[tuple[str, str], ...] = ()  # transformers' names of special tokens, where a tokenizer brought its own

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.size), self.special_ids)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Vocabulary":
        """From JSON, which has lists for tuples."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def sentinel(number: int) -> str:
    """T5's name for the sentinel of span `number`, counted from 0."""
    return f"<extra_id_{number}>"


def train(texts: Sequence[str], vocab_size: int, num_sentinels: int = 0) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer of at most `vocab_size` entries: fewer when `texts` run out of pairs to merge.

    Sentinels are its last entries, the first span's at the very end, as T5's. Raises InputError on "model.vocab_size"
    when the bytes and the special tokens do not fit.
    """
    smallest = _SMALLEST_VOCAB + num_sentinels
    if vocab_size < smallest:
        specials = f"{len(SPECIALS)} special tokens" + (f" and {num_sentinels} sentinels" if num_sentinels else "")
        raise InputError(
            "model.vocab_size", vocab_size, f"is below the 256 bytes and {specials}",
            hint=f"use at least {smallest}; 2048 suits a corpus of a few megabytes",
        )  # fmt: skip
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size - num_sentinels,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([sentinel(number) for number in reversed(range(num_sentinels))])
    size = tokenizer.get_vocab_size()
    sentinel_ids = tuple(size - 1 - number for number in range(num_sentinels))
    specials = (*range(len(SPECIALS)), *sentinel_ids)
    return tokenizer, Vocabulary(size=size, sentinel_ids=sentinel_ids, special_ids=specials)


def fingerprint(weights: Path, task: Task) -> str:
    """What decides the tokens of the tokenizer beside `weights`. Raises InputError where there is none."""
    path = weights / "tokenizer.json"
    try:
        return sha256(path.read_bytes() + task.encode()).hexdigest()
    except OSError as error:
        raise _unusable(weights, f"has no tokenizer that can be read ({path.name}: {error.strerror})") from None


def of_weights(weights: Path, task: Task, vocab_size: int, num_sentinels: int) -> tuple[Tokenizer, Vocabulary]:
    """The tokenizer beside `weights`, for a task. Raises InputError where it lacks what the task needs."""
    from transformers import AutoTokenizer  # seconds to import, and only a new corpus needs it

    try:
        loaded = AutoTokenizer.from_pretrained(weights)
    except Exception as error:  # transformers and tokenizers raise what they like at a file of another kind
        raise _unusable(weights, f"has a tokenizer that cannot be read: {error!r}") from None
    size = len(loaded)
    if size > vocab_size:
        raise _unusable(weights, f"has a tokenizer of {size} entries, and the model's vocabulary is {vocab_size}")
    end_id = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
    if end_id is None:
        raise _unusable(weights, "has a tokenizer without an end of text (eos_token or sep_token)")
    if task == "masked-lm" and loaded.mask_token_id is None:
        raise _unusable(weights, "has a tokenizer without a mask_token")
    entries = loaded.get_vocab()
    names = [sentinel(number) for number in range(num_sentinels)]
    missing = [name for name in names if name not in entries]
    if missing:
        raise _unusable(weights, f"has a tokenizer without {missing[0]}, one of {num_sentinels} sentinels")
    backend = loaded.backend_tokenizer
    # tokenizer.json may carry both, and a document would be cut without a word (all-MiniLM-L6-v2: at 128 tokens).
    backend.no_truncation()
    backend.no_padding()
    config = json.loads((weights / "config.json").read_text())
    start_id = config.get("decoder_start_token_id")
    special_ids = {
        *loaded.all_special_ids,
        *(entry for entry, token in loaded.added_tokens_decoder.items() if token.special),
    }
    return backend, Vocabulary(
        size=size,
        end_id=end_id,
        start_id=end_id if start_id is None else start_id,
        mask_id=loaded.mask_token_id,
        pad_id=loaded.pad_token_id,
        sentinel_ids=tuple(entries[name] for name in names),
        special_ids=tuple(sorted(special_ids)),
        names=tuple((name, token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)),
    )


def _unusable(weights: Path, problem: str) -> InputError:
    hint = "a folder by `scale export` has all; initial_weights: random starts without"
    return InputError("initial_weights", str(weights), problem, hint=hint)


def encode(tokenizer: Tokenizer, texts: Sequence[str], end_id: int = END_OF_TEXT_ID) -> Iterator[list[int]]:
    """The ids of each text, closed by `end_id`, the only special token there."""
    tokenizer.encode_special_tokens = True  # a text that mentions "<|mask|>" means the characters
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        yield [*encoding.ids, end_id]


def save(tokenizer: Tokenizer, vocabulary: Vocabulary, folder: Path) -> None:
    """Write `folder` so that transformers' AutoTokenizer.from_pretrained loads it."""
    from transformers import PreTrainedTokenizerFast

    ids = {"eos_token": vocabulary.end_id, "bos_token": vocabulary.end_id, "pad_token": vocabulary.pad_id,
           "mask_token": vocabulary.mask_id}  # fmt: skip
    ours = {name: tokenizer.id_to_token(entry) for name, entry in ids.items() if entry is not None}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        decoder_start_token_id=vocabulary.start_id,  # for `scale export`: a tokenizer has no name for it
        **(dict(vocabulary.names) or ours),
    ).save_pretrained(folder)
