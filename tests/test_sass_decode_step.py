"""The model of a decode step: what launches that overlap wait for."""

from __future__ import annotations

import pytest

from tools.sass_model.decode_step import Grid, Role, Terms, simulate, table

TERMS = Terms(bandwidth=1.0, memory=0.0, start=0.0, grid_end=1.0, block_end=0.5)


def role(blocks=1, share=1.0, bytes=0.0, path=2.0, waits=False):
    return Role("work", blocks, share, bytes, path, waits)


def us(*grids, sms=1, terms=TERMS):
    return simulate(grids, sms, terms).us


def test_launches_follow_each_other():
    """Each waits for the one before: its end, and a block's way."""
    assert us(Grid((role(),))) == pytest.approx(1 + 2)
    assert us(Grid((role(),)), Grid((role(path=3.0),))) == pytest.approx(1 + 2 + 1 + 3)


def test_waves():
    """Three blocks on two SMs. The next launch's begin to wait while the last one runs."""
    assert us(Grid((role(blocks=3),)), sms=2) == pytest.approx(1 + 2 + 2)
    assert us(Grid((role(blocks=3, share=0.5),)), sms=2) == pytest.approx(1 + 2)


def test_device_memory_is_busy_while_launches_wait():
    """Ten bytes a launch at one a microsecond are on their way before the launch before has ended: only they count."""
    assert us(Grid((role(bytes=10.0, share=0.5),)), sms=1) == pytest.approx(10)
    assert us(Grid((role(bytes=10.0),)), sms=1) == pytest.approx(10)  # no room beside: asked for when that has ended


def test_a_load_takes_its_time():
    slow = Terms(bandwidth=1.0, memory=4.0, start=0.5, grid_end=1.0, block_end=0.5)
    assert us(Grid((role(bytes=1.0, path=0.0),)), terms=slow) == pytest.approx(0.5 + 1 + 4)


def test_blocks_wait_for_blocks():
    both = Grid((role(path=2.0, share=0.5), role(path=3.0, share=0.5, waits=True)))
    assert us(both) == pytest.approx(1 + 2 + 0.5 + 3)


def test_a_launch_beside_another():
    """It begins when the one before knows the end of those before it, and ends no sooner than that."""
    first = Grid((role(path=6.0, share=0.25),), starts_next_late=True)
    beside = Grid((role(path=2.0, share=0.25),), beside_previous=True)
    assert us(first, beside) == pytest.approx(1 + 6 + 1)
    assert us(first, Grid((role(path=8.0, share=0.25),), beside_previous=True)) == pytest.approx(1 + 8)
    assert us(first, Grid((role(path=2.0, share=0.25),))) == pytest.approx(1 + 6 + 1 + 2)


def test_the_table_names_every_role():
    grids = [Grid((role(), role(waits=True))), Grid((role(bytes=3e6),))]
    step = simulate(grids, 132, Terms())
    lines = table(grids, step, Terms())
    assert len(lines) == 2 + 3 + 2 and f"**{step.us:.1f} us**, {step.ratio:.2f} times" in lines[-1]
