"""Accelerators and clusters: plausible rows, names that people type, a user's own rows, and what nvidia-smi prints."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import hardware
from scaling.errors import FileProblems, InputError, ScaleError
from scaling.hardware import (
    ACCELERATORS,
    FIELDS,
    cluster_of,
    detected_gpus,
    find_accelerator,
    known_accelerators,
    load_user_rows,
)
from scaling.units import GIB


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    """The tests mean the same where the person who runs them has chosen GPUs or rows."""
    for variable in ("SCALE_HARDWARE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("row", ACCELERATORS.values(), ids=list(ACCELERATORS))
def test_a_row_is_physically_plausible_and_names_its_sources(row):
    assert 0.4 < row.matmul_fraction <= 1  # MI300X's measured 51 % is the lowest (stas00/ml-engineering)
    rates = [row.peak_flops_fp32, row.peak_flops_tf32, row.peak_flops_16bit, row.peak_flops_fp8, row.peak_flops_fp4]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known)  # fewer bits are never slower
    assert (row.matmul_flops_fp8 or 0) <= (row.peak_flops_fp8 or 0)
    # Arithmetic intensity at the ridge: with matrix units 75 (RTX 3090) to 453 (Gaudi 3) FLOPs a byte, a P100 has none.
    assert (10 if "p100" in row.name else 75) <= row.peak_flops_16bit / row.memory_bytes_per_s <= 500
    assert row.network_bytes_per_s <= row.link_bytes_per_s < row.memory_bytes_per_s
    assert row.memory_bytes % GIB == 0
    # ECC takes up to a sixteenth of GDDR; a B300 shows 269 of 288 GiB.
    assert 0.93 < row.usable_memory_bytes / row.memory_bytes <= 1
    assert row.gpus_per_node in (4, 8)
    assert row.power_w is None or 70 <= row.power_w <= 1400  # a T4 and an MI355X
    assert len(row.source) > 10
    assert row.link
    assert row.system
    # The stand-in for a rate that nobody measured is confessed.
    assert row.matmul_is_measured == ("no measured matmul ceiling" not in row.source)
    assert row.matmul_is_measured or row.matmul_fraction == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("name", "memory_gib", "tflops", "matmul_tflops", "tb_per_s", "link_gb_per_s"),
    [
        # The table that the project collected from stas00/ml-engineering, llm-analysis and lightning-fabric; "matmul"
        # is MAMF, the largest rate that mamf-finder.py found.
        ("v100-32gb", 32, 125, None, 0.9, 150),
        ("v100-16gb-pcie", 16, 112, None, 0.9, None),
        ("t4", 16, 65, None, 0.32, None),
        ("l4", 24, 121, None, 0.30, None),
        ("a10", 24, 125, None, 0.6, None),
        ("a10g", 24, 70, None, 0.6, None),
        ("rtx-4090", 24, 165.2, None, 1.008, None),
        ("a6000", 48, 154.8, None, 0.768, None),
        ("a100-40gb", 40, 312, 271.2, 1.555, 300),
        ("a100-80gb", 80, 312, 271.2, 2.039, 300),
        ("a100-80gb-pcie", 80, 312, 252.9, 1.94, None),
        ("h100", 80, 989, 794.5, 3.35, 450),
        ("h100-pcie", 80, 756, None, 2.0, None),
        ("h200", 141, 989, 794.5, 4.8, 450),
        ("gh200", 96, 989, None, 4.0, 450),
        ("gh200-144gb", 144, 989, 828.6, 4.8, 450),
        ("b200", 180, 2250, 1745, 8.0, 900),
        ("b300", 288, 2250, 1769, 8.0, 900),
        ("gb200", 186, 2500, 1822, 8.0, 900),
        ("gb300", 279, 2500, None, 8.0, 900),
        ("a800-80gb", 80, 312, 271.2, 2.039, 200),
        ("h800", 80, 989, 794.5, 3.35, 200),
        ("mi250x-gcd", 128 / 2, 383 / 2, None, 3.28 / 2, None),  # a module is two devices
        ("mi300x", 192, 1307.4, 668.4, 5.3, None),
        ("mi325x", 256, 1307.4, 784.9, 6.0, None),
        ("mi355x", 288, 2500, 1565, 8.0, None),
    ],
)
def test_a_row_has_the_collected_figures(name, memory_gib, tflops, matmul_tflops, tb_per_s, link_gb_per_s):
    row = ACCELERATORS[name]
    assert row.memory_bytes == memory_gib * GIB
    assert row.peak_flops_16bit == pytest.approx(tflops * 1e12)
    assert row.memory_bytes_per_s == pytest.approx(tb_per_s * 1e12)
    if matmul_tflops:
        assert row.matmul_flops == pytest.approx(matmul_tflops * 1e12)
    if link_gb_per_s:
        assert row.link_bytes_per_s == link_gb_per_s * 1e9


@pytest.mark.parametrize(
    ("name", "tflops"), [("h100", 1402.6), ("h200", 1453.4), ("gh200-144gb", 1535), ("b200", 3432.5), ("gb200", 3615.6)]
)
def test_a_row_has_the_measured_fp8_ceiling(name, tflops):
    # stas00/ml-engineering, Maximum Achievable Matmul FLOPS, fp8
    assert ACCELERATORS[name].matmul_flops_fp8 == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(("name", "original"), [("a800-80gb", "a100-80gb"), ("h800", "h100")])
def test_a_chip_for_export_is_its_original_with_nvlink_at_400_gb_per_s_both_ways(name, original):
    # NVIDIA A800 datasheet: NVLink 400 GB/s where the A100 has 600; the H800 likewise, where the H100 has 900.
    row, same = ACCELERATORS[name], {"name", "link", "link_bytes_per_s", "note"}
    assert row.link_bytes_per_s == 200e9 < ACCELERATORS[original].link_bytes_per_s
    assert replace(row, **{field: getattr(ACCELERATORS[original], field) for field in same}) == ACCELERATORS[original]


def test_a_gb300_is_a_72nd_of_its_rack():
    # NVIDIA GB300 NVL72 page: 576 TB/s of HBM3e, 720 PFLOP/s fp8 and 360 bf16 with sparsity, 1,080 PFLOP/s dense fp4;
    # NVLink 130 TB/s both ways; a ConnectX-8 of 800 Gb/s for each GPU. A card shows 284,208 MiB.
    row = ACCELERATORS["gb300"]
    assert row.memory_bytes_per_s == pytest.approx(576e12 / 72)
    assert row.memory_bytes == pytest.approx(284_208 * 2**20, rel=0.01)
    assert row.peak_flops("bf16") == pytest.approx(360e15 / 2 / 72)
    assert row.peak_flops("fp8") == pytest.approx(720e15 / 2 / 72)
    assert row.peak_flops("fp4") == pytest.approx(1080e15 / 72)
    assert row.link_bytes_per_s == pytest.approx(130e12 / 2 / 72, rel=0.01)
    assert row.linked_devices == 72
    assert row.network_bytes_per_s == 100e9
    assert not row.matmul_is_measured


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        # Measured: stas00/ml-engineering, Maximum Achievable Matmul FLOPS.
        ("h100", "bf16", 794.5), ("h100", "fp16", 794.5), ("h100", "fp8", 1402.6), ("a100-80gb", "bf16", 271.2),
        # Nobody did: the share of the peak that 16 bit reaches.
        ("a100-80gb", "tf32", 156 * 271.2 / 312), ("b200", "fp4", 9000 * 1745 / 2250),
        ("mi300x", "fp8", 2614.9 * 668.4 / 1307.4),
        ("gb300", "bf16", 0.8 * 2500), ("gb300", "fp8", 0.8 * 5000),
        # Without tensor cores, 95 % of the peak: cuBLAS reaches 14.9 of a V100's 15.7 TFLOP/s.
        ("v100-32gb", "fp32", 14.9), ("a100-80gb", "fp32", 0.95 * 19.5),
    ],
)  # fmt: skip
def test_the_matmul_ceiling_is_measured_or_the_share_of_the_peak_that_16_bit_reaches(name, precision, tflops):
    assert ACCELERATORS[name].matmul_ceiling(precision) == pytest.approx(tflops * 1e12, rel=0.002)


@pytest.mark.parametrize("row", ACCELERATORS.values(), ids=list(ACCELERATORS))
def test_no_ceiling_is_above_its_peak_and_narrower_matmuls_are_never_slower(row):
    ceilings = []
    for precision in ("tf32", "bf16", "fp8", "fp4"):
        with suppress(InputError):  # the chip has no such rate
            ceilings.append(row.matmul_ceiling(precision))
            assert ceilings[-1] <= row.peak_flops(precision)
    assert ceilings == sorted(ceilings)


def test_only_pascal_volta_and_turing_lack_bf16():
    without = {name.split("-")[0] for name, row in ACCELERATORS.items() if not row.supports_bf16}
    assert without == {"p100", "v100", "t4"}


@pytest.mark.parametrize("name", ["p100", "v100-16gb", "v100-32gb", "a100-40gb", "a100-80gb", "h100"])
def test_the_pcie_form_of_a_chip_is_never_the_faster(name):
    sxm, pcie = ACCELERATORS[name], ACCELERATORS[f"{name}-pcie"]
    assert pcie.link.startswith("PCIe")
    assert sxm.link.startswith("NVLink")
    assert pcie.link_bytes_per_s < sxm.link_bytes_per_s
    assert pcie.network_bytes_per_s <= sxm.network_bytes_per_s
    assert pcie.peak_flops_16bit <= sxm.peak_flops_16bit
    assert pcie.matmul_flops <= sxm.matmul_flops
    assert pcie.memory_bytes_per_s <= sxm.memory_bytes_per_s
    assert pcie.power_w < sxm.power_w
    assert pcie.memory_bytes == sxm.memory_bytes


@pytest.mark.parametrize(
    ("name", "wrong_tflops"),
    [
        # lightning_fabric 2.6.6 utilities/throughput.py: sparse for the H200, without tensor cores for the others.
        ("h200", 1979), ("rtx-4090", 82.6), ("rtx-3090", 35.6), ("a6000", 38.7),
        ("a6000", 309.7),  # sparse: torchtitan pull request 2884, first version
        ("rtx-4090", 330.3), ("rtx-3090", 142), ("rtx-5090", 419), ("p100", 21.2),  # with fp16 accumulation
        ("gaudi3", 1835),  # at the clock of the white paper
    ],
)  # fmt: skip
def test_the_16_bit_peak_is_none_of_the_figures_that_mislead(name, wrong_tflops):
    assert ACCELERATORS[name].peak_flops_16bit != pytest.approx(wrong_tflops * 1e12, rel=0.02)


def test_the_peak_is_by_precision_and_a_rate_that_nobody_published_is_refused():
    row = ACCELERATORS["a100-80gb"]
    assert row.peak_flops("fp32") == 19.5e12
    assert row.peak_flops("bf16") == row.peak_flops("fp16") == 312e12
    with pytest.raises(InputError, match="no published rate on gaudi2") as caught:
        ACCELERATORS["gaudi2"].peak_flops("fp32")
    assert caught.value.field == "precision"


def test_the_table_costs_neither_yaml_nor_numpy_to_import():
    loaded = "import sys, scaling.hardware; print({'yaml', 'numpy', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(hardware.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True, env=environment).strip() == "set()"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a100-80gb", "a100-80gb"), ("A100-80GB", "a100-80gb"), ("a100_80gb", "a100-80gb"),
        (" A100 80GB ", "a100-80gb"), ("h100-80gb", "h100"), ("H100-SXM", "h100"), ("4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"), ("RTX 4090", "rtx-4090"), ("RTX A6000", "a6000"), ("3090", "rtx-3090"),
        ("RTX 5090", "rtx-5090"), ("GH200", "gh200"), ("MI250X", "mi250x-gcd"), ("Gaudi 2", "gaudi2"),
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


@pytest.mark.parametrize(
    ("gpu", "link_gb_per_s", "network_gb_per_s"),
    # NVLink 3, one way, and 200 Gb/s a GPU; g4dn.12xlarge: PCIe 3.0 and 50 Gb/s for four.
    [("a100-80gb", 300, 25), ("t4", 13, 50 / 8 / 4)],
)
def test_a_node_has_its_link_and_each_device_its_share_of_the_network(
    cluster_like, gpu, link_gb_per_s, network_gb_per_s
):
    cluster = cluster_like(gpu, nodes=2)
    assert cluster.link_bytes_per_s(8) == link_gb_per_s * 1e9
    assert cluster.accelerator.network_bytes_per_s == network_gb_per_s * 1e9
    assert cluster.linked_ranks == 8


def test_where_pairs_have_their_own_wires_a_whole_node_drives_them_all(cluster_like):
    # all_reduce_bench.py, 4 GiB, MI300X: 47.7 GB/s over 2, 312.9 over 8, six and a half times (stas00/ml-engineering).
    pair, node = cluster_like("mi300x", gpus=2), cluster_like("mi300x", gpus=8)
    assert (pair.link_bytes_per_s(2), node.link_bytes_per_s(8)) == (64e9, 448e9)
    assert node.link_bytes_per_s(2) == 64e9  # two of the eight have one link between them


def test_nvlink_reaches_through_a_rack_and_no_further(cluster_like):
    # GB200 NVL72: 18 compute trays of 4 GPUs in one NVLink domain.
    assert cluster_like("gb200", gpus=4, nodes=18).linked_ranks == 72
    assert cluster_like("gb200", gpus=4, nodes=19).linked_ranks == 72
    assert cluster_like("gb200", gpus=4, nodes=2).linked_ranks == 8  # no more than there are
    assert cluster_like("b200", nodes=2).linked_ranks == 8


def _rows(tmp_path, text):
    path = tmp_path / "hardware.yaml"
    path.write_text(text)
    return load_user_rows(path)


_L40 = """\
l40:
  memory_gib: 48
  memory_tb_per_s: 0.864
  peak_16bit_tflops: 181.05
  supports_bf16: true
  link_gb_per_s: 25
  network_gb_per_s: 1.5625
  gpus_per_node: 8
