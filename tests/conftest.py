"""What all tests share: no network, DeepSpeed on the CPU, caches of their own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    """A corpus cache for this session, and a folder that shows whether DeepSpeed compiled anything."""
    os.environ["SCALE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(tmp_path_factory.mktemp("torch_extensions"))
