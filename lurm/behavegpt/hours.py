"""In which hours of the week a log has events, and when in the day somebody comes, counted; and which gaps lead there.

A network foretells that somebody comes back in three to four days, and not that this is before the shop opens, nor that
they come in the evening.

    p(gap | bucket) ~ often(at + gap) / often after such a gap

How often events are in an hour is held against how often they are so long after others: gaps of whole days lead to
usual hours already, and would count for it twice.

Departure: BehaveGPT draws gaps by its network alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lurm.events import DAY_MS, MONDAY

A_VISIT_APART = 30 * 60_000
"""From so long a wait on, in ms, somebody comes anew."""
_EVEN = 1.0  # events of each slot of the week as its weekday and its hour have them
_NONE = 0.01  # events of a weekday or an hour without any: no slot is without a chance
_ENOUGH = 0.1  # of how often events are on average, for a gap to lead there
_USUAL = 20.0  # visits of somebody that are believed to be at the log's hours
_LEAST = 1e-300  # instead of 0 below a fraction


class Hours:
    """How often events are in each of S slots of seven weekdays, Monday's first.

    Attributes:
        often_w: (7S,) relative to the mean; slots of a few events lean on what their weekday and their hour have.
    """

    def __init__(self, events_ws: NDArray[np.int64] | NDArray[np.float64]) -> None:
        self._events_ws, self._slots = events_ws, events_ws.shape[1]
        even_ws = np.outer(events_ws.sum(1) + _NONE, events_ws.sum(0) + _NONE)
        often_ws = events_ws + _EVEN * even_ws / even_ws.mean()
        self.often_w = often_ws.ravel() / often_ws.mean()
        power = np.abs(np.fft.rfft(self.often_w)) ** 2
        self._after_w = np.fft.irfft(power, len(self.often_w)) / len(self.often_w)  # the mean product, by how far apart

    def leaning(self, at_n: NDArray[np.int64]) -> Hours:
        """Those of somebody who has come at such moments, epoch ms, ascending, as the log has them on each weekday."""
        if not len(at_n):
            return self
        visits = at_n[np.append(True, np.diff(at_n) >= A_VISIT_APART)]
        own_s = np.bincount(calendar(visits, self._slots)[1], minlength=self._slots)
        usual_s = self.often_w.reshape(7, -1).mean(0) / self._slots
        return Hours(self._events_ws * (own_s / usual_s + _USUAL) / (len(visits) + _USUAL))

    def fits(self, at_n: NDArray[np.int64], gaps_gv: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, G, V) how much likelier gaps are, of V in each of G buckets, ms, for where they lead from n moments."""
        whole, part = np.divmod(gaps_gv * (self._slots / DAY_MS), 1)
        lag, n_lags = whole.astype(np.int64), len(self._after_w)
        after_gv = (1 - part) * self._after_w[lag % n_lags] + part * self._after_w[(lag + 1) % n_lags]
        fits_ngv: NDArray[np.float64] = self._often(at_n[:, None, None] + gaps_gv) / after_gv
        return fits_ngv

    def among(
        self,
        chances_ng: NDArray[np.float64],
        at_n: NDArray[np.int64],
        gaps_gv: NDArray[np.int64],
        possible_gv: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """(n, G, V) chances of gaps, given those of their buckets.

        A bucket of which no gap leads to hours that have events, or to one with as many as that of the moment, leaves
        its chance to the others; to none that stays within the hour, for who comes once more at once does so at any.

        Args:
            chances_ng: (n, G).
            at_n: (n,) epoch ms.
            gaps_gv: (G, V) gaps of G buckets, ms.
            possible_gv: (G, V) which there can be; the others have no chance.
        """
        fits_ngv = np.where(possible_gv, self.fits(at_n, gaps_gv), 0)
        enough_n = np.minimum(self._often(at_n) / self._after_w[0], _ENOUGH)
        reached_ng = chances_ng * np.minimum(fits_ngv.max(2) / enough_n[:, None], 1)
        roams_g = np.where(possible_gv, gaps_gv, 0).max(1) * self._slots >= DAY_MS
        left_n = (chances_ng * roams_g).sum(1) / np.maximum((reached_ng * roams_g).sum(1), _LEAST)
        reached_ng *= np.where(roams_g, left_n[:, None], 1)
        chances_ngv: NDArray[np.float64] = fits_ngv * (reached_ng / np.maximum(fits_ngv.sum(2), _LEAST))[:, :, None]
        return chances_ngv

    def _often(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        weekday, slot = calendar(at, self._slots)
        often: NDArray[np.float64] = self.often_w[weekday * self._slots + slot]
        return often


def calendar(at: NDArray[np.int64], slots: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Weekdays, 0 is Monday, and slots of the day of moments in epoch ms, UTC."""
    day, within = np.divmod(at, DAY_MS)
    return (day + MONDAY) % 7, within * slots // DAY_MS