"""


def test_a_users_row_for_a_known_name_changes_what_it_says_and_keeps_the_rest(tmp_path):
    text = "H100:\n  matmul_16bit_tflops: 650\n  power_w: 5e2\n  price_per_hour: 2.5\n  source: our nodes, capped\n"
    (row,) = _rows(tmp_path, text).values()
    shipped = ACCELERATORS["h100"]
    assert row.source == f"our nodes, capped; else as h100: {shipped.source}"
    assert row == replace(shipped, matmul_flops=650e12, power_w=500, price_per_hour=2.5, source=row.source)


def test_a_users_row_like_another_is_a_new_one(tmp_path):
    text = "h100-96gb: {like: H100 SXM, memory_gib: 96}\nh100-quad: {like: h100-96gb, gpus_per_node: 4}\n"
    rows = _rows(tmp_path, text)
    assert rows["h100-quad"].gpus_per_node == 4
    assert rows["h100-quad"].memory_bytes == 96 * GIB
    assert rows["h100-96gb"].peak_flops_fp8 == ACCELERATORS["h100"].peak_flops_fp8
    # What nvidia-smi says of an 80 GB card says nothing of this one.
    assert rows["h100-96gb"].usable_memory_bytes == 96 * GIB
    assert str(tmp_path) in rows["h100-96gb"].source


def test_a_users_row_like_no_other_needs_the_figures_that_a_plan_needs(tmp_path):
    row = _rows(tmp_path, _L40)["l40"]
    assert (row.name, row.memory_bytes, row.gpus_per_node) == ("l40", 48 * GIB, 8)
    assert row.peak_flops_fp8 is None
    assert row.peak_flops_fp32 is None
    for line in _L40.splitlines()[1:]:
        key = line.split(":")[0].strip()
        with pytest.raises(FileProblems, match=f"line 1: l40: needs {key}"):
            _rows(tmp_path, _L40.replace(line + "\n", ""))


def test_a_ceiling_that_the_user_does_not_know_is_assumed_and_one_that_was_measured_is_not(tmp_path):
    assert _rows(tmp_path, _L40)["l40"].matmul_flops == pytest.approx(0.8 * 181.05e12)
    assert "no measured matmul ceiling" in _rows(tmp_path, _L40)["l40"].source
    measured = _rows(tmp_path, "t4: {matmul_16bit_tflops: 40}")["t4"]
    assert measured.matmul_is_measured
    assert "no measured matmul ceiling" not in measured.source
    assert _rows(tmp_path, "t4: {peak_16bit_tflops: 50}")["t4"].matmul_flops == pytest.approx(40e12)


def test_what_was_said_of_another_node_is_not_said_of_the_users(tmp_path):
    assert _rows(tmp_path, "h100: {network_gb_per_s: 25}")["h100"].system == ""
    assert _rows(tmp_path, "h100: {power_w: 500}")["h100"].system == ACCELERATORS["h100"].system


def test_every_figure_of_a_row_can_be_written_and_is_read_back(tmp_path):
    assert {field.attribute for field in FIELDS} == vars(ACCELERATORS["t4"]).keys() - {"name", "matmul_is_measured"}
    row = replace(ACCELERATORS["gb200"], price_per_hour=10.5)
    text = "mine:\n"
    for field in FIELDS:
        value = getattr(row, field.attribute)
        shown = str(value).lower() if field.kind == "flag" else value if field.kind == "text" else value / field.scale
        text += f"  {field.key}: {int(shown) if field.kind == 'count' else shown!r}\n".replace("'true'", "true")
    assert _rows(tmp_path, text)["mine"] == replace(row, name="mine")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("h100: {memroy_gib: 80}", "line 1: h100.memroy_gib: unknown key; did you mean 'memory_gib'"),
        ("h100: {memory_bytes: 80}", "h100.memory_bytes: unknown key"),
        ("h100: {memory_gib: '80'}", "'80' in quotes is not a number"),
        ("h100: {memory_gib: -80}", "'-80' is not a number above zero"),
        ("h100: {memory_gib: .inf}", "is not a number"),
        ("h100: {memory_gib: inf}", "is too large"),
        ("h100: {memory_gib: nan}", "is not a number"),
        ("h100: {memory_gib:}", "is not a number"),
        ("h100: {memory_gib: [80]}", "a sequence is not a number"),
        ("h100: {peak_16bit_tflops: 989e12}", "too large for the unit that ends the key"),
        ("h100: {supports_bf16: maybe}", "'maybe' is neither true nor false"),
        ("h100: {gpus_per_node: 2.5}", "'2.5' is not a count"),
        ("h100: {gpus_per_node: 0}", "'0' is not a count"),
        ("h100: {source: ''}", "not one line of text"),
        ('h100: {source: "\\e[31m"}', "not one line of text"),
        ("h100: {power_w: 500, power_w: 600}", "h100.power_w: stands here twice"),
        ("h100: {power_w: 500}\nh100-sxm: {power_w: 600}", "line 2: h100: stands here twice"),
        ("x: {like: h1000}", "x.like: 'h1000' is not a known accelerator; did you mean 'h100'"),
        ("x: {like: x}", "x.like: 'x' is not a known accelerator"),
        ("h100: {peak_16bit_tflops: 500}", "matmul_16bit_tflops 794.5 is above peak_16bit_tflops 500"),
        ("h100: {matmul_fp8_tflops: 2000}", "matmul_fp8_tflops 2000 is above peak_fp8_tflops 1979"),
        ("cpu: {memory_gib: 8}", "cpu: is measured on each machine"),
        ("h100: 80", "h100: has no figures"),
        ("a/b: {like: h100}", "is not a name"),
        ("? [a]\n: {like: h100}", "is not a name"),
        ("- h100", "not a hardware file"),
        ("", "not a hardware file"),
        ("h100: {", "not valid YAML"),
        ('"\\UFFFFFFFF": {}', "not valid YAML"),  # PyYAML's chr() overflows
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_name_and_line(tmp_path, text, problem):
    with pytest.raises(FileProblems) as caught:
        _rows(tmp_path, text)
    assert problem in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.message.replace("\n", "").isprintable()


def test_everything_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    with pytest.raises(FileProblems) as caught:
        _rows(tmp_path, "h100:\n  memroy_gib: 80\n  power_w: no\nt4:\n  gpus_per_node: -1\nx:\n  like: y\n")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 2", "line 3", "line 5", "line 7"]


@given(st.text(st.sampled_from(list("h100:\n {}[]&*!?|>-'\"%@`,.#\t\x00\\U9")), max_size=40))
def test_no_text_is_more_than_a_wrong_file(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with suppress(ScaleError):
        load_user_rows(path)


def test_a_file_that_is_not_there_is_named_by_how_it_was_asked_for(tmp_path, monkeypatch):
    with pytest.raises(InputError) as caught:
        known_accelerators(tmp_path / "none.yaml")
    assert caught.value.field == "hardware"
    monkeypatch.setenv("SCALE_HARDWARE", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError) as caught:
        find_accelerator("h100")
    assert caught.value.field == "SCALE_HARDWARE"


def test_the_rows_of_scale_hardware_are_found_everywhere(tmp_path, monkeypatch, nvidia_smi):
    path = tmp_path / "mine.yaml"
    path.write_text(_L40 + "a100-80gb: {gpus_per_node: 4}\n")
    monkeypatch.setenv("SCALE_HARDWARE", str(path))
    assert find_accelerator("L40").memory_bytes == 48 * GIB
    assert str(cluster_of("a100-80gb", None, None, None, None)[0]) == "1 x 4 a100-80gb"
    nvidia_smi("NVIDIA L40, 46068\n" * 2)
    assert str(cluster_of(None, None, None, None, None)[0]) == "1 x 2 l40"
    with pytest.raises(InputError, match="'l41' is not a known accelerator") as caught:
        find_accelerator("l41")
    assert "'l40'" in caught.value.hint
    # A file that is named outright is instead of it, not beside it.
    other = tmp_path / "other.yaml"
    other.write_text("h100-96gb: {like: h100, memory_gib: 96}\n")
    assert set(known_accelerators(other)) == {*ACCELERATORS, "h100-96gb"}


def _uuid(slot):
    return f"GPU-{slot}932f937-d72c-4106-c12f-20bd9faed9f6"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the PATH that prints `listing`, lines of name and memory, and leaves with `code`."""

    def install(listing, code=0, mig="[N/A]"):
        script = tmp_path / "nvidia-smi"
        lines = listing.splitlines(keepends=True)
        whole = [
            f"{slot}, {_uuid(slot)}, {line.strip()}, {mig}\n" if "," in line else line
            for slot, line in enumerate(lines)
        ]
        (tmp_path / "listing").write_text("".join(whole))
        query = "--query-gpu=index,uuid,name,memory.total,mig.mode.current --format=csv,noheader,nounits"
        # The query must be the one whose answer the listing is.
        script.write_text(f'#!/bin/sh\n[ "$*" = "{query}" ] || exit 2\n/bin/cat \'{tmp_path}/listing\'\nexit {code}\n')
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
        ("NVIDIA A100-PCIE-40GB, 40960", "a100-40gb-pcie"),
        ("Tesla V100-SXM2-32GB, 32768", "v100-32gb"),
        ("Tesla V100-SXM2-16GB, 16160", "v100-16gb"),
        ("Tesla V100-SXM3-32GB, 32768", "v100-32gb"),
        ("Tesla V100-PCIE-32GB, 32510", "v100-32gb-pcie"),
        ("Tesla V100-PCIE-16GB, 16384", "v100-16gb-pcie"),
        ("Tesla P100-SXM2-16GB, 16384", "p100"),
        ("Tesla P100-PCIE-16GB, 16280", "p100-pcie"),
        ("NVIDIA H100 80GB HBM3, 81559", "h100"),
        ("NVIDIA H100 PCIe, 81559", "h100-pcie"),
        ("NVIDIA H100 NVL, 95830", "h100-nvl"),
        ("NVIDIA H200, 143771", "h200"),
        ("NVIDIA GH200 480GB, 97871", "gh200"),
        ("NVIDIA GH200 144G HBM3e, 146831", "gh200-144gb"),
        ("NVIDIA B200, 183359", "b200"),
        ("NVIDIA B300 SXM6 AC, 275040", "b300"),
        ("NVIDIA GB200, 189471", "gb200"),
        ("NVIDIA GB300, 284208", "gb300"),
        ("NVIDIA A800-SXM4-80GB, 81920", "a800-80gb"),
        ("NVIDIA H800, 81559", "h800"),
        ("Tesla T4, 15360", "t4"),
        ("NVIDIA A10, 23028", "a10"),
        ("NVIDIA A10G, 23028", "a10g"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("NVIDIA RTX A6000, 49140", "a6000"),
        ("NVIDIA RTX A6000, 46068", "a6000"),  # with ECC on
        ("NVIDIA GeForce RTX 3090, 24576", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx-4090"),
        ("NVIDIA GeForce RTX 5090, 32607", "rtx-5090"),
    ],
)
def test_a_card_is_recognised_by_what_nvidia_smi_prints(nvidia_smi, line, name):
    nvidia_smi(f"{line}\n" * 4)
    row, count = detected_gpus()
    assert (row.name, count) == (name, 4)
    # A plan for more memory than the card has would run out of it.
    assert row.memory_bytes <= int(line.split(", ")[1]) * 2**20 * 1.08


