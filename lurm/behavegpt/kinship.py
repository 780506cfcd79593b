"""What the behaviours of one codebook have of those of another, and a network that takes over what another learned.

    by_items    a log that went on: an interest has of the old ones what its items have
    by_words    another log: an interest is kin to those whose items' titles use its words
    by_meaning  further behaviours of one vocabulary: interests are kin to those of like centroids

Every row of a new behaviour, of embedding and head, is then a mixture of trained rows; what kinship does not tell, its
own start tells (see ``BehaveGpt.start``). Times, gaps and places come from what is nearest or of the same name.

Paper: BehaveGPT, adaptation to new behaviours and across domains (the idea). Our reading: vocabularies meet in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from lurm.behavegpt.network import BehaveGpt
from lurm.behavegpt.steps import EVENT, FIRST, Codebook
from lurm.errors import UsageError
from lurm.history import HistoryBase
from lurm.interests import InterestVocabulary
from lurm.items import text_features

_MOST_KIN = 8  # interests that an interest is made of, by words or meaning
_SHARPNESS = 4  # power of a likeness that becomes a weight
_AT_ONCE = 1024  # interests compared at a time


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike interests are to older ones.

    Attributes:
        of_kk: (K, K') CSR in [0, 1], zero to most.
        shares: they say what an interest is made of, and sum to how much of it is known; else how near each one is.
    """

    of_kk: sp.csr_matrix
    shares: bool = False


