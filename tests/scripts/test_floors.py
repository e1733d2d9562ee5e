"""The floors are the arithmetic that they say: LLaDA-8B in bfloat16 on a GPU of 4.3 TB/s and 790 TFLOP/s."""

import pytest


@pytest.fixture(scope="module")
def llada(floors, shapes):
    return floors, shapes.SHAPES["llada-8b"], floors.Ceilings(4.3e12, 790e12, 1580e12)


def test_a_step_reads_15_gb_of_weights_and_half_a_mib_of_keys_for_every_column(llada):
    floors, spec, _ = llada
    work = floors.step(spec, 1, 32, 1280)
    assert work.weight_bytes == pytest.approx(15.0e9, rel=1e-3)
    assert work.other_bytes == 524288 * (1280 + 32) + 4 * 32 * spec.vocab_size
    assert spec.n_parameters == pytest.approx(8.016e9, rel=1e-3)


@pytest.mark.parametrize(("batch", "ms"), [(1, 3.65), (8, 5.1), (32, 20.3), (64, 40.6)])
def test_a_window_step_of_32_rows_against_1280_keys(llada, batch, ms):
    floors, spec, ceilings = llada
    assert 1000 * floors.step(spec, batch, 32, 1280).seconds(ceilings) == pytest.approx(ms, abs=0.06)


def test_a_refresh_of_one_sequence_takes_25_ms_and_less_with_the_head_on_the_block_alone(llada):
    floors, spec, ceilings = llada
    assert 1000 * floors.refresh(spec, 1, 1280, 1280).seconds(ceilings) == pytest.approx(25.4, abs=0.05)
    assert 1000 * floors.refresh(spec, 1, 1280, 32).seconds(ceilings) == pytest.approx(23.7, abs=0.1)
    assert 1000 * floors.refresh(spec, 8, 1280, 1280).seconds(ceilings) == pytest.approx(203, abs=0.5)


def test_75_forwards_with_8_refreshes_take_nearly_half_a_second(llada):
    floors, spec, ceilings = llada
    trace = {"rows": 32, "length": 1280, "forwards": 75, "refreshes": 8}
    one = floors.end_to_end(spec, ceilings, batch=1, **trace)
    assert one == pytest.approx(0.45, abs=0.02)
    # Refreshes dominate a batch: 32 sequences together are less than twice as fast as one after the other.
    assert 32 * one / floors.end_to_end(spec, ceilings, batch=32, **trace) == pytest.approx(1.85, abs=0.05)


def test_rows_are_nearly_free_where_weights_are_waited_for(llada):
    floors, spec, ceilings = llada
    few, many = (floors.step(spec, 1, rows, 1280).seconds(ceilings) for rows in (32, 128))
    assert 1 < many / few < 1.01


def test_8_bits_nearly_halve_a_step_of_one_sequence(llada):
    floors, spec, ceilings = llada
    whole, half = (floors.step(spec, 1, 32, 1280, matrix_bytes=size).seconds(ceilings) for size in (2, 1))
    assert half / whole == pytest.approx(0.556, abs=0.005)


def test_dream_reads_fewer_keys(llada, shapes):
    floors, _, ceilings = llada
    assert 1000 * floors.step(shapes.SHAPES["dream-7b"], 1, 32, 1280).seconds(ceilings) == pytest.approx(3.31, abs=0.02)
