"""SMEN, the Self-supervised Multi-anchor Encoder Network: bags of interests -> one dense vector per user.

    P_hm   = softmax_m(<W_h, A_m> / tau_a)            an interest's mass is split over anchors, none is dropped
    v_m(t) = sum_h B_h(t) P_hm W_h                    one vector per anchor and window, O(nnz·M·D)
    u_m^s  = attention over the windows t of scale s  time aggregation
    u_m    = gated sum over scales s                  multi-scale aggregation
    e      = unit([u_1 … u_M] - mean)                 the served vector

Paper: LURM, SMEN. Our reading where its text is not available to us: the attention's queries and positions are
learned constants per anchor; gates are learned constants per anchor and scale. Departure: no projection head. The
contrastive loss sits on the served vector itself, and W starts from the singular vectors of the users' bags, for
a head, or a random start, throws information away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from lurm.artifacts import Artifact, open_artifact
from lurm.boi import BagConfig, BagOfInterests
from lurm.bounds import POSITIVE, check
from lurm.errors import ArtifactCorrupt, ArtifactError, UsageError
from lurm.history import HistoryBatch
from lurm.interests import InterestVocabulary, VocabularyConfig, cluster
from lurm.sequences import Scale, trailing
from lurm.spectrum import truncated_svd

KIND = "encoder"
WEIGHTS = "smen.safetensors"
SHAPE = "smen.json"
# Raised when the same weights and history would give another vector. It is part of an encoder's content, so a release
# of another revision is refused instead of being served beside vectors it does not agree with.
REVISION = 1
_USERS_AT_ONCE = 512
_NO_LENGTH = 1e-4  # below it a vector's direction is rounding noise

DEFAULT_SCALES = (Scale("life"), Scale("quarter", 90.0, 4), Scale("month", 28.0, 6))


@dataclass(frozen=True, slots=True)
class SmenConfig:
    """The shape of a SMEN.

    Attributes:
        dim: E, width of the served vector; a multiple of ``n_anchors``.
        n_anchors: M.
        scales: windows to look at; the first one is favoured at the start.
        anchor_temperature: tau_a; small sends an interest to one anchor, large to all of them.
        bag: how counts become weights.
    """

    dim: int = 256
    n_anchors: int = 4
    scales: tuple[Scale, ...] = DEFAULT_SCALES
    anchor_temperature: float = 0.2
    bag: BagConfig = field(default_factory=BagConfig)

    def __post_init__(self) -> None:
        if self.n_anchors < 1 or self.dim < 1 or self.dim % self.n_anchors:
            raise UsageError(f"dim is {self.dim} and n_anchors {self.n_anchors}; dim must be a multiple of n_anchors")
        if not self.scales:
            raise UsageError("scales is empty, expected at least one scale; leave it out to have the default ones")
        check(self, anchor_temperature=POSITIVE)

    @property
    def width(self) -> int:
        """D, the width of one anchor's vector."""
        return self.dim // self.n_anchors

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> SmenConfig:
        """The configuration a manifest holds."""
        scales = tuple(Scale(**s) for s in raw["scales"])
        return cls(**{**raw, "scales": scales, "bag": BagConfig(**raw["bag"])})

    def to_json(self) -> dict[str, Any]:
        """JSON values for a manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bags:
    """Weighed bags of B users × W windows as tensors.

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
            torch.from_numpy(bags.data),
            torch.from_numpy(bags.indptr.astype(np.int64)),
        )


