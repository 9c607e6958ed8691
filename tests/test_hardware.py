"""Accelerators and clusters: plausible rows, names that people type, and what nvidia-smi prints."""

import os
from contextlib import suppress

import pytest

from scaling import hardware
from scaling.errors import InputError
from scaling.hardware import ACCELERATORS, cluster_of, detected_gpus, find_accelerator
from scaling.units import GIB


@pytest.mark.parametrize("row", ACCELERATORS.values(), ids=list(ACCELERATORS))
def test_a_row_is_physically_plausible_and_names_its_source(row):
    assert 0.4 < row.matmul_fraction <= 1  # MI300X's measured 51 % is the lowest (stas00/ml-engineering)
    assert row.peak_flops_fp32 < row.peak_flops_16bit
    assert row.peak_flops("fp32") == row.peak_flops_fp32
    assert row.peak_flops("bf16") == row.peak_flops("fp16") == row.peak_flops_16bit
    # Arithmetic intensity at the ridge: every data-centre and desktop card of these years has 100 to 500 FLOPs a byte.
    assert 100 <= row.peak_flops_16bit / row.memory_bytes_per_s <= 500
    assert row.network_bytes_per_s <= row.link_bytes_per_s < row.memory_bytes_per_s
    assert row.memory_bytes % GIB == 0
    assert row.gpus_per_node in (4, 8)
    assert len(row.source) > 10
    # The stand-in for a rate that nobody measured is confessed.
    assert ("no measured matmul ceiling" in row.source) == (row.matmul_fraction == pytest.approx(0.8))


@pytest.mark.parametrize(
    ("name", "memory_gib", "tflops", "tb_per_s", "bf16"),
    [
        # NVIDIA's and AMD's datasheets, dense 16-bit tensor rate and memory bandwidth.
        ("v100-32gb", 32, 125, 0.9, False),
        ("t4", 16, 65, 0.32, False),
        ("a100-80gb", 80, 312, 2.039, True),
        ("a100-40gb", 40, 312, 1.555, True),
        ("h100", 80, 989, 3.35, True),
        ("h200", 141, 989, 4.8, True),
        ("mi300x", 192, 1307, 5.3, True),
    ],
)
def test_a_row_has_the_datasheets_figures(name, memory_gib, tflops, tb_per_s, bf16):
    row = ACCELERATORS[name]
    assert row.memory_bytes == memory_gib * GIB
    assert row.peak_flops_16bit == pytest.approx(tflops * 1e12)
    assert row.memory_bytes_per_s == pytest.approx(tb_per_s * 1e12)
    assert row.supports_bf16 is bf16


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a100-80gb", "a100-80gb"), ("A100-80GB", "a100-80gb"), ("a100_80gb", "a100-80gb"),
        (" A100 80GB ", "a100-80gb"), ("h100-80gb", "h100"), ("H100-SXM", "h100"), ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"), ("RTX 4090", "rtx-4090"), ("RTX A6000", "a6000"),
    ],
)  # fmt: skip
def test_a_gpu_is_found_however_people_write_it(typed, name):
    assert find_accelerator(typed) is ACCELERATORS[name]


@pytest.mark.parametrize(("typed", "suggested"), [("a100", "a100-80gb"), ("h1000", "h100"), ("v100", "v100-32gb")])
def test_an_unknown_gpu_is_refused_with_the_closest_names(typed, suggested):
    with pytest.raises(InputError) as caught:
        find_accelerator(typed)
    assert caught.value.field == "gpu"
    assert repr(suggested) in caught.value.hint


def test_a_gpu_like_no_other_is_refused_with_all_names():
    with pytest.raises(InputError) as caught:
        find_accelerator("zzz")
    assert all(name in caught.value.hint for name in [*ACCELERATORS, "cpu"])


def test_the_cpu_is_measured_and_shared_by_its_ranks():
    one, two = find_accelerator("cpu", cpu_ranks=1), find_accelerator("CPU", cpu_ranks=2)
    assert (one.name, two.gpus_per_node) == ("cpu", 2)
    assert two.memory_bytes == one.memory_bytes // 2
    assert one.memory_bytes == hardware.host_memory_bytes()
    # One rank has all cores: between a tenth of a GFLOP/s and what no CPU reaches.
    assert 1e8 < one.peak_flops_fp32 < 1e14
    assert one.matmul_flops <= one.peak_flops_16bit
    assert one.supports_bf16


