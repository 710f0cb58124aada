"""Lines of fewer points than were measured keep what can be seen: extremes and gaps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")

from mptcp.plot import _thin


def test_few_points_are_as_they_were() -> None:
    time, values = np.arange(1000.0), np.random.default_rng(1).random(1000)
    line = _thin.thinned(time, values)
    np.testing.assert_array_equal(line.time, time)
    np.testing.assert_array_equal(line.middle, values)
    assert (line.low, line.high) == (None, None)


@pytest.mark.parametrize("count", [1001, 1499, 10_000, 99_999])
def test_no_extreme_is_lost(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    values[count // 3] = 1000
    values[count // 2] = -1000
    line = _thin.thinned(np.arange(float(count)), values)
    assert line.low is not None
    assert line.high is not None
    assert len(line.middle) <= 500
    assert (line.low.min(), line.high.max()) == (-1000, 1000)
    assert not np.isnan(line.middle).any()
    assert np.all((line.low <= line.middle) & (line.middle <= line.high))
    assert np.all(np.diff(line.time) > 0)


def test_the_middle_is_the_median_of_what_is_known() -> None:
    values = np.random.default_rng(2).random(10_000)
    values[::7] = np.nan
    line = _thin.thinned(np.arange(10_000.0), values)
    pieces = values[: 20 * 500].reshape(500, 20)
    np.testing.assert_allclose(line.middle[:-1], np.nanmedian(pieces, axis=1)[:-1], atol=0.2)
    np.testing.assert_allclose(line.low[5], np.nanmin(pieces[5]), atol=0.2)


@pytest.mark.parametrize("missing", [True, False], ids=["NaN", "no samples"])
@pytest.mark.parametrize("count", [900, 50_000])
def test_a_gap_stays_a_gap(count: int, missing: bool) -> None:
    """Values that are missing, and times without samples, are not bridged."""
    time = np.linspace(0, 100, count)
    values = np.full(count, 5.0)
    inside = (time > 40) & (time < 43)
    if missing:
        values[inside] = np.nan
    else:
        time, values = time[~inside], values[~inside]
    line = _thin.thinned(time, values)
    broken = np.isnan(line.middle) & (line.time > 39.5) & (line.time < 43.5)
    assert broken.any()
    drawn = line.time[~np.isnan(line.middle)]
    assert not ((drawn > 40.2) & (drawn < 42.8)).any()
    assert not np.isnan(line.middle[line.time < 39.5]).any()
    assert not np.isnan(line.middle[line.time > 43.5]).any()


def test_of_several_lines_the_band_is_of_most() -> None:
    time = np.repeat(np.arange(100.0), 50)
    values = np.tile(np.arange(50.0), 100)
    line = _thin.thinned(time, values, spread=True)
    assert line.low is not None
    assert line.high is not None
    assert set(line.middle) == {24.5}
    # A piece has two of the hundred times: each value twice.
    assert (set(line.low), set(line.high)) == ({4.0}, {45.0})


def test_what_is_alone_is_found() -> None:
    values = np.array([1, np.nan, 2, 3, np.nan, 4, np.nan])
    assert np.flatnonzero(_thin.alone(values)).tolist() == [0, 5]
    assert not _thin.alone(np.array([1.0, 2.0])).any()
    assert _thin.alone(np.array([1.0])).all()
