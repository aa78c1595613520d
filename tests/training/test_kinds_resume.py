"""Test that a training on kinds that was stopped gives the weights of one without a stop."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from starfc.config.config import Config
from starfc.config.schema import build
from starfc.models.contextual import COLUMNS_FIRST, COLUMNS_SECOND, CONTEXT_FIRST, CONTEXT_SECOND
from starfc.runtime.entry import end_code
from starfc.training import contextual
from starfc.training.kinds import FAMILIES


class Pool:
    """A pool whose work is done in this process."""

    def __init__(self, processes, context, initializer):
        assert initializer is contextual._alone

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *arguments):
        done = Future()
        done.set_result(work(*arguments))
        return done


def edges(kind, rng, count, before, candidates, knn, smoothing):
    """Random training edges, which depend on the early scorer."""
    widths = {"first": (COLUMNS_FIRST, CONTEXT_FIRST), "second": (COLUMNS_SECOND, CONTEXT_SECOND)}
    shift = 0.0 if before is None else float(sum(value.sum() for value in before.first.state_dict().values()))
    return {
        of_round: (
            (rng.normal(size=(count, columns)) + shift).astype(np.float16),
            rng.random(count) < 0.5,
            rng.normal(size=context).astype(np.float32),
        )
        for of_round, (columns, context) in list(widths.items())[: 1 if before is None else 2]
    }


@pytest.fixture
def train(monkeypatch):
    """A training of few steps on kinds that cost nothing, and the numbers of the kinds that were made."""
    made: list[int] = []

    def make_kind(seed, number, real):
        made.append(number)
        return SimpleNamespace(family=next(iter(FAMILIES)))

    monkeypatch.setattr(contextual, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(contextual, "make_kind", make_kind)
    monkeypatch.setattr(contextual, "sample_edges", edges)

    def run(folder: Path, second: int) -> tuple[bytes, list[int]]:
        made.clear()
        kinds = {"first": 12, "second": second, "edges": 64, "members": 1, "steps": 10, "batch": 64}
        model = {"type": "gcn_structural_any", "kwargs": {"nhid": 8}}
        settings = {"model": model, "kinds": kinds, "threads": 1, "prefix": str(folder)}
        contextual.run_kinds_training(build(Config, settings), folder)
        return (folder / "Contextual.pth").read_bytes(), sorted(made)

    return run


def stopped(train, monkeypatch, folder: Path, second: int) -> None:
    """Stop a training after all of its kinds were made."""
    fit = contextual._fit_members

    def stop(*arguments):
        if arguments[-1] == "second round":
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(contextual, "_fit_members", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, second)


def test_more_kinds_for_the_second_round_are_made_where_they_are_missing(tmp_path, monkeypatch, train):
    fresh, made = train(tmp_path / "fresh", 17)
    assert made == list(range(29))
    stopped(train, monkeypatch, tmp_path / "run", 12)
    resumed, made = train(tmp_path / "run", 17)
    assert made == list(range(22, 29))  # the last file was of the kinds 22 and 23 only
    assert resumed == fresh
    assert json.loads((tmp_path / "run" / "run.json").read_text())["first"][0]["kinds"] == 29 - 2
    assert not (tmp_path / "run" / "kinds").exists()


@pytest.mark.parametrize("damage", ["edited", "short", "gone", "link", "record", "unfinished"])
def test_a_damaged_file_of_samples_is_made_again(tmp_path, monkeypatch, train, caplog, damage):
    fresh, _ = train(tmp_path / "fresh", 12)
    stopped(train, monkeypatch, tmp_path / "run", 12)
    record = tmp_path / "run" / "kinds" / "done-both.json"
    path = tmp_path / "run" / "kinds" / "both-00012-00022.npz"
    whole = path.read_bytes()
    named, again = path, range(12, 22)
    if damage == "edited":
        with np.load(path) as file:
            content = dict(file)
        content["12.first.y"] = ~content["12.first.y"]
        np.savez(path, **content)
    elif damage == "short":
        path.write_bytes(whole[:-100])
    elif damage == "gone":
        path.unlink()
    elif damage == "link":
        path.unlink()
        path.symlink_to(tmp_path / "fresh" / "Contextual.pth")
    elif damage == "record":
        record.write_text("{")
        named, again = record, range(12, 24)
    else:  # killed before it was recorded
        content = json.loads(record.read_text())
        del content["files"][path.name]
        record.write_text(json.dumps(content))
    ends = []
    code = end_code(lambda: ends.append(train(tmp_path / "run", 12)))
    if damage == "link":
        assert code == 2
        return
    assert ends == [(fresh, list(again))]
    assert (str(named) in caplog.text) == (damage != "unfinished")


def test_samples_of_another_early_scorer_are_made_again(tmp_path, monkeypatch, train, caplog):
    fresh, _ = train(tmp_path / "fresh", 12)
    stopped(train, monkeypatch, tmp_path / "run", 12)
    record = tmp_path / "run" / "kinds" / "done-both.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"before": "of other threads"}))
    assert train(tmp_path / "run", 12) == (fresh, list(range(12, 24)))
    assert "its samples are of another early scorer, and are made again" in caplog.text
