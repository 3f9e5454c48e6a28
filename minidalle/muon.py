"""Muon: momentum for matrices, in which every direction counts the same. An optimizer for short runs (O).

In: the matrices of the transformer's blocks and their gradients. AdamW scales each number by itself; Muon looks at the
whole matrix. From the momentum M = U S Vᵀ it keeps U Vᵀ, all singular values set to 1: a rare direction, such as what
tells a cross from a circle, moves as far in one update as a common one (Jordan et al. 2024).

torch.optim.Muon does the same in bfloat16, which a CPU without such arithmetic emulates: for the tiny transformer that
took twice as long as everything else in an update. So the few lines stand here in float32; a test holds one to the other.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of the polynomial below, chosen by Muon's author to grow fast near 0
STEPS = 5


def orthogonalize(m: torch.Tensor) -> torch.Tensor:
    """m (rows, columns) -> nearly U Vᵀ, its singular values between about 0.7 and 1.2, without computing U S Vᵀ.

    Newton-Schulz: X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X maps each singular value s to a s + b s³ + c s⁵ and leaves U and
    V as they are; repeated, it drives every s in (0, 1] towards 1. The first division brings all s into that range.
    """
    a, b, c = COEFFICIENTS
    x = m.T if m.shape[0] > m.shape[1] else m  # X Xᵀ is then the smaller of the two products
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.T if m.shape[0] > m.shape[1] else x


class Muon(torch.optim.Optimizer):
    """For parameters of two dimensions: Nesterov momentum, orthogonalized, and decoupled weight decay as in AdamW."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - momentum)
                ahead = p.grad.lerp(buffer, momentum)  # Nesterov: where the momentum will be
                p.mul_(1 - lr * group["weight_decay"])
                taller = max(1, p.shape[0] / p.shape[1]) ** 0.5  # so that tall matrices move their outputs as far
                p.add_(orthogonalize(ahead), alpha=-lr * taller)
