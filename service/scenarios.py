"""Other calendars over the wire: what if?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field

from lurm.identifiers import MAX_ID_BYTES
from lurm.moments import End, Moment, whole
from service.schemas import WireModel, parsed, validated

_Name = Annotated[str, Field(max_length=MAX_ID_BYTES)]


class AddEvent(WireModel):
    """An event that the calendar does not have."""

    do: Literal["add"]
    kind: _Name = Field(description="One that the calendar knows.")
    start: Moment
    end: End | None = Field(None, description="A last day counts whole; default: a day after the start.")
    event_id: _Name = Field("", description="Any that is free; default: one is made up.")
    targeted: bool | None = Field(None, description="Whether it is for this user; default: yes.")


class MoveEvent(WireModel):
    """An event at another time."""

    do: Literal["move"]
    event_id: _Name
    start: Moment = Field(description="Where it is moved to.")
    end: End | None = Field(None, description="A last day counts whole; default: it lasts as long as it did.")
    targeted: bool | None = Field(None, description="Whether it is for this user; default: as it was.")


class RemoveEvent(WireModel):
    """An event that does not happen."""

    do: Literal["remove"]
    event_id: _Name


CalendarEdit = Annotated[AddEvent | MoveEvent | RemoveEvent, Discriminator("do")]


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
