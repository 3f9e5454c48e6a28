"""Checks of the exercises: one file for each lesson, lessonNN.py, with a `check_NAME(fn)` for every exercise NAME.

A check returns "todo" while the function is the stub, "pass" when it is right, or one sentence: the first wrong value,
with what was expected. It draws nothing, prints nothing, and never raises for a learner's mistake.
"""

import functools
from collections.abc import Callable

import torch


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


def exercise(check: Callable) -> Callable[[Callable], str]:
    """Make check(fn), which raises `Wrong` for a wrong answer, return a verdict instead."""

    @functools.wraps(check)
    def verdict(fn: Callable) -> str:
        state = torch.random.get_rng_state()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                check(fn)
        except NotImplementedError:
            return "todo"
        except Wrong as wrong:
            return str(wrong)
        except Exception as error:
            return f"your function raised {type(error).__name__}: {error}"
        finally:
            torch.random.set_rng_state(state)
        return "pass"

    return verdict


def expect(condition: bool, otherwise: str):
    """Raise `Wrong` with the sentence `otherwise` unless the condition holds."""
    if not condition:
        raise Wrong(otherwise)


def expect_tensor(what: str, got, wanted: torch.Tensor, tolerance: float = 1e-5):
    """`got` must be a tensor with the shape of `wanted`, whole numbers where `wanted` has them, and the same values, but
    for `tolerance` (absolute, and relative to the value). `what` opens the sentence: "for the stream [1, 2]"."""
    expect(isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {type(got).__name__} ({got!r:.60})")
    expect(got.shape == wanted.shape, f"{what}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    expect(
        got.is_floating_point() == wanted.is_floating_point(),
        f"{what}: expected dtype {wanted.dtype}, got {got.dtype}",
    )
    close = torch.isclose(got.double(), wanted.double(), rtol=tolerance, atol=tolerance, equal_nan=False)
    if not close.all():
        at = tuple((~close).nonzero()[0].tolist())
        place = f" at {list(at)}" if at else ""
        raise Wrong(f"{what}: expected {wanted[at].item():.6g}{place}, got {got[at].item():.6g}")


def expect_number(what: str, got, wanted: float, tolerance: float = 1e-5):
    """The same for one number, a float or a tensor without dimensions."""
    number = isinstance(got, (int, float)) or (isinstance(got, torch.Tensor) and got.dim() == 0)
    expect(number, f"{what}: expected one number, got {type(got).__name__} ({got!r:.60})")
    got = float(got)
    expect(abs(got - wanted) <= tolerance * (1 + abs(wanted)), f"{what}: expected {wanted:.6g}, got {got:.6g}")
