"""What the service says and hears, told apart from how it is sent."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lurm.moments import iso_of
from service.problems import Malformed
from service.schemas import SeedsOfAudience, validated

EPOCH = datetime(1970, 1, 1)


@given(st.datetimes())
@example(EPOCH)
@example(datetime.min)
@example(datetime.max)
def test_a_moment_is_said_as_datetime_says_it(moment: datetime) -> None:
    at = (moment - EPOCH) // timedelta(milliseconds=1)
    assert iso_of(at) == (EPOCH + timedelta(milliseconds=at)).isoformat(timespec="milliseconds") + "Z"


def test_what_a_name_may_be_is_said_in_words() -> None:
    with pytest.raises(Malformed, match=r"^audience: expected lower-case letters, digits, _ and -"):
        validated(SeedsOfAudience, {"audience": "Best Customers"})