@pytest.mark.parametrize(
    "line",
    [
        "NVIDIA GeForce GTX 1080 Ti, 11264", "NVIDIA L40, 46068", "NVIDIA A40, 46068", "NVIDIA H20, 97871",
        # Names that hold a known one: other chips, clocks or memory.
        "NVIDIA GeForce RTX 3090 Ti, 24564", "NVIDIA GeForce RTX 4090 D, 24564", "NVIDIA H200 NVL, 143771",
        "NVIDIA GeForce RTX 4090 Laptop GPU, 16376", "NVIDIA GeForce RTX 5090 Laptop GPU, 24463",
        "NVIDIA H100, 97871", "NVIDIA A100-SXM-64GB, 65536", "Tesla V100S-PCIE-32GB, 32768",
        "Tesla V100-FHHL-16GB, 16384", "Tesla P100-PCIE-12GB, 12198", "NVIDIA A800 40GB Active, 40960",
        # Their SXM forms are in the table; these have PCIe where those have NVLink.
        "NVIDIA A800 80GB PCIe, 81920", "NVIDIA H800 PCIe, 81559",
    ],
)  # fmt: skip
def test_a_card_that_the_table_lacks_is_refused_rather_than_guessed_at(nvidia_smi, line):
    nvidia_smi(f"{line}\n")
    with pytest.raises(InputError) as caught:
        detected_gpus()
    assert caught.value.field == "gpu"
    assert line.split(",")[0] in caught.value.message
    assert "--gpu" in caught.value.hint


