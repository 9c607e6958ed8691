"""The tokenizer of a corpus: byte-level BPE (Radford et al. 2019, section 2.2), trained on the corpus itself.

Nothing is downloaded, and no text is out of vocabulary: the 256 bytes are always entries.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from scaling.errors import InputError

END_OF_TEXT, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
SPECIALS = (END_OF_TEXT, PAD, MASK)  # entries 0, 1 and 2 of every vocabulary
END_OF_TEXT_ID, MASK_ID = SPECIALS.index(END_OF_TEXT), SPECIALS.index(MASK)
_SMALLEST_VOCAB = len(SPECIALS) + 256


def train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries: fewer when `texts` run out of pairs to merge.

    Its `get_vocab_size()` is the number reached. Raises InputError on "model.vocab_size" when the bytes
    and the special tokens do not fit.
    """
    if vocab_size < _SMALLEST_VOCAB:
        raise InputError(
            "model.vocab_size", vocab_size, f"is below the 256 bytes and {len(SPECIALS)} special tokens",
            hint=f"use at least {_SMALLEST_VOCAB}; 2048 suits a corpus of a few megabytes",
        )  # fmt: skip
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, closed by END_OF_TEXT_ID, the only special token there."""
    tokenizer.encode_special_tokens = True  # a text that mentions "<|mask|>" means the characters
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        yield [*encoding.ids, END_OF_TEXT_ID]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `folder` so that transformers' AutoTokenizer.from_pretrained loads it."""
    from transformers import PreTrainedTokenizerFast  # seconds to import, and only a new corpus needs it

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
