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
    # The second begins during the recording: from 0.
    np.testing.assert_allclose(rates[2], [4000, 8000])
    assert measures.share(samples) == {1: 4000 / 5500, 2: 1500 / 5500}
    for wrong in ({"window": 0.0}, {"direction": "up"}):
        with pytest.raises(ValueError, match=r"window|direction"):
            measures.goodput(samples, **wrong)  # type: ignore[arg-type]


def test_a_late_final_row_is_no_goodput_of_the_time_between(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    """Of a subflow that ended at 2 s, and whose socket the kernel freed at 60 s; another goes on."""
    ended = rows(dtypes[0], 1, [0, 1, 2, 60], [0, 1000, 2000, 2500])
    ended["final"][-1] = True
    other = rows(dtypes[0], 2, list(range(61)), [100 * second for second in range(61)])
    _, rates = measures.goodput(np.concatenate((ended, other)), window=1.0)
    np.testing.assert_allclose(rates[1][:4], [8000, 8000, 4000, 0])
    assert not rates[1][4:].any()


def test_bounds_hold_what_a_finer_recording_says(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    """The same two subflows in steps of 1 ms, and every 100 ms of them: the difference is within the bounds."""
    random = np.random.default_rng(1)
    times = np.arange(0, 4, 0.001)
    counters = {
        cookie: np.cumsum(random.integers(0, 3000, len(times)) * (random.random(len(times)) < 0.1)) for cookie in (1, 2)
    }
    fine = np.concatenate([rows(dtypes[0], cookie, list(times), list(counts)) for cookie, counts in counters.items()])
    coarse = fine[np.isin(fine["time_ns"], fine["time_ns"][: len(times)][::100])]
    (_, exact), _ = measures.goodput(fine, window=0.25, error=True)
    (_, rates), bounds = measures.goodput(coarse, window=0.25, error=True)
    for cookie, found in rates.items():
        windows = len(found)
        assert (np.abs(found - exact[cookie][:windows])[: windows - 1] <= bounds[cookie][: windows - 1] + 1e-6).all()
        assert bounds[cookie].mean() < found.mean(), "a bound that holds everything"
    shares, doubt = measures.share(coarse, error=True)
    # SYN and FIN.
    assert all(0 < each < 1e-4 for each in doubt.values())
    assert sum(shares.values()) == pytest.approx(1)


def test_a_final_row_without_counters_makes_the_share_uncertain(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    ended = rows(dtypes[0], 1, [0, 1, 2], [0, 1000, 1000])
    ended["final"][-1] = True
    ended["wait_ns"][-1] = -SECOND
    ended["unacked"], ended["snd_mss"], ended["notsent_bytes"] = 4, 500, 3000
    other = rows(dtypes[0], 2, [0, 1, 2], [0, 1000, 9000])
    shares, bounds = measures.share(np.concatenate((ended, other)), error=True)
    assert shares == {1: 0.1, 2: 0.9}
    # 5000 bytes of the first, and SYN and FIN of both.
    assert bounds == {1: pytest.approx(0.55, abs=0.001), 2: pytest.approx(0.45, abs=0.001)}
    ended["wait_ns"] = 0
    bounds = measures.share(np.concatenate((ended, other)), error=True)[1]
    assert bounds == {1: pytest.approx(0.00024), 2: pytest.approx(0.00056)}


def test_reinjection_ratio(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    samples = np.concatenate((rows(dtypes[0], 1, [0, 1], [0, 900]), rows(dtypes[0], 2, [0, 1], [0, 600], again=50)))
    connections = np.zeros(2, dtypes[1])
    connections["bytes_sent"] = [0, 1000]
    assert measures.reinjection_ratio(samples, connections) == pytest.approx(500 / 1500)
    connections["time_ns"] = [0, SECOND]
    assert measures.reinjection_ratio(samples, connections, error=True) == (pytest.approx(1 / 3), 0)
    # Acknowledged were 100 bytes less, 4 of which may be SYN and FIN.
    samples["bytes_acked"][-1] -= 100
    assert measures.reinjection_ratio(samples, connections, error=True)[1] == pytest.approx(96 / 1500)
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


def test_recovery_has_hysteresis(dtypes: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
    """Of 1000 bytes a second 390 stay: by one window more or less above 0.4, but never lost."""
    counts = np.cumsum([0, 1000, 1000, 390, 410, 380, 400])
    samples = rows(dtypes[0], 1, list(range(7)), list(counts))
    assert measures.time_to_recover(samples, 2 * SECOND, window=1.0) == 0.0
    found = measures.time_to_recover(samples, 2 * SECOND, window=1.0, fraction=0.6, error=True)
    assert found == (np.inf, 2.0)
    # Back for a moment only.
    counts = np.cumsum([0, 1000, 1000, 0, 500, 0, 0, 500, 500])
    samples = rows(dtypes[0], 1, list(range(9)), list(counts))
    assert measures.time_to_recover(samples, 2 * SECOND, window=1.0) == 5.0


def test_jain_index() -> None:
    assert measures.jain_index([3, 3, 3]) == pytest.approx(1)
    assert measures.jain_index([1, 0, 0, 0]) == pytest.approx(1 / 4)
    assert np.isnan(measures.jain_index([0, 0]))
    for wrong in ([], [-1, 2]):
        with pytest.raises(ValueError, match="values must be"):
            measures.jain_index(wrong)
