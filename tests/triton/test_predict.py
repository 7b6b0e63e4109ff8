"""The model of time: it explains what others have published, before it says anything of ours."""

from dataclasses import replace

import pytest

from bitnet_torch_triton.predict import __main__ as tables
from bitnet_torch_triton.predict import ops
from bitnet_torch_triton.predict.gpu import A100, GPUS, H100
from bitnet_torch_triton.predict.launch import Launch, microseconds
from bitnet_torch_triton.predict.peer import KERNELS, TOKEN_MS, explained, peer_layer
from bitnet_torch_triton.predict.step import (
    MODEL,
    decode_launches,
    decode_us,
    floor_us,
    layer_launches,
)


@pytest.mark.parametrize("row", explained(), ids=lambda row: row.what)
def test_every_published_figure_is_explained_within_a_quarter(row):
    assert 0.75 <= row.ratio <= 1.25


def test_all_of_what_was_published_is_explained():
    # Eight layers with two columns, nine generations and the token between them.
    assert len(explained()) == 8 * 2 + 9 + 1
    assert len(peer_layer()) == 22
    assert pytest.approx((221.08 - 57.40) / 48, abs=0.005) == TOKEN_MS


def test_a_launch_takes_its_gap_its_latencies_and_its_longest_work():
    gpu = replace(A100, gap_us=1.0, latency_us=0.5, dram_gb_s=1000.0, sms=1, ghz=1.0)
    launch = Launch("it", nbytes=850e3, depth=2, instructions=128e3, integer=32e3, reductions=1)
    # 850 kB at 85 % of 1000 GB/s are 1 us; 128 of its instructions start in a nanosecond.
    assert launch.bound(gpu)[1] == pytest.approx(1.0)
    assert launch.microseconds(gpu) == pytest.approx(1.0 + 2 * 0.5 + 0.4 + 1.0)
    assert microseconds([launch, launch], gpu) == pytest.approx(2 * 3.4)
    assert replace(launch, integer=128e3).bound(gpu) == ("integer", pytest.approx(2.0))
    halves = replace(launch, int8_ops=gpu.int8_tops * 1e6, share=0.5)
    assert halves.bound(gpu) == ("int8 matrix", pytest.approx(2.0))


def test_nothing_is_faster_than_reading_its_weights():
    for gpu in GPUS:
        for head in ("float", "int8"):
            assert decode_us(gpu, head=head) > floor_us(gpu, head)
        for n, k in MODEL.matrices:
            for m in tables.TOKENS:
                least = n * k / 4 / (gpu.dram_gb_s * 1e3)
                assert ops.product(m, n, k, gpu).microseconds(gpu) > least


def test_the_ternary_product_is_predicted_to_beat_the_float_one_of_as_many_tokens():
    for gpu in GPUS:
        for n, k in MODEL.matrices:
            for m in tables.TOKENS:
                ours, theirs = ops.product(m, n, k, gpu), ops.float_product(m, n, k)
                assert ours.microseconds(gpu) < theirs.microseconds(gpu)


def test_a_token_of_the_published_model_is_predicted_under_two_milliseconds_on_an_a100():
    assert decode_us(A100, context=128) < 2000
    assert decode_us(A100, context=128, head="int8") < 1800
    assert decode_us(H100, context=128) < decode_us(A100, context=128)


def test_a_step_is_its_layers_and_what_stands_around_them():
    layer = layer_launches(MODEL, 1, 128, A100)
    assert len(decode_launches(A100)) == MODEL.layers * len(layer) + 10
    assert len(decode_launches(A100, head="int8")) == MODEL.layers * len(layer) + 11
    read = sum(launch.nbytes for launch in layer)
    weights = sum(n * k for n, k in MODEL.matrices) / 4
    assert weights < read < 1.2 * weights


def test_a_tile_that_does_not_fit_the_tokens_wastes_its_share_of_the_matrix_units():
    full, half = (ops.matrix_share(m, 16 * 256 * 108, A100) for m in (128, 65))
    assert full == pytest.approx(0.65)
    assert half < 0.75 * full


def test_the_tables_name_every_gpu_and_every_published_layer():
    shown = tables.product_table() + tables.token_table() + tables.layer_table()
    assert all(gpu.name in shown for gpu in GPUS)
    assert all(f"{n} x {k}, int2" in tables.peer_table() for n, k in KERNELS)
