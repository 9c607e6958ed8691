"""What the tests of optimizers share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """As many as a rank has, since the sums of a bf16 matmul depend on it; and tiny tensors are faster so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
