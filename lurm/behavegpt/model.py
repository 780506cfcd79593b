"""A published BehaveGPT: what comes next, futures, and states of users."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from lurm.artifacts import Artifact, open_artifact
from lurm.behavegpt import KIND
from lurm.behavegpt.haunts import Haunts
from lurm.behavegpt.network import BehaveGpt, BehaveGptConfig
from lurm.behavegpt.pace import Pace
from lurm.behavegpt.rollout import gaps_after, rollout
from lurm.behavegpt.steps import EVENT, FIRST, GAP, PLACE, Codebook
from lurm.behavegpt.successors import Successors
from lurm.errors import ArtifactCorrupt, ArtifactError
from lurm.history import HistoryBatch
from lurm.interests import InterestVocabulary
from lurm.prospect import Imagined, Occasion, Plan, Prospect
from lurm.transformer import UNDIVIDED

WEIGHTS, CODES, COUNTS = "behavegpt.safetensors", "codebook.safetensors", "successors.safetensors"
PACES, HAUNTS = "pace.safetensors", "haunts.safetensors"
SHAPE = "behavegpt.json"
# Raised when the same weights, history and question would give another answer, or weights have other shapes.
REVISION = 10
# A batch of so many steps, a row of a multiple of so many: then products have shapes in which each row is computed the
# same whatever stands beside it.
_ROWS_AT_ONCE, _STRIDE = 16, 64


class BehaveGptModel:
    """A trained BehaveGPT: a ``NextModel``, and a ``UserEncoder`` whose vectors are states.

    A state is what the model knows after a user's last event, less the mean of users, of unit length. It holds weekday
    and hour of events, so ``as_of`` changes nothing: it is a function of the history alone.

    Attributes:
        dim: E, the width of states.
        revision: of its arithmetic; no other is read.
    """

    kind, revision = KIND, REVISION

    def __init__(
        self,
        network: BehaveGpt,
        codebook: Codebook,
        vocabulary: InterestVocabulary,
        successors: Successors | None = None,
        pace: Pace | None = None,
        haunts: Haunts | None = None,
    ) -> None:
        """Of a trained network; ``successors`` None: its chances are its own alone; likewise of gaps and places."""
        self.network, self.codebook = network.eval(), codebook
        self.successors = successors or Successors.of([], network.n_behaviors)
        self.pace = pace or Pace.of([], network.n_codes[GAP] - FIRST)
        self.haunts = haunts or Haunts.unknown(network.n_codes[GAP] - FIRST)
        self.dim, self.n_behaviors = network.config.shape.width, network.n_behaviors
        self._vocabulary = vocabulary

    @classmethod
    def open(
        cls, folder: Path, vocabulary: InterestVocabulary, *, kind: str = KIND, verify: bool = True
    ) -> BehaveGptModel:
        """Read a published model, in an artifact of its own kind or of another.

        Raises:
            ArtifactError: the folder is not an intact one, was trained with another vocabulary, or by a lurm whose
                arithmetic was another.
        """
        return cls.of(open_artifact(folder, kind, verify=verify), vocabulary)

    @classmethod
    def of(cls, artifact: Artifact, vocabulary: InterestVocabulary) -> BehaveGptModel:
        """The model of an opened artifact."""
        folder = artifact.path
        if artifact.manifest.parents.get("interests") != vocabulary.artifact.manifest.fingerprint:
            raise ArtifactCorrupt(f"{folder} was trained with another interest vocabulary; rebuild it")
        try:
            shape = orjson.loads((folder / SHAPE).read_bytes())
            if (revision := shape["revision"]) != cls.revision:
                raise ArtifactError(
                    f"{folder} was trained for revision {revision} of BehaveGPT, this lurm computes revision "
                    f"{cls.revision}; build the release anew, or serve it with the lurm that made it"
                )
            config = BehaveGptConfig.from_json(shape["network"])
            codebook = Codebook(config.steps, shape["types"], **load_arrays(folder / CODES))
            network = BehaveGpt(config, codebook.n_codes)
            network.load_state_dict(load_file(folder / WEIGHTS))
            successors = Successors.from_arrays(load_arrays(folder / COUNTS))
            if len(successors.chance_c) != network.n_behaviors:
                raise ValueError(f"{COUNTS} is of {len(successors.chance_c)} behaviours, not {network.n_behaviors}")
            pace, n_gaps = Pace.from_arrays(load_arrays(folder / PACES)), network.n_codes[GAP] - FIRST
            if pace.chances_pg.shape[1] != n_gaps:
                raise ValueError(f"{PACES} is of {pace.chances_pg.shape[1]} gaps, not {n_gaps}")
            haunts = Haunts.from_arrays(load_arrays(folder / HAUNTS))
            if len(haunts.shares_gk) != n_gaps:
                raise ValueError(f"{HAUNTS} is of {len(haunts.shares_gk)} gaps, not {n_gaps}")
            if len(haunts.near_ll) not in (0, n_places := network.n_codes[PLACE] - 1):
                raise ValueError(f"{HAUNTS} is of {len(haunts.near_ll)} places, not {n_places}")
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactCorrupt(f"{folder} does not hold the model its manifest promises: {error}") from error
        return cls(network, codebook, vocabulary, successors, pace, haunts)

    @property
    def known_until(self) -> int:
        """The end of the log it was trained on, epoch ms, stragglers left out."""
        return int(self.network.known_until)

    def embed(self, batch: HistoryBatch, as_of: int | NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(B, E) float32 unit rows; see ``UserEncoder.embed``."""
        vectors_be = np.empty((len(batch), self.dim), np.float32)
        for users, hidden_bd, _ in self._states(batch):
            state_bd = hidden_bd - self.network.mean_d
            length_b1 = state_bd.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
            vectors_be[users] = (state_bd / length_b1).numpy()
        return vectors_be

    def next(self, batch: HistoryBatch, occasions: Sequence[Occasion], most: int) -> list[list[Prospect]]:
        """The likeliest behaviours of B users; see ``NextModel.next``."""
        chances_bc = self.chances(batch, occasions)
        most = min(most, self.n_behaviors)
        found = []
        for chance_c, ranked_c in zip(chances_bc, self.successors.ranked(chances_bc), strict=True):
            rows = np.argpartition(-ranked_c, most - 1)[:most]
            rows = rows[np.lexsort((rows, -ranked_c[rows]))]
            found.append([self._prospect(row, float(chance_c[row])) for row in rows.tolist()])
        return found

    def chances(self, batch: HistoryBatch, occasions: Sequence[Occasion]) -> NDArray[np.float32]:
        """(B, C) probabilities of behaviours."""
        context_b = self._contexts(batch, occasions)
        chances_bc = np.empty((len(batch), self.n_behaviors), np.float32)
        until_b = [one.quiet_until if one.at is None else one.at for one in occasions]
        wait_b = [
            0 if until is None or not n else max(until - last_at, 0)
            for until, last_at, n in zip(until_b, batch.last_at.tolist(), batch.n_events.tolist(), strict=True)
        ]
        wait_n = np.array(wait_b)
        silence_b = [wait if one.at is None else 0 for one, wait in zip(occasions, wait_b, strict=True)]
        for users, hidden_bd, code_b in self._states(batch):
            context = torch.from_numpy(context_b[:, users])
            with torch.inference_mode(), UNDIVIDED():
                if not all(silence_b[user] for user in users.tolist()):
                    scores_bc = _in_full(self.network.scores, hidden_bd, context)
                    chances_bc[users] = torch.softmax(scores_bc, dim=1).numpy()
                for row, user in enumerate(users.tolist()):
                    if silence_b[user]:
                        own = slice(batch.offsets[user], batch.offsets[user + 1])
                        came, place = batch.timestamps[own], int(context_b[3, user])
                        after_c = self._after(silence_b[user], hidden_bd[row : row + 1], came, place)
                        chances_bc[user] = after_c.numpy()
            chances_bc[users] = self.successors.mixed(chances_bc[users], code_b, wait_n[users])
        return chances_bc

    def _after(self, silence: int, hidden_1d: Tensor, came_at: NDArray[np.int64], place: int) -> Tensor:
        """(C,) chances, after a silence, ms, of what comes if anything does: a mean over moments."""
        last_at_1, hours = came_at[-1:], self.codebook.hours.leaning(came_at)
        chances_1g = torch.softmax(self.network.gap_scores(hidden_1d).double(), dim=1).numpy()
        chances_1g[:, -1] = 0
        quantiles = (np.arange(_ROWS_AT_ONCE) + 0.5) / _ROWS_AT_ONCE
        gap_n = gaps_after(silence, last_at_1, chances_1g, self.codebook, hours, quantiles)
        weekday, slot = self.codebook.calendar(last_at_1 + gap_n)
        context = np.stack([weekday, slot, self.codebook.gap_code(gap_n), np.full_like(gap_n, place)])
        scores_nc = self.network.scores(hidden_1d.expand(_ROWS_AT_ONCE, -1), torch.from_numpy(context))
        return torch.softmax(scores_nc, dim=1).mean(0)

    def rollout(self, batch: HistoryBatch, plan: Plan, start_at: int) -> list[list[list[Imagined]]]:
        """Futures of B users; see ``NextModel.rollout``."""
        steps = self.codebook.steps(batch, self._vocabulary)
        with UNDIVIDED():
            found = [
                rollout(
                    self.network, self.codebook, steps.of(user), plan, start_at, self.pace, self.haunts, _lot(user_id)
                )
                for user, user_id in enumerate(batch.user_ids)
            ]
        return [
            [
                [self._imagined(*step) for step in zip(at_n, place_n, event_n, strict=True) if step[2] >= 0]
                for at_n, place_n, event_n in zip(
                    futures.at_rn.tolist(), futures.place_rn.tolist(), futures.event_rn.tolist(), strict=True
                )
            ]
            for futures in found
        ]

    def _states(self, batch: HistoryBatch) -> Iterator[tuple[NDArray[np.int64], Tensor, NDArray[np.int64]]]:
        """Some users' positions in the batch, (b, D) what is known after their last step, and (b,) the event's code."""
        steps = self.codebook.steps(batch, self._vocabulary).last(self.network.config.window)
        counts = np.diff(steps.offsets)
        strides = -(-counts // _STRIDE)
        order = np.argsort(strides, kind="stable")
        at = 0
        while at < len(order):
            n_same = int(np.searchsorted(strides[order], strides[order[at]], side="right")) - at
            users = order[at : at + min(n_same, _ROWS_AT_ONCE)]
            streams = np.zeros((5, len(users), int(strides[users[0]]) * _STRIDE), np.int64)
            for row, user in enumerate(users.tolist()):
                streams[:, row, : counts[user]] = steps.streams[:, steps.offsets[user] : steps.offsets[user + 1]]
            with torch.inference_mode(), UNDIVIDED():
                hidden = self.network.hidden(torch.from_numpy(streams))
                last = hidden[torch.arange(len(users)), torch.from_numpy(counts[users] - 1)]
            yield users, last, steps.streams[EVENT, steps.offsets[users + 1] - 1]
            at += len(users)

    def _contexts(self, batch: HistoryBatch, occasions: Sequence[Occasion]) -> NDArray[np.int64]:
        """(4, B) codes of what is asked about."""
        context = np.zeros((4, len(batch)), np.int64)
        for user, (occasion, last_at, n) in enumerate(
            zip(occasions, batch.last_at.tolist(), batch.n_events.tolist(), strict=True)
        ):
            if occasion.at is not None:
                at = np.array([occasion.at])
                weekday, slot = self.codebook.calendar(at)
                gap = self.codebook.gap_code(np.maximum(at - last_at, 0)) if n else np.ones(1, np.int64)
                context[:3, user] = weekday[0], slot[0], gap[0]
            if occasion.location_row is not None:
                context[3, user] = self.codebook.place_code(np.array([occasion.location_row]))[0]
        return context

    def _prospect(self, row: int, chance: float) -> Prospect:
        one = self.codebook.behavior(row, self._vocabulary)
        return Prospect(one.behavior, one.interest, one.description, chance)

    def _imagined(self, at: int, place: int, row: int) -> Imagined:
        one = self.codebook.behavior(row, self._vocabulary)
        return Imagined(at, self.codebook.location_of(place), one.behavior, one.interest, one.description)


def _lot(user_id: str) -> int:
    """A number of 64 bits that stands for a user, wherever they are asked about."""
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "little")


def write_model(folder: Path, model: BehaveGptModel) -> None:
    """Write the files of a ``behavegpt`` artifact into a draft."""
    network, codebook = model.network, model.codebook
    shape = {"revision": BehaveGptModel.revision, "network": network.config.to_json(), "types": list(codebook.types)}
    (folder / SHAPE).write_bytes(orjson.dumps(shape, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    save_arrays(codebook.arrays(), folder / CODES)
    save_arrays(model.successors.arrays(), folder / COUNTS)
    save_arrays(model.pace.arrays(), folder / PACES)
    save_arrays(model.haunts.arrays(), folder / HAUNTS)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)


def _in_full(scores: Callable[[Tensor, Tensor], Tensor], hidden_bd: Tensor, context_b: Tensor) -> Tensor:
    """(b, C) scores, computed for a full batch whatever b is."""
    spare = _ROWS_AT_ONCE - len(hidden_bd)
    hidden = torch.cat([hidden_bd, hidden_bd.new_zeros(spare, hidden_bd.shape[1])])
    context = torch.cat([context_b, context_b.new_zeros(len(context_b), spare)], dim=1)
    return scores(hidden, context)[: len(hidden_bd)]