@pytest.mark.parametrize(
    "listing",
    [
        "NVIDIA T4, 0\n",
        "NVIDIA GB10, [N/A]\n",
        "NVIDIA A100-SXM4-80GB, [N/A]\n",
        "No devices were found\n",
        "A100, 80, 3\nnonsense\n",
    ],
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


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("0,1,2,3", 4),
        ("2", 1),
        (" 3 , 0 ", 2),
        ("", None),
        ("-1", None),
        ("9" * 5000, None),
        ("NoDevFiles", None),
        ("0,2,-1,1", 2),  # the CUDA programming guide's own example: the list ends at the first that is no device
        ("0,7", 1),
        ("1,1", None),  # torch/cuda/__init__.py: none where one stands twice
        (_uuid(1), 1),
        (f"{_uuid(3)},{_uuid(0)}", 2),
        ("GPU-2", 1),  # enough of it to tell it apart
        ("GPU-", None),
        ("GPU-ffff", None),
    ],
)
def test_only_the_gpus_that_cuda_programs_see_are_counted(nvidia_smi, monkeypatch, visible, count):
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559\n" * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = detected_gpus()
    assert found == ((ACCELERATORS["h100"], count) if count else None)


def test_a_plan_for_the_visible_gpus_says_so(nvidia_smi, monkeypatch):
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559\n" * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cluster, assumptions = cluster_of(None, None, None, None, None)
    assert str(cluster) == "1 x 2 h100"
    assert "2 x h100 found on this machine in CUDA_VISIBLE_DEVICES" in assumptions[0]


