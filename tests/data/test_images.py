"""Images are what the file holds, once each, and what does not fit the model is one clear error."""

import json

import numpy as np
import pytest
import torch

from scaling import data
from scaling.data.images import glyphs
from scaling.errors import FileProblems, InputError
from scaling.recipe import dump, parse
from tests.parallel.families import recipe_of

GENERATOR = np.random.Generator(np.random.Philox(1))
IMAGES = GENERATOR.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 10, 60)


def recipe(folder, corpus="a.npz", **changes):
    corpora = {"corpus": [corpus], "seq_length": 17, "validation_fraction": 0.1}
    return recipe_of("vit", folder, data={**corpora, **changes})


def test_every_image_of_a_file_is_in_one_part_normalised_as_vit_does(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    corpus = data.prepare(recipe(tmp_path), base=tmp_path, cache=tmp_path / "cache")
    assert (corpus.train.num_samples, corpus.validation.num_samples) == (54, 6)
    found = {}
    for part in (corpus.train, corpus.validation):
        batch = part.batch(range(part.num_samples))
        assert batch["pixel_values"].shape == (part.num_samples, 3, 16, 16)
        assert batch["pixel_values"].dtype == torch.float32
        for pixels, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            found[np.round((pixels.numpy() * 0.5 + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0).tobytes()] = int(
                label
            )
    assert found == {image.tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    counts = np.unique(corpus.train.labels, return_counts=True)[1] / 54
    assert corpus.unigram_entropy_nats == pytest.approx(-(counts * np.log(counts)).sum())
    assert "60 images of 16 x 16 x 3 in 10 classes, class entropy" in str(corpus)


def test_a_sample_depends_on_its_number_alone_and_comes_once_an_epoch(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    train = data.prepare(recipe(tmp_path), base=tmp_path, cache=tmp_path / "cache").train
    whole = train.batch(range(108))["pixel_values"]
    assert torch.equal(train.batch([70, 3])["pixel_values"], whole[[70, 3]])
    epochs = whole[:54], whole[54:]
    assert len(epochs[0].flatten(1).unique(dim=0)) == len(epochs[1].flatten(1).unique(dim=0)) == 54
    assert not torch.equal(*epochs)


def test_transformers_image_processor_gives_the_same_pixels(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    corpus = data.prepare(recipe(tmp_path), base=tmp_path, cache=tmp_path / "cache")
    said = json.loads((corpus.preprocessor_dir / "preprocessor_config.json").read_text())
    pixels = torch.from_numpy(np.array(corpus.train.images[0])).permute(2, 0, 1).double() * said["rescale_factor"]
    mean, std = (torch.tensor(said[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    first = next(i for i in range(54) if np.array_equal(_bytes(corpus.train, i), corpus.train.images[0]))
    assert torch.allclose(corpus.train.batch([first])["pixel_values"][0].double(), (pixels - mean) / std, atol=1e-6)


def _bytes(part, index):
    return (
        np.round((part.batch([index])["pixel_values"][0].numpy() * 0.5 + 0.5) * 255).astype(np.uint8).transpose(1, 2, 0)
    )


def test_glyphs_are_the_same_every_time_balanced_and_told_apart_by_more_than_their_place():
    images, labels = glyphs(400, 16, 3)
    again, _ = glyphs(400, 16, 3)
    assert np.array_equal(images, again)
    assert images.shape == (400, 16, 16, 3)
    assert set(labels) == set(range(10))
    assert np.bincount(labels).min() > 20
    assert len({image.tobytes() for image in images}) == 400
    with pytest.raises(InputError, match=r"embedded:glyphs' is drawn on 8 to 64 pixels a side"):
        glyphs(1, 224, 3)


WRONG = {
    "has no array 'labels', but images": {"images": IMAGES},
    "has images of float64 and 4 dimensions": {"images": IMAGES / 255, "labels": LABELS},
    "has images of uint8 and 3 dimensions": {"images": IMAGES[..., 0], "labels": LABELS},
    "has images of 16 x 16 x 1, and the model takes 16 x 16 x 3": {"images": IMAGES[..., :1], "labels": LABELS},
    r"has labels of int64 \[59\] for 60 images": {"images": IMAGES, "labels": LABELS[:-1]},
    r"has labels of float64 \[60\]": {"images": IMAGES, "labels": LABELS / 2},
    "has a label 19, and the model's classes are 0 to 9": {"images": IMAGES, "labels": LABELS + 10 * (LABELS == 9)},
    "has a label -1, and the model's classes are 0 to 9": {"images": IMAGES, "labels": LABELS - 1},
    "holds no image": {"images": IMAGES[:0], "labels": LABELS[:0]},
    "Object arrays cannot be loaded": {"images": IMAGES, "labels": np.array([None] * 60)},
    "at least one of each part is needed": {"images": IMAGES[:2], "labels": LABELS[:2]},
}


@pytest.mark.parametrize("said", WRONG)
def test_a_file_that_does_not_fit_is_refused_with_what_is_wrong(said, tmp_path):
    np.savez(tmp_path / "a.npz", **WRONG[said])
    with pytest.raises(InputError, match=said) as caught:
        data.prepare(recipe(tmp_path), base=tmp_path, cache=tmp_path / "cache")
    assert caught.value.field == "data.corpus"


def test_what_is_no_file_of_images_is_refused(tmp_path):
    (tmp_path / "b.npz").write_text("text")
    for name, said in (("b.npz", "is not an .npz file"), ("c.npz", "does not exist")):
        with pytest.raises(InputError, match=said):
            data.prepare(recipe(tmp_path, name), base=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": ["embedded:docstrings"]}, "holds no images, which the task classifies"),
        ({"seq_length": 16}, "is not the 17 positions of tiny, patches and class token"),
        ({"curriculum": {"start": 1, "increment": 1, "samples": 9}}, "cuts samples short, which an image is not"),
    ],
)
def test_a_recipe_that_means_nothing_for_images_is_refused(changes, said, tmp_path):
    text = dump(recipe(tmp_path, "embedded:glyphs"))
    fields = {**recipe(tmp_path, "embedded:glyphs").data.model_dump(exclude_none=True), **changes}
    head, tail = text.split("data:\n")
    rest = tail[tail.index("global_batch_size") :]
    with pytest.raises(FileProblems, match=said):
        parse(f"{head}data: {json.dumps(fields)}\n{rest}", "r.yaml")


def test_text_tasks_refuse_images_and_a_class_is_one_target_of_all_positions(tmp_path):
    with pytest.raises(ValueError, match="holds images, and the task is causal-lm"):
        recipe_of("gpt2", tmp_path, data={"corpus": ["x.npz"], "seq_length": 32, "validation_fraction": 0.1})
    assert recipe(tmp_path).predicted_fraction == 1 / 17