def test_host_memory_is_no_more_than_the_machine_has():
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    # sysconf and /proc/meminfo count the same pages, or a cgroup allows fewer.
    assert 0 < hardware.host_memory_bytes() <= total * 1.01


@pytest.mark.parametrize(
    ("asked", "found", "assumed"),
    [
        # gpu, gpus, nodes -> nodes, GPUs per node, the field that had to be assumed
        (("a100-80gb", 8, 1), (1, 8), None),
        (("a100-80gb", 4, None), (1, 4), None),
        (("a100-80gb", None, None), (1, 8), "gpus"),
        (("t4", None, None), (1, 4), "gpus"),
        (("a100-80gb", None, 3), (3, 8), "gpus"),
        (("a100-80gb", 64, None), (8, 8), "nodes"),  # 64 GPUs are eight nodes of 8
        (("t4", 8, None), (2, 4), "nodes"),
        (("a100-80gb", 16, 1), (1, 16), None),  # said outright: a node with 16
        (("a100-80gb", 2, 5), (5, 2), None),
    ],
)
def test_a_cluster_is_what_was_asked_and_says_what_it_assumed(asked, found, assumed):
    cluster, assumptions = cluster_of(*asked, None, None)
    assert (cluster.num_nodes, cluster.gpus_per_node) == found
    assert cluster.world_size == found[0] * found[1]
    assert cluster.accelerator.name == asked[0]
    assert [said.split(":")[0] for said in assumptions] == ([assumed] if assumed else []) + ["host memory"]


def test_a_cpu_cluster_is_two_ranks_with_this_machines_memory():
    cluster, assumptions = cluster_of("cpu", None, None, None, None)
    assert (cluster.is_cpu, cluster.num_nodes, cluster.gpus_per_node) == (True, 1, 2)
    assert cluster.host_memory_bytes == hardware.host_memory_bytes()
    assert [said.split(":")[0] for said in assumptions] == ["gpus"]


@pytest.mark.usefixtures("without_gpus")
def test_without_gpus_here_and_without_a_word_it_is_eight_a100_and_says_so():
    cluster, assumptions = cluster_of(None, None, None, None, None)
    assert str(cluster) == "1 x 8 a100-80gb"
    assert "none found here" in assumptions[0]
    assert "--gpu" in assumptions[0]


@pytest.mark.usefixtures("without_gpus")
def test_a_hostfile_fixes_nodes_and_gpus():
    hosts = [("worker-1", 4), ("worker-2", 4), ("worker-3", 4)]
    cluster, _ = cluster_of("h100", None, None, hosts, "my hostfile")
    assert (cluster.num_nodes, cluster.gpus_per_node, cluster.hostfile) == (3, 4, "my hostfile")
    assert cluster_of("h100", 4, 3, hosts, "my hostfile")[0] == cluster
    assert cluster_of(None, None, None, hosts, "my hostfile")[0].world_size == 12