def test_equal_cards_of_a_mixture_can_be_chosen_where_the_choice_is_sure(nvidia_smi, monkeypatch):
    nvidia_smi("NVIDIA A100-SXM4-80GB, 81920\nTesla T4, 15360\nTesla T4, 15360\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{_uuid(1)},{_uuid(2)}")
    assert detected_gpus() == (ACCELERATORS["t4"], 2)
    # CUDA numbers the fastest first unless told otherwise, nvidia-smi by slot.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with pytest.raises(InputError, match="mixes cards"):
        detected_gpus()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert detected_gpus() == (ACCELERATORS["t4"], 2)


def test_a_card_in_slices_is_refused_for_what_it_is(nvidia_smi, monkeypatch):
    nvidia_smi("NVIDIA A100-SXM4-80GB, 81920\n", mig="Disabled")
    assert detected_gpus() == (ACCELERATORS["a100-80gb"], 1)
    nvidia_smi("NVIDIA A100-SXM4-80GB, 81920\n", mig="Enabled")
    with pytest.raises(InputError, match="MIG slices") as caught:
        detected_gpus()
    assert "nvidia-smi -mig 0" in caught.value.hint
    assert "--gpu" in caught.value.hint
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8932f937-d72c-4106-c12f-20bd9faed9f6")
    with pytest.raises(InputError, match="names a MIG slice") as caught:
        detected_gpus()
    assert caught.value.field == "CUDA_VISIBLE_DEVICES"
