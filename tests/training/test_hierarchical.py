"""Test hierarchical training: straight-through choices, five graphs from one search, the step, whole small runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.samples import blobs, unit
from starfc.config.config import Config, Hierarchical, ModelOptions, Sampling, load_config
from starfc.graph.affinity import propagation_matrix
from starfc.graph.knn import exact_knn
from starfc.models.checkpoint import load_model, save_model
from starfc.models.hierarchical import HierarchicalModel, OffsetLearner, ScaleSelector, straight_through
from starfc.models.kinds import HIERARCHICAL
from starfc.training.hierarchical import (
    HierarchicalTraining,
    Neighbourhood,
    Patch,
    imbalance,
    make_graphs,
    scale_embeddings,
    step_terms,
)
from starfc.training.trainer import make_method, run_training

K_MID = 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> HierarchicalModel:
    return HierarchicalModel(16, 24, init="metric", offsets=(2, 3, 4), scales=(8, 10, 12), generator=generator())


@pytest.fixture(scope="module")
def found() -> Neighbourhood:
    features, labels = blobs(identities=12, size=10, noise=0.6, seed=1)
    return Neighbourhood(unit(features), labels, exact_knn(unit(features), K_MID + 4))


def overrides(**more):
    return {
        "model.type": "hierarchical",
        "knn": 12,
        "hierarchical": {
            "k_mid": 10, "offsets": [2, 3, 4], "scales": [8, 10, 12], "patch_edges": 300, "offset_lr": 0.1,
        },
        **more,
    }  # fmt: skip


def small_config(**hierarchical) -> Config:
    options = Hierarchical(k_mid=K_MID, offsets=[2, 3, 4], **hierarchical)
    return Config(model=ModelOptions(type="hierarchical"), hierarchical=options, sampling=Sampling(passes=1))


@pytest.mark.long
def test_a_choice_is_exactly_one_hot_and_follows_its_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20000, 3)
    choice = straight_through(logits, generator())
    assert set(choice.unique().tolist()) == {0.0, 1.0}
    assert (choice.sum(dim=1) == 1).all()
    torch.testing.assert_close(choice.mean(dim=0), torch.softmax(logits[0], 0), atol=0.01, rtol=0)


def test_the_gradient_of_a_choice_is_that_of_the_softmax_with_the_same_noise():
    """d/dlogits of f(one-hot) must be J^T f'(one-hot), J the Jacobian of softmax(logits + g) in closed form."""
    logits = torch.randn(50, 3, generator=generator(1), requires_grad=True)
    towards = torch.randn(50, 3, generator=generator(2))
    choice = straight_through(logits, generator(3))
    (choice * towards).pow(2).sum().backward()
    noise = -torch.empty(50, 3).exponential_(generator=generator(3)).log()
    soft = torch.softmax(logits.detach() + noise, dim=1)
    outer = 2 * choice.detach() * towards.pow(2)  # gradient at the hard values
    expected = soft * (outer - (soft * outer).sum(dim=1, keepdim=True))
    torch.testing.assert_close(logits.grad, expected)
    assert logits.grad.abs().max() > 0.01


def test_offsets_start_as_published_and_the_runner_up_is_the_highest_other_logit():
    learner = OffsetLearner()
    assert learner.offsets.tolist() == [5, 10, 15, 20, 25, 30]
    torch.testing.assert_close(learner.logits.detach(), torch.tensor([1e-4, 1e-4, 1e-4, 0.1, 1e-4, 1e-4]))
    drawn = set()
    for seed in range(200):
        draw = learner.draw(generator(seed))
        assert draw.d1 > draw.d2
        assert sorted((draw.p1.item(), draw.p2.item())) == [0.0, 1.0]
        sampled, other = (draw.d1, draw.d2) if draw.first else (draw.d2, draw.d1)
        assert other == (20 if sampled != 20 else 5)  # ties among the rest: the first
        drawn.add(sampled)
    assert drawn == {5, 10, 15, 20, 25, 30}


def test_five_graphs_of_one_search_are_those_of_five(found, model):
    draw = model.offset_learner.draw(generator(1))
    graphs = make_graphs(found, K_MID, draw)
    scales = (K_MID - draw.d1, K_MID - draw.d2, K_MID, K_MID + draw.d2, K_MID + draw.d1)
    for level, k in enumerate(scales):
        matrix = propagation_matrix(exact_knn(found.features, k))
        torch.testing.assert_close(graphs.aggregated[level], torch.from_numpy(matrix @ found.features))
        stored = graphs.levels <= level
        expected = matrix.tocoo()
        np.testing.assert_array_equal(graphs.rows[stored], expected.row)
        np.testing.assert_array_equal(graphs.cols[stored], expected.col)
    same = found.labels[graphs.rows.numpy()] == found.labels[graphs.cols.numpy()]
    np.testing.assert_array_equal(graphs.targets.numpy() == 1, same)


