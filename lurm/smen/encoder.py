"""A published SMEN: histories -> vectors. Whoever only asks it never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import safe_open

from lurm.activity import MOST_SPREADS, activity_features
from lurm.arrays import map_array
from lurm.artifacts import Artifact, open_artifact
from lurm.boi import BagOfInterests
from lurm.errors import ArtifactCorrupt, ArtifactError
from lurm.history import HistoryBatch
from lurm.inference import InferenceWeights, Table, served
from lurm.interests import InterestVocabulary
from lurm.sequences import trailing
from lurm.smen.config import ARTIFACT, KIND, REVISION, SHAPE, STEPS, TABLE, WEIGHTS, WIDE, SmenConfig

_USERS_AT_ONCE = 512


class SmenEncoder:
    """A trained SMEN behind the ``UserEncoder`` protocol.

    Attributes:
        dim: E.
        config: its shape.
        known_until: the end of the log it was trained on, epoch ms.
    """

    kind = KIND

    def __init__(
        self,
        config: SmenConfig,
        boi: BagOfInterests,
        n_behaviors: int,
        weights: InferenceWeights,
        known_until: int,
        routing: Callable[[], NDArray[np.float32]],
    ) -> None:
        """Of what ``Smen.encoder`` and ``of`` know; ``routing`` gives (H, M) and is asked when anchors are."""
        self.config, self.dim, self.known_until = config, config.dim, known_until
        self._boi, self._n_behaviors, self._weights, self._routing = boi, n_behaviors, weights, routing

    @classmethod
    def open(
        cls, folder: Path, vocabulary: InterestVocabulary, *, kind: str = ARTIFACT, verify: bool = True
    ) -> SmenEncoder:
        """Map a published encoder.

        Args:
            folder: of the artifact.
            vocabulary: that it was trained with.
            kind: of the artifact.
            verify: compare the files with the manifest.

        Raises:
            ArtifactError: the folder is not an intact encoder, was trained with another vocabulary, or by a lurm whose
                arithmetic was another.
        """
        return cls.of(open_artifact(folder, kind, verify=verify), vocabulary)

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
        boi = BagOfInterests(vocabulary, config.bag, tuple(shape["behaviors"]))
        n_behaviors = len(shape["behaviors"])
        learned = _learned(artifact.path / WEIGHTS, config.arrays(boi.width, n_behaviors))
        steps_hp = map_array(artifact.path / TABLE, np.dtype("<i2"), 2)
        step_h = map_array(artifact.path / STEPS, np.dtype("<f4"))
        if steps_hp.shape != (boi.width, config.layout.n_places) or step_h.shape != (boi.width,):
            raise ArtifactCorrupt(f"{artifact.path / TABLE} does not fit {WEIGHTS}; rebuild it")
        weights = weights_of(config, learned, Table(steps_hp, step_h))
        routing = partial(_routing, artifact.path / WEIGHTS, config.anchor_temperature)
        return cls(config, boi, n_behaviors, weights, int(learned["known_until"]), routing)

    def embed(self, batch: HistoryBatch, as_of: int | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(B, E) float32 unit rows; see ``UserEncoder.embed``."""
        moment = self.known_until if as_of is None else as_of
        features_ba = activity_features(batch, moment, self._n_behaviors)
        rows = []
        for start in range(0, len(batch), _USERS_AT_ONCE):
            some = batch.part(start, start + _USERS_AT_ONCE) if len(batch) > _USERS_AT_ONCE else batch
            bags = self._boi.encode_unit(some, trailing(some, self.config.scales))
            rows.append(served(self._weights, *bags, features_ba[start : start + _USERS_AT_ONCE]))
        if len(rows) == 1:
            return rows[0]
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)

    def anchor_shares(self) -> NDArray[np.float32]:
        """(K, M) how each interest's mass is split over the anchors: the mean over its grains; rows sum to 1."""
        shares = self._routing()
        if not self.config.bag.grains:
            return shares
        vocabulary = self._boi.vocabulary
        interest = vocabulary.interest_of_grain()
        total_km = np.zeros((len(vocabulary), shares.shape[1]))
        np.add.at(total_km, interest, shares)
        return (total_km / np.bincount(interest, minlength=len(vocabulary))[:, None]).astype(np.float32)


def weights_of(config: SmenConfig, learned: Mapping[str, NDArray[Any]], table: Table) -> InferenceWeights:
    """What ``inference`` needs to say what the network says.

    Args:
        config: of the network, scales settled.
        learned: arrays by the names of ``SmenConfig.arrays``, without those that are ``WIDE``.
        table: of the anchored interests.
    """
    layout = config.layout
    return InferenceWeights(
        layout=layout,
        places_e=layout.places(),
        table=table,
        n_windows_s=np.array([scale.n_windows for scale in config.scales]),
        query_sp=layout.spread(learned["query_smd"].reshape(len(config.scales), -1)),
        position_wl=layout.repeated(learned["position_wm"]),
        gate_sl=layout.repeated(learned["gate_sm"]),
        mean_e=learned["mean_e"],
        activity_mean_a=learned["activity_mean_a"],
        activity_scale_a=learned["activity_scale_a"],
        activity_ax=learned["activity_ax"],
        scale_e=learned["scale_e"] * np.float32((1 - config.activity_share) ** 0.5),
        activity_share=config.activity_share**0.5,
        most_spreads=MOST_SPREADS,
    )


def _learned(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """What a file of weights holds beside the wide arrays, which are looked at only.

    Raises:
        ArtifactCorrupt: it holds other arrays than these.
    """
    try:
        with safe_open(file, framework="numpy") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            if found != shapes:
                wrong = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
                raise ValueError(", ".join(f"{n} is {found.get(n)}, expected {shapes.get(n)}" for n in wrong))
            return {name: weights.get_tensor(name) for name in shapes if name not in WIDE}
    except Exception as error:  # of a file that is none, safetensors raises what it likes
        raise ArtifactCorrupt(f"{file} does not fit its manifest: {error}") from error


def _routing(file: Path, temperature: float) -> NDArray[np.float32]:
    """(H, M) P_hm; see ``Smen.routing``."""
    with safe_open(file, framework="numpy") as weights:
        w_he, anchors_me = (weights.get_tensor(name) for name in WIDE)
    w_he /= np.maximum(np.linalg.norm(w_he, axis=1, keepdims=True), 1e-6)
    anchors_me /= np.maximum(np.linalg.norm(anchors_me, axis=1, keepdims=True), 1e-6)
    odds_hm = np.exp(w_he @ anchors_me.T / np.float32(temperature))
    shares_hm: NDArray[np.float32] = odds_hm / odds_hm.sum(1, keepdims=True)
    return shares_hm
