"""Config files: read Python modules (mmengine ``Config`` with ``_base_`` inheritance) into validated dataclasses.

Paths may contain ``{prefix}``, ``{train_name}``, ``{test_name}``, ``{knn_method}`` and ``{knn}``. These names are
filled in after the overrides, so ``--cfg-options test_name=part3_test`` changes every path of the test split.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from starfc.config.published import RETIRED, with_effect, with_shares
from starfc.config.schema import build, merged, nested, option, size_in_bytes
from starfc.errors import InputError, MissingFileError
from starfc.models.kinds import HIERARCHICAL, KINDS, ModelKind
from starfc.runtime import defaults
from starfc.runtime.words import CONFIG, use, word
from starfc.storage.atomic import write_json
from starfc.storage.opened import OpenedFolder, opened
from starfc.storage.records import Anything
from starfc.storage.safe import read_json

log = logging.getLogger("starfc")

MODELS = tuple(KINDS)


@dataclass(frozen=True)
class TrainData:
    """Paths of the labelled training split."""

    feat_path: str = option("{prefix}/features/{train_name}", "features; without a suffix all known ones are tried")
    key: str | None = option(
        None, "array in an .npz or dataset in an .h5; None: the only one, or the one with a known name"
    )
    label_path: str = option("{prefix}/labels/{train_name}", "labels; without a suffix all known ones are tried")
    is_norm_feat: bool = option(True, "L2-normalise the features when they are read")


@dataclass(frozen=True)
class TestData:
    """Paths of the split to cluster. Labels are optional."""

    feat_path: str = option("{prefix}/features/{test_name}", "features; without a suffix all known ones are tried")
    key: str | None = option(
        None, "array in an .npz or dataset in an .h5; None: the only one, or the one with a known name"
    )
    label_path: str | None = option("{prefix}/labels/{test_name}", "labels; None: there are none")
    knn_graph_path: str | None = option(
        "{prefix}/knns/{test_name}/{knn_method}_k_{knn}",
        "kNN graph: a folder, or a published .npz; it is read if it exists, or else built and stored; None: not stored",
    )
    is_norm_feat: bool = option(True, "L2-normalise the features when they are read")


@dataclass(frozen=True)
class ModelKwargs:
    """Widths, regularisation and initial weights of the network."""

    feature_dim: int = option(256, "feature dimension d", low=1)
    nhid: int = option(512, "hidden width h", low=1)
    dropout: float = option(0.0, "share of the entries of node embeddings that training drops", low=0, high=0.95)
    init: str = option("xavier", "initial weights; metric: an L1 distance", choices=("xavier", "metric"))


@dataclass(frozen=True)
class ModelOptions:
    """The network."""

    type: str = option(
        "gcn",
        "gcn: one graph (CVPR); hierarchical: nested graphs of three k (TPAMI); gcn_structural: p from the structure "
        "of the kNN graph; gcn_structural_any: also from the context of the data set, for any embedding",
        choices=MODELS,
    )
    kwargs: ModelKwargs = option(factory=ModelKwargs)


@dataclass(frozen=True)
class Hierarchical:
    """Nested graphs of several k (model.type 'hierarchical'). As in `knn`, the node itself is one of its neighbours."""

    k_mid: int = option(100, "neighbours of the middle graph in training", low=3)
    offsets: list[int] = option(factory=lambda: list(defaults.OFFSETS), help="differences in k to draw from", low=1)
    balance: float = option(1.0, "weight λ of the term that keeps all three scales in use", low=0)
    patch_edges: int = option(120_000, "edges per patch; each patch is one optimiser step", low=1)
    offset_lr: float = option(0.001, "learning rate of the offset learner, one step per subgraph", low=0)
    selector_precision: str = option(
        "float32", "number type of the scale selector's products in training", choices=("float32", "bfloat16")
    )
    scales: list[int] = option(factory=lambda: list(defaults.SCALES), help="k of the three graphs at inference", low=2)


@dataclass(frozen=True)
class Structural:
    """Edge confidence from the structure of the kNN graph (model.type 'gcn_structural')."""

    candidates: int = option(40, "nearest neighbours of a node that become candidate edges", low=1)
    smoothing: int = option(10, "neighbours in the graph convolution; 0: no convolution", low=0)
    rounds: int = option(2, "scoring rounds; the second one uses the p of the first one", low=1, high=2)


@dataclass(frozen=True)
class Kinds:
    """Training on many kinds of data (model.type 'gcn_structural_any')."""

    first: int = option(1800, "kinds of data to train the early first round on", low=12)
    second: int = option(6600, "other kinds of data to train the second round on", low=12)
    edges: int = option(6000, "training edges per kind", low=64)
    members: int = option(4, "scorers per round, trained separately; their mean logit is used", low=1, high=16)
    steps: int = option(3000, "optimiser steps per scorer", low=10)
    batch: int = option(4096, "edges per step, 64 of each of some kinds", low=64)
    lr: float = option(3e-3, "highest learning rate of the one-cycle schedule", low=0)
    weight_decay: float = option(1e-3, "weight decay of AdamW", low=0)


@dataclass(frozen=True)
class PartitionOptions:
    """The method that turns the edges kept by graph parsing into clusters."""

    type: str = option(
        "components",
        "components: of the edges that node intimacy keeps, as published; infomap, leiden: communities of all edges",
        choices=defaults.PARTITIONS,
    )
    resolution: float = option(defaults.RESOLUTION, "Leiden's resolution (CPM): higher gives more clusters", low=0)


@dataclass(frozen=True)
class Dynamic:
    """Thresholds of test_dynamic.py: undirected edges, node intimacy above tau2 / (0.85^(10 b) + 1)."""

    tau1: float | None = option(None, "keep edges with p > tau1; None: the default of model.type", low=0, high=1)
    tau2: float | None = option(None, "ceiling of the threshold; None: the default of model.type", low=0, high=1)


@dataclass(frozen=True)
class Optimizer:
    """The optimiser of torch."""

    type: str = option("SGD", "optimiser", choices=("SGD", "AdamW"))
    lr: float = option(0.01, "learning rate (policy onecycle: the highest)", low=0)
    momentum: float = option(0.9, "momentum (SGD only)", low=0, high=1)
    weight_decay: float = option(1e-5, "weight decay", low=0)


@dataclass(frozen=True)
class LrConfig:
    """Learning-rate schedule."""

    policy: str = option(
        "step", "step: divide by 10 at each of `step`; onecycle: rise, then fall to 0", choices=("step", "onecycle")
    )
    step: list[float] = option(
        factory=list,
        help="epochs at which the rate is divided by 10 (policy step); numbers below 1 are shares of total_epochs",
        low=0,
    )
    warmup: float = option(0.3, "share of all steps in which the rate rises (policy onecycle)", low=0, high=1)


@dataclass(frozen=True)
class Sampling:
    """Structure-preserved subgraph sampling (SPSS). A subgraph has `cluster_num` identities."""

    nearest: int | None = option(None, "draw from so many identities near the seed; None: cluster_num + 200", low=1)
    instance_share: float = option(0.9, "share of the instances of a drawn identity that are used", low=0, high=1)
    patches: int = option(40, "patches that the edges of a subgraph are cut into; each is one optimiser step", low=1)
    passes: int = option(2, "passes over the patches of a subgraph", low=1)
    min_nodes: int = option(100, "smaller subgraphs are skipped", low=2)
    max_nodes: int = option(100_000, "larger subgraphs are skipped", low=2)
    rotation: float = option(0.0, "strength of a random rotation of the features; 0: none, as published", low=0)
    subgraphs_per_epoch: int | None = option(None, "subgraphs per epoch; None: each identity is the seed once", low=1)


@dataclass(frozen=True)
class Validation:
    """The data for validation, and the identities to hold out of training, on which thresholds are chosen."""

    source: str = option(
        "test",
        "test: the test split; holdout: identities held out of training; none: no validation",
        choices=("test", "holdout", "none"),
    )
    holdout_share: float = option(0.0, "share of the training identities that are held out", low=0, high=0.9)
    holdout_group: int = option(100, "identities are held out in groups of this many look-alikes", low=1)
    interval: int | None = option(None, "subgraphs between validations; None: only at the end of each epoch", low=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints within an epoch. One is always written at its end; that of the best validation is kept."""

    interval: int = option(100, "subgraphs between checkpoints", low=1)
    keep: int = option(3, "number of newest checkpoints to keep", low=1)


