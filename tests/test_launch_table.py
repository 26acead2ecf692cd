"""The launch table of the residual attention, and the model that predicts what its rows take."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from benchmarks import attention_model as model
from benchmarks.cubin import Facts
from benchmarks.gpu.counts import Attention
from resclip_kernels.launch import Target
from resclip_kernels.ops.residual_attention.additive_terms_triton import PADDING
from resclip_kernels.ops.residual_attention.launch_table import (
    ANY,
    ROWS,
    Family,
    family_of,
    row_for,
)

TARGETS = {
    Family.NVIDIA: [Target("cuda", each) for each in (80, 86, 89, 120, 130)],
    Family.HOPPER: [Target("cuda", 90)],
    Family.BLACKWELL: [Target("cuda", each) for each in (100, 103, 110)],
    Family.AMD: [Target("hip", each) for each in ("gfx90a", "gfx942", "gfx950")],
    Family.INTERPRETER: [Target("interpreter", 0)],
}


def test_every_device_has_a_row_for_every_head_and_length() -> None:
    """Those that nobody had seen when the table was written too."""
    used = set()
    for family, targets in TARGETS.items():
        for target, dtype in itertools.product(targets, ANY):
            assert family_of(target) is family
            for width, tokens in itertools.product(
                (1, 64, 65, 80, 128), (1, 197, 256, 257, 1 << 30)
            ):
                row = row_for(target, dtype, width, tokens)
                assert family in row.families
                assert dtype in row.dtypes
                used.add(row)
    assert used == set(ROWS)


def test_rows_say_why_and_fit_the_stored_terms() -> None:
    for row in ROWS:
        assert row.reason
        for program in (row.layers, row.base):
            assert PADDING % program.rows == PADDING % program.columns == 0


def work(**changes: int) -> model.Work:
    numbers = {
        "programs": 2 * model.MULTIPROCESSORS,
        "warps": 8,
        "together": 2,
        "tiles": 10,
        "starts": 1,
        "instructions": 400,
        "flops": 0,
        "exponentials": 0,
        "bytes": 0,
        "rest": 0,
    }
    return model.Work("a kernel", **{**numbers, **changes})


def cycles(one: model.Work) -> float:
    return (one.seconds - model.LAUNCH) * model.CLOCK


def test_a_launch_takes_what_its_busiest_multiprocessor_takes() -> None:
    # 8 warps of 400 instructions on four schedulers are 800 cycles a tile; two programs share one wait for memory.
    assert cycles(work()) == pytest.approx(2 * (10 * 800 + model.LATENCY / 2))
    # One program more than can be spread evenly is a third turn for one of them.
    more = work(programs=2 * model.MULTIPROCESSORS + 1)
    assert cycles(more) == pytest.approx(3 * (10 * 800 + model.LATENCY / 2))
    # Reads out of L2 that take longer than all units together decide.
    assert cycles(work(bytes=int(1e6))) > 2 * 10 * 1e6 / model.L2_BYTES
    # Units that none of the others outweighs take a share of their sum, the smaller the more warps there are.
    busy = {"flops": 800 * model.MATRIX_FLOPS, "exponentials": 800 * model.EXPONENTIALS}
    tile = cycles(work(**busy, tiles=1_000_000)) / 2_000_000
    assert tile == pytest.approx(0.80 * 2400, rel=1e-3)
    alone = cycles(work(**busy, tiles=1_000_000, together=1)) / 2_000_000
    assert alone == pytest.approx(0.95 * 2400, rel=1e-3)


def test_plain_attention_computes_whole_tiles() -> None:
    small = Attention(1, 12, (14, 14))
    # 197 tokens are 256; 24 programs leave most multiprocessors idle.
    flops = 4 * 12 * 256**2 * 64
    rate = model.PLAIN_RATE * 24 / model.MULTIPROCESSORS
    assert model.plain_seconds(small, 5) == pytest.approx(5 * (flops / rate + model.LAUNCH))


def test_a_prediction_that_is_not_the_models_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in ROWS if row.predicted is not None)
    prediction = model.Prediction(row, (), 1.0, 1.0, row.predicted, 1.5)
    assert not model.is_stale(row, [prediction])
    assert model.is_stale(row, [dataclasses.replace(prediction, ratio=row.predicted + 0.1)])
    assert "the launch table predicts" in capsys.readouterr().out
    # A row that no shape of the model reaches predicts nothing.
    assert not model.is_stale(ROWS[-1], [prediction])


def test_registers_and_shared_memory_say_how_many_programs_share_a_multiprocessor() -> None:
    (launch, *_) = model.launches_of(Attention(1, 2, (4, 4), layers=2))
    assert launch.kernel.__name__ == "cross_layer_kernel"
    facts = Facts(128, 0, 40_000, 0, (), {})
    threads = 32 * launch.options.num_warps
    assert model.residents(launch, facts) == min(65_536 // (128 * threads), 227 * 1024 // 41_024)
    assert model.residents(launch, dataclasses.replace(facts, registers=255, shared=200_000)) == 1


def test_the_model_sees_the_launches_of_a_call() -> None:
    launches = model.launches_of(Attention(1, 2, (4, 4), layers=2))
    assert [launch.kernel.__name__ for launch in launches] == [
        "cross_layer_kernel",
        "class_numbers_kernel",
        "additive_terms_kernel",
        "base_kernel",
    ]
    assert all(tensor.is_meta for tensor in launches[0].arguments["layers"].queries)
    assert launches[0].arguments["value"].data.dtype == torch.float16
