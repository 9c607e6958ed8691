"""A recipe's corpus, ready for its task: two parts that give samples by number, and what there is to say of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.data.images import Images
from scaling.data.samples import Split


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus of text or images. Counts are of the whole.

    Text: documents, UTF-8 bytes, and tokens with the ends of text; `vocab_size` is the tokenizer's, below the model's
    where the text is too small for so many entries. Images: images, bytes of pixels, and positions of the model;
    `vocab_size` is the number of classes. `preprocessor_dir` is what transformers' AutoTokenizer or AutoImageProcessor
    loads. `unigram_entropy_nats` is per target of the training part, tokens or classes: the loss of a model that knows
    only frequencies. `fingerprint` is equal where the data are.
    """

    train: Split | Images
    validation: Split | Images
    preprocessor_dir: Path
    vocab_size: int
    num_documents: int
    num_bytes: int
    num_tokens: int
    unigram_entropy_nats: float
    fingerprint: str

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / self.num_tokens

    @property
    def baseline(self) -> str:
        """The loss that knows only frequencies, by its name."""
        return f"{'class' if isinstance(self.train, Images) else 'unigram'} entropy {self.unigram_entropy_nats:.4f}"

    def __str__(self) -> str:
        if isinstance(self.train, Images):
            size = " x ".join(map(str, self.train.images.shape[1:]))
            return f"{self.num_documents:,} images of {size} in {self.vocab_size} classes, {self.baseline} nats"
        said = f"{self.num_tokens:,} tokens of {self.bytes_per_token:.2f} bytes, vocabulary {self.vocab_size}, "
        said += f"{self.baseline} nats per token"
        if self.train.spans:
            spans = self.train.spans
            said += f"; of {spans.raw_length} tokens the encoder takes {spans.input_length}, with {spans.num_spans} "
            said += f"spans left out, and the decoder {spans.target_length}"
        return said


def entropy_nats(values: np.ndarray) -> float:
    """-sum p ln p over the frequencies of `values`."""
    counts = np.bincount(values)
    p = counts[counts > 0] / len(values)
    return float(-(p * np.log(p)).sum())