@dataclass(frozen=True)
class LogConfig:
    """The training log."""

    interval: int = option(1, "subgraphs between entries", low=1)
    hooks: list[dict] = option(
        factory=lambda: [{"type": "TextLoggerHook"}], help="TextLoggerHook, TensorboardLoggerHook"
    )


@dataclass(frozen=True)
class Config:
    """All settings of a run: data, graph, network, training, inference, machine."""

    prefix: str = option("data", "folder of features/, labels/ and knns/")
    train_name: str = option("part0_train", "training split")
    test_name: str = option("part1_test", "split to cluster")
    knn: int = option(80, "neighbours per node k, the node itself included (as in the published files)", low=2)
    knn_method: str = option("exact", "ivf: approximate", choices=defaults.KNN_METHODS, former=defaults.KNN_FORMER)
    knn_params: dict = option(
        factory=dict, help="ivf: nlist, nprobe, partitions, sweeps; by default they are chosen automatically"
    )
    knn_recall: float = option(defaults.RECALL, "ivf: share of the edges that matter (p > 0.5) to find", low=0, high=1)
    th_sim: float = option(0.0, "kNN entries below this similarity are not in the affinity graph", low=0, high=1)
    cluster_num: int = option(1300, "identities per training subgraph", low=1)
    train_data: TrainData = option(factory=TrainData)
    test_data: TestData = option(factory=TestData)
    invalid_rows: str = option("error", "rows with NaN, infinity or only zeros", choices=("error", "singleton"))
    copies: str = option(
        "collapse",
        "rows with the same direction, for structural models: cluster one and copy its label, or keep all of them",
        choices=("collapse", "keep"),
    )
    adapt: str = option(
        "auto",
        "with model.type 'gcn_structural_any' and 'infomap': whether to train the scorer further on the clusters found",
        choices=("auto", "off"),
    )
    reach: str = option(
        "auto",
        "with model.type 'gcn_structural_any': whether to join and divide clusters as samples of the rows do",
        choices=("auto", "off"),
    )
    model: ModelOptions = option(factory=ModelOptions)
    hierarchical: Hierarchical = option(factory=Hierarchical)
    structural: Structural = option(factory=Structural)
    kinds: Kinds = option(factory=Kinds)
    optimizer: Optimizer = option(factory=Optimizer)
    total_epochs: int = option(4, "epochs: passes over the identities", low=1)
    lr_config: LrConfig = option(factory=LrConfig)
    sampling: Sampling = option(factory=Sampling)
    validation: Validation = option(factory=Validation)
    metrics: list[str] = option(factory=lambda: list(defaults.METRICS), help="metrics", choices=defaults.METRICS)
    checkpoint_config: CheckpointConfig = option(factory=CheckpointConfig)
    log_level: str = option("INFO", "log level", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    log_config: LogConfig = option(factory=LogConfig)
    pretrained: str = option("pretrained_model", "folder of the weights for inference")
    tau1: float | None = option(None, "keep edges with p > tau1; None: the default of model.type", low=0, high=1)
    tau2: float | None = option(None, "keep edges with NI > tau2; None: the default of model.type", low=0, high=1)
    dynamic: Dynamic = option(factory=Dynamic)
    partition: PartitionOptions = option(factory=PartitionOptions)
    giant_share: float = option(
        0.1, "warn of a component that holds more than this share of the instances", low=0, high=1
    )
    seed: int = option(0, "seed of all random numbers", low=0, high=2**62)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, "CPU threads; None: one per core", low=1)
    memory_limit: str | None = option(None, "memory limit of the process, such as '16GB'; None: no limit")
    device_memory: str | None = option(None, "memory limit on the device, such as '8GB'; None: what is free there")

    @property
    def kind(self) -> ModelKind:
        """Return the kind of model that ``model.type`` names."""
        return KINDS[self.model.type]

    def contradictions(self) -> list[tuple[str, str]]:
        """Return the problems that involve several keys: pairs of a key and the reason."""
        s, found = self.sampling, []
        if s.nearest is not None and s.nearest < self.cluster_num:
            needed = f"at least {word('cluster_num')} ({self.cluster_num})"
            found.append(("sampling.nearest", f"must be {needed}; found {s.nearest}"))
        if s.min_nodes > s.max_nodes:
            needed = f"at most {word('sampling.max_nodes')} ({s.max_nodes})"
            found.append(("sampling.min_nodes", f"must be {needed}; found {s.min_nodes}"))
        if self.validation.source == "holdout" and self.validation.holdout_share == 0:
            found.append(("validation.source", f"'holdout' needs {word('validation.holdout_share')} above 0; found 0"))
        if self.kind is HIERARCHICAL:
            found += self._hierarchical_contradictions()
        if self.kind.structural and self.th_sim > 0:
            found.append(("th_sim", f"must be 0 for structural models, which compare whole lists; found {self.th_sim}"))
        if self.kind.structural and self.knn - 1 > defaults.MOST_NEIGHBOURS:
            most = f"must be at most {defaults.MOST_NEIGHBOURS + 1} for the packaged model and other structural models"
            found.append(("knn", f"{most}; found {self.knn}"))
        hooks = [hook.get("type") for hook in self.log_config.hooks]
        found += [
            ("log_config.hooks", f"must be TextLoggerHook or TensorboardLoggerHook; found {hook!r}")
            for hook in hooks
            if hook not in ("TextLoggerHook", "TensorboardLoggerHook")
        ]
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            found.append(("device", f"must be auto, cpu, cuda or cuda:N; found {self.device!r}"))
        allowed = defaults.KNN_PARAMS.get(self.knn_method, ())
        found += [
            (f"knn_params.{key}", f"{self.knn_method!r} accepts whole numbers above 0 for {allowed}; found {value!r}")
            for key, value in self.knn_params.items()
            if key not in allowed or not isinstance(value, int) or value < (0 if key == "sweeps" else 1)
        ]
        for name, path in self._templates().items():
            try:
                self._fill(path)
            except (KeyError, IndexError, ValueError):
                found.append((name, f"the allowed names in braces are {', '.join(self._names())}; found {path!r}"))
        for name in ("memory_limit", "device_memory"):
            try:
                size_in_bytes(getattr(self, name))
            except ValueError as error:
                found.append((name, str(error)))
        return found

    def _hierarchical_contradictions(self) -> list[tuple[str, str]]:
        h, found = self.hierarchical, []
        if len(set(h.offsets)) < 2 or max(h.offsets) > h.k_mid - 2:
            needed = f"must be two or more different numbers, at most k_mid - 2 ({h.k_mid - 2})"
            found.append(("hierarchical.offsets", f"{needed}; found {h.offsets}"))
        if len(h.scales) != 3 or sorted(set(h.scales)) != h.scales:
            found.append(("hierarchical.scales", f"must be three rising numbers of neighbours; found {h.scales}"))
        elif h.scales[-1] != self.knn:
            found.append(("knn", f"must be the largest of hierarchical.scales, {h.scales[-1]}; found {self.knn}"))
        if self.model.kwargs.nhid % 4:
            found.append(
                ("model.kwargs.nhid", f"must be a multiple of 4, the number of heads; found {self.model.kwargs.nhid}")
            )
        return found

    @property
    def milestones(self) -> list[int]:
        """Return the epochs after which the learning rate is divided by 10, if the run reaches them (policy step)."""
        total = self.total_epochs
        epochs = [int(step * total + 1e-9) if step < 1 else int(step) for step in self.lr_config.step]
        return [epoch for epoch in epochs if 0 < epoch < total]

    def path(self, template: str) -> Path:
        """Return a path of this config with its names in braces filled in."""
        return Path(self._fill(template))

    @property
    def test_graph_path(self) -> Path | None:
        """Return the path of the test split's kNN graph. None if the config names none."""
        named = self.test_data.knn_graph_path
        return None if named is None else self.path(named)

    def memory_limit_bytes(self) -> int | None:
        """Return the memory limit in bytes. None if there is no limit."""
        return size_in_bytes(self.memory_limit)

    def device_memory_bytes(self) -> int | None:
        """Return the limit of the device's memory in bytes. None if there is no limit."""
        return size_in_bytes(self.device_memory)

    def as_dict(self) -> dict[str, Any]:
        """Return the config as a nested dictionary with paths filled in, for the record of a run."""
        resolved = asdict(self) | {key: os.path.normpath(getattr(self, key)) for key in ("prefix", "pretrained")}
        for split in ("train_data", "test_data"):
            for key, value in resolved[split].items():
                if isinstance(value, str) and key != "key":
                    resolved[split][key] = self._fill(value)
        return resolved

    def _names(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("prefix", "train_name", "test_name", "knn_method", "knn")}

    def _fill(self, template: str) -> str:
        names, filled = self._names(), ""
        for text, name, form, conversion in Formatter().parse(template):
            if form or conversion:
                raise ValueError(template)  # format specifications are not supported
            filled += text + ("" if name is None else str(names[name]))
        return os.path.normpath(filled)

    def _templates(self) -> dict[str, str]:
        splits = {"train_data": asdict(self.train_data), "test_data": asdict(self.test_data)}
        paths = {f"{name}.{key}": value for name, split in splits.items() for key, value in split.items()}
        return {name: value for name, value in paths.items() if isinstance(value, str) and not name.endswith(".key")}