class Smen(nn.Module):
    """The network.

    Args:
        config: its shape.
        n_interests: K.
    """

    def __init__(self, config: SmenConfig, n_interests: int) -> None:
        super().__init__()
        self.config = config
        m, d, n_scales = config.n_anchors, config.width, len(config.scales)
        n_windows = sum(s.n_windows for s in config.scales)
        self.interests_kd = nn.Embedding(n_interests, d, sparse=True)
        self.anchors_md = nn.Parameter(torch.zeros(m, d))
        self.query_smd = nn.Parameter(torch.zeros(n_scales, m, d))
        self.position_wm = nn.Parameter(torch.zeros(n_windows, m))
        self.gate_sm = nn.Parameter(torch.zeros(n_scales, m))
        self.mean_e = nn.Parameter(torch.zeros(config.dim))

    def start_from(self, bags_uk: sp.csr_matrix, seed: int) -> None:
        """Initialise from users' weighed life bags: W from their singular vectors, anchors from clusters of W.

        Args:
            bags_uk: (U, K) CSR; a sample of users is enough.
            seed: of the decomposition and the clusters.
        """
        _, _, v_kd = truncated_svd(bags_uk, self.config.width, seed)
        rng = np.random.default_rng(seed)
        w = np.zeros(self.interests_kd.weight.shape, np.float32)
        w[:, : v_kd.shape[1]] = v_kd
        w *= np.sqrt(len(w) / max(float((w**2).sum()), 1e-12))  # unit rows on average
        unit = w + rng.standard_normal(w.shape).astype(np.float32) * 1e-6
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        m = self.config.n_anchors
        anchors = cluster(unit, min(m, len(unit)), VocabularyConfig(seed=seed)).centroids_kd
        spare = rng.standard_normal((m - len(anchors), self.config.width)).astype(np.float32)
        with torch.no_grad():
            self.interests_kd.weight.copy_(torch.from_numpy(w))
            self.anchors_md.copy_(torch.from_numpy(np.concatenate([anchors, spare])))
            self.gate_sm.zero_()
            self.gate_sm[0] = 2.0

    def routing(self, w_kd: Tensor) -> Tensor:
        """(K', M) P_hm: how each interest's mass is split over the anchors; rows sum to 1."""
        cosine = F.normalize(w_kd, dim=-1, eps=1e-6) @ F.normalize(self.anchors_md, dim=-1, eps=1e-6).T
        return torch.softmax(cosine / self.config.anchor_temperature, dim=-1)

    def anchored(self, w_kd: Tensor) -> Tensor:
        """(K', M·D) P_hm W_h for all anchors side by side."""
        return (self.routing(w_kd)[:, :, None] * w_kd[:, None, :]).flatten(1)

    def imbalance(self, interests: Tensor) -> Tensor:
        """How far from equally some interests use the anchors: KL of their mean routing from uniform, in nats.

        The gradient goes to the anchors alone.

        Args:
            interests: (K',) int64 rows.
        """
        usage = self.routing(self.interests_kd.weight.detach()[interests]).mean(0)
        return (usage * (usage * len(usage)).clamp_min(1e-12).log()).sum()

    def forward(self, bags: Bags) -> Tensor:
        """(B, E) served vectors, unit rows. For training: only the interests in the batch are touched."""
        used, place = torch.unique(bags.interests, return_inverse=True)
        return self.aggregate(self.anchored(self.interests_kd(used)), place, bags)

    def aggregate(self, table_ke: Tensor, place: Tensor, bags: Bags) -> Tensor:
        """(B, E) served vectors from the anchored table's rows at ``place``.

        Every sum runs over one user's own values in a fixed order, so a row depends neither on the other rows nor
        on how many there are.
        """
        config = self.config
        v_be = F.embedding_bag(
            place, table_ke, bags.starts, mode="sum", per_sample_weights=bags.weights, include_last_offset=True
        )
        n_windows = len(self.position_wm)
        v_bwmd = v_be.view(-1, n_windows, config.n_anchors, config.width)
        empty_bw = (bags.starts[1:] == bags.starts[:-1]).view(-1, n_windows)
        total = torch.zeros_like(v_bwmd[:, 0])
        gates_sm = torch.softmax(self.gate_sm, dim=0)
        first = 0
        for s, scale in enumerate(config.scales):
            window = slice(first, first + scale.n_windows)
            first += scale.n_windows
            u_bmd = self._over_time(v_bwmd[:, window], empty_bw[:, window], s, window)
            norm_b = u_bmd.flatten(1).square().sum(1).add(1e-12).sqrt()
            total = total + gates_sm[s][None, :, None] * u_bmd / norm_b[:, None, None]
        total_be = total.flatten(1)
        return F.normalize(self._pointing(total_be - self.mean_e, total_be), dim=-1, eps=1e-6)

    def _pointing(self, centred_be: Tensor, total_be: Tensor) -> Tensor:
        """(B, E) rows that have a direction: centred, or as they were where all users are alike, or any one."""
        rows = centred_be
        for instead in (total_be, torch.ones_like(total_be)):
            rows = torch.where((rows.square().sum(1) < _NO_LENGTH**2)[:, None], instead, rows)
        return rows

    def _over_time(self, v_bwmd: Tensor, empty_bw: Tensor, s: int, window: slice) -> Tensor:
        """(B, M, D) attention over the windows of one scale; empty windows weigh nothing."""
        if v_bwmd.shape[1] == 1:
            return v_bwmd[:, 0]
        scale_bwm = v_bwmd.square().sum(-1).add(1e-12).rsqrt()
        score_bwm = (v_bwmd * self.query_smd[s]).sum(-1) * scale_bwm + self.position_wm[window]
        score_bwm = score_bwm.masked_fill(empty_bw[:, :, None], -1e9)
        return (torch.softmax(score_bwm, dim=1)[..., None] * v_bwmd).sum(1)


