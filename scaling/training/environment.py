"""environment.json: where and with what each life of a run ran. A list, one entry a life, the latest last."""

import json
import os
import platform
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import scaling
from scaling.errors import ScaleError
from scaling.files import write_folder
from scaling.training.ranks import Ranks

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")
# Named one by one: an environment holds keys and tokens, and no rule tells those from the rest.
_VARIABLES = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_EXTENSIONS_DIR",
    "DS_ACCELERATOR", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
    "NCCL_DEBUG", "NCCL_ALGO", "NCCL_PROTO", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE",
    "NCCL_NVLS_ENABLE", "GLOO_SOCKET_IFNAME", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_NTASKS",
    "SLURM_RESTART_COUNT", "HF_HUB_OFFLINE", "SCALE_HARDWARE", "SCALE_CACHE",
)  # fmt: skip
_GIT_TIMEOUT_S = 10


def record(folder: Path, here: Ranks, command: Sequence[str]) -> None:
    """Appends this life to <folder>/environment.json; the first rank writes. All call it, for their host and device."""
    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else _processor()
    places = here.gathered((socket.gethostname(), device))
    if problem := here.from_first(_recorded, folder, command, places):
        raise problem


def _recorded(folder: Path, command: Sequence[str], places: list[tuple[str, str]]) -> ScaleError | None:
    """Adds this life; what is in the way of that."""
    life = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "git": git_state(),
        "hosts": Counter(host for host, _ in places),
        "devices": Counter(device for _, device in places),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    text = json.dumps([*_earlier(folder / "environment.json"), life], indent=2) + "\n"
    try:
        write_folder(folder, {"environment.json": text}, "run_dir")
    except ScaleError as error:
        return error
    return None


def versions() -> dict[str, str]:
    """Of the packages that are installed, of Python, and of CUDA and NCCL where torch has them."""
    found = {"scale": scaling.__version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available() and dist.is_nccl_available():
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    return found


def git_state(source: Path = Path(scaling.__file__)) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout that tracks `source`; None where it was installed, or there is no git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(source.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", source.name)  # a .venv inside somebody's repository is not in it
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _earlier(path: Path) -> list[Any]:
    """The lives before this one; what cannot be read is kept as text."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    try:
        lives = json.loads(text)
    except json.JSONDecodeError:
        lives = None
    return lives if isinstance(lives, list) else [{"unreadable": text}]


def _processor() -> str:
    """The CPU's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
