import pytest

from lurm.activity import activity_width
from lurm.boi import BagConfig
from lurm.errors import UsageError
from lurm.sequences import Scale
from lurm.smen.config import SmenConfig
from lurm.smen.network import Smen
from tests.worlds import DAY_MS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 9, "n_anchors": 9}, "dim is 9 and n_anchors 9"),
        ({"dim": 0}, "dim is 0 and n_anchors 8"),
        ({"n_anchors": 0}, "dim is 256 and n_anchors 0"),
        ({"dim": -8}, "dim is -8"),
        ({"anchor_temperature": 0.0}, "anchor_temperature is 0.0, expected more than 0"),
        ({"activity_share": 1.0}, "activity_share is 1.0, expected at least 0 and less than 1"),
        ({"activity_share": -0.1}, "activity_share is -0.1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SmenConfig(**wrong)  # type: ignore[arg-type]


def test_scales_follow_the_length_of_the_log_unless_they_are_told() -> None:
    config = SmenConfig()
    with pytest.raises(ValueError, match="for_log"):
        Smen(config, 5, 1)
    own = SmenConfig(scales=(Scale("week", 7.0, 8),))
    assert own.for_log(1) == own
    for days, expected in {
        0.5: ["life"],
        1: ["life", "0.25 days x 4"],
        17: ["life", "1 days x 4", "0.25 days x 6"],
        363.9: ["life", "28 days x 4", "7 days x 6"],
        364: ["life", "91 days x 4", "28 days x 6"],
        3650: ["life", "364 days x 4", "91 days x 6"],
    }.items():
        scales = config.for_log(round(days * DAY_MS)).scales
        assert [s.name if s.days is None else f"{s.name} x {s.n_windows}" for s in scales] == expected
        assert all(scale.name == f"{scale.days:g} days" for scale in scales[1:])


@pytest.mark.parametrize(
    ("dim", "n_anchors", "width", "activity"),
    [(64, 4, 14, 8), (66, 4, 14, 10), (32, 4, 7, 4), (8, 2, 3, 2), (7, 7, 1, 0), (1, 1, 1, 0)],
)
def test_anchors_and_activity_share_the_dimensions(dim: int, n_anchors: int, width: int, activity: int) -> None:
    config = SmenConfig(dim=dim, n_anchors=n_anchors)
    assert (config.width, config.activity_dim) == (width, activity)
    huge = SmenConfig(dim=8 * dim * n_anchors, n_anchors=n_anchors)
    assert huge.n_anchors * huge.width + huge.activity_dim == huge.dim
    assert huge.activity_dim < activity_width(1) + n_anchors, "a wide vector is for interests"


def test_a_configuration_survives_its_manifest() -> None:
    bag = BagConfig(grains=False, weighting="binary")
    config = SmenConfig(dim=12, n_anchors=3, scales=(Scale("life"), Scale("week", 7.0, 8)), activity_share=0.2, bag=bag)
    assert SmenConfig.from_json(config.to_json()) == config