class SmenEncoder:
    """A trained SMEN behind the ``UserEncoder`` protocol.

    Attributes:
        dim: E.
    """

    kind = "smen"

    def __init__(self, network: Smen, boi: BagOfInterests) -> None:
        self.network = network.eval()
        self.dim = network.config.dim
        self._boi = boi
        with torch.inference_mode():
            self._table_ke = network.anchored(network.interests_kd.weight)

    @classmethod
    def open(cls, folder: Path, vocabulary: InterestVocabulary, *, verify: bool = True) -> SmenEncoder:
        """Load a published encoder.

        Raises:
            ArtifactError: the folder is not an intact encoder, was trained with another vocabulary, or by a lurm whose
                arithmetic was another.
        """
        artifact = open_artifact(folder, KIND, verify=verify)
        return cls.of(artifact, vocabulary)

    @classmethod
    def of(cls, artifact: Artifact, vocabulary: InterestVocabulary) -> SmenEncoder:
        """The encoder of an opened artifact."""
        if artifact.manifest.parents.get("interests") != vocabulary.artifact.manifest.fingerprint:
            raise ArtifactCorrupt(f"{artifact.path} was trained with another interest vocabulary; rebuild it")
        try:
            shape = orjson.loads((artifact.path / SHAPE).read_bytes())
            revision = shape["revision"]
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactCorrupt(f"{artifact.path / SHAPE} does not say what encoder this is: {error!r}") from error
        if revision != REVISION:
            raise ArtifactError(
                f"{artifact.path} was trained for revision {revision} of the encoder, this lurm computes revision "
                f"{REVISION}; build the release anew, or serve it with the lurm that made it"
            )
        config = SmenConfig.from_json(shape["network"])
        network = Smen(config, len(vocabulary))
        try:
            network.load_state_dict(load_file(artifact.path / WEIGHTS))
        except Exception as error:
            raise ArtifactCorrupt(f"{artifact.path / WEIGHTS} does not fit its manifest: {error}") from error
        return cls(network, BagOfInterests(vocabulary, config.bag, tuple(shape["behaviors"])))

    def embed(self, batch: HistoryBatch) -> NDArray[np.float32]:
        """(B, E) float32 unit rows; see ``UserEncoder.embed``."""
        bags = self._boi.encode(batch, trailing(batch, self.network.config.scales))
        n_windows = len(self.network.position_wm)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(batch), _USERS_AT_ONCE):
                stop = min(start + _USERS_AT_ONCE, len(batch))
                some = Bags.of(bags[start * n_windows : stop * n_windows])
                rows.append(self.network.aggregate(self._table_ke, some.interests, some).numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)

    def anchor_usage(self) -> list[float]:
        """M shares of the interests' mass; even shares mean that every anchor earns its place."""
        with torch.inference_mode():
            return [float(x) for x in self.network.routing(self.network.interests_kd.weight).mean(0)]


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
