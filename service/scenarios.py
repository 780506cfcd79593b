"""Other calendars over the wire: what if?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from lurm.identifiers import MAX_ID_BYTES
from lurm.moments import Moment, whole
from service.schemas import WireModel, parsed, validated


class CalendarEdit(WireModel):
    """A change to the calendar."""

    do: Literal["add", "move", "remove"]
    event_id: str = Field("", max_length=MAX_ID_BYTES, description="Of the event to move or remove.")
    kind: str = Field("", max_length=MAX_ID_BYTES, description="Of a new event; one that the calendar knows.")
    start: Moment | None = Field(None, description="Of a new event, or where one is moved to.")
    end: Moment | None = Field(None, description="Default: a day later, or as long as the event was.")
    targeted: bool | None = Field(None, description="Whether it is for this user; default: yes, or as it was.")


class ForecastRequest(WireModel):
    """A forecast under another calendar."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"edits": [{"do": "add", "kind": "sale", "start": "2024-03-08", "end": "2024-03-12"}]}]
        }
    )

    edits: list[CalendarEdit] = Field(max_length=100)
    as_of: Moment | None = Field(
        None, description="The day to forecast from, as what was known then has it; default: after the newest event."
    )
    days: Annotated[int, Field(ge=1, le=366), BeforeValidator(whole)] | None = Field(
        None, description="Horizon of every target; default: their own."
    )


def parse_forecast(body: bytes) -> ForecastRequest:
    """A request for a forecast under another calendar.

    Raises:
        Malformed: not JSON, or not such a request.
    """
    return validated(ForecastRequest, parsed(body))
