"""Test the search for wrong labels against a slow twin, against planted errors, and from the command line."""

from __future__ import annotations

import csv
import json
import shutil
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.review import clique, parsed
from helpers.samples import blobs, some_rows
from helpers.scripts import run_benchmark
from starfc import StarFC
from starfc.commands import app
from starfc.data.dataset import Features
from starfc.data.files import read_labels
from starfc.review.label_errors import DOUBTFUL, KINDS, LEAST, NEAR, LabelIssues, label_issues
from starfc.review.label_tables import issue_counts, issues_table, issues_text, said_of, top_issues
from starfc.review.pairs import Pairs


def starfc(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def beta(f: float) -> float:
    return 30 * (1 - f) ** 29


def slow_issues(edges, labels, clusters, vectors) -> dict[tuple, float]:
    """Every issue (kind, row or pair of labels) with its score, by the equations of the module, one pair at a time."""
    n, known = len(labels), [label for label in sorted(set(labels.tolist())) if label >= 0]
    p = {(a, b): score for a, b, score, _ in edges} | {(b, a): score for a, b, score, _ in edges}
    judged = {pair: score for pair, score in p.items() if labels[pair[0]] >= 0 and labels[pair[1]] >= 0}
    of = {label: [i for i in range(n) if labels[i] == label] for label in known}
    votes = [{label: sum(judged.get((i, j), 0) for j in of[label]) for label in known} for i in range(n)]
    best, share = {}, {}
    for i in range(n):
        others = {c: v for c, v in votes[i].items() if c != labels[i] and v > 0}
        if labels[i] >= 0 and others:
            best[i] = max(others, key=lambda c: (others[c], -c))
            share[i] = (others[best[i]] + 1) / (votes[i][labels[i]] + others[best[i]] + 2)
    q = {}
    for i in share:
        mates = [j for j in of[labels[i]] if j != i]
        q[i] = sum(share.get(j, 0) > LEAST and best[j] == best[i] for j in mates) / max(len(mates), 1)
    s = {i: share[i] * (1 - q[i]) if share[i] > LEAST else share[i] for i in share}
    apart = doubt = 0.0
    for i in range(n):
        around = [(labels[i] != labels[j], 1 - score) for (a, j), score in judged.items() if a == i]
        if around:
            apart, doubt = apart + np.mean([x for x, _ in around]), doubt + np.mean([y for _, y in around])
    wrong, misplaced = max((apart - doubt) / 2, 0.5), doubt / 2
    found = {}
    for i in s:
        f = votes[i][labels[i]] / (votes[i][labels[i]] + votes[i][best[i]])
        if s[i] > LEAST:
            found["label", i] = s[i] * wrong * beta(f) / (wrong * beta(f) + misplaced * (beta(f) / 2 + 1))
    for label in known:
        if len(of[label]) > 2:
            middle = np.median([sum(votes[i].values()) for i in of[label]])
            for i in of[label]:
                if middle > 0 and ("label", i) not in found and 1 - sum(votes[i].values()) / middle > LEAST:
                    found["outlier", i] = 1 - sum(votes[i].values()) / middle

    def density(one, two):
        pairs = [(a, b) for a in one for b in two if a != b]
        return sum(judged.get(pair, 0) for pair in pairs) / max(len(pairs), 1)

    def ratio(one, two):
        inside = [x for x in (density(one, one), density(two, two)) if x > 0]
        return min(1, density(one, two) / (np.mean(inside) if inside else 1))

    for a in known:
        for b in known:
            across = [judged[i, j] for i in of[a] for j in of[b] if (i, j) in judged]
            if a < b and across and ratio(of[a], of[b]) * np.mean(across) > LEAST:
                found["one identity", a, b] = ratio(of[a], of[b]) * np.mean(across)
    pieces = {}
    for cluster in sorted(set(clusters.tolist()) - {-1}):
        counts = {label: [i for i in of[label] if clusters[i] == cluster] for label in known}
        label = max(known, key=lambda one: (len(counts[one]), -one))
        if counts[label]:
            pieces.setdefault(label, []).append(counts[label])
    for label, parts in pieces.items():
        large, *rest = sorted(parts, key=lambda part: -len(part))
        if rest and (score := (1 - ratio(large, rest[0])) * (1 - 1 / len(rest[0]))) > LEAST:
            found["two identities", label] = score
    distance = {pair: max(1 - float(vectors[pair[0]] @ vectors[pair[1]]), 0) for pair in p}
    nearest = [min(distance[a, b] for a, b in p if a == i) for i in range(n) if any(a == i for a, _ in p)]
    limit = NEAR * np.median(nearest)
    found |= {("near-duplicate", a, b): 1 - d / limit for (a, b), d in distance.items() if a < b and d < limit}
    return found


def test_issues_are_those_of_a_slow_twin():
    met = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n = 40
        identity = rng.integers(0, 5, n)
        edges = [
            (a, b, float(np.float32(rng.uniform(0.5, 1))), 0.9)
            for a in range(n)
            for b in range(a + 1, n)
            if rng.random() < (0.8 if identity[a] == identity[b] else 0.02)
        ]
        labels, clusters = identity.copy(), identity.copy()
        labels[rng.choice(n, 6, replace=False)] = rng.integers(-1, 7, 6)
        labels[identity == 4] = rng.choice([4, 9], (identity == 4).sum())  # one identity with two labels
        if seed % 2:
            labels[identity == 3] = 2  # and two identities with one
        clusters[rng.choice(n, 3, replace=False)] = -1
        vectors = rng.normal(size=(n, 4)).astype(np.float32)
        a, b, *_ = edges[0]
        vectors[b] = vectors[a] + np.float32(1e-3)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = label_issues(Pairs.of(parsed(n, edges)), labels, clusters, Features(vectors))
        fast = {key_of(found, at): found.score[at] for at in range(len(found))}
        slow = slow_issues(edges, labels, clusters, vectors)
        assert set(fast) == set(slow)
        for key, score in slow.items():
            tolerance = 0.1 if key[0] == "near-duplicate" else 1e-5  # 1 - cosine in float32
            assert fast[key] == pytest.approx(score, abs=tolerance), key
        for kind in KINDS:
            at = found.of(kind)
            last = found.label[at] == found.other_label[at] if kind == "near-duplicate" else np.zeros(len(at), bool)
            assert (np.diff(last.astype(int)) >= 0).all()
            assert all((np.diff(found.score[at][part]) <= 0).all() for part in (last, ~last))
        met |= {kind for kind, *_ in slow}
    assert met == set(KINDS)


def key_of(found: LabelIssues, at: int) -> tuple:
    kind = KINDS[found.kind[at]]
    if kind == "one identity":
        return kind, found.label[at], found.other_label[at]
    if kind == "near-duplicate":
        return kind, found.row[at], found.other[at]
    return kind, found.label[at] if kind == "two identities" else found.row[at]


def test_a_wrong_label_names_the_right_one_and_its_witness():
    edges = parsed(12, [*clique(range(6), p=0.95), *clique(range(6, 12), p=0.95)])
    labels = np.array([3, 3, 3, 3, 3, 8, 8, 8, 8, 8, 8, 8])
    found = label_issues(Pairs.of(edges), labels, np.repeat([0, 1], 6))
    assert issue_counts(found) == {
        "label": 1, "outlier": 0, "one identity": 0, "two identities": 0, "near-duplicate": 0,
    }  # fmt: skip
    assert (found.row[0], found.label[0], found.other_label[0], found.count[0]) == (5, 8, 3, 1)
    assert found.other[0] in range(5)
    assert 0.5 < found.score[0] < 1
    assert found.expected == pytest.approx(((1 + 5 / 5) - 12 * 0.05) / 2, abs=1e-6)


def test_labels_that_are_hardly_wrong_are_not_doubtful():
    one = np.arange(4)
    scores = np.array([0.9, DOUBTFUL, DOUBTFUL - 0.001, 0.0], np.float32)
    kinds = np.array([0, 0, 0, KINDS.index("outlier")], np.int8)
    found = LabelIssues(kinds, scores, one, one, one, one, one, 1.5).doubtful()
    assert found.row.tolist() == [0, 1, 3]  # the last one is no label
    assert found.expected == 1.5


def test_what_is_said_has_its_nouns():
    assert said_of("two identities", 14, 14, 22) == "22 rows of label 14 are another identity"
    assert said_of("one identity", 461, 4646, 1) == "461 and 4646 are one identity; the smaller has 1 row"


@pytest.mark.parametrize("labels", [np.full(6, -1), np.zeros(6, int), np.arange(6), np.array([0, 0, 0, 1, 1, -1])])
def test_labels_that_say_little(labels):
    edges = parsed(6, [(0, 1, 0.9, 0.9)])
    found = label_issues(Pairs.of(edges), labels, np.array([0, 0, 1, 2, 3, 4]), Features(np.eye(6, dtype=np.float32)))
    assert np.isfinite(found.score).all()
    assert issues_table(found).num_rows == len(found)
    assert "expected to be wrong" in issues_text(found, 6)


def test_the_example_of_the_documents_runs(capsys):
    text = (ROOT / "docs" / "reviewing.md").read_text(encoding="utf-8")
    lines = text[text.index("    issues = StarFC()") :].split("\n\n")[0]
    features, labels = some_rows(identities=8, size=20, dim=32, noise=0.3)
    y = np.array([f"person {label}" for label in labels])
    for row in (3, 25, 50):
        y[row] = f"person {(labels[row] + 5) % 8}"
    exec(textwrap.dedent(lines), {"StarFC": lambda: StarFC(adapt="off", reach="off"), "X": features, "y": y})
    about, *found = capsys.readouterr().out.splitlines()
    assert about == "about 1 labels are wrong"
    assert sorted(line.split(" (")[0] for line in found) == [
        f"row {row}: {y[row]} is probably person {labels[row]}" for row in (25, 3, 50)
    ]


def test_columns_are_those_of_the_table():
    edges = parsed(12, [*clique(range(6), p=0.95), *clique(range(6, 11), p=0.95)])
    labels = np.array([3, 3, 3, 3, 3, 8, 8, 8, 8, 8, 8, 8])
    issues = label_issues(Pairs.of(edges), labels, np.array([0] * 6 + [1] * 5 + [2]))
    columns, table = issues.columns(), issues_table(issues)
    assert table.column_names == list(columns)
    assert {"label", "outlier"} <= set(columns["kind"])
    for name, array in columns.items():
        assert array.shape == (len(issues),)
        assert table[name].to_pylist() == [
            None if name.startswith("other") and other < 0 else value
            for value, other in zip(array.tolist(), columns["other_row"].tolist(), strict=True)
        ]


def test_the_first_issues_are_of_all_kinds():
    edges = parsed(60, [*clique(range(20)), *clique(range(20, 40)), (45, 46, 0.9, 0.9), (50, 51, 0.99, 0.9)])
    labels = np.repeat([0, 1, 2], 20)
    labels[[0, 1, 2]] = 1
    labels[50:] = np.arange(50, 60)
    found = label_issues(Pairs.of(edges), labels, np.repeat([0, 1, 2], 20))
    top = top_issues(found, 4)
    assert len(top) == 4
    assert {KINDS[kind] for kind in found.kind[top]} == {KINDS[kind] for kind in found.kind}
    assert (np.diff(top) > 0).all()


def planted(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels in which a share of the rows have changed places, and which rows are wrong now."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[rows] = labels[rng.permutation(rows)]
    return noisy, noisy != labels


@pytest.mark.long
def test_planted_errors_of_the_sample_are_found():
    features = np.load(ROOT / "data" / "glyph" / "features" / "sample.npy")
    labels = read_labels(ROOT / "data" / "glyph" / "labels" / "sample.meta")
    model = StarFC(adapt="off", reach="off").fit(features)
    for seed in range(3):
        noisy, wrong = planted(labels, 0.02, seed)
        found = model.label_issues(noisy)
        at, score = found.of("label"), np.zeros(len(labels))
        score[found.row[at]] = found.score[at]
        assert average_precision_score(wrong, score) > 0.95
        assert found.expected == pytest.approx(wrong.sum(), rel=0.3)
        right = found.other_label[at][wrong[found.row[at]]] == labels[found.row[at]][wrong[found.row[at]]]
        assert right.mean() > 0.95
    rng = np.random.default_rng(0)
    sizes = np.bincount(labels)
    chosen = rng.choice(np.flatnonzero(sizes >= 6), 30, replace=False)
    divided, joined, into = chosen[:10], chosen[10:20], chosen[20:]
    noisy = labels.copy()
    for number, label in enumerate(divided):
        rows = rng.permutation(np.flatnonzero(labels == label))
        noisy[rows[: len(rows) // 2]] = 1000 + number
    for label, other in zip(joined, into, strict=True):
        noisy[labels == label] = other
    found = model.label_issues(noisy)
    one, two = found.of("one identity"), found.of("two identities")
    pairs = set(zip(found.label[one].tolist(), found.other_label[one].tolist(), strict=True))
    assert {(label, 1000 + number) for number, label in enumerate(divided.tolist())} <= pairs
    assert len(set(into.tolist()) & set(found.label[two].tolist())) >= 9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    features, labels = blobs(identities=12, size=15)
    np.save(folder / "f.npy", features)
    (folder / "files.txt").write_text("".join(f"{row}.jpg\n" for row in range(len(labels))))
    labels[7] = (labels[7] + 1) % 12
    np.save(folder / "noisy.npy", labels)
    given = ("cluster", folder / "f.npy", "-o", folder / "run", "--files", folder / "files.txt", "--quiet")
    assert starfc(*given)[0] == 0
    return folder


@pytest.mark.long
def test_the_command_lists_and_writes_them(run, tmp_path):
    given = ("evaluate", run / "noisy.npy", run / "run", "--errors")
    code, out, _ = starfc(*given, "-o", tmp_path / "t.csv")
    assert code == 0
    assert "pairwise" in out
    assert "expected to be wrong" in out
    assert "1 doubtful label;" in out
    assert "this list is less reliable" not in out
    with (tmp_path / "t.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["kind"] == "label"]
    assert (row["row"], row["file"]) == ("7", str(run / "7.jpg"))
    assert int(row["other_label"]) == (int(row["label"]) - 1) % 12
    assert starfc(*given, "-o", tmp_path / "t.parquet")[0] == 0
    assert pq.read_table(tmp_path / "t.parquet").num_rows == len((tmp_path / "t.csv").read_text().splitlines()) - 1
    code, out, _ = starfc(*given, "-o", tmp_path / "t.json", "--json")
    record = json.loads(out)
    assert record["errors"]["found"]["label"] == 1
    assert record["errors"]["left_out"] == 0
    assert json.loads((tmp_path / "t.json").read_text())[0]["row"] == 7
    shutil.copytree(run / "run", tmp_path / "weak")
    told = json.loads((tmp_path / "weak" / "run.json").read_text())
    told["estimate"]["fscore"] = 0.8
    (tmp_path / "weak" / "run.json").write_text(json.dumps(told))
    (tmp_path / "weak" / "files.json").unlink()
    _, out, _ = starfc("evaluate", run / "noisy.npy", tmp_path / "weak", "--errors")
    assert "the expected F of this run is 80.0" in out
    assert "this list is less reliable than usual" in out
    assert [one["row"] for one in record["errors"]["top"] if one["kind"] == "label"] == [7]


@pytest.mark.long
def test_the_command_refuses_what_it_cannot_do(run, tmp_path):
    labels = run / "noisy.npy"
    (tmp_path / "t.csv").write_text("mine")
    for more, message in (
        (("--out", tmp_path / "x.csv"), "--out: needs --errors"),
        (("--errors", "-o", tmp_path / "x.txt"), "the suffix must be .csv, .parquet or .json; found '.txt'"),
        (("--errors", "-o", tmp_path / "t.csv"), "t.csv: exists; name another file, or add --overwrite to replace it"),
    ):
        code, _, err = starfc("evaluate", labels, run / "run", *more)
        assert code == 2
        assert message in err
    code, _, err = starfc("evaluate", labels, labels, "--errors")
    assert (code, err) == (2, "error: --errors: needs the folder of a run with stored edges as PRED\n")
    assert (tmp_path / "t.csv").read_text() == "mine"


@pytest.mark.long
def test_the_benchmark(run, tmp_path, monkeypatch):
    labels = blobs(identities=12, size=15)[1]
    np.save(tmp_path / "labels.npy", labels)
    where = ("--run", run / "run", "--labels", tmp_path / "labels.npy", "--name", "blobs")
    run_benchmark(monkeypatch, "label_errors.py", *where, "--out", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())["blobs"]
    planted = {one["share"]: one for one in result["planted"]}
    assert planted[0.05]["average_precision"] > 0.9
    assert planted[0.1]["proposed_right"] > 0.9
    assert result["changed"]["one_found"] == result["changed"]["two_found"] == 2
    assert result["confidence"]["right"] > 0.95
    assert sum(row["rows"] for row in result["confidence"]["table"]) == 180
