"""Measures of arrays whose answers are known."""

from __future__ import annotations

from typing import Any

import mptcp
import numpy as np
import pytest
from mptcp import measures

SECOND = 10**9


@pytest.fixture
def dtypes(pair: tuple[mptcp.Socket, mptcp.Socket]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    with mptcp.Recorder(pair[0]) as recorder:
        pass
    return recorder.samples.dtype, recorder.connections.dtype


def rows(dtype: np.dtype[Any], cookie: int, times: list[float], counted: list[int], again: int = 0) -> Any:
    made = np.zeros(len(times), dtype)
    made["time_ns"] = np.array(times) * SECOND
    made["cookie"] = cookie
    made["bytes_acked"] = made["bytes_received"] = counted
    made["bytes_sent"] = np.array(counted) + again
    made["bytes_retrans"] = again
    return made


def test_goodput_and_share(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    samples = np.concatenate(
        (rows(dtypes[0], 1, [0, 1, 2], [0, 1000, 4000]), rows(dtypes[0], 2, [1, 2], [500, 1500], again=70))
    )
    times, rates = measures.goodput(samples, window=1.0)
    np.testing.assert_allclose(times, [1, 2])
    np.testing.assert_allclose(rates[1], [8000, 24000])
    np.testing.assert_allclose(rates[2], [0, 8000])
    assert measures.share(samples) == {1: 0.8, 2: 0.2}
    for wrong in ({"window": 0.0}, {"direction": "up"}):
        with pytest.raises(ValueError, match=r"window|direction"):
            measures.goodput(samples, **wrong)  # type: ignore[arg-type]


def test_reinjection_ratio(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    samples = np.concatenate((rows(dtypes[0], 1, [0, 1], [0, 900]), rows(dtypes[0], 2, [0, 1], [0, 600], again=50)))
    connections = np.zeros(2, dtypes[1])
    connections["bytes_sent"] = [0, 1000]
    assert measures.reinjection_ratio(samples, connections) == pytest.approx(500 / 1500)
    connections["bytes_sent"] = np.nan
    assert np.isnan(measures.reinjection_ratio(samples, connections))


def test_time_to_recover(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    # 1000 bytes a second, nothing from 2 s to 3 s, and as before from there.
    times = [0, 1, 2, 3, 4, 5]
    samples = rows(dtypes[0], 1, times, [0, 1000, 2000, 2000, 3000, 4000])
    assert measures.time_to_recover(samples, 2 * SECOND, window=0.5) == pytest.approx(1.5)
    steady = rows(dtypes[0], 1, times, [0, 1000, 2000, 3000, 4000, 5000])
    assert measures.time_to_recover(steady, 2 * SECOND) == 0.0
    stopped = rows(dtypes[0], 1, times, [0, 1000, 2000, 2000, 2000, 2000])
    assert measures.time_to_recover(stopped, 2 * SECOND) == np.inf
    with pytest.raises(ValueError, match="within"):
        measures.time_to_recover(steady, 9 * SECOND)


def test_jain_index() -> None:
    assert measures.jain_index([3, 3, 3]) == pytest.approx(1)
    assert measures.jain_index([1, 0, 0, 0]) == pytest.approx(1 / 4)
    assert np.isnan(measures.jain_index([0, 0]))
    for wrong in ([], [-1, 2]):
        with pytest.raises(ValueError, match="values must be"):
            measures.jain_index(wrong)
