"""Muon against torch's own, and against the singular values that it promises."""

import pytest
import torch

from minidalle.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (96, 384)])
def test_all_singular_values_come_near_one_and_the_directions_stay(shape):
    torch.manual_seed(0)
    m = torch.randn(shape, dtype=torch.float64) * torch.logspace(-2, 0, shape[1], dtype=torch.float64)
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    x = orthogonalize(m)
    diagonal = u.T @ x @ vh.T  # U and V stay, so this is the new S
    assert (diagonal - diagonal.diag().diag()).abs().max() < 1e-9
    large = s > 0.01 * s.max()  # five steps do not reach what starts at nothing
    assert diagonal.diag()[large].min() > 0.5 and diagonal.diag().max() < 1.25


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_updates_are_those_of_torch_within_bfloat16(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(6, *shape)
    weights = []
    for kind in (Muon, torch.optim.Muon):
        p = torch.nn.Parameter(start.clone())
        optimizer = kind([p], lr=0.02, weight_decay=0.05)
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        weights.append(p.detach() - start)
    ours, theirs = weights
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_zero_gradient_only_decays():
    p = torch.nn.Parameter(torch.ones(3, 5))
    p.grad = torch.zeros(3, 5)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3, 5), 0.95))
