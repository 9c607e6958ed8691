"""What one rank writes: a copy that nothing reaches any more, and an error for everything that is not on the disk."""

import time
from collections import OrderedDict

import pytest
import torch
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from scaling import manifest
from scaling.errors import ScaleError
from scaling.training import shards
from scaling.training.ranks import Ranks
from scaling.training.watchdog import Pulse, Watchdog, diagnosis

INFO = CheckpointCommitInfo(tag="t", save_dir=".", save_latest=False)


def content():
    flat = torch.arange(12.0)
    scaler = DynamicLossScaler(2.0**8, 10, 1.0, 1, False)
    return {
        "flat": flat, "views": [flat[:4], flat[4:].view(2, 4)], "state": OrderedDict(step=torch.tensor(3.0)),
        "scaler": scaler, "names": {"a", "b"}, "shape": torch.Size([3, 4]), "number": 7,
    }  # fmt: skip


def writer(**changes):
    made = shards.Writer(in_background=True, ranks_of_host=1, **changes)
    made.create(INFO)
    return made


def test_what_is_written_in_the_background_is_as_it_was_when_it_was_saved(tmp_path):
    saved, path = content(), tmp_path / "x.pt"
    written = writer()
    written.save(saved, str(path))
    saved["flat"].zero_()  # as training goes on
    saved["state"]["step"] += 1
    saved["scaler"].cur_scale = 1.0
    saved["names"].add("c")
    written.start()
    files, error = written.result()
    assert error == ""
    assert files["x.pt"] == manifest.File(num_bytes=path.stat().st_size, sha256=manifest.sha256(path))
    found = shards.load(path)
    assert torch.equal(found["flat"], torch.arange(12.0))
    assert torch.equal(found["views"][1], torch.arange(4.0, 12.0).view(2, 4))
    # What shared memory still does, so that it is written once.
    assert found["views"][0].untyped_storage()._cdata == found["flat"].untyped_storage()._cdata
    assert (found["state"]["step"], found["scaler"].cur_scale, found["names"]) == (3.0, 256.0, {"a", "b"})


def test_the_next_copy_takes_the_memory_of_the_one_before(tmp_path):
    written, held = writer(), []
    for number in range(3):
        written.create(INFO)
        written.save(content(), str(tmp_path / f"{number}.pt"))
        held.append([buffer.data_ptr() for buffer in written._copy._buffers])
        written.start()
        assert written.result()[1] == ""
        assert shards.load(tmp_path / f"{number}.pt")["flat"].sum() == 66
    assert held[0] == held[1] == held[2]


def test_without_room_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "available_memory_bytes", lambda: 10)
    written = writer()
    written.save(content(), str(tmp_path / "x.pt"))
    assert (tmp_path / "x.pt").exists()
    assert written.result()[1] == ""


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("x\ny"), OSError(28, "No space left on device")])
def test_whatever_keeps_a_file_from_being_written_is_heard_of(failure, tmp_path, monkeypatch):
    def broken(*args):
        raise failure

    monkeypatch.setattr(shards, "_torch_save", broken)
    written = writer()
    written.save(content(), str(tmp_path / "x.pt"))
    written.start()
    files, error = written.result()
    assert files == {}
    assert error in ("x.pt: MemoryError", "x.pt: x", "x.pt: No space left on device")


def test_only_what_the_manifest_names_is_read(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    assert shards.Reader([tmp_path / "x.pt"]).load(str(tmp_path / "x.pt"))["a"] == 1
    with pytest.raises(ScaleError, match="is not named"):
        shards.Reader([tmp_path / "y.pt"]).load(str(tmp_path / "x.pt"))


def alone():
    return Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def test_where_no_pulse_can_be_written_a_run_that_moves_is_left_alone(tmp_path):
    watchdog = Watchdog(tmp_path / "absent", alone(), 0.3, hint="")
    with watchdog:
        for number in range(30):
            watchdog.doing(f"{number}")
            time.sleep(0.05)
        assert watchdog._thread.is_alive()


def test_the_rank_that_is_waited_for_is_named():
    pulses = {rank: Pulse(rank=rank, host="h", pid=rank + 10, count=5, doing="adding up") for rank in range(3)}
    assert diagnosis(pulses, []) == "all ranks are in adding up"
    pulses[1].count, pulses[1].doing = 4, "its batch"
    assert diagnosis(pulses, []) == "rank 1 (host h, process 11) is behind the others, in its batch"
    assert diagnosis(pulses, [2]) == "rank 2 (host h, process 12) does not answer, since adding up"
    assert diagnosis(pulses | {2: Pulse(rank=2)}, [2]) == "rank 2 (never seen) does not answer, since starting"
