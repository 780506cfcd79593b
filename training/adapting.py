"""A trained BehaveGPT goes on: to behaviours it has never seen, by a few examples; to another log, by some of it.

Behaviours: rows of embedding and head are added, start as mixtures of their kin's, and those of the head are fit to the
examples, and to steps on which old behaviours followed, as the most probable ones given where they start. Nothing else
moves: scores of old behaviours stay what they were, bit for bit, after histories of old behaviours.

Logs: everything learns, or a low-rank change of each matrix (Hu et al. 2022, which is then added to it), or only what
belongs to the log: rows of behaviours, gaps and places, at both ends.

Paper: BehaveGPT, adaptation to new behaviours and across domains (the idea).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lurm.artifacts import Manifest, digest_of, read_manifest
from lurm.behavegpt.kinship import Kin, by_items, by_words, grow, take_over
from lurm.behavegpt.model import BehaveGptModel
from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.steps import EVENT, FIRST, Codebook, Steps
from lurm.bounds import AT_LEAST_ONE, POSITIVE, Bound, check
from lurm.errors import DataError, UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.release import Release
from training.behave import Mode
from training.packing import Packed, known_at, packed, stretches

_RANK = 8  # of what an adapter adds to a matrix
_ROUNDS = 4
_OF_THE_LOG = ("streams.2.", "streams.3.", "streams.4.", "whole.", "head.2.", "gap_head.", "place_head.")


@dataclass(frozen=True, slots=True)
class AdoptConfig:
    """How rows of new behaviours are fit.

    Attributes:
        pull: how strongly a row of the head is held to where it starts, where an example weighs 1 and what the row is
            held against varies by 1; where that varies more, a row need not go as far for the same scores, so it is
            held as much more.
        bias_pull: the same of its bias.
        most_lost: share of the steps on which an old behaviour was foretold that may go over to a new one; each new
            one has its part of them by frequency, and its bias is lowered where the fit asks for more.
        iterations: of L-BFGS, at most.
    """

    pull: float = 5.0
    bias_pull: float = 1.0
    most_lost: float = 0.01
    iterations: int = 100

    def __post_init__(self) -> None:
        check(self, pull=POSITIVE, bias_pull=POSITIVE, iterations=AT_LEAST_ONE, most_lost=Bound(above=0, most=1))


@dataclass(frozen=True, slots=True)
class Lesson:
    """Steps of some users, in codes of the grown codebook, and what of them is learned from.

    Attributes:
        steps: of the users.
        asked: (S,) bool: steps that are foretold, examples of new behaviours and others; no beginning, none unknown.
    """

    steps: Steps
    asked: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Origin:
    """A trained model that another one starts from.

    Attributes:
        name: of its release.
        network, codebook: what it learned.
        vocabulary, history: of its log.
        manifest: of its artifact.
        same_log: this log is a later state of that one, and what has the same id is the same.
    """

    name: str
    network: BehaveGpt
    codebook: Codebook
    vocabulary: InterestVocabulary
    history: HistoryBase
    manifest: Manifest
    same_log: bool

    @classmethod
    def found(cls, where: str, root: Path, dataset: str) -> Origin:
        """The model of a release.

        Args:
            where: "current" or a release id, of ``root``; or the folder of a release, or of artifacts.
            root: the artifacts folder.
            dataset: name of the log that is to be learned; of the same name in the same folder, it is the same log.

        Raises:
            ArtifactError: there is no such release, or it is damaged.
            UsageError: it does not say what users do next.
        """
        path = Path(where)
        if where == "current" or not path.is_dir():
            folder, id_ = root, None if where == "current" else where
        elif (path / "current").is_file():
            folder, id_ = path, None
        else:
            folder, id_ = path.absolute().parent.parent, path.absolute().name
        release = Release.open(folder, id_)
        if not isinstance(release.next, BehaveGptModel):
            raise UsageError(
                f"the release {release.release_id} does not say what users do next, so nothing can start from it; "
                "name one that was built with --model behavegpt"
            )
        same = folder.resolve() == root.resolve() and release.name == dataset
        manifest = read_manifest(release.path / BehaveGptModel.kind)
        model, log = release.next, (release.vocabulary, release.history)
        return cls(release.release_id, model.network, model.codebook, *log, manifest, same)

    def named_in(self, config: dict[str, Any], parents: Mapping[str, str]) -> dict[str, Any]:
        """The configuration of an artifact that starts from this one; of this one itself, if it is that artifact.

        So a build from "current" that is done again finds its own result there, and does not start from it.

        Args:
            config: what else the artifact is made by.
            parents: fingerprints of what it reads.
        """
        own = self.manifest
        again = {**config, "starts_from": own.config.get("starts_from")}
        if dict(own.parents) == dict(parents) and digest_of(again) == digest_of(own.config):
            return again
        return {**config, "starts_from": own.fingerprint}

    def begin(
        self, network: BehaveGpt, codebook: Codebook, history: HistoryBase, vocabulary: InterestVocabulary, seed: int
    ) -> float:
        """Let a new network start from this one; how much of its behaviours comes from old ones, on average.

        Raises:
            UsageError: the models do not fit together.
        """
        if self.same_log:
            alike = by_items(self.vocabulary, self.history, vocabulary, history)
        else:
            alike = by_words(self.vocabulary, vocabulary)
        places = (one.locations.ids.to_pylist() for one in (self.history, history))
        kin = Kin.between(alike, self.codebook, codebook, *places)
        network.start(codebook.counts_c, codebook.meanings(vocabulary), seed)
        take_over(self.network, network, kin, codebook.counts_c, self.codebook.counts_c)
        return kin.trust


def adopt(
    network: BehaveGpt,
    old: Codebook,
    grown: Codebook,
    vocabulary: InterestVocabulary,
    lessons: Iterable[Lesson],
    config: AdoptConfig = AdoptConfig(),
) -> BehaveGpt:
    """The network, grown by behaviours it has never seen and fit to a few examples of them.

    Examples count as often as ``grown`` says that their behaviours occur beside the old ones, however many are shown.

    Args:
        network: trained; stays as it is.
        old, grown: its codebook, and the same with further behaviours; see ``Codebook.grown``.
        vocabulary: of both.
        lessons: examples of the new ones, and steps on which old ones followed.
        config: see ``AdoptConfig``.

    Raises:
        DataError: there is no example of a new behaviour, or no step of an old one.
    """
    made = grow(network, old, grown, vocabulary)
    n_old = old.n_behaviors
    known_nd, target_n = _examples(made, lessons)
    is_new = target_n >= n_old
    if not is_new.any() or is_new.all():
        raise DataError(
            f"{int(is_new.sum())} of {len(target_n)} steps are examples of new behaviours; expected some, and steps "
            "on which others followed, which say when they do not"
        )
    shown_c = torch.bincount(target_n, minlength=grown.n_behaviors).double()
    share_c = torch.from_numpy(grown.counts_c / grown.counts_c[:n_old].sum())
    n_others = float(shown_c[:n_old].sum())
    weight_c = torch.where(shown_c > 0, share_c * n_others / shown_c.clamp_min(1), 0.0)
    weight_c[:n_old] = 1
    # each step is there twice
    fair_k = share_c[n_old:] / share_c[n_old:].sum()
    _fit(made, n_old, known_nd, target_n, weight_c[target_n].float() / 2, fair_k, config)
    return made


def _leads(ahead_nk: Tensor, allowed_k: list[int]) -> Tensor:
    """(K,) by how much each is ahead where it leads once more than it is allowed to; 0: nowhere."""
    lead_k = ahead_nk.new_zeros(len(allowed_k))
    for _ in range(_ROUNDS):  # where one steps back, another may lead
        best_n, which_n = (ahead_nk - lead_k).max(1)
        for one, allowed in enumerate(allowed_k):
            leads = best_n[(which_n == one) & (best_n > 0)]
            if len(leads) > allowed:
                lead_k[one] += leads.sort(descending=True).values[allowed] + 1e-6
    return lead_k


def _fit(
    network: BehaveGpt,
    n_old: int,
    known_nd: Tensor,
    target_n: Tensor,
    weight_n: Tensor,
    share_k: Tensor,
    config: AdoptConfig,
) -> None:
    """Put the most probable rows from ``n_old`` on into the head; ``share_k`` of what may be lost goes to each."""
    start_kd, start_k = network.head_weight[n_old:].detach().clone(), network.head_bias[n_old:].detach().clone()
    with torch.no_grad():
        old_nc = known_nd @ network.head_weight[:n_old].T + network.head_bias[:n_old]
        others_n1 = torch.logsumexp(old_nc, 1, keepdim=True)
        highest_n, likeliest_n = old_nc.max(1)
        pull = config.pull * float(known_nd[target_n < n_old].var(0, correction=0).mean())
    column_n = (target_n - n_old + 1).clamp_min(0)  # an old one: the first, which is all of them
    rows_kd, bias_k = start_kd.clone().requires_grad_(), start_k.clone().requires_grad_()
    fitting = torch.optim.LBFGS([rows_kd, bias_k], max_iter=config.iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fitting.zero_grad()
        scores = torch.cat([others_n1, known_nd @ rows_kd.T + bias_k], dim=1)
        wrong = (nn.functional.cross_entropy(scores, column_n, reduction="none") * weight_n).sum()
        held = pull * (rows_kd - start_kd).square().sum() + config.bias_pull * (bias_k - start_k).square().sum()
        total: Tensor = wrong + held / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    fitting.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        was_right = likeliest_n == target_n
        ahead_nk = (known_nd @ rows_kd.T + bias_k)[was_right] - highest_n[was_right, None]
        allowed_k = (config.most_lost * len(ahead_nk) * share_k).long().tolist()
        network.head_weight[n_old:] = rows_kd
        network.head_bias[n_old:] = bias_k - _leads(ahead_nk, allowed_k)


@torch.no_grad()
def _examples(network: BehaveGpt, lessons: Iterable[Lesson]) -> tuple[Tensor, Tensor]:
    """(n, D) what the head's last matrix sees, and (n,) what happened; each step blindly, and told when and where."""
    known, targets = [], []
    for part, asked_n in _parts(network, lessons):
        hidden_nd = known_at(network, part)[asked_n]
        told = part.target[:4, asked_n]
        for context in (torch.zeros_like(told), told):
            known.append(network.weighed(hidden_nd, context))
            targets.append(part.target[EVENT][asked_n] - FIRST)
    return torch.cat(known or [torch.empty(0, network.config.shape.width)]), torch.cat(
        targets or [torch.empty(0).long()]
    )