def twin_loss(model, found, draw, patch, graphs, seed):
    """Spec section 7, written out: five backbones in full, the heads on concatenated pairs, p1 and p2 as given."""
    f = torch.from_numpy(found.features)
    x = []
    for k in (K_MID - draw.d1, K_MID - draw.d2, K_MID, K_MID + draw.d2, K_MID + draw.d1):
        a = torch.from_numpy(np.asarray(propagation_matrix(exact_knn(found.features, k)).todense()))
        conv = model.backbone.conv1
        x.append(torch.relu(torch.cat([f, a @ f], dim=1) @ conv.weight + conv.bias))
    small, mid, large = draw.p1 * x[0] + draw.p2 * x[1], x[2], draw.p2 * x[3] + draw.p1 * x[4]
    tokens = torch.stack([small, mid, large], dim=1)
    choice = straight_through(model.selector(tokens), generator(seed))
    fused = (choice[:, :, None] * tokens).sum(dim=1)
    loss = 0
    for name, nodes, edges in zip(
        ("small", "mid", "large", "fused"),
        (small, mid, large, fused),
        (patch.small, patch.mid, patch.large, patch.large),
        strict=True,
    ):
        pairs = torch.cat([nodes[graphs.rows[edges].long()], nodes[graphs.cols[edges].long()]], dim=1)
        loss = loss + functional.cross_entropy(model.heads[name].classifier(pairs), graphs.targets[edges].long())
    r = choice.mean(dim=0)
    entropy = -sum(p * math.log2(p) for p in r.tolist() if p > 0)
    return loss, r, entropy


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_step_is_the_one_of_the_paper_with_gradients_to_every_part(found, model, seed):
    draw = model.offset_learner.draw(generator(seed))
    graphs = make_graphs(found, K_MID, draw)
    levels = graphs.levels.numpy()
    patch = Patch(*(torch.from_numpy(np.flatnonzero(levels <= level)[::3]) for level in (0, 2, 4)))
    terms, ratio = step_terms(model, graphs, patch, draw, generator(seed))
    assert list(terms) == ["small", "mid", "large", "fused"]
    sum(terms.values()).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(g.abs().sum() > 0 for name, g in ours.items() if "score.bias" not in name)

    model.zero_grad()
    draw = model.offset_learner.draw(generator(seed))
    loss, twin_ratio, entropy = twin_loss(model, found, draw, patch, graphs, seed)
    torch.testing.assert_close(sum(terms.values()).detach(), loss.detach())
    torch.testing.assert_close(ratio, twin_ratio)
    assert imbalance(ratio.detach()).item() == pytest.approx(math.log2(3) - entropy, abs=1e-6)
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_offset_that_was_not_drawn_gets_a_gradient_and_the_backbone_none_from_it(found, model):
    draw = model.offset_learner.draw(generator(1))
    graphs = make_graphs(found, K_MID, draw)
    small, _, _ = scale_embeddings(model, graphs, draw)
    towards = torch.randn(small.shape, generator=generator(5))
    (small * towards).sum().backward()
    f, smallest, smaller = graphs.features, *graphs.aggregated[:2]
    x = {at: model.backbone(f, a).detach() for at, a in (("d1", smallest), ("d2", smaller))}
    with torch.no_grad():
        weights = torch.zeros(3)
        for name, d in (("d1", draw.d1), ("d2", draw.d2)):
            weights[model.offset_learner.offsets.tolist().index(d)] = (x[name] * towards).sum()
        noise = -torch.empty(3).exponential_(generator=generator(1)).log()
        soft = torch.softmax(model.offset_learner.logits + noise, dim=0)
        expected = soft * (weights - (soft * weights).sum())
    torch.testing.assert_close(model.offset_learner.logits.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_balance_pulls_a_selector_that_uses_one_scale_back_to_all_three():
    logits = torch.zeros(400, 3)
    logits[:, 0] = 3.0
    logits.requires_grad_()
    for step in range(200):
        loss = imbalance(straight_through(logits, generator(step)).mean(dim=0))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        with torch.no_grad():
            logits -= 40 * gradient
    assert imbalance(straight_through(logits.detach(), generator(-1 % 2**32)).mean(dim=0)) < 0.2
    assert imbalance(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(math.log2(3))
    assert imbalance(torch.full((3,), 1 / 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.long
def test_the_selector_learns_the_token_that_scores_best():
    """Head 4's loss reaches the selector through the choice: of three noisy copies it must find the clean one."""
    torch.manual_seed(0)
    selector = ScaleSelector(16)
    optimizer = torch.optim.AdamW(selector.parameters(), 3e-3)
    g = generator(4)
    for step in range(150):
        clean = torch.randn(256, 16, generator=g)
        at = torch.randint(3, (256,), generator=g)
        tokens = 4 * torch.randn(256, 3, 16, generator=g)
        tokens[torch.arange(256), at] = clean
        choice = straight_through(selector(tokens), generator(step))
        loss = (torch.einsum("ns,nsh->nh", choice, tokens) - clean).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (selector(tokens).argmax(dim=1) == at).float().mean() > 0.9


def test_patches_hold_every_edge_of_their_graph_once(found, model):
    method = HierarchicalTraining(small_config(patch_edges=200), model)
    work = method.start(found, np.random.default_rng(0), torch.device("cpu"))
    steps = method.num_steps(work)
    assert steps == math.ceil(len(work.graphs.rows) / 200) > 3
    dealt = method.deal(work, steps, np.random.default_rng(1))
    for name, level in (("small", 0), ("mid", 2), ("large", 4)):
        edges = np.concatenate([getattr(patch, name).numpy() for patch in dealt])
        np.testing.assert_array_equal(np.sort(edges), np.flatnonzero(work.graphs.levels.numpy() <= level))


@pytest.mark.long
def test_the_offset_learner_moves_once_a_subgraph_by_the_sum_of_its_gradients(found, model):
    config = small_config(patch_edges=400, offset_lr=0.5)
    method = HierarchicalTraining(config, model)
    work = method.start(found, np.random.default_rng(0), torch.device("cpu"))
    start, total = model.offset_learner.logits.detach().clone(), torch.zeros(3)
    dealt = method.deal(work, method.num_steps(work), np.random.default_rng(1))
    assert len(dealt) > 1
    for step, patch in enumerate(dealt):
        model.zero_grad()
        method.loss(work, patch, generator(step))[0].backward()
        total += model.offset_learner.logits.grad
        method.update()
        torch.testing.assert_close(model.offset_learner.logits.detach(), start)
    method.finish()
    decayed = total + config.optimizer.weight_decay * start
    torch.testing.assert_close(model.offset_learner.logits.detach(), start - 0.5 * decayed)
    assert not method.carried()["offset_gradient"].any()


def test_the_separate_files_are_written_and_read(model, tmp_path):
    save_model(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(HIERARCHICAL.files.values())
    again = load_model(tmp_path, 16, 24, (8, 10, 12))
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_published_names_with_epoch_and_batch_are_read_the_last_one(model, tmp_path):
    other = HierarchicalModel(16, 24, generator=generator(9))
    for tag, source in (("Epoch_1_batch_900", other), ("Epoch_2_batch_100", model)):
        save_model(source, tmp_path / tag)
        for part in ("Backbone1", "Head4", "Attention"):  # all that inference needs
            (tmp_path / tag / f"{part}.pth").rename(tmp_path / f"{part}_{tag}.pth")
    again = load_model(tmp_path)
    assert again.scales == (80, 100, 120)
    assert torch.equal(again.backbone.conv1.weight, model.backbone.conv1.weight)
    assert torch.equal(again.head.classifier[0].weight, model.head.classifier[0].weight)


@pytest.mark.long
def test_a_small_run_learns_repeats_and_leaves_all_parts(workspace):
    more = {"sampling.subgraphs_per_epoch": 12, "validation.source": "none", "optimizer.lr": 3e-3}
    config, runs = load_config(workspace / "config.py", overrides(**more)), []
    for name in ("a", "b"):
        run_training(config, workspace / name)
        entries = [json.loads(line) for line in (workspace / name / "metrics.jsonl").read_text().splitlines()]
        runs.append([e["loss"] for e in entries])
        assert all(
            {"loss_small", "loss_mid", "loss_large", "loss_fused", "share_mid", "offset_1"} <= set(e) for e in entries
        )
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-3:]) < 0.9 * np.mean(runs[0][:3])
    final = load_model(workspace / "a").state_dict()
    start = make_method(config, torch.device("cpu")).model.state_dict()
    assert all(not torch.equal(final[k], start[k]) for k in final if k != "offset_learner.offsets")
    checkpoint = load_model(workspace / "a" / "checkpoints" / "subgraph_000012.pt")
    assert all(torch.equal(final[k], v) for k, v in checkpoint.state_dict().items())
    assert checkpoint.scales == load_model(workspace / "a").scales == (8, 10, 12)
