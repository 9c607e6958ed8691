"""Images and their classes, once: a cache folder that a run maps into memory, and samples of it by number.

    <cache>/<key>/images.npy         uint8 of [N, H, W, C], training first
    <cache>/<key>/labels.npy         int64 of [N]
    <cache>/<key>/preprocessor/      what transformers' AutoImageProcessor loads
    <cache>/<key>/meta.json          counts, entropy, and the sizes of the other files

The embedded images are digits drawn here, so that a first run needs no download.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scaling.data import cache as folders
from scaling.data.samples import slots_of, uniform
from scaling.errors import InputError, did_you_mean
from scaling.recipe import EMBEDDED_IMAGES, Recipe
from scaling.shape import Shape

if TYPE_CHECKING:
    from scaling.data.prepared import Corpus

_FORMAT = 1  # raise it when the same images would give other contents
_NUM_GLYPHS = 6000
_LARGEST_GLYPH_PIXELS = 64  # a side: 74 MB of them
_GLYPHS_STREAM = 3  # of random numbers, beside those of samples.py
_MEAN = _DEVIATION = 0.5  # of a pixel in [0, 1]: ViT's (google-research/vision_transformer, input_pipeline.py)

# Digits of 5 x 7 pixels, as on a dot-matrix display: a row is five bits.
_DIGITS = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 2, 4, 8, 31), (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Images:
    """One part of a set of images. Training takes them in a new order each epoch, validation as they stand."""

    part: Literal["train", "validation"]
    images: np.ndarray  # uint8 of [N, H, W, C]
    labels: np.ndarray  # int64 of [N]
    seed: int

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    targets_per_sample = 1

    def batch(self, indices: Sequence[int], seq_length: int | None = None) -> dict[str, torch.Tensor]:
        """`pixel_values`, fp32 of [B, C, H, W] from -1 to 1, and `labels`, int64 of [B].

        `seq_length` is the number of the model's positions, which an image always has.
        """
        slots = slots_of(np.asarray(indices) % self._period, self.num_samples, self.part, self.seed)
        pixels = torch.from_numpy(self.images[slots]).permute(0, 3, 1, 2).float()
        labels = torch.from_numpy(self.labels[slots])
        return {"pixel_values": (pixels / 255 - _MEAN) / _DEVIATION, "labels": labels}

    @property
    def _period(self) -> int:
        return self.num_samples if self.part == "validation" else 2**62


def prepare(recipe: Recipe, *, base: Path, cache: Path) -> "Corpus":
    """The images of `recipe`, which stand in the order of their hashes; the last `validation_fraction` validate.

    Equal images stand together. All are held in memory while they are read.
    """
    from scaling.data.prepared import Corpus, entropy_nats

    shape = recipe.shape
    parts = [_read(name, base, shape) for name in recipe.data.corpus]
    digests = [sha256(images.tobytes() + labels.tobytes()).hexdigest() for images, labels in parts]
    repeated = [name for name, digest in zip(recipe.data.corpus, digests, strict=True) if digests.count(digest) > 1]
    if repeated:
        raise _wrong(repeated[-1], f"repeats the images of {repeated[0]!r}", "list each file once")
    contents = {
        "format": _FORMAT,
        "images": sorted(digests),
        "validation_fraction": recipe.data.validation_fraction,
    }
    folder, meta = folders.built(cache, contents, partial(_build, parts, recipe))
    images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
    split = meta["num_train_images"]
    counts = meta["facts"]
    if not 0 < split < len(labels):
        problem = f"has {len(labels)} images, of which {split} train, and at least one of each part is needed"
        raise InputError("data.corpus", recipe.data.corpus, problem)
    return Corpus(
        train=Images(part="train", images=images[:split], labels=np.asarray(labels[:split]), seed=recipe.seed),
        validation=Images(
            part="validation", images=images[split:], labels=np.asarray(labels[split:]), seed=recipe.seed
        ),
        preprocessor_dir=folder / "preprocessor",
        num_tokens=len(labels) * shape.max_position_embeddings,
        unigram_entropy_nats=entropy_nats(labels[:split]),
        **counts,
    )


def _build(parts: list[tuple[np.ndarray, np.ndarray]], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Fills `folder`; what meta.json is to say."""
    images, labels = (np.concatenate(of_one) for of_one in zip(*parts, strict=True))
    order = sorted(range(len(labels)), key=lambda i: (sha256(images[i].tobytes()).digest(), int(labels[i])))
    images, labels = images[order], labels[order]
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    (folder / "preprocessor").mkdir()
    side = recipe.shape.image_size
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True, "size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [_MEAN] * recipe.shape.num_channels, "image_std": [_DEVIATION] * recipe.shape.num_channels,
    }  # fmt: skip
    (folder / "preprocessor" / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    num_validation = round(len(labels) * recipe.data.validation_fraction)
    return {
        "num_train_images": len(labels) - num_validation,
        "facts": {
            "vocab_size": int(labels.max()) + 1,
            "num_documents": len(labels),
            "num_bytes": images.nbytes,
            "fingerprint": sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        },
    }


def _read(name: str, base: Path, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of one name of the corpus. Raises InputError for what does not fit the model."""
    if name == EMBEDDED_IMAGES:
        images, labels = glyphs(_NUM_GLYPHS, shape.image_size, shape.num_channels, name)
    else:
        images, labels = _arrays(name, base)
    hint = "give `images`, uint8 of [N, H, W, C], and `labels`, integers of [N]"
    if images.dtype != np.uint8 or images.ndim != 4:
        raise _wrong(name, f"has images of {images.dtype} and {images.ndim} dimensions", hint)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise _wrong(name, f"has labels of {labels.dtype} {list(labels.shape)} for {len(images)} images", hint)
    wanted = (shape.image_size, shape.image_size, shape.num_channels)
    if images.shape[1:] != wanted:
        found, takes = (" x ".join(map(str, size)) for size in (images.shape[1:], wanted))
        raise _wrong(name, f"has images of {found}, and the model takes {takes}", "resize them, or change the model")
    if not len(labels):
        raise _wrong(name, "holds no image", hint)
    if labels.min() < 0 or labels.max() >= shape.vocab_size:
        outside = int(labels.min() if labels.min() < 0 else labels.max())
        raise _wrong(name, f"has a label {outside}, and the model's classes are 0 to {shape.vocab_size - 1}",
                     "model.vocab_size is the number of classes")  # fmt: skip
    return images, labels.astype(np.int64)


def _arrays(name: str, base: Path) -> tuple[np.ndarray, np.ndarray]:
    path = base / name
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "labels"} - set(file)
            if missing:
                raise _wrong(name, f"has no array {sorted(missing)[0]!r}, but {', '.join(file)}", "name them so")
            return file["images"], file["labels"]
    except FileNotFoundError:
        near = [entry.name for entry in path.parent.glob("*.npz")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else f"{EMBEDDED_IMAGES!r} needs no file"
        raise _wrong(name, "does not exist", hint) from None
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise _wrong(name, f"is not an .npz file that can be read: {error}", "numpy.savez writes one") from None


def glyphs(number: int, side: int, num_channels: int, name: str = EMBEDDED_IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """`number` digits on squares of `side` pixels, shifted, brighter or darker, under noise; the same every time."""
    if not 8 <= side <= _LARGEST_GLYPH_PIXELS:
        problem = f"is drawn on 8 to {_LARGEST_GLYPH_PIXELS} pixels a side, and model.image_size is {side}"
        raise _wrong(name, problem, "give .npz files of your own, or change the model")
    scale = max(1, side * 9 // 10 // 7)  # so that a digit is 0.6 to 0.9 of the height
    bits = np.array([[[row >> 4 - column & 1 for column in range(5)] for row in digit] for digit in _DIGITS])
    fonts = bits.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width = fonts.shape
    # A class, two shifts, ink and ground, and a number for each pixel.
    draws = uniform(0, 0, _GLYPHS_STREAM, number * (5 + side * side * num_channels)).reshape(number, -1)
    labels = (draws[:, 0] * len(_DIGITS)).astype(np.int64)
    top = (draws[:, 1] * (side - height + 1)).astype(int)
    left = (draws[:, 2] * (side - width + 1)).astype(int)
    canvas = np.zeros((number, side, side, 1))
    for i in range(number):
        canvas[i, top[i] : top[i] + height, left[i] : left[i] + width, 0] = fonts[labels[i]]
    ground, ink = (80 * draws[:, 3]).reshape(-1, 1, 1, 1), (80 + 80 * draws[:, 4]).reshape(-1, 1, 1, 1)
    noise = 60 * draws[:, 5:].reshape(number, side, side, num_channels)
    return (ground + ink * canvas + noise).clip(0, 255).astype(np.uint8), labels


def _wrong(name: str, problem: str, hint: str) -> InputError:
    return InputError("data.corpus", name, problem, hint=hint)