def save_config(config: Config, path: str | Path) -> None:
    """Write a config as JSON that :func:`load_config` reads. Names in braces are not filled in."""
    write_json(path, asdict(config))


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply overrides (dotted keys), and validate the values.

    Configs of the published code are accepted. One warning lists keys that have no effect or repeat the value of
    another key; a different value is an error. If only ``total_epochs`` is overridden, the epochs of ``lr_config.step``
    are scaled with it. A ``.py`` is executed, with the files that it inherits from. A ``.json`` is only data.

    Raises
    ------
    MissingFileError, InputError
        There is no such file, it is no config, or values break rules. The message lists all problems.
    """
    path, overrides = Path(path), dict(overrides or {})
    if not path.is_file():
        raise MissingFileError(f"{path}: no such config file; the shipped ones are in configs/")
    if path.suffix == ".json":
        return _config_of(read_json(path, Anything, follow=True), path, overrides)
    if path.suffix != ".py":
        raise InputError(
            f"{path}: a config must be a .py, or the .json of a training run; found {path.suffix or 'no suffix'!r}"
        )
    from mmengine.config import Config as FileConfig

    try:
        given = FileConfig.fromfile(str(path), lazy_import=False)._cfg_dict.to_dict()
        # before the overrides: an override of knn may differ from the k of the splits in the file
        values, ignored = with_effect(given, asdict(Config()))
        both = FileConfig(values)
        both.merge_from_dict(overrides)
        values, more = with_effect(both._cfg_dict.to_dict(), asdict(Config()))
    except Exception as error:  # the config is a Python module and may raise any error
        raise InputError(f"{path}: not a readable config ({type(error).__name__}: {error})") from error
    if "total_epochs" in overrides and not any(key.startswith("lr_config") for key in overrides):
        values = with_shares(values, given.get("total_epochs"))
    with use(CONFIG):
        config = build(Config, values, RETIRED, str(path))
    if ignored | more:
        log.warning(
            "%s: keys of the published configs that have no effect here: %s", path, ", ".join(sorted(ignored | more))
        )
    late = [step for step in config.lr_config.step if config.lr_config.policy == "step" and step >= config.total_epochs]
    if late:
        listed = ", ".join(f"{step:g}" for step in late)
        log.warning("%s: lr_config.step: %s is never reached in %d epochs", path, listed, config.total_epochs)
    return config


def stored_config(folder: str | Path | OpenedFolder, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read ``config.json`` of a run's folder, with overrides (dotted keys). The rest is as in :func:`load_config`."""
    folder = opened(folder)
    return _config_of(folder.json("config.json", Anything), folder.path("config.json"), overrides)


def _config_of(content: Anything, path: Path, overrides: Mapping[str, Any] | None) -> Config:
    return build(Config, merged(content.root, nested(overrides or {})), RETIRED, str(path))
