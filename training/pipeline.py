"""The build: an event log becomes a release, stage by stage.

    history -> attributes -> items -> interests -> encoder (aligned) -> embeddings -> index -> behavegpt -> lumos
    -> gate -> publish

Every stage is an artifact under ``<root>/stages``, named by the hash of all that goes into it. A stage that is
there already is skipped, so a killed build goes on where it stopped, and nothing becomes visible to serving
before the last step.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import lurm
from lurm.ahead import ahead
from lurm.alignment import ROTATION
from lurm.arrays import write_array
from lurm.artifacts import (
    Artifact,
    Draft,
    digest_of,
    discard,
    draft,
    exclusive,
    link_or_copy,
    open_artifact,
    read_manifest,
    remove_drafts,
)
from lurm.attributes import Attributes, attributes_of, left_out_in_words
from lurm.behavegpt.model import BehaveGptModel, write_model
from lurm.calendars import Calendar
from lurm.dataset import Dataset
from lurm.encoder import UserEncoder, embed_all, open_encoder
from lurm.errors import ArtifactError, GateClosed
from lurm.history import HistoryBase
from lurm.index import write_index
from lurm.ingest import HistoryBuilder, check_usable
from lurm.interests import InterestVocabulary, cluster, grains, quality, rarity, write_vocabulary
from lurm.items import ItemEmbeddings, given_items, learn_items, write_items
from lurm.live.segments import Living
from lurm.meanings import name_interests
from lurm.progress import Reporter, resident_at_most
from lurm.purge import unused_stages
from lurm.quarantine import Quarantine
from lurm.release import Embeddings, EmbeddingsWriter, Release, current, publish, referenced
from lurm.smen.config import KIND, REVISION
from lurm.smen.network import write_encoder
from training import forecasting
from training.adapting import Origin
from training.aligning import align
from training.diagnostics import Diagnostics, examine
from training.diagnostics.gate import breaches
from training.models import train_next, train_smen
from training.ranks import ALONE, Ranks
from training.recipes import Recipe
from training.subject import Subject, catalog_of, column_of, texts_of

# Raised when a stage computes something else from the same input; old results are then made anew.
_VERSIONS = {
    "history": 3,
    "attributes": 4,
    "items": 1,
    "interests": 4,
    "encoder": 4,
    "embeddings": 1,
    "index": 1,
    "lumos": 4,
    "behavegpt": 4,
}
_OF_TRAINING = ("held_out", "recall_at_1", "anchor_usage", "alignment")  # what a release tells of it


@dataclass(frozen=True, slots=True)
class Built:
    """What a build came to.

    Attributes:
        release_id: of the release that is active now.
        skipped: stages that were there already.
        metrics: facts for people, as the release's manifest holds them.
        quarantine: file of the rows set aside; None when there are none.
        seconds: from start to publication.
        peak_memory_bytes: most memory this process has held so far.
    """

    release_id: str
    skipped: list[str]
    metrics: dict[str, Any]
    quarantine: Path | None
    seconds: float
    peak_memory_bytes: int


def build(
    dataset: Dataset,
    root: Path,
    *,
    recipe: Recipe,
    memory_limit_bytes: int,
    threads: int,
    reporter: Reporter,
    ranks: Ranks = ALONE,
    living: Living = Living(),
    align_to: str | None = None,
    start_from: str | None = None,
) -> Built:
    """Build a release of a dataset and activate it.

    Args:
        dataset: the log and its tables.
        root: the artifacts folder; one build at a time.
        recipe: the model's part.
        memory_limit_bytes: what a stage may hold before it spills.
        threads: of numeric code.
        reporter: told what is going on.
        ranks: that train the encoder together; this one leads, the others ``assist``.
        living: what was sent live, and who was erased; the base holds the one and nothing of the other.
        align_to: id of the release in whose space the vectors are to lie, or "current"; None: in one of their own.
        start_from: whose model of what users do next the new one starts from, see ``Origin.found``; None: from nothing.

    Raises:
        UsageError: the release to align to has another width, or too few users in common.
        DataError: the log cannot be used, or has too many bad rows; nothing is published.
        GateClosed: the vectors do not hold what the gate of the recipe asks; nothing is published, stages are kept.
        ArtifactError: another build is writing here, or the release to align to is not there.
    """
    with exclusive(root), threadpool_limits(limits=threads):
        return _Build(
            dataset, root, recipe, memory_limit_bytes, threads, reporter, ranks, living, align_to, start_from
        ).run()


class _Build:
    def __init__(
        self,
        dataset: Dataset,
        root: Path,
        recipe: Recipe,
        memory_limit_bytes: int,
        threads: int,
        reporter: Reporter,
        ranks: Ranks,
        living: Living,
        align_to: str | None,
        start_from: str | None,
    ) -> None:
        self._ranks, self._living, self._stages = ranks, living, root / "stages"
        self._old = Release.open(root, None if align_to == "current" else align_to) if align_to else None
        self._origin = Origin.found(start_from, root, dataset.name) if start_from else None
        self._dataset, self._root, self._recipe = dataset, root, recipe
        self._memory_limit_bytes, self._threads, self._reporter = memory_limit_bytes, threads, reporter
        self._done: dict[str, Artifact] = {}
        self._used: set[str] = set()  # fingerprints of all that was made or taken; an aligned encoder hides its own
        self._skipped: list[str] = []

    def run(self) -> Built:
        started = time.monotonic()
        for folder in (self._root, self._stages, self._root / "releases"):
            remove_drafts(folder)
        recipe, dataset = self._recipe, self._dataset
        if "lumos" in recipe.models:
            forecasting.check_calendar(dataset, recipe.lumos)
        quarantine = self._root / "quarantine" / f"{dataset.events.fingerprint[:16]}.parquet"
        table = {"items_table": dataset.tables["items"].fingerprint if "items" in dataset.tables else None}
        log: dict[str, Any] = {"log": dataset.events.fingerprint, **table}
        if self._living.fingerprint:
            log["living"] = self._living.fingerprint
        self._stage("history", log, (), lambda work: self._history(work, quarantine))
        history = HistoryBase(self._done["history"])
        recipe.check_behaviors(history.behaviors.ids.to_pylist())
        if "lumos" in recipe.models:
            forecasting.check_history(history, recipe.lumos)
        if "users" in dataset.tables:
            known = {"users_table": dataset.tables["users"].fingerprint, "erasures": self._living.erasures}
            self._stage("attributes", known, ("history",), lambda work: self._attributes(work, history))
        calendar = None
        if "lumos" in recipe.models:
            calendar = forecasting.calendar_of(dataset, history, self._known(history), self._reporter)
        items, interests = ({**asdict(one), **table} for one in (recipe.item_embeddings, recipe.interests))
        self._stage("items", items, ("history",), lambda work: self._items(work, history))
        self._stage("interests", interests, ("history", "items"), lambda work: self._interests(work, history))
        vocabulary = InterestVocabulary(self._done["interests"])
        if fewer := recipe.interests.fewer(len(vocabulary)):
            self._reporter.say(f"  {fewer}")
        self._encoders(history, vocabulary)
        if self._old is not None:
            self._align(history, vocabulary, self._old)
        encoder = open_encoder(self._done["encoder"].path, vocabulary, verify=False)
        self._stage(
            "embeddings", {}, ("history", "interests", "encoder"), lambda work: self._embeddings(work, history, encoder)
        )
        vectors = Embeddings(self._done["embeddings"]).vectors_ue
        self._stage("index", {"seed": recipe.seed}, ("embeddings",), lambda work: self._index(work, vectors))
        if calendar is not None:
            config = forecasting.ingredients(dataset, recipe.lumos)
            read = tuple(kind for kind in ("history", "interests", "attributes") if kind in self._done)
            self._stage("lumos", config, read, lambda work: self._lumos(work, history, vocabulary, calendar))
        for kind in self._done:  # one of a model that was not asked for stays: its build may go on
            self._forget_checkpoints(kind)
        catalog = pl.DataFrame({"item_id": history.items.ids})
        diagnostics = self._hold(Subject(history, vocabulary, encoder, vectors, catalog))
        metrics = {**self._metrics(history, vocabulary, encoder), "diagnostics": diagnostics.to_json(plots=False)}
        parts = {kind: artifact for kind, artifact in self._done.items() if kind != "items"}
        release_id = publish(self._root, parts, name=self._dataset.name, metrics=metrics)
        self._forget_unused()
        return Built(
            release_id,
            self._skipped,
            metrics,
            quarantine if quarantine.is_file() else None,
            seconds=time.monotonic() - started,
            peak_memory_bytes=resident_at_most(),
        )

    def _stage(
        self, kind: str, config: Mapping[str, Any], parents: tuple[str, ...], make: Callable[[Draft], None]
    ) -> None:
        """Make one artifact, or take the one that the same input made before."""
        fingerprints = {parent: self._done[parent].manifest.fingerprint for parent in parents}
        key = digest_of([kind, _VERSIONS[kind], lurm.__version__, config, fingerprints])
        folder = self._stages / f"{kind}-{key[:16]}"
        found = None
        if folder.exists():
            try:
                found = open_artifact(folder, kind)
            except ArtifactError as damage:
                self._reporter.say(f"{kind}: damaged, made anew ({damage})")
                discard(folder)
        if found is not None:
            self._skipped.append(kind)
            self._reporter.say(f"{kind}: nothing has changed, skipped")
        else:
            self._reporter.say(f"{kind}:")
            with draft(folder, kind=kind, key=key, config=config, parents=fingerprints) as work:
                make(work)
            found = open_artifact(folder, kind)
        self._done[kind] = found
        self._used.add(found.manifest.fingerprint)

    def _history(self, work: Draft, quarantine_file: Path) -> None:
        log, living = self._dataset.events, self._living
        quarantine_file.parent.mkdir(parents=True, exist_ok=True)
        with (
            Quarantine(quarantine_file, withheld=living.name_erased) as quarantine,
            tempfile.TemporaryDirectory(prefix=".spill.", suffix=".draft", dir=self._stages) as spill,
        ):
            builder = HistoryBuilder(
                Path(spill),
                n_rows=log.estimated_rows,
                memory_limit_bytes=self._memory_limit_bytes,
                files=log.names,
                live_files=living.names,
                quarantine=quarantine,
                max_bad_share=log.config.max_bad_share,
                duplicates=log.config.duplicates,
                timezone=log.config.timezone,
                event_ids=bool(log.columns.event_id),
                threads=self._threads,
                why_empty=self._dataset.why_empty,
            )
            with self._reporter.task("read events", log.n_rows, "rows") as task:
                for batch in ahead(log.batches(quarantine)):
                    builder.add(living.without_erased(batch))
                    task.advance(len(batch))
                for batch in living.batches(first_file=len(log.names), until=log.until):
                    builder.add(batch, live=True)
                    task.advance(len(batch))
            catalog = [] if self._items_table is None else self._items_table["item_id"].to_list()
            summary = builder.write(work.path, catalog, self._reporter)
        check_usable(summary)
        work.metrics.update(asdict(summary), live_through=dict(living.through))
        for line in (*log.remarks, *summary.in_words(dropped_before=self._base_before_dropped_duplicates())):
            self._reporter.say(f"  {line}")

    def _base_before_dropped_duplicates(self) -> bool | None:
        release = self._root / "releases" / (current(self._root) or "none")
        with suppress(ArtifactError):
            if read_manifest(release).config["name"] == self._dataset.name:
                return bool(read_manifest(release / "history").metrics["drops_duplicates"])
        return None

    def _attributes(self, work: Draft, history: HistoryBase) -> None:
        people = self._dataset.people()
        assert people is not None
        # A users table does not say since when it knows what: what it has of the erased is never taken again.
        table = self._living.without_erased_users(people.table)
        attributes, left_out = attributes_of(table, history.users, self._dataset.config.users.attributes)
        attributes.write(work.path)
        work.metrics.update(attributes=[asdict(one) for one in attributes.facts], left_out=left_out)
        names, why_not = ", ".join(one.name for one in attributes), [left_out_in_words(left_out)] if left_out else []
        for line in [names or "none", *why_not, *people.in_words()]:
            self._reporter.say(f"  {line}")

    def _items(self, work: Draft, history: HistoryBase) -> None:
        table = catalog_of(history, self._items_table)
        if "vector" in table.columns:
            vectors = given_items(table)
        else:
            vectors = learn_items(history, texts_of(table), self._recipe.item_embeddings, self._reporter)
        write_items(work.path, vectors, history.item_counts())
        work.metrics.update(n_items=len(vectors), dim=vectors.shape[1], given="vector" in table.columns)

    def _interests(self, work: Draft, history: HistoryBase) -> None:
        items = ItemEmbeddings(self._done["items"])
        config = self._recipe.interests
        seen = int((items.counts_n > 0).sum())
        k = config.size_for(seen)
        with self._reporter.task("cluster items", len(items.vectors_nd), "items") as task:
            clustering = cluster(items.vectors_nd, k, config)
            task.advance(len(items.vectors_nd), f"{k:,} interests, mean cosine {clustering.objective:.3f}")
        table = catalog_of(history, self._items_table)
        categories = column_of(table, "category")
        meanings = name_interests(
            clustering.labels_n, k, items.counts_n, table["item_id"].to_list(), column_of(table, "title"), categories
        )
        grain_n = grains(clustering, items.counts_n, config)
        rare = rarity(history, clustering.labels_n, grain_n, k)
        write_vocabulary(work.path, clustering, grain_n, rare, meanings)
        work.metrics.update(quality(clustering, items.counts_n, categories), n_grains=len(rare.idf_g))

    def _encoders(self, history: HistoryBase, vocabulary: InterestVocabulary) -> None:
        """The encoder, and what is trained beside it or before it."""
        recipe, parents = self._recipe, ("history", "interests")
        if BehaveGptModel.kind in recipe.in_turn:
            config = {"revision": BehaveGptModel.revision, **asdict(recipe.behavegpt)}
            if self._origin is not None:
                read = {kind: self._done[kind].manifest.fingerprint for kind in parents}
                config = self._origin.named_in(config, read)
            self._stage("behavegpt", config, parents, lambda work: self._behavegpt(work, history, vocabulary))
            self._trained("behavegpt")
        if recipe.embeddings == BehaveGptModel.kind:
            config = {"model": recipe.embeddings}
            self._stage("encoder", config, (*parents, recipe.embeddings), self._encoder_of_behavegpt)
            return
        config = {
            "model": KIND,
            "revision": REVISION,
            "network": recipe.encoder.for_log(history.span_ms).to_json(),
            "training": asdict(recipe.training),
            "behaviors": history.behaviors.ids.to_pylist(),
        }
        self._stage("encoder", config, parents, lambda work: self._encoder(work, history, vocabulary))
        self._trained("encoder")

    def _trained(self, kind: str) -> None:
        if kind in self._skipped:
            self._ranks.told()  # nothing to do

    def _checkpoint(self, work: Draft) -> Path:
        """Where the training of a stage is kept; what others of its kind have left is forgotten."""
        stage = work.path.name.split(".")[1]
        self._forget_checkpoints(stage.split("-")[0], but=self._stages / f".{stage}.checkpoint")
        return self._stages / f".{stage}.checkpoint"

    def _shared_checkpoint(self, work: Draft, *, goes_on: bool = False) -> Path:
        """The same of a training that all ranks share, and are now told to begin."""
        checkpoint = self._checkpoint(work)
        names = [self._done[kind].path.name for kind in ("history", "interests")]
        self._ranks.told(orjson.dumps([*names, checkpoint.name, goes_on]))
        return checkpoint

    def _behavegpt(self, work: Draft, history: HistoryBase, vocabulary: InterestVocabulary) -> None:
        checkpoint = self._shared_checkpoint(work, goes_on=self._origin is not None)
        rest = self._recipe, checkpoint, self._reporter, self._ranks, self._origin
        model, outcome = train_next(history, vocabulary, *rest)
        write_model(work.path, model)
        work.metrics.update(asdict(outcome))
        self._reporter.say(f"  {outcome}")

    def _encoder_of_behavegpt(self, work: Draft) -> None:
        model = self._done["behavegpt"]
        for file in model.manifest.files:
            link_or_copy(model.path / file, work.path / file)
        work.metrics.update(model.manifest.metrics)

    def _encoder(self, work: Draft, history: HistoryBase, vocabulary: InterestVocabulary) -> None:
        checkpoint = self._shared_checkpoint(work)
        network, _, outcome = train_smen(history, vocabulary, self._recipe, checkpoint, self._reporter, self._ranks)
        write_encoder(work.path, network, history.behaviors.ids.to_pylist())
        usage = network.usage().mean(0).tolist()
        work.metrics.update(asdict(outcome), anchor_usage=usage)
        self._reporter.say(f"  {outcome}, anchors used {', '.join(f'{u:.0%}' for u in usage)}")

    def _align(self, history: HistoryBase, vocabulary: InterestVocabulary, old: Release) -> None:
        """Put the same encoder, turned into the space of an older release, in its place."""
        trained = self._done["encoder"]

        def turned(work: Draft) -> None:
            encoder = open_encoder(trained.path, vocabulary, verify=False)
            rotation_ee, alignment = align(encoder, history, vocabulary, old, self._known(history))
            for file in trained.manifest.files:
                link_or_copy(trained.path / file, work.path / file)
            write_array(work.path / ROTATION, rotation_ee)
            work.metrics.update(trained.manifest.metrics, alignment=asdict(alignment))
            self._reporter.say(f"  {alignment}")

        config = {**trained.manifest.config, "aligned_to": old.space_id, "by": old.release_id}
        self._stage("encoder", config, ("history", "interests", "encoder"), turned)

    def _lumos(self, work: Draft, history: HistoryBase, vocabulary: InterestVocabulary, calendar: Calendar) -> None:
        parts, kept = (history, vocabulary, self._known(history), calendar, self._recipe.lumos), self._checkpoint(work)
        with threadpool_limits(limits=1, user_api="openmp"):
            forecaster, trained = forecasting.train(*parts, checkpoint=kept, reporter=self._reporter)
        forecaster.write(work.path)
        work.metrics.update(forecasting.facts_of(forecaster, trained))
        self._reporter.say(f"  {trained}")

    def _known(self, history: HistoryBase) -> Attributes:
        """The attributes of users; none where the dataset has no table of them."""
        return Attributes.of(self._done["attributes"]) if "attributes" in self._done else Attributes(len(history))

    def _embeddings(self, work: Draft, history: HistoryBase, encoder: UserEncoder) -> None:
        with (
            EmbeddingsWriter(work.path, encoder.dim) as embeddings,
            self._reporter.task("embed", len(history), "users") as task,
        ):
            for batch, vectors_be in embed_all(encoder, history, self._threads):
                embeddings.append(batch, vectors_be)
                task.advance(len(batch))
        work.metrics.update(n_users=len(history), dim=encoder.dim)

    def _index(self, work: Draft, vectors: NDArray[np.float32]) -> None:
        with self._reporter.task("index", len(vectors), "users") as task:
            work.metrics.update(write_index(work.path, vectors, seed=self._recipe.seed))
            task.advance(len(vectors))

    def _hold(self, subject: Subject) -> Diagnostics:
        """The diagnostics of what is to be published.

        Raises:
            GateClosed: it does not hold what the gate of the recipe asks.
        """
        active = current(self._root)
        before = self._old if self._old is not None and self._old.release_id == active else None
        if before is None and active is not None:
            try:
                before = Release.open(self._root, active)
            except ArtifactError as damage:
                self._reporter.say(f"gate: drift is not measured, the active release cannot be read ({damage})")
        diagnostics = examine(subject, before=before, seed=self._recipe.seed, reporter=self._reporter)
        if broken := breaches(diagnostics, self._recipe.gate):
            raise GateClosed(
                f"the release was not published: {'; '.join(map(str, broken))}; the stages are kept, so a build with "
                "a changed recipe goes on from them"
            )
        return diagnostics

    @functools.cached_property
    def _items_table(self) -> pl.DataFrame | None:
        """Read when the first stage needs it, and once."""
        return self._dataset.items(told=lambda line: self._reporter.say(f"  {line}"))

    def _metrics(self, history: HistoryBase, vocabulary: InterestVocabulary, encoder: UserEncoder) -> dict[str, Any]:
        ingested = self._done["history"].manifest.metrics
        trained = self._done["encoder"].manifest.metrics
        return {
            "n_users": len(history),
            "n_events": history.n_events,
            "n_items": len(history.items),
            "n_interests": len(vocabulary),
            "dim": encoder.dim,
            "first_at": ingested["first_at"],
            "watermark": history.watermark,
            "n_bad": ingested["n_bad"],
            "n_duplicates": ingested["n_duplicates"],
            "interests": dict(self._done["interests"].manifest.metrics),
            **{name: trained[name] for name in _OF_TRAINING if name in trained},
            **{name: dict(self._done[name].manifest.metrics) for name in self._recipe.beside},
        }

    def _forget_checkpoints(self, kind: str, but: Path | None = None) -> None:
        for checkpoint in self._stages.glob(f".{kind}-*.checkpoint"):
            if checkpoint != but:
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _forget_unused(self) -> None:
        """Remove stages that neither this build nor any release uses."""
        try:
            used = referenced(self._root) | self._used
        except ArtifactError as damage:
            self._reporter.say(f"unused stages are kept: {damage}")
            return
        for folder in unused_stages(self._root, used):
            discard(folder)
