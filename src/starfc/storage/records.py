"""What the JSON files of this product's folders hold: models that validate what the code uses, and keep the rest.

Types are strict (no text where a number belongs), numbers finite, and counts fit into 64 bits. Keys that are not named
here are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, RootModel

from starfc.runtime.defaults import KNN_FORMER
from starfc.runtime.words import counted


def _text(value: Any) -> str:
    # pydantic's own text refuses names of files that are not UTF-8; what controls a terminal is no name
    if not isinstance(value, str) or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise ValueError("text without control characters needed")
    return value


def _search(value: Any) -> Any:
    return KNN_FORMER.get(value, value) if isinstance(value, str) else value


Text = Annotated[str, PlainValidator(_text)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Neighbours = Annotated[int, Field(ge=1, lt=2**20)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """An object of which some keys are validated and all are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """The object as it was given."""
        return self.model_dump(exclude_unset=True)


class Anything(RootModel[dict[str, Any]]):
    """Any object."""


class Whatever(RootModel[Any]):
    """Any value."""


class NameList(RootModel[list[Text]]):
    """``.next/commit.json`` and ``remove.json``: names of files that are to take their places, or to go."""


class ListedFile(Record):
    """A file as a command left it: its size, and its digest; without one the size is the least that it has.

    ``by`` is that command, where others wrote into the folder, too.
    """

    bytes: Count
    digest: Text | None
    by: Text = ""


class FileList(Record):
    """``files.json``: every file that a command wrote into a folder."""

    format: Literal[1]
    id: Text
    command: Text
    files: dict[str, ListedFile]


class Score(Record):
    """Precision, recall and F-score of a metric."""

    precision: float
    recall: float
    fscore: float


class Kept(Record):
    """What a threshold left of the edges."""

    edges: Count
    share: float
    components: Count
    largest: Count
    largest_share: float


class SizeRange(Record):
    """Clusters of a range of sizes."""

    low: Count
    high: Count
    clusters: Count
    instances: Count


class Diagnostics(Record):
    """What each stage kept (:func:`starfc.clustering.diagnostics.diagnose`)."""

    candidates: Count
    parsed: Kept
    refined: Kept
    sizes: list[SizeRange]
    giant_share: Share


class Estimate(Record):
    """What is to be expected without labels."""

    precision: float
    recall: float
    fscore: float
    bcubed: float
    agreement: float | None = None


class Choice(Record):
    """A value that was chosen, and why."""

    reason: Text


class StageRecord(Record):
    """Seconds and peak memory of a stage."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    seconds: Amount
    peak_rss_mb: Amount


class StepRecord(Record):
    """What a step of ``starfc assign`` did."""

    removed: list[Count]
    next_label: Count


class Thresholds(Record):
    """A pair of thresholds."""

    tau1: Share
    tau2: Share


class StoredThresholds(Record):
    """``thresholds.json``."""

    fixed: Thresholds | None = None
    dynamic: Thresholds | None = None


class PartitionConfig(Record):
    """Of a run's config."""

    resolution: Amount | None = None


class TestData(Record):
    """Of a run's config."""

    knn_graph_path: Text | None = None


class RunConfig(Record):
    """What is used of the config that a run's record holds."""

    knn: Neighbours
    knn_method: Annotated[Literal["exact", "faiss_gpu", "ivf"], BeforeValidator(_search)] = "exact"
    knn_params: dict[str, Positive] = {}
    knn_recall: Share = 1.0
    th_sim: Share = 0.0
    seed: Count = 0
    copies: Literal["collapse", "keep"] = "collapse"
    invalid_rows: Literal["error", "singleton"] = "error"
    metrics: list[Literal["pairwise", "bcubed", "nmi"]] = []
    partition: PartitionConfig = PartitionConfig()
    test_data: TestData = TestData()


class GraphInfo(Record):
    """The kNN graph that a run used."""

    k: Annotated[int, Field(ge=0, lt=2**20)]  # 0 where there was nothing to search


class RunRecord(Record):
    """``run.json`` of a clustering."""

    metrics: dict[Text, Score | float]
    labelled: bool
    num_clusters: Count
    num_instances: Count
    num_singletons: Count
    min_cluster_size: Count = 1
    num_left_out: Count = 0
    num_copies: Count = 0
    refinement: Literal["fixed", "dynamic"]
    partition: Literal["components", "infomap", "leiden"]
    thresholds: Thresholds
    choices: dict[Text, Choice] = {}
    doubts: list[Text] = []
    estimate: Estimate | None = None
    diagnostics: Diagnostics
    knn_graph: GraphInfo
    stages: list[StageRecord]
    config: RunConfig
    features: Text
    features_fingerprint: Text | None = None
    feature_dim: Positive
    normalise: bool
    model: Text
    started: Text
    steps: list[StepRecord] = []


class TrainingRecord(Record):
    """``run.json`` of a training."""

    config: dict[str, Any]
    started: Text
    resumed: list[dict[str, Any]] = []


class EdgesManifest(Record):
    """``edges/manifest.json``."""

    num_nodes: Count
    num_entries: Count
    symmetric: bool


class GraphManifest(Record):
    """``manifest.json`` of a kNN graph's folder."""

    format: Count
    num_nodes: Count
    k: Neighbours
    fingerprint: Text
    backend: Text = ""
    params: dict[str, Any] = {}
    recall: Share | None = None
    recall_rows: Count | None = None


class StateManifest(Record):
    """``state/manifest.json``: what instances are added to."""

    format: Count
    run: Text
    num_rows: Count
    feature_dim: Positive
    dtype: Literal["<f2", "<f4", "<f8"]
    normalise: bool
    next_label: Count
    suspects: list[Count]
    steps: list[Annotated[str, Field(pattern=r"^step-\d{1,9}\.npz$")]] = []
    fingerprint: Text | None = None


class ModelKind(Record):
    """What a training checkpoint says of its model (:func:`starfc.models.checkpoint.describe`)."""

    structural: bool = False
    scales: Annotated[list[Neighbours], Field(min_length=3, max_length=3)] | None = None
    offsets: list[Neighbours] = []


class SearchProgress(Record):
    """``done.json`` of a kNN search that is under way."""

    probes: Positive
    done: dict[str, Text]  # digests of the chunks that are stored, by their first row


class ScalesOf(Record):
    """What is used of the config beside a hierarchical model's weights."""

    class _Scales(Record):
        scales: Annotated[list[Neighbours], Field(min_length=3, max_length=3)]

    hierarchical: _Scales


class Taken(Record):
    """Rows that a step took out."""

    removed: list[Count] = []


class Removals(Record):
    """What of ``run.json`` says which rows were taken out since."""

    steps: list[Taken] = []


def changed_since(record: Mapping[str, Any]) -> str | None:
    """What was added and removed since the clustering of a run's record, in words; None where that is nothing."""
    steps = record.get("steps", [])
    if not steps:
        return None
    added, removed = sum(step["added"] for step in steps), sum(len(step["removed"]) for step in steps)
    times = "once" if len(steps) == 1 else f"{len(steps):,} times"
    return f"{times}, last on {steps[-1]['time']}: {counted(added, 'instance')} added, {removed:,} removed"
