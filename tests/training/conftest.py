"""What the tests of training share."""

import os

import pytest


@pytest.fixture(autouse=True)
def environment_as_it_was():
    """A run that is refused in this process has made it a group of one by then; the next test knows nothing of it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
