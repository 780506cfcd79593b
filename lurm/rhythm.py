"""How somebody comes back: pace, gaps and what is usual, read off the days on which they acted.

Departure: LUMOS reads days one by one, as many as its window holds. Whoever comes every six weeks is told by gaps that
are longer than what a window shows twice, and a silence says something beside one's own gaps alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lurm.compiled import compiled
from lurm.events import MONDAY

_PACES = (7.0, 14.0, 28.0, 56.0, 112.0, 224.0)  # days in which a visit fades
_FADES = (28.0, 182.0)  # the same of what was done
_GAPS = 4  # the last ones, the silence that lasts first
_WITHIN = (7, 28)  # days in which a silence may end
_BELIEVED = (0.5, 4.0)  # visits on each weekday, beforehand
N_HABITS = len(_BELIEVED)
"""Of a user, of each weekday."""
_OTHERS = len(_PACES) + _GAPS + 2 + len(_WITHIN)


def rhythm_features(
    offsets: NDArray[np.int64],
    days_s: NDArray[np.int64],
    raw_sf: NDArray[np.float32],
    unit_f: NDArray[np.float64],
    sized_f: NDArray[np.bool_],
    as_of_day: int,
) -> NDArray[np.float32]:
    """(B, R) features of B users by their days; all 0 for one without days.

    Log of visits, each fading with its age, at six paces; the columns of days likewise, at two, in signed logs. Logs of
    the silence and of the gaps before; how the silence stands to the mean gap; the share of gaps that were longer, and
    of these the shares that ended within 7 and 28 days more. Mean and spread of the signed logs of columns that are
    amounts, on days that have them.

    Args:
        offsets, days_s, raw_sf: a ``DayGrid`` of days before ``as_of_day``.
        unit_f: what counts as one in a column.
        sized_f: columns that are amounts.
        as_of_day: epoch day.
    """
    features_br = np.zeros((len(offsets) - 1, rhythm_width(sized_f)), np.float32)
    sized = np.flatnonzero(sized_f)
    _fill(offsets, days_s, raw_sf, 1 / unit_f, sized, as_of_day, features_br)
    return features_br


def weekday_habits(offsets: NDArray[np.int64], days_s: NDArray[np.int64], as_of_day: int) -> NDArray[np.float32]:
    """(B, 7, 2) logs of how often B users act on each weekday, Monday first, over how often on any; fading with age.

    Twice: believed of few days, and of many; 0 for one without days.

    Args:
        offsets, days_s: a ``DayGrid`` of days before ``as_of_day``.
        as_of_day: epoch day.
    """
    n_users = len(offsets) - 1
    place_s = np.repeat(np.arange(n_users), np.diff(offsets)) * 7 + (days_s + MONDAY) % 7
    visits_b7 = np.bincount(place_s, np.exp((days_s - as_of_day) / _FADES[1]), minlength=7 * n_users).reshape(-1, 7)
    usual_b1 = visits_b7.mean(axis=1, keepdims=True)
    logs = [np.log((visits_b7 + few) / (usual_b1 + few)) for few in _BELIEVED]
    return np.stack(logs, axis=2).astype(np.float32)


def rhythm_width(sized_f: NDArray[np.bool_]) -> int:
    """R, of so many columns."""
    return _OTHERS + len(_FADES) * len(sized_f) + 2 * int(sized_f.sum())


@compiled
def _signed_log(x: float) -> float:
    log: float = np.log1p(x) if x > 0 else -np.log1p(-x)
    return log


@compiled
def _fill(
    offsets: NDArray[np.int64],
    days_s: NDArray[np.int64],
    raw_sf: NDArray[np.float32],
    per_unit_f: NDArray[np.float64],
    sized: NDArray[np.int64],
    as_of_day: int,
    features_br: NDArray[np.float32],
) -> None:
    n_columns = raw_sf.shape[1]
    visits, faded = np.empty(len(_PACES)), np.empty((len(_FADES), n_columns))
    logs, squares, n_sized = np.empty(len(sized)), np.empty(len(sized)), np.empty(len(sized))
    for user in range(len(offsets) - 1):
        first, end = offsets[user], offsets[user + 1]
        if first == end:
            continue
        visits[:], faded[:], logs[:], squares[:], n_sized[:] = 0.0, 0.0, 0.0, 0.0, 0.0
        silence = as_of_day - days_s[end - 1]
        n_longer, log_gaps = 0, 0.0
        ended = np.zeros(len(_WITHIN))
        for day in range(first, end):
            later = (days_s[day + 1] if day + 1 < end else as_of_day - 1) - days_s[day]
            for column in range(n_columns):
                if raw_sf[day, column] != 0.0:
                    for nth in range(len(_FADES)):
                        faded[nth, column] += raw_sf[day, column] * per_unit_f[column]
            for nth in range(len(_PACES)):
                visits[nth] = (visits[nth] + 1.0) * np.exp(-later / _PACES[nth])
            for nth in range(len(_FADES)):
                left = np.exp(-later / _FADES[nth])
                for column in range(n_columns):
                    faded[nth, column] *= left
            for nth in range(len(sized)):
                amount = raw_sf[day, sized[nth]] * per_unit_f[sized[nth]]
                if amount != 0.0:
                    log = _signed_log(amount)
                    logs[nth] += log
                    squares[nth] += log * log
                    n_sized[nth] += 1
            if day + 1 < end:
                log_gaps += np.log(later)
                if later > silence:
                    n_longer += 1
                    for nth in range(len(_WITHIN)):
                        ended[nth] += later <= silence + _WITHIN[nth]
        of_user, column = features_br[user], 0
        for nth in range(len(_PACES)):
            of_user[column] = np.log1p(visits[nth])
            column += 1
        for nth in range(_GAPS):
            if nth < end - first:
                later_day = as_of_day if nth == 0 else days_s[end - nth]
                of_user[column] = np.log(later_day - days_s[end - 1 - nth])
            column += 1
        n_gaps = end - first - 1
        if n_gaps > 0:
            of_user[column] = np.log(silence) - log_gaps / n_gaps
            of_user[column + 1] = n_longer / n_gaps
            for nth in range(len(_WITHIN)):
                of_user[column + 2 + nth] = ended[nth] / max(n_longer, 1)
        column += 2 + len(_WITHIN)
        for nth in range(len(_FADES)):
            for of_column in range(n_columns):
                of_user[column] = _signed_log(faded[nth, of_column])
                column += 1
        for nth in range(len(sized)):
            if n_sized[nth] > 0:
                mean = logs[nth] / n_sized[nth]
                of_user[column] = mean
                of_user[column + 1] = np.sqrt(max(squares[nth] / n_sized[nth] - mean * mean, 0.0))
            column += 2
