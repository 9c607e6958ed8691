"""How fast the planner searches; the memory estimate against its peers' on the same measured runs, and their speed.

    pip install llm-analysis deepspeed
    python benchmarks/planner.py RUNS.csv

A peer is asked with everything that it has a parameter for, and left out of rows that it has no word for. Figures are
of one process on one machine: read the ratios.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from scaling import hardware, validate
from scaling.plan import request, search
from scaling.units import GIB
from scaling.validate import Run
from scaling.validate.predict import predicted_peak
from scaling.validate.score import quantiles

Peer = Callable[[Run], float | None]  # predicted peak in bytes; None where the peer has no answer


def llm_analysis() -> Peer:
    """PyPI llm-analysis: LLMAnalysis.training, weights + optimizer + gradients + activations of a rank."""
    logging.disable(logging.CRITICAL)
    from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
    from llm_analysis.config import DtypeConfig, GPUConfig, ModelConfig, ParallelismConfig

    def predict(run: Run) -> float | None:
        job, strategy, shape = run.job, run.strategy, run.job.shape
        if job.adapter or job.step_in_backward or job.tiled_mlp or strategy.offload_activations:
            return None
        bits = 32 if job.precision == "fp32" else 16
        recompute = {"none": "NONE", "selective": "SELECTIVE", "full": "FULL"}[strategy.activation_checkpointing]
        model = ModelConfig(
            name=shape.name, num_layers=shape.num_layers, n_head=shape.num_attention_heads,
            hidden_dim=shape.hidden_size, vocab_size=shape.vocab_size, max_seq_len=job.seq_length,
            num_key_value_heads=shape.num_key_value_heads, ffn_embed_dim=shape.intermediate_size,
        )  # fmt: skip
        gpu = GPUConfig(
            name="gpu", mem_per_GPU_in_GB=10_000, hbm_bandwidth_in_GB_per_sec=2000,
            intra_node_bandwidth_in_GB_per_sec=300, intra_node_min_message_latency=8e-6, peak_fp16_TFLOPS=312,
        )  # fmt: skip
        width = DtypeConfig(name=f"w{bits}", weight_bits=bits, activation_bits=bits, embedding_bits=bits)
        sizes = ParallelismConfig(
            tp_size=strategy.tensor_parallel_size, pp_size=strategy.pipeline_parallel_size,
            dp_size=strategy.data_parallel_size,
            sp_size=strategy.tensor_parallel_size if strategy.tensor_parallel_sequences else 1,
        )  # fmt: skip
        answer: dict[str, Any] = LLMAnalysis(model, gpu, width, sizes, flops_efficiency=0.5).training(
            batch_size_per_gpu=strategy.micro_batch_size,
            gradient_accumulation_steps=strategy.gradient_accumulation_steps,
            seq_len=job.seq_length,
            activation_recomputation=ActivationRecomputation[recompute],
            ds_zero=list(DSZeRO)[strategy.zero_stage],
            flash_attn=job.attention == "flash",
            softmax_dropout=job.dropout > 0,
            mlp_gated_linear_units=bool(shape.gated_mlp),
        )
        return float(answer["(weight+op_state+grad+act)_memory_per_gpu"])

    return predict


def deepspeed_estimator() -> Peer:
    """DeepSpeed's own estimate_zero{2,3}_model_states_mem_needs; it has none for stages 0 and 1."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    def predict(run: Run) -> float | None:
        strategy, cluster, shape = run.strategy, run.cluster, run.job.shape
        if run.job.adapter:
            return None
        offload = strategy.offload_optimizer == "cpu"
        if strategy.zero_stage == 2:
            return float(zero2(shape.num_params, cluster.gpus_per_node, cluster.num_nodes, cpu_offload=offload)[1])
        if strategy.zero_stage == 3:
            _, gpu_bytes, _ = zero3(
                shape.num_params, shape.largest_layer_params, cluster.gpus_per_node, cluster.num_nodes,
                cpu_offload=offload, cpu_offload_params=strategy.offload_param == "cpu",
            )  # fmt: skip
            return float(gpu_bytes)
        return None

    return predict


def searches() -> None:
    """Whole searches, with and without NVMe to offload to."""
    print(f"{'search':32}{'process time':>14}{'strategies':>12}{'per second':>12}")
    for params, nodes, nvme_gib in (("1.3B", 1, None), ("1.3B", 1, 4000), ("175B", 128, None), ("175B", 128, 30_000)):
        cluster, _ = hardware.cluster_of("a100-80gb", 8, nodes, None, None)
        cluster, _ = hardware.with_nvme(cluster, "/mnt/nvme" if nvme_gib else None, nvme_gib, None)
        recipe, _ = request.recipe_for(cluster, params=params)
        started_at = time.process_time()
        found = search(recipe, cluster)
        took = time.process_time() - started_at
        label = f"{params} on {cluster.world_size} GPUs{', NVMe' if nvme_gib else ''}"
        print(f"{label:32}{took:>12.3f} s{found.num_priced:>12,}{found.num_priced / took:>12,.0f}")
    print()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    searches()
    runs, skipped = validate.load(sys.argv[1])
    runs = [run for run in runs if run.measured_peak_bytes is not None]
    print(f"{len(runs)} runs with a peak ({len(skipped)} rows of the table skipped)\n")
    print(f"{'':24}{'rows':>6}{'median':>9}{'p90':>9}{'worst':>10}{'>= 5 GiB':>10}{'answers/s':>11}")
    speeds: dict[str, float] = {}
    for name, make in (
        ("scale", lambda: predicted_peak),
        ("llm-analysis", llm_analysis),
        ("deepspeed", deepspeed_estimator),
    ):
        try:
            peer: Peer = make()
        except ImportError as error:
            print(f"{name:24}not installed: {error}")
            continue
        errors, large, answered, started_at = [], [], 0, time.process_time()
        for run in runs:
            with contextlib.suppress(AssertionError, ZeroDivisionError), contextlib.redirect_stdout(io.StringIO()):
                predicted = peer(run)
                if predicted is None:
                    continue
                answered += 1
                error = abs(predicted / float(run.measured_peak_bytes or 0) - 1)
                errors.append(error)
                large += [error] if float(run.measured_peak_bytes or 0) >= 5 * GIB else []
        speeds[name] = answered / (time.process_time() - started_at)
        all_rows, large_rows = quantiles(errors), quantiles(large)
        figures = "".join(f"{all_rows[key]:>9.1%}" for key in ("median", "p90"))
        print(
            f"{name:24}{len(errors):>6}{figures}{all_rows['worst']:>10.1%}{large_rows['median']:>10.1%}"
            f"{speeds[name]:>11,.0f}"
        )
    if "llm-analysis" in speeds:
        print(f"\nscale answers {speeds['scale'] / speeds['llm-analysis']:.0f} times as many a second as llm-analysis")


if __name__ == "__main__":
    main()
