"""Text to tokens, once: a cache folder per (text, vocabulary, split) that a run maps into memory.

<cache>/<key>/tokens.bin     all documents, each closed by an end of text; uint16 or uint32, little-endian
<cache>/<key>/tokenizer/     what transformers' AutoTokenizer loads
<cache>/<key>/meta.json      counts, dtype, entropy, and the sizes of the other files
"""

import math
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import cache as folders
from scaling.data import tokenizer
from scaling.data.corpus import documents
from scaling.data.prepared import Corpus, entropy_nats
from scaling.data.samples import Split
from scaling.data.tokenizer import Vocabulary
from scaling.errors import InputError
from scaling.recipe import Recipe

_FORMAT = 2  # raise it when the same text would give other contents


def prepare(recipe: Recipe, *, base: Path, cache: Path) -> Corpus:
    """The tokens of a recipe's text: its weights' own tokenizer's where it starts from some, else one trained on it.

    Documents stand in the order of their hashes, and the last `validation_fraction` of all tokens is the
    validation part: a random choice of many documents, the end of a single one. All text is held in memory, also to
    find its key.
    """
    texts = {sha256(text.encode()).digest(): text for text in documents(recipe.data.corpus, base, cache)}
    order = sorted(texts)
    num_sentinels = recipe.spans.num_spans if recipe.spans else 0
    contents = {
        "format": _FORMAT,
        "documents": sha256(b"".join(order)).hexdigest(),
        "specials": tokenizer.SPECIALS,
        "sentinels": num_sentinels,
        "vocab_size": recipe.shape.vocab_size,
        "tokenizer": tokenizer.fingerprint(recipe.weights, recipe.task) if recipe.weights else None,
        "validation_fraction": recipe.data.validation_fraction,
    }
    build = partial(_build, [texts[digest] for digest in order], recipe, num_sentinels)
    folder, meta = folders.built(cache, contents, build)
    return _corpus(folder, meta, recipe)


def _build(texts: list[str], recipe: Recipe, num_sentinels: int, folder: Path) -> dict[str, Any]:
    """Fills `folder`; what meta.json is to say."""
    size = recipe.shape.vocab_size
    if recipe.weights:
        bpe, vocabulary = tokenizer.of_weights(recipe.weights, recipe.task, size, num_sentinels)
    else:
        bpe, vocabulary = tokenizer.train(texts, size, num_sentinels)
    dtype = np.dtype("<u2" if size <= 2**16 else "<u4")
    tokens = np.concatenate([np.array(ids, dtype) for ids in tokenizer.encode(bpe, texts, vocabulary.end_id)])
    num_train_tokens = len(tokens) - round(len(tokens) * recipe.data.validation_fraction)
    facts = {
        "vocab_size": vocabulary.size,
        "num_documents": len(texts),
        "num_bytes": sum(len(text.encode()) for text in texts),
        "num_tokens": len(tokens),
        "unigram_entropy_nats": entropy_nats(tokens[:num_train_tokens]),
        "fingerprint": sha256(tokens.data).hexdigest(),
    }
    tokenizer.save(bpe, vocabulary, folder / "tokenizer")
    tokens.tofile(folder / "tokens.bin")
    return {
        "dtype": dtype.str,
        "num_train_tokens": num_train_tokens,
        "vocabulary": asdict(vocabulary),
        "facts": facts,
    }


def _corpus(folder: Path, meta: dict[str, Any], recipe: Recipe) -> Corpus:
    tokens = np.asarray(np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r"))
    train, validation = np.split(tokens, [meta["num_train_tokens"]])
    split = partial(
        Split,
        task=recipe.task,
        seq_length=recipe.data.seq_length,
        masking_fraction=recipe.data.masking_fraction,
        mean_span_length=recipe.data.mean_span_length,
        vocabulary=Vocabulary.of(meta["vocabulary"]),
        seed=recipe.seed,
    )
    corpus = Corpus(
        train=split(part="train", tokens=train),
        validation=split(part="validation", tokens=validation),
        preprocessor_dir=folder / "tokenizer",
        **meta["facts"],
    )
    if not (corpus.train.num_samples and corpus.validation.num_samples):
        raise _too_small(corpus, recipe)
    return corpus


def _too_small(corpus: Corpus, recipe: Recipe) -> InputError:
    T, train, validation = recipe.data.seq_length, corpus.train.num_samples, corpus.validation.num_samples
    # Validation, below a half, is the part that runs out first.
    window = recipe.spans.raw_length if recipe.spans else T
    needed = math.ceil((window + 1) / recipe.data.validation_fraction)
    num_bytes = math.ceil(needed * corpus.bytes_per_token)
    return InputError(
        "data.corpus",
        recipe.data.corpus,
        f"has {corpus.num_tokens:,} tokens: at seq_length {T} that is {train} training and {validation} "
        f"validation samples, and at least one of each is needed",
        hint=f"give it {needed:,} tokens (about {num_bytes:,} bytes), or lower data.seq_length",
    )
