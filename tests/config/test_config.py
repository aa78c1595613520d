"""Test config files: validation, inheritance, and every shipped config with the real reader."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from helpers.paths import ROOT
from starfc.config.config import Config, load_config, save_config
from starfc.config.schema import build
from starfc.errors import InputError, MissingFileError

SHIPPED = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_load_from_anywhere(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert config.path(config.test_data.feat_path).is_relative_to(ROOT / "data")
    assert config.as_dict()["knn"] == (120 if path.stem == "cfg_gcn_ms1m_hierarchical" else 80)


def test_ms1m_is_the_published_method():
    config = load_config(ROOT / "configs" / "cfg_gcn_ms1m.py")
    assert (config.tau1, config.tau2, config.cluster_num, config.sampling.nearest) == (0.7, 0.72, 1300, 1500)
    assert (config.optimizer.type, config.optimizer.momentum, config.optimizer.weight_decay) == ("SGD", 0.9, 1e-5)
    assert (config.sampling.patches, config.sampling.passes, config.sampling.instance_share) == (40, 2, 0.9)
    assert (config.model.kwargs.init, config.model.kwargs.dropout) == ("xavier", 0.0)
    assert config.milestones == [25, 40, 45]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_saved_config_is_read_back_the_same(path, tmp_path):
    config = load_config(path, {"knn_method": "ivf", "knn_params.nprobe": 3, "memory_limit": "1GB"})
    save_config(config, tmp_path / "config.json")
    again = load_config(tmp_path / "config.json")
    assert again == config
    assert again.test_data.feat_path == "{prefix}/features/{test_name}"
    moved = load_config(tmp_path / "config.json", {"test_name": "part3_test"})
    assert moved.path(moved.test_data.feat_path).name == "part3_test"


def test_overrides_move_every_path_of_the_split(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("prefix = '/faces'\n")
    config = load_config(path, {"test_name": "part3_test", "knn": 40, "model.kwargs.nhid": 64})
    assert str(config.path(config.test_data.knn_graph_path)) == "/faces/knns/part3_test/exact_k_40"
    assert config.as_dict()["test_data"]["label_path"] == "/faces/labels/part3_test"
    assert config.model.kwargs.nhid == 64


def test_every_problem_is_reported_at_once(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "tau1 = 1.5\n"
        "clusternum = 3\n"
        "knn = 80.5\n"
        "seed = True\n"
        "optimizer = dict(type='Adam', lr=-1)\n"
        "model = dict(kwargs=dict(nclass=1, feature_dims=256))\n"
        "metrics = ['pairwise', 'purity']\n"
        "eval_interim = False\n"
        "test_data = 7\n"
    )
    with pytest.raises(InputError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 9 problems\n")
    for part in (
        "tau1: must be between 0 and 1; found 1.5",
        "clusternum: unknown key; did you mean cluster_num?",
        "knn: must be a whole number; found 80.5 (float)",
        "seed: must be a whole number; found True (bool)",
        "optimizer.type: must be one of 'SGD', 'AdamW'; found 'Adam'",
        "optimizer.lr: must be at least 0; found -1",
        "model.kwargs.feature_dims: unknown key; did you mean feature_dim?",
        "metrics: must be one of 'pairwise', 'bcubed', 'nmi'; found 'purity'",
        "test_data: must be a dict; found 7 (int)",
    ):
        assert part in message


def test_known_keys_are_listed_once():
    with pytest.raises(InputError) as caught:
        build(Config, {"zzz": 1, "qqq": 2, "tua1": 0.5, "partition": {"xxx": 1}})
    assert str(caught.value).split("\n  - ") == [
        "3 problems",
        "tua1: unknown key; did you mean tau1?",
        f"zzz, qqq: unknown keys; the known keys are {', '.join(f.name for f in fields(Config))}",
        "xxx: unknown key; the known keys are type, resolution",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau1": float("nan")}, "tau1: must be between 0 and 1"),
        ({"sampling": {"nearest": 5}}, "sampling.nearest: must be at least cluster_num"),
        ({"sampling": {"min_nodes": 50, "max_nodes": 20}}, "min_nodes"),
        ({"validation": {"source": "holdout"}}, "holdout_share above 0"),
        ({"device": "gpu"}, "device"),
        ({"memory_limit": "lots"}, "memory_limit"),
        ({"log_config": {"hooks": [{"type": "WandbHook"}]}}, "WandbHook"),
        ({"knn_method": "ivf", "knn_params": {"m": 3}}, "knn_params.m"),
        ({"test_data": {"feat_path": "{folder}/x"}}, "names in braces"),
    ],
)
def test_contradictions(tmp_path, values, message):
    path = tmp_path / "c.py"
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in values.items()).replace("nan", "float('nan')"))
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(path)


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(MissingFileError, match="no such config file"):
        load_config(tmp_path / "none.py")
    (tmp_path / "c.py").write_text("import os.path as osp\nprefix = osp.join('a', 'b')\nknn = = 3\n")
    with pytest.raises(InputError, match="not a readable config"):
        load_config(tmp_path / "c.py")
    (tmp_path / "c.py").write_text("import os.path as osp\nprefix = osp.join('a', 'b')\n")
    assert load_config(tmp_path / "c.py").prefix == "a/b"


@pytest.mark.parametrize(("text", "size"), [("16GB", 16 * 2**30), ("512 MB", 2**29), ("1.5T", 3 * 2**39)])
def test_memory_limits_are_read(text, size):
    assert Config(memory_limit=text).memory_limit_bytes() == size
