"""Models of the JSON files in the folders of this package. They validate the keys that the code uses.

Types are strict (no text in place of a number), numbers are finite, and counts fit into 64 bits. Other keys are kept
without validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, RootModel

from starfc.runtime.defaults import KNN_FORMER
from starfc.runtime.words import counted


def _text(value: Any) -> str:
    # pydantic's own str rejects file names that are not UTF-8; control characters could change a terminal
    if not isinstance(value, str) or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise ValueError("must be text without control characters")
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
    """An object. The named keys are validated, and all keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """Return the object as it was read."""
        return self.model_dump(exclude_unset=True)


class Anything(RootModel[dict[str, Any]]):
    """Any object."""


class Whatever(RootModel[Any]):
    """Any value."""


class NameList(RootModel[list[Text]]):
    """``.next/commit.json`` and ``remove.json``: names of files to move into the folder, or to remove."""


class ListedFile(Record):
    """A file that a command wrote: its size, its digest, and the command (``by``).

    Without a digest the file may have grown, and ``bytes`` is its minimum size.
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


class ScoreRecord(Record):
    """Precision, recall and F-score of a metric."""

    precision: float
    recall: float
    fscore: float


class KeptRecord(Record):
    """The edges that a threshold kept, and their connected components."""

    edges: Count
    share: float
    components: Count
    largest: Count
    largest_share: float


class SizeRange(Record):
    """The number of clusters and instances in a range of cluster sizes."""

    low: Count
    high: Count
    clusters: Count
    instances: Count


class Diagnostics(Record):
    """The edges that each stage kept (:func:`starfc.clustering.diagnostics.diagnose`)."""

    candidates: Count
    parsed: KeptRecord
    refined: KeptRecord
    sizes: list[SizeRange]
    giant_share: Share


class EstimateRecord(Record):
    """The expected scores, estimated without labels."""

    precision: float
    recall: float
    fscore: float
    bcubed: float
    agreement: float | None = None


class ChoiceRecord(Record):
    """A setting that was chosen, and the reason."""

    reason: Text


class StageRecord(Record):
    """Seconds and peak memory of a stage."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    seconds: Amount
    peak_rss_mb: Amount


class StepRecord(Record):
    """The result of one step of ``starfc assign``."""

    removed: list[Count]
    next_label: Count


class ThresholdsRecord(Record):
    """A pair of thresholds."""

    tau1: Share
    tau2: Share


class StoredThresholds(Record):
    """``thresholds.json``."""

    fixed: ThresholdsRecord | None = None
    dynamic: ThresholdsRecord | None = None


class PartitionConfig(Record):
    """``partition`` in the config of a run."""

    resolution: Amount | None = None


class TestData(Record):
    """``test_data`` in the config of a run."""

    knn_graph_path: Text | None = None


class RunConfig(Record):
    """The keys of a run's config that later commands use."""

    knn: Neighbours
    knn_method: Annotated[Literal["exact", "torch", "faiss_gpu", "ivf"], BeforeValidator(_search)] = "exact"
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

    k: Annotated[int, Field(ge=0, lt=2**20)]  # 0: there was nothing to search


class RunRecord(Record):
    """``run.json`` of a clustering."""

    metrics: dict[Text, ScoreRecord | float]
    labelled: bool
    num_clusters: Count
    num_instances: Count
    num_singletons: Count
    min_cluster_size: Count = 1
    num_left_out: Count = 0
    num_copies: Count = 0
    refinement: Literal["fixed", "dynamic"]
    partition: Literal["components", "infomap", "leiden"]
    thresholds: ThresholdsRecord
    choices: dict[Text, ChoiceRecord] = {}
    doubts: list[Text] = []
    estimate: EstimateRecord | None = None
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
    applied: Count = 0
    next_label: Count | None = None


class ExportRecord(Record):
    """``export.json`` of a folder of sorted files (:mod:`starfc.runs.folders`)."""

    format: Literal["starfc-export"]
    version: Literal[1]
    digest: Text


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


class AskedManifest(Record):
    """``asked/manifest.json`` (:mod:`starfc.runs.asked`)."""

    key: Text
    labels: Text


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
    recalls: dict[str, Any] = {}


class StateManifest(Record):
    """``state/manifest.json``: the state that ``starfc assign`` continues from."""

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


class CheckpointKind(Record):
    """The description of a model in a training checkpoint (:func:`starfc.models.checkpoint.describe`)."""

    structural: bool = False
    scales: Annotated[list[Neighbours], Field(min_length=3, max_length=3)] | None = None
    offsets: list[Neighbours] = []


class PhaseRecord(Record):
    """A phase of a kNN search: cells of a partition were probed, or lists were swept."""

    kind: Literal["cells", "sweep"]
    number: Count  # of the partition, or of the sweep
    probes: Count = 0
    recalls: dict[str, Any] = {}  # measured after the phase


class SearchProgress(Record):
    """``done.json`` of an unfinished kNN search."""

    finished: list[PhaseRecord]
    present: PhaseRecord | None = None
    before: dict[Annotated[str, Field(pattern=r"^\d+$")], Text]  # digest of each chunk of the last finished phase
    done: dict[Annotated[str, Field(pattern=r"^\d+$")], Text]  # digest of each stored chunk of the present phase


class SamplesRecord(Record):
    """``done-early.json`` and ``done-both.json`` of an unfinished training on kinds."""

    before: Text  # digest of the scorer that the samples were made with; empty for none
    files: dict[str, Text]  # digest of each file of samples


class ScalesOf(Record):
    """The keys that are used of the config stored with the weights of a hierarchical model."""

    class _Scales(Record):
        scales: Annotated[list[Neighbours], Field(min_length=3, max_length=3)]

    hierarchical: _Scales


class Taken(Record):
    """The rows that a step removed."""

    removed: list[Count] = []


class Removals(Record):
    """The part of ``run.json`` that lists removed rows."""

    steps: list[Taken] = []


def changed_since(record: Mapping[str, Any]) -> str | None:
    """Describe the instances added and removed since a run was clustered. Return None if there are none."""
    steps = record.get("steps", [])
    if not steps:
        return None
    added, removed = sum(step["added"] for step in steps), sum(len(step["removed"]) for step in steps)
    times = "once" if len(steps) == 1 else f"{len(steps):,} times"
    return f"{times}, last on {steps[-1]['time']}: {counted(added, 'instance')} added, {removed:,} removed"
