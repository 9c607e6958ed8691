"""What an optimizer that needs rows and columns finds in a layout, and that a GPU is never waited for."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from scaling.optim import CONVENTIONS, Lamb, Lans, Lars
from tests.optim.runs import Case, build, grouped
from tests.ranks import on_ranks


def _factors(cases: dict[str, Case]) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Sums of squares by row and by column of every matrix, from the pieces on each rank."""
    import deepspeed

    from scaling.training import ranks

    ranks.join()
    out = {}
    for name, case in cases.items():
        model = build(case)
        shapes = [tuple(p.shape) for p in model.parameters()]
        optimizer = Lamb(list(model.parameters()), lr=0.1)
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": case.stage, **case.zero}}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        optimizer.attach(engine)
        sums = {n: (torch.zeros(shape[0]), torch.zeros(shape[1])) for n, shape in enumerate(shapes) if len(shape) == 2}
        for vector in optimizer._layout.vectors.values():
            for piece, part in zip(vector.pieces, vector.pieces_of(vector.tensor), strict=True):
                if piece.parameter in sums:
                    place = torch.arange(piece.offset, piece.offset + len(part))
                    rows, columns = sums[piece.parameter]
                    rows.index_add_(0, place // len(columns), part.square())
                    columns.index_add_(0, place % len(columns), part.square())
        for total in (each for both in sums.values() for each in both):
            dist.all_reduce(total)
        out[name] = {n: (rows.numpy(), columns.numpy()) for n, (rows, columns) in sums.items()}
        engine.destroy()
    ranks.leave()
    return out


def test_pieces_say_which_rows_and_columns_they_are_as_a_factored_optimizer_asks():
    cases = {
        "stage 2": Case(stage=2),
        "stage 3": Case(stage=3, zero={"sub_group_size": 6000, "stage3_param_persistence_threshold": 100}),
    }
    whole = {n: p.detach().square() for n, p in enumerate(build(Case(stage=0)).parameters()) if p.ndim == 2}
    for found in on_ranks(3, _factors, cases)[0].values():
        assert found.keys() == whole.keys()
        for number, squares in whole.items():
            np.testing.assert_allclose(found[number][0], squares.sum(1), rtol=1e-5)
            np.testing.assert_allclose(found[number][1], squares.sum(0), rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("make", [Lamb, Lars, Lans])
def test_a_step_on_a_gpu_never_waits_for_it(make):
    case = Case(stage=0, make=make, arguments={**CONVENTIONS["paper"]} if make is Lamb else {})
    model = build(case).cuda()
    named = dict(model.named_parameters())
    optimizer = make(**grouped(case, named, lambda p: p.ndim), lr=1e-3, **case.arguments)
    for step in range(3):
        for p in named.values():
            p.grad = torch.randn_like(p)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one allocates
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
