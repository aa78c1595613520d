"""The yardstick: what the published implementation computes after kNN, and how it computes it.

A plain transcription of spec sections 2 to 6, slow and obvious, with equal results (tests/test_reference.py holds it
against the golden files):

* the propagation matrix through scipy, then an uncoalesced torch sparse matrix;
* one forward of the whole graph;
* the head's full 2h x h product for every edge, in 65 patches;
* kept edges as Python lists;
* common neighbours by the sparse product B·B, read edge by edge;
* a union-find in Python.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

PATCHES = 65


def propagation_matrix(ids: np.ndarray, sims: np.ndarray, th_sim: float = 0.0) -> sp.csr_matrix:
    """Â = D^-1 (max(S, Sᵀ) + I) from neighbour ids (N, k), -1 where missing, and similarities."""
    n, k = ids.shape
    rows = np.repeat(np.arange(n), k)
    keep = (ids.ravel() >= 0) & (ids.ravel() != rows) & (sims.ravel() >= th_sim)
    rows, cols, values = rows[keep], ids.ravel()[keep], sims.ravel()[keep]
    directed = sp.csr_matrix((values, (rows, cols)), shape=(n, n))
    matrix = directed.maximum(directed.T) + sp.eye(n)
    return sp.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix


@torch.no_grad()
def node_embeddings(state: dict[str, torch.Tensor], features: np.ndarray, matrix: sp.csr_matrix) -> torch.Tensor:
    """X = ReLU([F ‖ ÂF] W + b)."""
    coo = matrix.tocoo()
    indices = torch.from_numpy(np.vstack([coo.row, coo.col]).astype(np.int64))
    adjacency = torch.sparse_coo_tensor(
        indices, torch.from_numpy(coo.data.astype(np.float32)), coo.shape, check_invariants=False
    )
    f = torch.from_numpy(features)
    both = torch.cat([f, torch.sparse.mm(adjacency, f)], dim=1)
    return torch.relu(both @ state["conv1.weight"] + state["conv1.bias"])


@torch.no_grad()
def edge_probabilities(
    state: dict[str, torch.Tensor], nodes: torch.Tensor, rows: np.ndarray, cols: np.ndarray
) -> np.ndarray:
    """p of every edge by the head as written: concatenate, 2h x h, PReLU, h x 2, softmax."""
    scores = []
    for part in np.array_split(np.arange(len(rows)), PATCHES):
        pairs = torch.cat([nodes[rows[part]], nodes[cols[part]]], dim=1)
        hidden = pairs @ state["classifier.0.weight"].T + state["classifier.0.bias"]
        hidden = torch.where(hidden > 0, hidden, hidden * state["classifier.1.weight"])
        z = hidden @ state["classifier.2.weight"].T + state["classifier.2.bias"]
        scores.append(torch.softmax(z, dim=1)[:, 1].numpy())
    return np.concatenate(scores)


def parse(rows: np.ndarray, cols: np.ndarray, scores: np.ndarray, tau1: float) -> list[tuple[int, int]]:
    """Directed edges with p > τ1, as a list of pairs."""
    kept = []
    for i, j, p in zip(rows.tolist(), cols.tolist(), scores.tolist(), strict=True):
        if p > tau1:
            kept.append((i, j))
    return kept


def refine(edges: list[tuple[int, int]], num_nodes: int, tau2: float) -> list[tuple[int, int]]:
    """Edges with max(c_ij / n_i, c_ij / n_j) > τ2, c = B·B, one by one."""
    if not edges:
        return []
    pairs = np.array(edges)
    adjacency = sp.csr_matrix(
        (np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape=(num_nodes, num_nodes)
    )
    degree = np.asarray(adjacency.sum(axis=1)).ravel().tolist()
    common = (adjacency @ adjacency).multiply(adjacency).todok()
    kept = []
    for i, j in edges:
        if degree[i] and degree[j]:
            c = common.get((i, j), 0.0)
            if max(c / degree[i], c / degree[j]) > tau2:
                kept.append((i, j))
    return kept


def union_find(edges: list[tuple[int, int]], num_nodes: int) -> np.ndarray:
    """Labels of the connected components: the smallest member of each."""
    parent = list(range(num_nodes))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in edges:
        a, b = find(i), find(j)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return np.array([find(i) for i in range(num_nodes)])


def cluster(
    features: np.ndarray, ids: np.ndarray, sims: np.ndarray, state: dict[str, torch.Tensor], tau1: float, tau2: float
) -> np.ndarray:
    """Features (N, d), kNN graph (N, k) and both state dicts merged -> labels (N,), any integers."""
    n, k = ids.shape
    nodes = node_embeddings(state, features, propagation_matrix(ids, sims))
    rows, cols = np.repeat(np.arange(n), k), ids.ravel()
    real = (cols >= 0) & (cols != rows)
    rows, cols = rows[real], cols[real]
    edges = parse(rows, cols, edge_probabilities(state, nodes, rows, cols), tau1)
    return union_find(refine(edges, n, tau2), n)
