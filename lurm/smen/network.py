"""The network of SMEN, as it starts and learns; see the package for its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.activity import MOST_SPREADS, spread_of
from lurm.arrays import write_array
from lurm.boi import BagOfInterests, unit_rows
from lurm.inference import NO_LENGTH, InferenceWeights, Table
from lurm.interests import VocabularyConfig, cluster
from lurm.smen.config import REVISION, SHAPE, STEPS, TABLE, WEIGHTS, WIDE, SmenConfig
from lurm.smen.encoder import SmenEncoder, weights_of
from lurm.spectrum import directions, evening, places, principal

_RECENT_SHARE = 0.2  # of the squared length of the others' part, for anchors that start from the recent scales
_ROUTING_ROUNDS = 20
_LEAST_IN_USE, _MOST_IN_USE = 1 / 8, 1 / 4  # of the directions, that users differ along


@dataclass(frozen=True, slots=True)
class Bags:
    """Weighed bags of B users × W windows as tensors, each bag of unit length.

    Attributes:
        interests: (nnz,) int64.
        weights: (nnz,) float32.
        starts: (B·W + 1,) int64, where each bag begins in the two above.
    """

    interests: Tensor
    weights: Tensor
    starts: Tensor

    @classmethod
    def of(cls, bags: sp.csr_matrix) -> Bags:
        """The rows of a CSR matrix."""
        return cls(
            torch.from_numpy(bags.indices.astype(np.int64)),
            torch.from_numpy(unit_rows(bags).data),
            torch.from_numpy(bags.indptr.astype(np.int64)),
        )


class Smen(nn.Module):
    """The network.

    Args:
        config: its shape, scales settled.
        n_columns: of the bags, H: interests or grains.
        n_behaviors: of the log.
        w_he: (H, M·D) to begin with; None: at random.
    """

    known_until: Tensor
    scale_e: Tensor
    activity_mean_a: Tensor
    activity_scale_a: Tensor
    activity_ax: Tensor

    def __init__(self, config: SmenConfig, n_columns: int, n_behaviors: int, w_he: Tensor | None = None) -> None:
        if not config.scales:
            raise ValueError("the scales are not settled; give some, or ask for_log")
        super().__init__()
        self.config, self.n_behaviors = config, n_behaviors
        shapes = config.arrays(n_columns, n_behaviors)
        self.interests_he = nn.Embedding(n_columns, config.n_anchors * config.width, sparse=True, _weight=w_he)
        self.anchors_me, self.query_smd, self.position_wm, self.gate_sm, self.mean_e = (
            nn.Parameter(torch.zeros(shapes[name]))
            for name in ("anchors_me", "query_smd", "position_wm", "gate_sm", "mean_e")
        )
        self.register_buffer("known_until", torch.zeros((), dtype=torch.int64))
        for name in ("activity_mean_a", "activity_ax"):
            self.register_buffer(name, torch.zeros(shapes[name]))
        for name in ("scale_e", "activity_scale_a"):
            self.register_buffer(name, torch.ones(shapes[name]))

    def start_from(
        self,
        bags_uh: sp.csr_matrix,
        stretches_sh: sp.csr_matrix,
        halves: tuple[sp.csr_matrix, sp.csr_matrix],
        seed: int,
    ) -> None:
        """Initialise from users' weighed bags: W from the directions in which users differ, anchors from clusters of W.

        Directions are flattened where a few of them would dominate. Anchors that start from the recent scales take the
        first ones, the others share all. What the anchors see, ``anchored``, and not W itself, is what was found.

        Args:
            bags_uh: (U, H) CSR of whole lives; a sample of users is enough.
            stretches_sh: (S, H) CSR, the same lives in stretches.
            halves: (U, H) CSR of two halves of each user's events.
            seed: of the decompositions and the clusters.
        """
        config = self.config
        m, d = config.n_anchors, config.width
        recent = self._recent_anchors()
        bags_uh, stretches_sh = unit_rows(bags_uh), unit_rows(stretches_sh)
        halves = (unit_rows(halves[0]), unit_rows(halves[1]))
        w_he = directions(bags_uh, stretches_sh, halves, m * d, seed)[:, : (m - recent) * d]
        w_he *= evening(places(bags_uh, w_he).var(0), least=w_he.shape[1] * _LEAST_IN_USE)
        w_hmd = np.zeros((len(w_he), m, d), np.float32)
        for at in range(w_he.shape[1]):
            w_hmd[:, at % (m - recent), at // (m - recent)] = w_he[:, at]
        if recent:
            spread_e = places(bags_uh, w_he).var(0)
            share = _RECENT_SHARE * spread_e.sum() / max(float(spread_e[:d].sum()) * recent, 1e-12)
            w_hmd[:, m - recent :, : min(d, w_he.shape[1])] = w_he[:, None, :d] * np.sqrt(share)
        w = w_hmd.reshape(len(w_he), m * d)
        w *= np.sqrt(len(w) / max(float((w**2).sum()), 1e-12))  # unit rows on average
        rng = np.random.default_rng(seed)
        unit = w + rng.standard_normal(w.shape).astype(np.float32) * 1e-6
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        anchors = cluster(unit, min(m, len(unit)), VocabularyConfig(seed=seed)).centroids_kd
        spare = rng.standard_normal((m - len(anchors), m * d)).astype(np.float32)
        with torch.no_grad():
            self.anchors_me.copy_(torch.from_numpy(np.concatenate([anchors, spare])))
            wanted_hmd = torch.from_numpy(w).view(-1, m, d)
            self.interests_he.weight.copy_(wanted_hmd.flatten(1))
            for _ in range(_ROUTING_ROUNDS):
                routing_hm = self.routing(self.interests_he.weight)
                self.interests_he.weight.copy_((wanted_hmd / (m * routing_hm[:, :, None])).flatten(1))
        self._start_gates()

    def start_anywhere(self, seed: int) -> None:
        """Initialise at random, for comparison: what training has to make up for without ``start_from``."""
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (self.interests_he.weight, self.anchors_me):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter.shape[1] ** 0.5)
        self._start_gates()

    def _recent_anchors(self) -> int:
        """How many anchors start from all scales but the first; they are the last ones."""
        return max(self.config.n_anchors // 8, int(self.config.n_anchors >= 4)) if len(self.config.scales) > 1 else 0

    def _start_gates(self) -> None:
        n_scales, old = len(self.config.scales), self.config.n_anchors - self._recent_anchors()
        with torch.no_grad():
            self.gate_sm[0, :old] = 1.0
            self.gate_sm[1:, old:] = 1 / max(n_scales - 1, 1)
            age_w = torch.cat([torch.arange(scale.n_windows) for scale in self.config.scales])
            self.position_wm.copy_(-age_w[:, None].expand_as(self.position_wm))

    def know_activity(
        self, features_ba: NDArray[np.float32], known_until: int, ahead_ay: NDArray[np.float64] | None = None
    ) -> None:
        """Take the mean, the spread and the principal directions of users' activity from a sample.

        Args:
            features_ba: (B, A) as ``activity_features`` gives them.
            known_until: epoch ms, the end of the log: recency is measured from here unless told otherwise.
            ahead_ay: (A, Y) weights of standardised features that foretell Y facts; a quarter of the dimensions then
                tells these, and they weigh as much as the other three.
        """
        mean_a, scale_a = spread_of(features_ba)
        with torch.no_grad():
            self.known_until.fill_(known_until)
            self.activity_mean_a.copy_(torch.from_numpy(mean_a))
            self.activity_scale_a.copy_(torch.from_numpy(scale_a))
        standard = self._standard(torch.from_numpy(features_ba)).numpy().astype(np.float64)
        n_ahead = 0 if ahead_ay is None else self.config.activity_dim // 4
        parts = [principal(standard, np.eye(standard.shape[1]), self.config.activity_dim - n_ahead)]
        if ahead_ay is not None and n_ahead:
            told = np.maximum((standard @ ahead_ay).std(0), 1e-6)
            parts.append(principal(standard, ahead_ay / told, n_ahead))
        with torch.no_grad():
            self.activity_ax.copy_(torch.from_numpy(np.concatenate(parts, axis=1) / np.sqrt(len(parts))))

    def know_interests(self, interests_be: Tensor) -> None:
        """Centre (B, M·D) interests; scale them until an eighth to a quarter are in use, to a usual length of 1."""
        variance_e, mean_e = torch.var_mean(interests_be, dim=0, correction=0)
        variances = variance_e.double().numpy()
        least, most = (max(share * len(variances), 1.0) for share in (_LEAST_IN_USE, _MOST_IN_USE))
        scale_e = evening(variances, least=least, most=most)
        scale_e /= np.sqrt(max(float((variances * scale_e**2).sum()), 1e-8))
        with torch.no_grad():
            self.mean_e.add_(mean_e)
            self.scale_e.copy_(torch.from_numpy(scale_e))

    def routing(self, w_he: Tensor) -> Tensor:
        """(H', M) P_hm: how each interest's mass is split over the anchors; rows sum to 1."""
        cosine = F.normalize(w_he, dim=-1, eps=1e-6) @ F.normalize(self.anchors_me, dim=-1, eps=1e-6).T
        return torch.softmax(cosine / self.config.anchor_temperature, dim=-1)

    def anchored(self, w_he: Tensor) -> Tensor:
        """(H', M·D) M P_hm W_h^m for all anchors side by side."""
        m = self.config.n_anchors
        return (m * self.routing(w_he)[:, :, None] * w_he.view(-1, m, self.config.width)).flatten(1)

    def imbalance(self, interests: Tensor) -> Tensor:
        """How far from equally some interests use the anchors: KL of their mean routing from uniform, in nats.

        The gradient goes to the anchors alone.

        Args:
            interests: (K',) int64 rows.
        """
        usage = self.routing(self.interests_he.weight.detach()[interests]).mean(0)
        return (usage * (usage * len(usage)).clamp_min(1e-12).log()).sum()

    def forward(self, bags: Bags) -> Tensor:
        """(B, M·D) interests of the users, centred. For training: only the columns in the batch are touched."""
        is_used = torch.zeros(len(self.interests_he.weight), dtype=torch.bool)
        is_used[bags.interests] = True
        place = is_used.cumsum(0)[bags.interests] - 1  # of each column among those used; no sort, as unique would
        return self.aggregate(self.anchored(self.interests_he(is_used.nonzero()[:, 0])), place, bags)

    def aggregate(self, table_he: Tensor, place: Tensor, bags: Bags) -> Tensor:
        """(B, M·D) interests of the users, centred, from the anchored table's rows at ``place``.

        Every sum runs over one user's own values in a fixed order, so a row depends neither on the other rows nor
        on how many there are.
        """
        config = self.config
        v_be = F.embedding_bag(
            place, table_he, bags.starts, mode="sum", per_sample_weights=bags.weights, include_last_offset=True
        )
        n_windows = len(self.position_wm)
        v_bwmd = v_be.view(-1, n_windows, config.n_anchors, config.width)
        empty_bw = (bags.starts[1:] == bags.starts[:-1]).view(-1, n_windows)
        total = torch.zeros_like(v_bwmd[:, 0])
        first = 0
        for s, scale in enumerate(config.scales):
            window = slice(first, first + scale.n_windows)
            first += scale.n_windows
            u_bmd = self._over_time(v_bwmd[:, window], empty_bw[:, window], s, window)
            total = total + self.gate_sm[s][None, :, None] * u_bmd
        return total.flatten(1) - self.mean_e

    def served(self, interests_be: Tensor, features_ba: NDArray[np.float32]) -> Tensor:
        """(B, E) served vectors, unit rows: what users are interested in, and how they act.

        Args:
            interests_be: (B, M·D), of ``aggregate``.
            features_ba: (B, A), of ``activity_features``.
        """
        standard_ba = self._standard(torch.from_numpy(features_ba))
        activity_bx = torch.zeros(len(standard_ba), self.config.activity_dim)
        for feature_b, direction_x in zip(standard_ba.T, self.activity_ax, strict=True):
            activity_bx += feature_b[:, None] * direction_x  # in this order for every user: no matrix product
        share = self.config.activity_share
        both = torch.cat([interests_be * self.scale_e * (1 - share) ** 0.5, activity_bx * share**0.5], dim=1)
        aimless = both.square().sum(1) < NO_LENGTH**2
        return F.normalize(torch.where(aimless[:, None], torch.ones_like(both), both), dim=-1, eps=1e-6)

    def table(self) -> Table:
        """The anchored table of all columns; later training does not change it."""
        with torch.no_grad():
            return Table.of(self.anchored(self.interests_he.weight).numpy(), self.config.layout)

    def inference_weights(self, table: Table | None = None) -> InferenceWeights:
        """What ``inference`` needs to say what this network says; later training does not change it.

        Args:
            table: of ``table``, where it is at hand.
        """
        learned = {name: tensor.numpy().copy() for name, tensor in self.state_dict().items() if name not in WIDE}
        return weights_of(self.config, learned, table or self.table())

    def encoder(self, boi: BagOfInterests) -> SmenEncoder:
        """What serves this network's vectors, of the bags it was trained on; later training does not change them."""
        routing = self.usage().numpy()
        return SmenEncoder(
            self.config, boi, self.n_behaviors, self.inference_weights(), int(self.known_until), lambda: routing
        )

    def usage(self) -> Tensor:
        """(H, M) ``routing`` of all columns, without a gradient."""
        with torch.inference_mode():
            return self.routing(self.interests_he.weight)

    def _standard(self, features_ba: Tensor) -> Tensor:
        standard: Tensor = (features_ba - self.activity_mean_a) * self.activity_scale_a
        return standard.clamp(-MOST_SPREADS, MOST_SPREADS)

    def _over_time(self, v_bwmd: Tensor, empty_bw: Tensor, s: int, window: slice) -> Tensor:
        """(B, M, D) attention over the windows of one scale; empty windows weigh nothing."""
        if v_bwmd.shape[1] == 1:
            return v_bwmd[:, 0]
        scale_bwm = v_bwmd.square().sum(-1).add(1e-12).rsqrt()
        score_bwm = (v_bwmd * self.query_smd[s]).sum(-1) * scale_bwm + self.position_wm[window]
        score_bwm = score_bwm.masked_fill(empty_bw[:, :, None], -1e9)
        return (torch.softmax(score_bwm, dim=1)[..., None] * v_bwmd).sum(1)


def write_encoder(folder: Path, network: Smen, behaviors: Sequence[str]) -> None:
    """Write the files of an ``encoder`` artifact into a draft: everything that determines its vectors.

    Args:
        folder: the draft.
        network: trained.
        behaviors: names by row, for the weights of behaviors.
    """
    shape = {"revision": REVISION, "network": network.config.to_json(), "behaviors": list(behaviors)}
    (folder / SHAPE).write_bytes(orjson.dumps(shape, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)
    table = network.table()
    for name, array in ((TABLE, table.steps_hp), (STEPS, table.step_h)):
        write_array(folder / name, array)
