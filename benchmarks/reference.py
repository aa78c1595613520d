"""Reference implementation: the steps of the published code after the kNN search and in training.

It transcribes the published method (CVPR 2021) plainly, slow and obvious, with the same results as the published code
(tests/benchmarks/test_reference.py compares it with the golden files):

* the propagation matrix through scipy, then an uncoalesced torch sparse matrix;
* one forward of the whole graph;
* the head's full 2h x h product for every edge, in 65 patches;
* kept edges as Python lists;
* common neighbours by the sparse product B·B, read edge by edge;
* a union-find in Python;
* in training, neighbours through files, and for every patch the whole backbone and the head as in inference.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional

PATCHES = 65


def propagation_matrix(ids: np.ndarray, sims: np.ndarray, th_sim: float = 0.0) -> sp.csr_matrix:
    """Return Â = D^-1 (max(S, Sᵀ) + I) for neighbour ids (N, k), -1 where missing, and similarities (N, k)."""
    n, k = ids.shape
    rows = np.repeat(np.arange(n), k)
    keep = (ids.ravel() >= 0) & (ids.ravel() != rows) & (sims.ravel() >= th_sim)
    rows, cols, values = rows[keep], ids.ravel()[keep], sims.ravel()[keep]
    directed = sp.csr_matrix((values, (rows, cols)), shape=(n, n))
    matrix = directed.maximum(directed.T) + sp.eye(n)
    return sp.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix


def sparse_tensor(matrix: sp.csr_matrix) -> torch.Tensor:
    """Return Â as an uncoalesced torch tensor."""
    coo = matrix.tocoo()
    indices = torch.from_numpy(np.vstack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data.astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, coo.shape, check_invariants=False)


def backbone(state: dict[str, torch.Tensor], features: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
    """Return X = ReLU([F ‖ ÂF] W + b)."""
    both = torch.cat([features, torch.sparse.mm(adjacency, features)], dim=1)
    return torch.relu(both @ state["conv1.weight"] + state["conv1.bias"])


def head(state: dict[str, torch.Tensor], nodes: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """Return z (E, 2), computed as written in the paper: concatenate, 2h x h, PReLU, h x 2."""
    pairs = torch.cat([nodes[rows], nodes[cols]], dim=1)
    hidden = functional.linear(pairs, state["classifier.0.weight"], state["classifier.0.bias"])
    hidden = functional.prelu(hidden, state["classifier.1.weight"])
    return functional.linear(hidden, state["classifier.2.weight"], state["classifier.2.bias"])


@torch.no_grad()
def node_embeddings(state: dict[str, torch.Tensor], features: np.ndarray, matrix: sp.csr_matrix) -> torch.Tensor:
    """Return X of every node, computed in one forward pass."""
    return backbone(state, torch.from_numpy(features), sparse_tensor(matrix))


@torch.no_grad()
def edge_probabilities(
    state: dict[str, torch.Tensor], nodes: torch.Tensor, rows: np.ndarray, cols: np.ndarray
) -> np.ndarray:
    """Return p = softmax(z)[1] of every edge."""
    scores = []
    for part in np.array_split(np.arange(len(rows)), PATCHES):
        z = head(state, nodes, torch.from_numpy(rows[part]).long(), torch.from_numpy(cols[part]).long())
        scores.append(torch.softmax(z, dim=1)[:, 1].numpy())
    return np.concatenate(scores)


def parse(rows: np.ndarray, cols: np.ndarray, scores: np.ndarray, tau1: float) -> list[tuple[int, int]]:
    """Return the directed edges with p > τ1 as a list of pairs."""
    kept = []
    for i, j, p in zip(rows.tolist(), cols.tolist(), scores.tolist(), strict=True):
        if p > tau1:
            kept.append((i, j))
    return kept


def refine(edges: list[tuple[int, int]], num_nodes: int, tau2: float) -> list[tuple[int, int]]:
    """Return the edges with max(c_ij / n_i, c_ij / n_j) > τ2, c = B·B, computed one by one."""
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
    """Return the labels of the connected components: the smallest member of each."""
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
    """Return labels (N,) for features (N, d) and a kNN graph (N, k). ``state`` is both state dicts merged."""
    n, k = ids.shape
    nodes = node_embeddings(state, features, propagation_matrix(ids, sims))
    rows, cols = np.repeat(np.arange(n), k), ids.ravel()
    real = (cols >= 0) & (cols != rows)
    rows, cols = rows[real], cols[real]
    edges = parse(rows, cols, edge_probabilities(state, nodes, rows, cols), tau1)
    return union_find(refine(edges, n, tau2), n)


def knn_through_files(features: np.ndarray, k: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and sims (N, k), with the node itself, through features.bin and faiss_k_{k}.npz as published."""
    features.tofile(folder / "features.bin")
    stored = np.fromfile(folder / "features.bin", np.float32).reshape(-1, features.shape[1])
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)
    sims, ids = index.search(stored, k)
    knns = [(row_ids, 1 - row_sims) for row_ids, row_sims in zip(ids, np.clip(sims, 0, 1), strict=True)]
    np.savez_compressed(folder / f"faiss_k_{k}.npz", data=np.array(knns))
    with np.load(folder / f"faiss_k_{k}.npz") as file:
        data = file["data"]
    return data[:, 0].astype(np.int64), 1 - data[:, 1].astype(np.float32)


def training_edges(matrix: sp.csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every stored entry of Â, sorted by row and column, with its class: 1 for the same identity."""
    matrix.sort_indices()
    coo = matrix.tocoo()
    return coo.row, coo.col, (labels[coo.row] == labels[coo.col]).astype(np.int64)


def train(
    state: dict[str, torch.Tensor],
    features: np.ndarray,
    matrix: sp.csr_matrix,
    labels: np.ndarray,
    patches: list[np.ndarray],
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
) -> list[float]:
    """Make one SGD step per patch of edge numbers, and return the loss of every step. ``state`` is changed in place."""
    f, adjacency = torch.from_numpy(features), sparse_tensor(matrix)
    rows, cols, classes = (torch.from_numpy(x).long() for x in training_edges(matrix, labels))
    parameters = [p.requires_grad_() for p in state.values()]
    optimizer = torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)
    losses = []
    for patch in map(torch.from_numpy, patches):
        z = head(state, backbone(state, f, adjacency), rows[patch], cols[patch])
        loss = functional.cross_entropy(z, classes[patch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
