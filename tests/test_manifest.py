"""A manifest knows every file of its checkpoint, and itself."""

import contextlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from scaling import manifest
from scaling.cli import app
from scaling.errors import InputError
from scaling.manifest import Damaged, File, Manifest


def made(folder, step, validation_loss=None, content=b"weights"):
    path = folder / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(content)
    files = {"weights.pt": File(num_bytes=len(content), sha256=manifest.sha256(path / "weights.pt"))}
    found = Manifest(
        step=step, samples_seen=8 * step, world_size=2, zero_stage=1, uses_nvme=False, recipe={"name": "x"}, plan={},
        versions={}, random_state={"seed": 1}, validation_loss=validation_loss, recent_losses=[2.5], rollbacks=0,
        skipped_in_a_row=0, files=files,
    )  # fmt: skip
    (path / manifest.NAME).write_text(found.dump())
    return path


def test_what_is_dumped_is_read_back(tmp_path):
    path = made(tmp_path, 3, 1.25)
    found = manifest.require_whole(path, "run")
    assert (found.step, found.samples_seen, found.validation_loss, found.recent_losses) == (3, 24, 1.25, [2.5])
    assert found.num_bytes == 7
    # printf weights | sha256sum
    assert found.files["weights.pt"].sha256 == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"


@pytest.mark.parametrize("place", range(0, 700, 13))
def test_any_flipped_bit_of_a_manifest_is_noticed(place, tmp_path):
    path = made(tmp_path, 3)
    content = bytearray((path / manifest.NAME).read_bytes())
    place %= len(content)
    content[place] ^= 1
    (path / manifest.NAME).write_bytes(content)
    found = None
    with contextlib.suppress(Damaged):
        found = manifest.read(path)
    assert found in (None, manifest.read(made(tmp_path / "again", 3)))  # the same, where it is in the spaces between


def test_a_manifest_that_another_wrote_over_is_not_believed(tmp_path):
    path = made(tmp_path, 3)
    content = json.loads((path / manifest.NAME).read_text())
    content["step"] = 4
    (path / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(Damaged, match="its own digest does not match"):
        manifest.read(path)


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step, loss in ((2, 3.0), (4, 1.0), (6, None), (8, 2.0), (10, 2.5)):
        made(tmp_path, step, loss)
    assert [manifest.step_of(path) for path in manifest.steps(tmp_path)] == [10, 8, 6, 4, 2]
    assert sorted(manifest.step_of(path) for path in manifest.kept(tmp_path, 2)) == [4, 8, 10]
    assert sorted(manifest.step_of(path) for path in manifest.kept(tmp_path, 4)) == [4, 6, 8, 10]


def test_a_validation_loss_that_is_no_number_is_never_the_best(tmp_path):
    for step, loss in ((2, 2.0), (4, float("nan")), (6, 3.0)):
        made(tmp_path, step, loss)
    assert sorted(manifest.step_of(path) for path in manifest.kept(tmp_path, 1)) == [2, 6]


def test_only_numbered_folders_are_checkpoints(tmp_path):
    made(tmp_path, 3)
    for name in ("step_x", ".partial", "aside-1_step_000009", ".removed-step_000001"):
        (tmp_path / name).mkdir()
    assert [path.name for path in manifest.steps(tmp_path)] == ["step_000003"]
    assert manifest.find(tmp_path, "run").name == "step_000003"
    with pytest.raises(InputError, match=r"run: .* holds no complete checkpoint"):
        manifest.find(tmp_path / "step_x", "run")


def test_the_command_lists_them_and_says_which_is_damaged(tmp_path):
    made(tmp_path / "checkpoints", 2, 1.5)
    whole = CliRunner().invoke(app, ["checkpoints", str(tmp_path)])
    assert whole.exit_code == 0
    assert "2 ranks at ZeRO-1" in whole.stdout
    assert "whole" in whole.stdout
    damaged = made(tmp_path / "checkpoints", 4)
    (damaged / "weights.pt").write_bytes(b"weightz")
    (made(tmp_path / "checkpoints", 6) / manifest.NAME).unlink()
    found = CliRunner().invoke(app, ["checkpoints", str(tmp_path), "--json"])
    assert found.exit_code == 1
    problems = {row["name"]: row["problems"] for row in json.loads(found.stdout)["checkpoints"]}
    assert problems["step_000002"] == []
    assert "weights.pt is not what was written" in problems["step_000004"][0]
    assert "manifest.json is missing" in problems["step_000006"][0]


def test_a_file_that_grew_is_not_what_was_written(tmp_path):
    path = made(tmp_path, 3)
    (path / "weights.pt").write_bytes(b"weights and more")
    assert manifest.problems(path, manifest.read(path).files.items()) == ["weights.pt has 16 bytes of 7"]
    assert replace(manifest.read(path), step=3) == manifest.read(path)
