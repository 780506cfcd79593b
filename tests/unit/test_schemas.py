"""What the service says and hears, told apart from how it is sent."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from service.schemas import iso_of

EPOCH = datetime(1970, 1, 1)


@given(st.datetimes())
@example(EPOCH)
@example(datetime.min)
@example(datetime.max)
def test_a_moment_is_said_as_datetime_says_it(moment: datetime) -> None:
    at = (moment - EPOCH) // timedelta(milliseconds=1)
    assert iso_of(at) == (EPOCH + timedelta(milliseconds=at)).isoformat(timespec="milliseconds") + "Z"
