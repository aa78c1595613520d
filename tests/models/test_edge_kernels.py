"""Compare the fused edge operator with autograd on its plain form, on both code paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from starfc.models import edge_kernels
from starfc.models.edge_kernels import edge_logits
from starfc.models.gcn import StarFCModel


def twin(source, target, slope, weight, rows, cols):
    hidden = source[rows.long()] + target[cols.long()]
    return functional.prelu(hidden, slope) @ weight


def tensors(n, h, e, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(shape, generator=g, dtype=dtype, requires_grad=True) for shape in ((n, h), (n, h), (h,), (h,))]
    ends = [torch.randint(0, n, (e,), generator=g, dtype=torch.int32) for _ in range(2)]
    return parts, ends


@pytest.mark.long
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 150), st.integers(0, 60), st.integers(0, 2**31 - 1))
def test_forward_and_backward_equal_autograd(n, h, e, seed):
    parts, ends = tensors(n, h, e, seed)
    upstream = torch.randn(e, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    expected = twin(*parts, *ends)
    ours = edge_logits(*parts, *ends)
    torch.testing.assert_close(ours, expected)
    expected_grads = torch.autograd.grad(expected, parts, upstream)
    for got, want in zip(torch.autograd.grad(ours, parts, upstream), expected_grads, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.long
def test_gradcheck():
    parts, ends = tensors(5, 7, 12, 0)
    assert torch.autograd.gradcheck(lambda *p: edge_logits(*p, *ends), parts)


@pytest.mark.parametrize("block", [1, 7, 1 << 14])
def test_blocked_path_equals_compiled_path(monkeypatch, block):
    """The path that GPUs take, run on the CPU."""
    monkeypatch.setattr(edge_kernels, "_EDGE_BLOCK", block)
    parts, ends = tensors(9, 70, 33, 1)
    plain = [p.detach() for p in parts]
    torch.testing.assert_close(edge_kernels._forward_blocked(*plain, *ends), edge_kernels._forward_cpu(*plain, *ends))
    upstream = torch.randn(33, dtype=torch.float64)
    for a, b in zip(
        edge_kernels._backward_blocked(upstream, *plain, *ends),
        edge_kernels._backward_cpu(upstream, *plain, *ends),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_single_precision_stays_close():
    parts, ends = tensors(30, 512, 400, 2, torch.float32)
    torch.testing.assert_close(edge_logits(*parts, *ends), twin(*parts, *ends), rtol=1e-4, atol=1e-4)


def test_model_equals_the_head_written_out():
    """softmax(W2 PReLU(W1 [x_i | x_j] + b1) + b2)[1], with the published parameter names."""
    model = StarFCModel(6, 10, generator=torch.Generator().manual_seed(0)).eval()
    state = model.head.state_dict()
    names = [
        "classifier.0.bias",
        "classifier.0.weight",
        "classifier.1.weight",
        "classifier.2.bias",
        "classifier.2.weight",
    ]
    assert sorted(state) == names
    f, a = torch.randn(8, 6), torch.randn(8, 6)
    rows, cols = torch.randint(0, 8, (2, 20), dtype=torch.int32)
    x = torch.relu(torch.cat([f, a], dim=1) @ model.backbone.conv1.weight + model.backbone.conv1.bias)
    pairs = torch.cat([x[rows.long()], x[cols.long()]], dim=1)
    z = model.head.classifier(pairs)
    torch.testing.assert_close(torch.sigmoid(model(f, a, rows, cols)), torch.softmax(z, dim=1)[:, 1])


def test_metric_initialisation_is_a_distance():
    model = StarFCModel(16, 64, init="metric", generator=torch.Generator().manual_seed(0)).eval()
    f = functional.normalize(torch.randn(30, 16), dim=1)
    rows, cols = torch.randint(0, 30, (2, 100), dtype=torch.int32)
    x = model.backbone(f, f)
    distance = (x[rows.long()] - x[cols.long()]).abs().sum(1)
    z = model(f, f, rows, cols)
    torch.testing.assert_close(z, model(f, f, cols, rows), rtol=1e-4, atol=1e-4)  # symmetric
    assert np.corrcoef(distance.detach(), z.detach())[0, 1] < -0.9999
