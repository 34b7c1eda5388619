"""What a method has to keep to: mistakes of its author are told as such, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from w2svd_bench.config import Optimizer
from w2svd_bench.errors import BenchError
from w2svd_bench.method import GENERATOR, Method, RoleSpec, Update
from w2svd_bench.samplers import Sampler
from w2svd_bench.train.contract import check_loss, check_roles, check_update
from w2svd_bench.types import Loss

ADAM = Optimizer(learning_rate=1e-3)
FULL = RoleSpec.full(ADAM)
WEIGHT = torch.ones(3, requires_grad=True)


class Mine(Method):
    name = "mine"

    def sampler(self, steps: int) -> Sampler:
        return Sampler("ode", (1.0, 0.0))


METHOD = Mine(None, 3.0)


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        ({"student": FULL}, "no role 'generator' that learns"),
        ({GENERATOR: RoleSpec.teacher()}, "no role 'generator' that learns"),
        ({GENERATOR: RoleSpec.head(ADAM)}, "no role 'generator' that learns"),
        ({GENERATOR: FULL, "teacher": FULL}, "can't have a role 'teacher'"),
        ({GENERATOR: RoleSpec.full(ADAM, ema=0.9), "generator_ema": FULL}, "can't have a role 'generator_ema'"),
    ],
)
def test_roles_that_would_only_fail_after_training_are_refused(specs: dict[str, RoleSpec], told: str) -> None:
    with pytest.raises(BenchError, match=told):
        check_roles(METHOD, specs)


def test_usual_roles_pass() -> None:
    lora = RoleSpec.lora(ADAM, 4, ema=0.9)
    check_roles(METHOD, {GENERATOR: lora, "fake": FULL, "real": RoleSpec.teacher(), "critic": RoleSpec.head(ADAM)})
    check_update(METHOD, Update(GENERATOR, lambda batch, rng: Loss(WEIGHT.sum())), [GENERATOR])
    check_loss(METHOD, GENERATOR, Loss(WEIGHT.sum(), {"a": WEIGHT.detach().sum(), "b": 1.0, "c": torch.ones(1)}))


def test_an_update_of_a_role_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(BenchError, match="unknown role 'genrator'") as caught:
        check_update(METHOD, Update("genrator", lambda batch, rng: Loss(WEIGHT.sum())), [GENERATOR, "fake"])
    assert "'generator'" in caught.value.cure


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (WEIGHT.sum(), "a Tensor"),
        (None, "a NoneType"),
        (Loss(WEIGHT * 2), r"shape \(3,\)"),
        (Loss(WEIGHT.detach().sum()), "no gradient"),
        (Loss(WEIGHT.sum(), {"wide": WEIGHT.detach()}), "'wide' of its logs"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_told(loss: Any, why: str) -> None:
    with pytest.raises(BenchError, match=why):
        check_loss(METHOD, GENERATOR, loss)