def _parts(network: BehaveGpt, lessons: Iterable[Lesson]) -> Iterator[tuple[Packed, Tensor]]:
    """Packed stretches of each lesson, and (n,) which of the steps that follow are learned from."""
    for lesson in lessons:
        starts, lengths = stretches(lesson.steps, network.config.window, None)
        asked = [lesson.asked[start + 1 : start + 1 + n] for start, n in zip(starts, lengths, strict=True)]
        some = np.flatnonzero([one.any() for one in asked])
        if len(some):
            part = packed(lesson.steps, starts[some], lengths[some])
            yield part, torch.from_numpy(np.concatenate([asked[stretch] for stretch in some]))


class _LowRank(nn.Module):
    """A matrix, and a change of it of low rank, none at first."""

    def __init__(self, matrix: Tensor, rng: torch.Generator) -> None:
        super().__init__()
        n_out, n_in = matrix.shape
        self.down = nn.Parameter(torch.randn(_RANK, n_in, generator=rng) / n_in**0.5)
        self.up = nn.Parameter(torch.zeros(n_out, _RANK))

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix + self.up @ self.down


def adaptable(network: BehaveGpt, mode: Mode, seed: int = 0) -> BehaveGpt:
    """The same network, of which no more learns than the mode says, until it is ``merged``."""
    if mode == "full":
        return network
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(_OF_THE_LOG))
    if mode == "adapter":
        rng = torch.Generator().manual_seed(seed)
        for part in (network.blocks, network.query, network.head[0]):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    parametrize.register_parametrization(module, "weight", _LowRank(module.weight, rng))
    return network


def merged(network: BehaveGpt) -> BehaveGpt:
    """The same network as a plain one: what was learned beside its matrices is added to them."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network
