"""What LUMOS learns a log from: its users as of any day, and what they did from it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lurm.calendars import Calendar
from lurm.history import HistoryBase
from lurm.lumos import Inputs
from lurm.targets import Labels, Questions
from lurm.tokens import Reader


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """A log, as LUMOS reads it.

    Attributes:
        history: of the log.
        reader: of what users have done and are.
        questions: what is to be foretold.
        calendar: of the log.
    """

    history: HistoryBase
    reader: Reader
    questions: Questions
    calendar: Calendar

    def of(self, rows: NDArray[np.int64], cut_day: int) -> tuple[Inputs, Labels]:
        """Users as of an epoch day, and what they did from it on."""
        batch = self.history.batch(rows)
        tokens = self.reader.read(batch, rows, self.calendar, cut_day)
        labels = self.questions.labels(self.reader.view.grid(batch), tokens.ahead, cut_day)
        return Inputs.of(tokens, self.questions), labels