@pytest.mark.parametrize(
    ("gpus", "nodes", "hosts", "field"),
    [
        (8, None, [("a", 4), ("b", 4)], "gpus"),
        (None, 3, [("a", 4), ("b", 4)], "nodes"),
        (None, None, [("a", 4), ("b", 8)], "hostfile"),
        (12, None, None, "gpus"),  # more than one node's 8, and not whole nodes
        (0, None, None, "gpus"),
        (-8, None, None, "gpus"),
        (8, 0, None, "nodes"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_field(gpus, nodes, hosts, field):
    with pytest.raises(InputError) as caught:
        cluster_of("a100-80gb", gpus, nodes, hosts, "hostfile" if hosts else None)
    assert caught.value.field == field


def test_collectives_run_at_the_slowest_link_they_cross(cluster_like):
    one, two = cluster_like("a100-80gb", nodes=1), cluster_like("a100-80gb", nodes=2)
    assert one.collective_bytes_per_s == 300e9  # NVLink 3, one way
    assert two.collective_bytes_per_s == 25e9  # 200 Gb/s a GPU
    assert cluster_like("t4", nodes=2).collective_bytes_per_s == 1.56e9


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the PATH that prints `listing` and leaves with `code`."""

    def install(listing, code=0):
        script = tmp_path / "nvidia-smi"
        (tmp_path / "listing").write_text(listing)
        # The query must be the one whose answer the listing is.
        script.write_text(
            "#!/bin/sh\n"
            '[ "$*" = "--query-gpu=name,memory.total --format=csv,noheader,nounits" ] || exit 2\n'
            f"/bin/cat '{tmp_path}/listing'\nexit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])

    return install


@pytest.mark.parametrize(
    ("line", "name"),
    [
        # Lines as the cards print them: name, memory in MiB less what the driver keeps.
        ("NVIDIA A100-SXM4-80GB, 81920", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-40gb"),
        ("A100-SXM4-40GB, 40536", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe, 81920", "a100-80gb-pcie"),
        ("NVIDIA A100-PCIE-40GB, 40960", "a100-40gb"),
        ("Tesla V100-SXM2-32GB, 32768", "v100-32gb"),
        ("Tesla V100-SXM2-16GB, 16160", "v100-16gb"),
        ("Tesla V100-PCIE-32GB, 32510", "v100-32gb"),
        ("NVIDIA H100 80GB HBM3, 81559", "h100"),
        ("NVIDIA H100 PCIe, 81559", "h100-pcie"),
        ("NVIDIA H200, 143771", "h200"),
        ("NVIDIA B200, 183359", "b200"),
        ("Tesla T4, 15360", "t4"),
        ("NVIDIA A10, 23028", "a10"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("NVIDIA RTX A6000, 49140", "a6000"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx-4090"),
    ],
)
def test_a_card_is_recognised_by_what_nvidia_smi_prints(nvidia_smi, line, name):
    nvidia_smi(f"{line}\n" * 4)
    row, count = detected_gpus()
    assert (row.name, count) == (name, 4)
    # A plan for more memory than the card has would run out of it.
    assert row.memory_bytes <= int(line.split(", ")[1]) * 2**20 * 1.08


@pytest.mark.parametrize("line", ["NVIDIA GeForce GTX 1080 Ti, 11264", "NVIDIA L40, 46068", "NVIDIA A10G, 23028"])
def test_a_card_that_the_table_lacks_is_refused_rather_than_guessed_at(nvidia_smi, line):
    nvidia_smi(f"{line}\n")
    with pytest.raises(InputError) as caught:
        detected_gpus()
    assert caught.value.field == "gpu"
    assert line.split(",")[0] in caught.value.message
    assert "--gpu" in caught.value.hint


@pytest.mark.parametrize(
    "listing",
    ["NVIDIA GB10, [N/A]\n", "NVIDIA A100-SXM4-80GB, [N/A]\n", "No devices were found\n", "A100, 80, 3\nnonsense\n"],
)
def test_a_listing_without_sizes_is_an_input_error_or_no_gpu(nvidia_smi, listing):
    # Unified-memory boards print [N/A] for memory.total.
    nvidia_smi(listing)
    with suppress(InputError):
        assert detected_gpus() is None


def test_two_kinds_of_card_in_one_machine_are_refused(nvidia_smi):
    nvidia_smi("NVIDIA A100-SXM4-80GB, 81920\nTesla T4, 15360\n")
    with pytest.raises(InputError, match="mixes cards") as caught:
        detected_gpus()
    assert caught.value.field == "gpu"


@pytest.mark.parametrize(("listing", "code"), [("NVIDIA-SMI has failed because ...\n", 9), ("", 0), ("\n\n", 0)])
def test_an_nvidia_smi_that_fails_or_lists_nothing_is_no_gpu(nvidia_smi, listing, code):
    nvidia_smi(listing, code)
    assert detected_gpus() is None


@pytest.mark.usefixtures("without_gpus")
def test_a_machine_without_nvidia_smi_has_no_gpu():
    assert detected_gpus() is None


def test_gpus_found_here_are_the_default_and_the_flags_still_win(nvidia_smi):
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559\n" * 2)
    cluster, assumptions = cluster_of(None, None, None, None, None)
    assert str(cluster) == "1 x 2 h100"
    assert "2 x h100 found on this machine" in assumptions[0]
    assert cluster.host_memory_bytes == hardware.host_memory_bytes()
    assert str(cluster_of(None, 1, None, None, None)[0]) == "1 x 1 h100"
    assert str(cluster_of("t4", 4, None, None, None)[0]) == "1 x 4 t4"