@dataclass(frozen=True, slots=True)
class Kin:
    """What codes of a codebook have of an older one's.

    Attributes:
        behavior_cc: (C, C') CSR float32, shares of old behaviours; a row sums to how far they are trusted, 0 to 1.
        slot_s, gap_g, place_p: the old row of each slot, gap and place; -1: none.
    """

    behavior_cc: sp.csr_matrix
    slot_s: NDArray[np.int64]
    gap_g: NDArray[np.int64]
    place_p: NDArray[np.int64]

    @classmethod
    def between(cls, alike: Alike, old: Codebook, new: Codebook, old_places: list[str], new_places: list[str]) -> Kin:
        """The kin of two codebooks.

        Behaviours are of kin interests and of the type of the same name; where the old log knows no such type, of all
        its types, as frequent as they were.

        Args:
            alike: their interests, as ``by_items``, ``by_words`` or ``by_meaning`` say.
            old, new: the codebooks.
            old_places, new_places: names of the location rows of their logs.

        Raises:
            UsageError: one tells interests apart and the other does not.
        """
        if old.config.behavior != new.config.behavior:
            raise UsageError(
                f"behaviours of the older model are of kind {old.config.behavior!r}, of this {new.config.behavior!r}; "
                f'set behavior = "{old.config.behavior}" under [behavegpt.network.steps]'
            )
        slots = (np.arange(new.config.slots) * 2 + 1) * old.config.slots // (2 * new.config.slots)
        middle_g = new.values_gs[:, new.values_gs.shape[1] // 2]
        place_of = {old_places[row]: place for place, row in enumerate(old.location_p.tolist())}
        places = np.array([place_of.get(new_places[row], -1) for row in new.location_p.tolist()], np.int64)
        return cls(_of_behaviors(alike, old, new), slots, old.gap_code(middle_g) - FIRST, places)

    @property
    def trust(self) -> float:
        """How much of a behaviour comes from old ones, on average over behaviours."""
        return float(self.behavior_cc.sum(1).mean())


def by_items(old: InterestVocabulary, old_log: HistoryBase, new: InterestVocabulary, new_log: HistoryBase) -> Alike:
    """Shares of each interest's events whose items were in each of the old ones; new items count for nothing."""
    counts_n = new_log.item_counts() + 1.0  # items without events decide where there are no others
    of_new = new.item_interest_n.astype(np.int64)
    old_row_n = old_log.items.rows(new_log.items.ids.to_pylist())
    known = old_row_n >= 0
    of_old = old.item_interest_n[old_row_n[known]].astype(np.int64)
    shape = (len(new), len(old))
    shared = sp.csr_matrix((counts_n[known], (of_new[known], of_old)), shape=shape)
    total_k = np.bincount(of_new, weights=counts_n, minlength=len(new))
    shared.data /= np.repeat(total_k, np.diff(shared.indptr))
    return Alike(shared, shares=True)


def by_words(old: InterestVocabulary, new: InterestVocabulary) -> Alike:
    """How alike interests are in the words of their items' titles; nothing where there are no titles."""
    features = text_features([_text(one, k) for one in (old, new) for k in range(len(one))])
    old_kf, new_kf = features[: len(old)], features[len(old) :]
    parts = (new_kf[at : at + _AT_ONCE] @ old_kf.T for at in range(0, len(new), _AT_ONCE))
    return Alike(sp.vstack([_nearest(part.toarray()) for part in parts], format="csr"))


def by_meaning(vocabulary: InterestVocabulary) -> Alike:
    """How alike interests of one vocabulary are, by centroids."""
    centroids_kd = vocabulary.centroids_kd
    parts = (centroids_kd[at : at + _AT_ONCE] @ centroids_kd.T for at in range(0, len(vocabulary), _AT_ONCE))
    return Alike(sp.vstack([_nearest(part) for part in parts], format="csr"))


def take_over(
    old: BehaveGpt, new: BehaveGpt, kin: Kin, counts_c: NDArray[np.int64], old_counts_c: NDArray[np.int64]
) -> None:
    """Let a network that has been started go on from what an older one learned; in place.

    A behaviour that is wholly an old one gets its rows bit for bit; the bias of others is how frequent they are, and
    what training made of their kin's beyond that.

    Args:
        old: of ``kin``'s older codebook.
        new: of the newer one, of the same size.
        kin: how their codes belong together.
        counts_c, old_counts_c: events of the behaviours of each.

    Raises:
        UsageError: the sizes differ.
    """
    if old.config.size != new.config.size:
        raise UsageError(
            f"the older model is of size {old.config.size}, this one of {new.config.size}; set size = "
            f'"{old.config.size}" under [behavegpt.network], or build from nothing'
        )
    with torch.no_grad():
        theirs, ours = dict(old.named_parameters()), dict(new.named_parameters())
        gap_or_never = np.append(kin.gap_g, len(old.gap_head.bias) - 1)
        tables = {
            "streams.1.weight": (FIRST, kin.slot_s),
            "streams.2.weight": (FIRST, kin.gap_g),
            "streams.3.weight": (FIRST, kin.place_p),
            "gap_head.weight": (0, gap_or_never),
            "gap_head.bias": (0, gap_or_never),
            "place_head.weight": (1, kin.place_p),
            "place_head.bias": (1, kin.place_p),
        }
        rows = {"streams.4.weight", "whole.weight", "head.2.weight", "head.2.bias"}
        for name in ours.keys() - tables.keys() - rows:
            ours[name].copy_(theirs[name])
        for name, (n_front, old_row) in tables.items():
            ours[name][:n_front] = theirs[name][:n_front]
            has = torch.from_numpy(old_row >= 0)
            ours[name][n_front:][has] = theirs[name][n_front:][torch.from_numpy(old_row[old_row >= 0])]
        for name in ("streams.4.weight", "whole.weight"):
            ours[name][:FIRST] = theirs[name][:FIRST]
        trust_c1 = torch.from_numpy(np.asarray(kin.behavior_cc.sum(1), np.float32)).clamp(0, 1)
        both = ((one.event_weight, one.whole_weight, one.head_weight) for one in (new, old))
        for mine, its in zip(*both, strict=True):
            mixed = torch.from_numpy(kin.behavior_cc @ its.detach().numpy())
            mine.copy_(mixed + (1 - trust_c1) * mine)
        known, before = (torch.from_numpy(np.log(n / n.sum())).float() for n in (counts_c, old_counts_c))
        beyond = kin.behavior_cc @ (old.head_bias.detach() - before).numpy()
        new.head_bias.copy_(known + torch.from_numpy(beyond))
        whole, its_row = _whole(kin.behavior_cc)
        new.head_bias[whole] = old.head_bias[its_row]


def grow(network: BehaveGpt, old: Codebook, grown: Codebook, vocabulary: InterestVocabulary) -> BehaveGpt:
    """A network for further behaviours: what was there stays bit for bit, new rows are mixtures of their kin's.

    What kinship does not tell of an embedding, the one for unknown behaviours tells, as which they were read so far.

    Args:
        network: of the old codebook.
        old, grown: see ``Codebook.grown``.
        vocabulary: of both.
    """
    made = BehaveGpt(network.config, grown.n_codes)
    made.start(grown.counts_c, grown.meanings(vocabulary), 0)
    with torch.no_grad():
        made.event_weight[old.n_behaviors :] = network.get_parameter(f"streams.{EVENT}.weight")[0]
        made.whole_weight[old.n_behaviors :] = network.whole.weight[0]
    itself = sp.identity(old.n_behaviors, np.float32, "csr")
    further = _of_behaviors(by_meaning(vocabulary), old, grown)[old.n_behaviors :]
    codes = (np.arange(n - FIRST) for n in grown.n_codes[1:4])
    take_over(network, made, Kin(sp.vstack([itself, further], "csr"), *codes), grown.counts_c, old.counts_c)
    made.load_state_dict(dict(network.named_buffers()), strict=False)
    return made.eval()


def _text(vocabulary: InterestVocabulary, interest: int) -> str:
    """Its telling words, and the titles that use them: what else stands there may be ids."""
    meaning = vocabulary.describe(interest)
    titles = [title for title in meaning.titles if any(word in title.lower() for word in meaning.words)]
    return " ".join([*meaning.words, *titles])


def _nearest(alike_kk: NDArray[np.float32]) -> sp.csr_matrix:
    """The largest few of each row; what is not above nothing is left out."""
    most = min(_MOST_KIN, alike_kk.shape[1])
    column = np.argpartition(-alike_kk, most - 1, axis=1)[:, :most]
    likeness = np.clip(np.take_along_axis(alike_kk, column, axis=1), 0, 1)
    row = np.repeat(np.arange(len(alike_kk)), most)
    found = sp.csr_matrix((likeness.ravel(), (row, column.ravel())), shape=alike_kk.shape)
    found.eliminate_zeros()
    return found


def _of_behaviors(alike: Alike, old: Codebook, new: Codebook) -> sp.csr_matrix:
    """(C, C') of kin interests and types; "no interest" is kin to itself."""
    n_new, n_old = alike.of_kk.shape
    bordered = sp.block_diag([alike.of_kk, sp.csr_matrix([[1.0]])], format="csr")
    of_new = np.where(new.interest_c < 0, n_new, new.interest_c)
    of_old = np.where(old.interest_c < 0, n_old, old.interest_c)
    columns = np.arange(old.n_behaviors)
    holds = sp.csr_matrix((np.ones(len(columns)), (of_old, columns)), shape=(n_old + 1, len(columns)))
    mixed = (bordered[of_new] @ holds).tocoo()
    weight = mixed.data * _types(old, new)[new.kind_c[mixed.row], old.kind_c[mixed.col]]
    found = sp.csr_matrix((weight, (mixed.row, mixed.col)), shape=mixed.shape)
    found.eliminate_zeros()
    if not alike.shares:
        trust_c = found.max(1).toarray().ravel()
        found.data **= _SHARPNESS
        total_c = np.maximum(np.asarray(found.sum(1)).ravel(), 1e-12)
        found.data *= np.repeat(trust_c / total_c, np.diff(found.indptr))
    found.data[np.abs(found.data - 1) < 1e-9] = 1
    return found.astype(np.float32)


def _types(old: Codebook, new: Codebook) -> NDArray[np.float64]:
    """(V, V') what a type of event has of the old ones: all of its namesake; without one, of all by frequency."""
    frequency_v = np.bincount(old.kind_c, weights=old.counts_c, minlength=len(old.types))
    share_vv = np.tile(frequency_v / frequency_v.sum(), (len(new.types), 1))
    for row, name in enumerate(new.types):
        if name in old.types and frequency_v[own := old.types.index(name)]:
            share_vv[row] = np.arange(len(frequency_v)) == own
    return share_vv


def _whole(behavior_cc: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Behaviours that are wholly one old one, and which."""
    alone = np.flatnonzero(np.diff(behavior_cc.indptr) == 1)
    first = behavior_cc.indptr[alone]
    whole = behavior_cc.data[first] == 1
    return alone[whole].astype(np.int64), behavior_cc.indices[first][whole].astype(np.int64)
