"""Text to tokens, once: a cache folder per (text, vocabulary, split) that a run maps into memory.

    <cache>/<key>/tokens.bin     all documents, each closed by an end of text; uint16 or uint32, little-endian
    <cache>/<key>/tokenizer/     what transformers' AutoTokenizer loads
    <cache>/<key>/meta.json      counts, dtype, entropy, and the sizes of the other files

The key is a hash of everything that decides the contents, so a folder is never out of date. It is written
beside its place and renamed into it, so a folder that can be seen is whole; `.building-*` is never read.
"""

import json
import math
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from scaling.data import tokenizer
from scaling.data.corpus import documents
from scaling.data.samples import Split
from scaling.errors import FileProblems, InputError
from scaling.recipe import Recipe

_FORMAT = 1  # raise it when the same text would give other contents


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A tokenized corpus. Counts are of the whole: text in UTF-8 bytes, tokens with the ends of text.

    `vocab_size` is the tokenizer's: below the model's when the text is too small for so many entries.
    `unigram_entropy_nats` is per token of the training part: the loss of a model that knows only frequencies.
    `fingerprint` is equal where the tokens are.
    """

    train: Split
    validation: Split
    tokenizer_dir: Path
    vocab_size: int
    num_documents: int
    num_bytes: int
    num_tokens: int
    unigram_entropy_nats: float
    fingerprint: str

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / self.num_tokens


def prepare(recipe: Recipe, *, base: Path, cache: Path) -> Corpus:
    """The corpus of `recipe`, its files relative to `base`; built under `cache` unless it is there.

    Documents stand in the order of their hashes, and the last `validation_fraction` of all tokens is the
    validation part: a random choice of many documents, the end of a single one. Raises InputError for text
    that cannot be read or makes no sample and for a cache that cannot be written, FileProblems for one that
    is damaged. All text is held in memory, also to find its key.
    """
    texts = {sha256(text.encode()).digest(): text for text in documents(recipe.data.corpus, base, cache)}
    order = sorted(texts)
    contents = {
        "format": _FORMAT,
        "documents": sha256(b"".join(order)).hexdigest(),
        "specials": tokenizer.SPECIALS,
        "vocab_size": recipe.shape.vocab_size,
        "validation_fraction": recipe.data.validation_fraction,
    }
    folder = cache / sha256(json.dumps(contents).encode()).hexdigest()
    if not folder.exists():
        try:
            _build([texts[digest] for digest in order], recipe, folder)
        except OSError as error:
            problem = f"cannot hold the tokens: {error.strerror or error}"
            hint = "choose a folder that you may write to, on a disk with room"
            raise InputError("cache", str(cache), problem, hint=hint) from error
    return _load(folder, recipe)


def _build(texts: list[str], recipe: Recipe, folder: Path) -> None:
    """Make `folder` appear whole, or leave it to a builder that was faster."""
    bpe = tokenizer.train(texts, recipe.shape.vocab_size)
    dtype = np.dtype("<u2" if recipe.shape.vocab_size <= 2**16 else "<u4")
    tokens = np.concatenate([np.array(ids, dtype) for ids in tokenizer.encode(bpe, texts)])
    num_train_tokens = len(tokens) - round(len(tokens) * recipe.data.validation_fraction)
    facts = {
        "vocab_size": bpe.get_vocab_size(),
        "num_documents": len(texts),
        "num_bytes": sum(len(text.encode()) for text in texts),
        "num_tokens": len(tokens),
        "unigram_entropy_nats": _entropy_nats(tokens[:num_train_tokens]),
        "fingerprint": sha256(tokens.data).hexdigest(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
        built = Path(scratch) / "built"  # TemporaryDirectory itself is readable for its owner alone
        tokenizer.save(bpe, built / "tokenizer")
        tokens.tofile(built / "tokens.bin")
        meta = {
            "dtype": dtype.str,
            "num_train_tokens": num_train_tokens,
            "facts": facts,
            "sizes": _sizes(built),
        }
        (built / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        _sync(*built.rglob("*"), built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another builder was first: same key, same contents
                raise
        _sync(folder.parent)


def _sync(*paths: Path) -> None:
    """To the disk, so that a power cut cannot keep a name and lose what it names."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in `folder`, apart from meta.json."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "meta.json")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _load(folder: Path, recipe: Recipe) -> Corpus:
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, [f"meta.json cannot be read: {error}"]) from None
    found = _sizes(folder)
    wrong = {name: size for name, size in meta["sizes"].items() if found.get(name) != size}
    if wrong:
        problems = [f"{name} has {found.get(name, 0):,} bytes, not {size:,}" for name, size in wrong.items()]
        raise _damaged(folder, problems)

    tokens = np.asarray(np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r"))
    train, validation = np.split(tokens, [meta["num_train_tokens"]])
    split = partial(
        Split,
        task=recipe.task,
        seq_length=recipe.data.seq_length,
        masking_fraction=recipe.data.masking_fraction,
        vocab_size=meta["facts"]["vocab_size"],
        seed=recipe.seed,
    )
    corpus = Corpus(
        train=split(part="train", tokens=train),
        validation=split(part="validation", tokens=validation),
        tokenizer_dir=folder / "tokenizer",
        **meta["facts"],
    )
    if not (corpus.train.num_samples and corpus.validation.num_samples):
        raise _too_small(corpus, recipe)
    return corpus


def _damaged(folder: Path, problems: list[str]) -> FileProblems:
    return FileProblems(str(folder), problems, hint="delete that directory; the next run builds it again")


def _too_small(corpus: Corpus, recipe: Recipe) -> InputError:
    T, train, validation = recipe.data.seq_length, corpus.train.num_samples, corpus.validation.num_samples
    # Validation, below a half, is the part that runs out first.
    needed = math.ceil((T + 1) / recipe.data.validation_fraction)
    num_bytes = math.ceil(needed * corpus.bytes_per_token)
    return InputError(
        "data.corpus",
        recipe.data.corpus,
        f"has {corpus.num_tokens:,} tokens: at seq_length {T} that is {train} training and {validation} "
        f"validation samples, and at least one of each is needed",
        hint=f"give it {needed:,} tokens (about {num_bytes:,} bytes), or lower data.seq_length",
    )


def _entropy_nats(tokens: np.ndarray) -> float:
    """-sum p ln p over the frequencies of `tokens`."""
    counts = np.bincount(tokens)
    p = counts[counts > 0] / len(tokens)
    return float(-(p * np.log(p)).sum())
