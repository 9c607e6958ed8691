"""A common batch is divided by every size, and is the nearest that is; beyond twice the asked one there is none."""

from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import InputError
from scaling.plan.elastic import common_batch, sizes_of


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5000))
def test_the_common_batch_is_the_nearest_that_every_size_divides(cluster_like, one, other, asked):
    fewest, most = sorted((one, other))
    sizes = [cluster_like(gpus=gpus) for gpus in range(fewest, most + 1)]
    multiple = lcm(*range(fewest, most + 1))
    around = [batch for batch in (asked // multiple * multiple, -(-asked // multiple) * multiple) if batch]
    nearest = min(around, key=lambda batch: (abs(batch - asked), -batch))
    if asked / 2 <= nearest <= 2 * asked:
        assert common_batch(asked, sizes) == nearest
    else:
        with pytest.raises(InputError) as refused:
            common_batch(asked, sizes)
        assert refused.value.field == "elastic"
        assert f"--global-batch-size {nearest}" in refused.value.hint


def test_within_a_node_every_number_counts_and_beyond_it_whole_nodes(cluster_like):
    sizes = sizes_of("6-24", cluster_like(nodes=4))
    assert [size.world_size for size in sizes] == [6, 7, 8, 16, 24]
    assert [(size.num_nodes, size.gpus_per_node) for size in sizes] == [(1, 6), (1, 7), (1, 8), (2, 8), (3, 8)]


def test_a_range_that_is_too_wide_is_told_how_much_would_do(cluster_like):
    sizes = sizes_of("8-128", cluster_like(nodes=16))
    with pytest.raises(InputError) as refused:
        common_batch(512, sizes)
    # 8 x lcm(1..6) = 480; with 7 nodes it is 3360.
    assert "--elastic 8-48, where it is 480" in refused.value.hint
