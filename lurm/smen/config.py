"""The shape of a SMEN, and the files of an ``encoder`` artifact that holds one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lurm.activity import activity_width
from lurm.boi import BagConfig
from lurm.bounds import POSITIVE, Bound, check
from lurm.errors import UsageError
from lurm.lanes import Layout
from lurm.sequences import Scale, scales_for

KIND, ARTIFACT = "smen", "encoder"
WEIGHTS = "smen.safetensors"
TABLE, STEPS = "table.npy", "steps.npy"  # what inference makes of the weights, so that processes can share it
SHAPE = "smen.json"
# Raised when the same weights and history would give another vector. It is part of an encoder's content, so a release
# of another revision is refused instead of being served beside vectors it does not agree with.
REVISION = 5
WIDE = ("interests_he.weight", "anchors_me")
"""What a network has learned that inference reads from the table alone."""
_ACTIVITY_WIDTH = 32
_WIDEST = 4096  # a typo beyond it would be noticed only when training asks for the memory


@dataclass(frozen=True, slots=True)
class SmenConfig:
    """The shape of a SMEN.

    Attributes:
        dim: E, width of the served vector, at most 4,096; an eighth of it, at most 32, and what the anchors cannot
            share evenly, tells activity.
        n_anchors: M.
        scales: windows to look at; none: by rule, from the length of the log (``for_log``). The last anchor (of four
            and more; an eighth of many) starts from all but the first, the others from the first.
        anchor_temperature: tau_a; small sends an interest to one anchor, large to all of them.
        activity_share: of the served vector's squared length, before it is made unit.
        bag: what is counted, and how counts become weights.
    """

    dim: int = 256
    n_anchors: int = 8
    scales: tuple[Scale, ...] = ()
    anchor_temperature: float = 1.0
    activity_share: float = 0.1
    bag: BagConfig = field(default_factory=BagConfig)

    def __post_init__(self) -> None:
        if self.n_anchors < 1 or self.dim < 1 or not self.width:
            raise UsageError(
                f"dim is {self.dim} and n_anchors {self.n_anchors}; every anchor needs at least one dimension, "
                "beside the eighth that tells activity"
            )
        check(self, dim=Bound(most=_WIDEST), anchor_temperature=POSITIVE, activity_share=Bound(least=0, below=1))

    @property
    def width(self) -> int:
        """D, the width of one anchor's vector."""
        return (self.dim - min(_ACTIVITY_WIDTH, self.dim // 8)) // self.n_anchors

    @property
    def layout(self) -> Layout:
        """Where inference keeps the numbers of anchors."""
        return Layout(self.n_anchors, self.width)

    @property
    def activity_dim(self) -> int:
        """X, dimensions that tell activity."""
        return self.dim - self.n_anchors * self.width

    def for_log(self, span_ms: int) -> SmenConfig:
        """The same shape with its scales settled for a log of such a span."""
        return self if self.scales else replace(self, scales=scales_for(span_ms))

    def arrays(self, n_columns: int, n_behaviors: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of all that a network of this shape has learned, scales settled.

        Args:
            n_columns: of the bags, H.
            n_behaviors: of the log.
        """
        m, width = self.n_anchors, self.n_anchors * self.width
        n_windows, n_features = sum(scale.n_windows for scale in self.scales), activity_width(n_behaviors)
        return {
            "interests_he.weight": (n_columns, width),
            "anchors_me": (m, width),
            "query_smd": (len(self.scales), m, self.width),
            "position_wm": (n_windows, m),
            "gate_sm": (len(self.scales), m),
            "mean_e": (width,),
            "known_until": (),
            "scale_e": (width,),
            "activity_mean_a": (n_features,),
            "activity_scale_a": (n_features,),
            "activity_ax": (n_features, self.activity_dim),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> SmenConfig:
        """The configuration a manifest holds."""
        scales = tuple(Scale(**s) for s in raw["scales"])
        return cls(**{**raw, "scales": scales, "bag": BagConfig(**raw["bag"])})

    def to_json(self) -> dict[str, Any]:
        """JSON values for a manifest."""
        return asdict(self)
