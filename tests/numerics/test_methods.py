"""The methods on toys whose optimum is known, and who learns when, on which inputs, from which gradient.

The toys stand in for the roles: anything callable as ``v(x, t, cond)`` may. Axes: B batch, D = 2 dimensions, shown as
latents (B, D, 1, 1, 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from w2svd_bench.backbones.adapters import blend
from w2svd_bench.baselines.dmd.method import DMD, DMDConfig
from w2svd_bench.baselines.euler.method import Euler
from w2svd_bench.baselines.lcm.method import LCM, LCMConfig
from w2svd_bench.config import Frozen, Optimizer, validated
from w2svd_bench.data.order import rows_of
from w2svd_bench.errors import BenchError, UnsupportedSteps
from w2svd_bench.flow import add_noise, schedule, shift_levels
from w2svd_bench.matching import FAKE, REAL, DistributionMatching
from w2svd_bench.method import GENERATOR, Method
from w2svd_bench.methods.w2svd.method import W2SVD, W2SVDConfig
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import ode
from w2svd_bench.types import TEACHER, Batch, Cond

ANY = Optimizer(learning_rate=1e-3)
SHIFT = 3.0
MEAN = torch.tensor([1.0, -2.0])
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]])
Conds = Callable[[int], Cond]


def dmd(**settings: Any) -> DMD:
    return DMD(DMDConfig(**{"generator": ANY, "fake": ANY, **settings}), SHIFT)


def w2svd(**settings: Any) -> W2SVD:
    return W2SVD(W2SVDConfig(**{"generator": ANY, "fake": ANY, **settings}), SHIFT)


def lcm(**settings: Any) -> LCM:
    return LCM(LCMConfig(**{"generator": ANY, **settings}), SHIFT)


def latents(x_BD: Tensor) -> Tensor:
    return x_BD[..., None, None, None]


# --- Who learns when ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (dmd(fake_updates=5), {FAKE: 100, GENERATOR: 20}),
        (dmd(fake_updates=2, fake_warmup=7), {FAKE: 47, GENERATOR: 20}),
        (w2svd(fake_updates=1, fake_warmup=20), {FAKE: 40, GENERATOR: 20}),
        (w2svd(fake_updates=3, gt={"kind": "gan"}), {FAKE: 60, "discriminator": 20, GENERATOR: 20}),
        (w2svd(gt={"kind": "regression"}), {FAKE: 20, GENERATOR: 20}),
        (lcm(), {GENERATOR: 20}),
        (Euler(Frozen(), SHIFT), {}),
    ],
)
def test_updates_of_each_role_in_20_iterations(method: Method, expected: dict[str, int]) -> None:
    assert Counter(update.role for i in range(20) for update in method.updates(i)) == expected
    trained = {name for name, spec in method.roles().items() if spec.optimizer is not None}
    assert trained == set(expected)
    for i in range(20 if expected else 0):  # the scores are up to date when the generator moves
        assert [update.role for update in method.updates(i)].index(GENERATOR) == len(method.updates(i)) - 1


def test_the_warm_up_comes_before_the_generators_first_update_and_never_again() -> None:
    method = w2svd(fake_updates=1, fake_warmup=3)
    assert [u.role for u in method.updates(0)] == [FAKE] * 4 + [GENERATOR]
    assert [u.role for u in method.updates(1)] == [FAKE, GENERATOR]


@pytest.mark.parametrize("method", [dmd(trained_steps=4), w2svd(trained_steps=4)])
def test_a_generator_is_sampled_only_at_levels_that_it_saw(method: DistributionMatching) -> None:
    for steps in (1, 2, 4):
        sampler = method.sampler(steps)
        assert (sampler.kind, sampler.nfe) == ("sde", steps)
        assert set(sampler.levels) <= set(method.levels)
    for steps in (3, 8, 28):
        with pytest.raises(UnsupportedSteps):
            method.sampler(steps)


def test_lcm_is_sampled_on_its_grid_and_euler_everywhere() -> None:
    method = lcm(grid=28)
    assert set(method.sampler(4).levels) <= set(schedule(28, SHIFT).tolist())
    assert method.sampler(4).kind == "sde"
    with pytest.raises(UnsupportedSteps):
        method.sampler(29)
    assert Euler(Frozen(), SHIFT).sampler(28).kind == "ode"


def test_regression_refuses_simulated_inputs() -> None:
    settings = {"generator": ANY.model_dump(), "fake": ANY.model_dump(), "input": "simulate"}
    validated(DMDConfig, settings, "these")
    with pytest.raises(BenchError, match="input 'data'"):
        validated(DMDConfig, {**settings, "gt": {"kind": "regression"}}, "these")


# --- On which inputs ------------------------------------------------------------------------------------------------


class Spy(nn.Module):
    """A generator ``v = w x`` that notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append((x, t, torch.is_grad_enabled()))
        return self.w * x


def test_data_inputs_are_noised_clips_at_the_samplers_levels(no_cond: Conds) -> None:
    method, spy, count = dmd(trained_steps=4, first_level_share=0.4), Spy(), 4000
    method.models = {GENERATOR: spy}
    x0 = torch.full((count, 1, 1, 1, 1), 5.0)
    x, t = method.generate(Batch(x0, no_cond(count)), Rng(0))
    x_t = spy.calls[0][0]
    shares = {level: float((t == level).float().mean()) for level in method.levels[:-1]}
    assert list(shares.values()) == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.04)
    for level in method.levels[:-1]:
        chosen = x_t[t == level]
        assert float(chosen.mean()) == pytest.approx((1 - level) * 5, abs=0.15)
        assert float(chosen.std()) == pytest.approx(level, abs=0.08)
    assert torch.allclose(x, x_t - t.view(-1, 1, 1, 1, 1) * 0.3 * x_t)


def test_simulation_visits_every_step_about_equally_and_the_same_on_all_ranks(no_cond: Conds) -> None:
    method, steps = dmd(trained_steps=4, input="simulate"), Counter[int]()
    batch = Batch(torch.zeros(2, 1, 1, 1, 1), no_cond(2))
    for iteration in range(400):
        inputs = []
        for rank in (0, 1):
            method.models = {GENERATOR: (spy := Spy())}
            _, t = method.generate(batch, Rng(0, iteration, 2, rows=range(2 * rank, 2 * rank + 2)))
            inputs.append((len(spy.calls), t, spy.calls[0][0]))
        assert inputs[0][0] == inputs[1][0]
        assert torch.equal(inputs[0][1], inputs[1][1])
        assert not torch.equal(inputs[0][2], inputs[1][2])  # the noise is each sample's own
        step = inputs[0][0] - 1
        assert inputs[0][1].tolist() == [pytest.approx(method.levels[step])] * 2
        steps[step] += 1
    # 400 draws of 4: 100 each, with a standard deviation of 9.
    assert all(70 < steps[k] < 130 for k in range(4)), steps


def test_simulation_sees_what_sampling_sees_and_keeps_no_graph_of_the_walk(no_cond: Conds) -> None:
    method, batch = dmd(trained_steps=4, input="simulate"), Batch(torch.zeros(3, 2, 1, 1, 1), no_cond(3))
    seen = set()
    for key in range(40):
        spy, rng = Spy(), Rng(key)
        method.models = {GENERATOR: spy}
        x, _ = method.generate(batch, rng)
        step = len(spy.calls) - 1
        seen.add(step)
        # What the sampler would have given this call, from the same noise.
        again, sampled = Rng(key), Spy()
        noise = [again.normal(batch.x0_BCTHW) for _ in range(step + 1)] + [batch.x0_BCTHW] * 4
        method.sampler(4)(sampled, batch.cond, noise.__getitem__)
        for ours, theirs in zip(spy.calls, sampled.calls, strict=False):
            assert torch.allclose(ours[0], theirs[0], atol=1e-6)
            assert torch.allclose(ours[1], theirs[1])
        assert [with_gradient for *_, with_gradient in spy.calls] == [False] * step + [True]
        # The gradient is that of the last call alone: x = x_t - t w x_t.
        x_t, t, _ = spy.calls[-1]
        gradient = torch.autograd.grad(x.sum(), spy.w)[0]
        assert gradient == pytest.approx(float(-(t.view(-1, 1, 1, 1, 1) * x_t).sum()), rel=1e-4)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_scores_are_compared_uniformly_in_the_range_and_then_shifted(shift: float) -> None:
    method = dmd(score_range=(0.1, 0.7), score_shift=shift)
    t = method.score_level(Rng(0), torch.zeros(8000, 1))
    ends = shift_levels(torch.tensor([0.1, 0.4, 0.7]), shift)
    assert float(t.min()) == pytest.approx(float(ends[0]), abs=5e-3)
    assert float(t.max()) == pytest.approx(float(ends[2]), abs=5e-3)
    assert float(t.median()) == pytest.approx(float(ends[1]), abs=2e-2)


# --- From which gradient --------------------------------------------------------------------------------------------


class GaussianScore(nn.Module):
    """The velocity of N(m, L L^T); trained as ``base + strength * delta``, as a LoRA is."""

    def __init__(self, gaussian: Any, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.gaussian, self.base_mean, self.base_factor = gaussian, mean, factor
        self.mean, self.factor = nn.Parameter(torch.zeros_like(mean)), nn.Parameter(torch.zeros_like(factor))

    def forward(self, x: Tensor, t: Tensor, cond: Cond, strength: float = 1.0) -> Tensor:
        factor = self.base_factor + strength * self.factor
        # A little is added so that a factor that becomes singular on the way can be passed through.
        cov = factor @ factor.T + 1e-4 * torch.eye(2)
        out: Tensor = self.gaussian(self.base_mean + strength * self.mean, cov)(x, t, cond)
        return out

    def view(self, strength: float) -> Callable[..., Tensor]:
        return lambda x, t, cond: self(x, t, cond, strength)


class Affine(nn.Module):
    """A generator that is affine at each of some levels: ``x0 = A_n x + b_n``, so v = (x - x0) / t."""

    def __init__(self, levels: Tensor, slope: float) -> None:
        super().__init__()
        self.levels = levels
        self.slope = nn.Parameter(slope * torch.eye(2).repeat(len(levels), 1, 1))
        self.offset = nn.Parameter(torch.zeros(len(levels), 2))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        if bool((t == 0).all()):
            return torch.zeros_like(x)
        n = (t.view(-1, 1) - self.levels).abs().argmin(1)
        flat = x.flatten(1)
        x0 = torch.einsum("bij,bj->bi", self.slope[n], flat) + self.offset[n]
        v: Tensor = (flat - x0) / t.clamp_min(1e-3).view(-1, 1)
        return v.view_as(x)


def toys(gaussian: Any, method: Method) -> dict[str, Any]:
    """The roles of a matching method with an ideal teacher and a generator that starts far too narrow."""
    teacher = gaussian(MEAN, COV)
    fake = GaussianScore(gaussian, MEAN, torch.linalg.cholesky(COV))
    spec = method.roles()[REAL]
    real = teacher if spec.weights == "teacher" else fake.view(spec.strength)
    levels = torch.tensor(method.levels[:-1])  # type: ignore[attr-defined]
    return {TEACHER: teacher, REAL: real, FAKE: fake, GENERATOR: Affine(levels, 0.3)}


def run(method: Method, gaussian: Any, no_cond: Conds, iterations: int, rates: dict[str, float]) -> None:
    """Trains the toys with the method's own updates; rates fall linearly, as recipes let them."""
    size = 128
    optimizers = {
        name: torch.optim.Adam(method.models[name].parameters(), lr=rate, betas=(0.5, 0.99))  # type: ignore[attr-defined]
        for name, rate in rates.items()
    }
    x0, draw = gaussian(MEAN, COV).sample(4096, 5), 0
    for iteration in range(iterations):
        for index, update in enumerate(method.updates(iteration)):
            rows, draw = rows_of(len(x0), size, draw, seed=0), draw + 1
            optimizer = optimizers[update.role]
            optimizer.param_groups[0]["lr"] = rates[update.role] * (1 - iteration / iterations)
            optimizer.zero_grad()
            update.loss(Batch(x0[rows], no_cond(size)), Rng(0, iteration, index)).total.backward()
            optimizer.step()


@pytest.mark.parametrize("kind", ["none", "regression", "fake_fm"])
@pytest.mark.parametrize("make", [dmd, w2svd])
def test_a_loss_has_gradients_for_its_own_role_only(
    make: Callable[..., DistributionMatching], kind: str, gaussian: Any, no_cond: Conds
) -> None:
    """Even where every role could learn: it is the method that keeps them apart, beside the trainer."""
    method = make(gt={"kind": kind}, trained_steps=2)
    batch = Batch(gaussian(MEAN, COV).sample(8, 0), no_cond(8))
    seen = set()
    for update in method.updates(0):
        method.models = models = toys(gaussian, method)
        with torch.no_grad():
            models[FAKE].mean.add_(0.3)  # so that fake and real differ
        update.loss(batch, Rng(0)).total.backward()
        for name in (GENERATOR, FAKE):
            grads = [p.grad for p in models[name].parameters()]
            if name == update.role:
                assert all(g is not None and g.abs().sum() > 0 for g in grads)
            else:
                assert all(g is None for g in grads), f"{update.role}'s loss reaches {name}"
        seen.add(update.role)
    assert seen == {FAKE, GENERATOR}


def test_the_gan_raises_logits_of_data_and_the_generator_follows_them(gaussian: Any, no_cond: Conds) -> None:
    method = dmd(gt={"kind": "gan", "weight": 1.0}, trained_steps=1)
    method.models = models = toys(gaussian, method)
    weight = nn.Parameter(torch.tensor(0.0))
    models["discriminator"] = lambda x, t, cond: weight * x.flatten(1)[:, 0]
    batch = Batch(latents(torch.full((64, 2), 4.0)), no_cond(64))  # data lies above what is generated
    (loss,) = (update.loss for update in method.updates(0) if update.role == "discriminator")
    loss(batch, Rng(0)).total.backward()
    assert weight.grad is not None
    assert float(weight.grad) < 0  # descending gives larger logits to larger x
    assert all(p.grad is None for p in models[GENERATOR].parameters())
    with torch.no_grad():
        weight.fill_(1.0)
    x = torch.zeros(64, 2, 1, 1, 1, requires_grad=True)
    term = method.truth.generator_term(x, torch.ones(64), batch, Rng(0))
    assert term is not None
    gradient = torch.autograd.grad(term, x)[0].flatten(1)
    assert (gradient[:, 0] < 0).all()
    assert (gradient[:, 1] == 0).all()


# --- Toys with a known optimum --------------------------------------------------------------------------------------


def wasserstein(x_BD: Tensor) -> float:
    """The squared 2-Wasserstein (Fréchet) distance of a Gaussian of the samples' moments from the data's."""

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T

    cov = torch.cov(x_BD.T)
    inner = root(root(COV) @ cov @ root(COV))
    return float((x_BD.mean(0) - MEAN).square().sum() + torch.trace(COV + cov - 2 * inner))


def sampled(method: Method, velocity: Callable[..., Tensor], steps: int, no_cond: Conds) -> Tensor:
    """4000 samples (., D) of a role by the method's sampler."""
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(steps, 4000, 2, 1, 1, 1, generator=generator)
    with torch.no_grad():
        return method.sampler(steps)(velocity, no_cond(4000), noise.__getitem__).flatten(1)


@pytest.mark.parametrize(
    "method",
    [
        dmd(trained_steps=1, fake_updates=2),
        dmd(trained_steps=1, fake_updates=2, normalise=False),
        w2svd(trained_steps=1, fake_updates=2, alpha_weak=0.25),
        w2svd(trained_steps=1, fake_updates=2, alpha_weak=0.5, rescale=True),
    ],
    ids=["dmd", "dmd-raw", "w2svd", "w2svd-rescaled"],
)
def test_matching_drives_mean_and_covariance_to_the_data(
    method: DistributionMatching, gaussian: Any, no_cond: Conds
) -> None:
    method.models = models = toys(gaussian, method)
    start = wasserstein(sampled(method, models[GENERATOR], 1, no_cond))
    run(method, gaussian, no_cond, 200, {GENERATOR: 0.03, FAKE: 0.06})
    x = sampled(method, models[GENERATOR], 1, no_cond)
    assert torch.allclose(x.mean(0), MEAN, atol=0.15)
    assert torch.allclose(torch.cov(x.T), COV, atol=0.2)
    euler = wasserstein(sampled(Euler(Frozen(), SHIFT), models[TEACHER], 1, no_cond))
    assert euler == pytest.approx(float(torch.trace(COV)), rel=0.01)  # one step gives the mean, and nothing else
    assert wasserstein(x) < 0.05 * euler < start


def test_lcm_learns_the_teachers_ode_map(gaussian: Any, no_cond: Conds) -> None:
    """The consistency loss vanishes where each level's map is that of the solver from there on."""
    cells = 6
    grid = schedule(cells, SHIFT)
    method = lcm(grid=cells, ema=0.9)
    teacher, generator, average = gaussian(MEAN, COV), Affine(grid[:-1], 0.5), Affine(grid[:-1], 0.5)
    method.models = {TEACHER: teacher, GENERATOR: generator, "generator_ema": average}
    rate, iterations, size = 0.05, 500, 128
    optimizer = torch.optim.Adam(generator.parameters(), lr=rate, betas=(0.5, 0.99))
    x0 = teacher.sample(4096, 5)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = rate * (1 - iteration / iterations)
        (update,) = method.updates(iteration)
        rows = rows_of(len(x0), size, iteration, seed=0)
        optimizer.zero_grad()
        update.loss(Batch(x0[rows], no_cond(size)), Rng(0, iteration, 0)).total.backward()
        assert all(p.grad is None for p in average.parameters())
        optimizer.step()
        blend(dict(average.named_parameters()), dict(generator.named_parameters()), method.config.ema)
    noise = torch.randn(4000, 2, 1, 1, 1, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        one_step = method.sampler(1)(average, no_cond(4000), lambda step: noise).flatten(1)
    solver = ode(teacher, no_cond(4000), grid.tolist(), lambda step: noise).flatten(1)
    assert (one_step - solver).square().mean().sqrt() < 0.03
    # The solver is itself near the ODE's own map, and one Euler step is far from it.
    truth = teacher.ode_map(noise.flatten(1))
    euler = ode(teacher, no_cond(4000), [1.0, 0.0], lambda step: noise).flatten(1)
    assert (one_step - truth).norm() < 0.35 * (euler - truth).norm()
    assert wasserstein(one_step) < 0.3 * wasserstein(euler)


def test_lcm_moves_the_teacher_one_cell_towards_data(gaussian: Any, no_cond: Conds) -> None:
    """The target is the average's answer at ``x + (s' - s) v_teacher(x, s)``, the next level down, without gradient."""
    method, spies = lcm(grid=4), {name: Spy() for name in (TEACHER, GENERATOR, "generator_ema")}
    method.models = spies
    loss = method.updates(0)[0].loss(Batch(gaussian(MEAN, COV).sample(64, 0), no_cond(64)), Rng(3))
    loss.total.backward()
    (x, t, _), (x_now, now, _), (x_after, after, _) = (
        spies[name].calls[0] for name in (TEACHER, GENERATOR, "generator_ema")
    )
    assert torch.equal(x, x_now)
    assert torch.equal(t, now)
    grid = schedule(4, SHIFT)
    index = (now.view(-1, 1) - grid).abs().argmin(1)
    assert set(index.tolist()) == {0, 1, 2, 3}
    assert torch.equal(after, grid[index + 1])
    assert torch.allclose(x_after, x + (after - now).view(-1, 1, 1, 1, 1) * 0.3 * x, atol=1e-6)
    assert [spies[name].w.grad is None for name in spies] == [True, False, True]
    prediction, target = ((1 - s.view(-1, 1, 1, 1, 1) * 0.3) * p for p, s in ((x_now, now), (x_after, after)))
    c = method.config.huber_c
    expected = (((prediction - target).square() + c * c).sqrt() - c).mean()
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_consistency_costs_nothing_on_a_flow_to_one_point(no_cond: Conds) -> None:
    point = torch.tensor([0.5, -1.5])

    def velocity(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        # At t = 0 the path is at the point already; the factor t in front of v makes any finite value right.
        return (x - latents(point.expand(len(x), 2))) / t.clamp_min(1e-6).view(-1, 1, 1, 1, 1)

    method = lcm(grid=5)
    method.models = {TEACHER: velocity, GENERATOR: velocity, "generator_ema": velocity}
    loss = method.consistency_loss(Batch(latents(point.expand(64, 2)), no_cond(64)), Rng(0))
    assert float(loss.total) < 1e-6


def test_the_fake_learns_what_the_generator_makes_and_fake_fm_pulls_it_towards_data(
    gaussian: Any, no_cond: Conds
) -> None:
    """The best fake without a ground-truth term is the generator's own score, and with one it is not."""
    own = gaussian(torch.zeros(2), 0.09 * torch.eye(2))  # what Affine(0.3) makes of pure noise
    batch = Batch(gaussian(MEAN, COV).sample(2000, 0), no_cond(2000))
    found = {}
    for kind in ("none", "fake_fm"):
        method = dmd(trained_steps=1, gt={"kind": kind, "weight": 1.0})
        for name, fake in (("own", own), ("data", gaussian(MEAN, COV))):
            method.models = {**toys(gaussian, method), FAKE: fake}
            with torch.no_grad():
                found[kind, name] = float(method.fake_loss(batch, Rng(0)).total)
    assert found["none", "own"] < 0.5 * found["none", "data"]
    assert found["fake_fm", "own"] - found["none", "own"] > 1.5 * (found["fake_fm", "data"] - found["none", "data"])


def test_a_generator_loss_has_the_sign_of_the_distance(gaussian: Any, no_cond: Conds) -> None:
    """A generator above the data is pushed down, one below is pushed up: the whole chain, with an ideal fake."""
    for offset in (2.0, -2.0):
        method = dmd(trained_steps=1)
        method.models = models = toys(gaussian, method)
        generator = models[GENERATOR]
        with torch.no_grad():
            generator.offset.copy_((MEAN + offset).expand(1, 2))
            generator.slope.copy_(torch.linalg.cholesky(COV).expand(1, 2, 2))
        models[FAKE] = gaussian(MEAN + offset, COV)
        batch = Batch(gaussian(MEAN, COV).sample(256, 0), no_cond(256))
        method.generator_loss(batch, Rng(0)).total.backward()
        assert (generator.offset.grad.sign() == torch.tensor(offset).sign()).all()


def test_matching_can_be_weighted_and_left_out(gaussian: Any, no_cond: Conds) -> None:
    """Its gradient is proportional to its weight; at 0 no fake learns, and what is left is the ground-truth term."""

    def gradients(**settings: Any) -> Tensor:
        method = dmd(trained_steps=4, **settings)
        method.models = models = toys(gaussian, method)
        models[FAKE] = gaussian(MEAN + 1.0, COV)
        method.generator_loss(Batch(gaussian(MEAN, COV).sample(64, 0), no_cond(64)), Rng(0)).total.backward()
        return torch.cat([p.grad.flatten() for p in models[GENERATOR].parameters() if p.grad is not None])

    truth = {"kind": "regression", "weight": 0.5}
    once, thrice = gradients(), gradients(matching_weight=3.0)
    torch.testing.assert_close(thrice, 3 * once)
    both, alone = gradients(gt=truth), gradients(gt=truth, matching_weight=0.0)
    assert not torch.allclose(alone, both) and alone.norm() > 0
    # What is left is the ground-truth term and nothing else: at twice the weight there is twice of it.
    torch.testing.assert_close(gradients(gt={"kind": "regression", "weight": 1.0}, matching_weight=0.0), 2 * alone)
    assert [update.role for update in dmd(gt=truth, matching_weight=0.0).updates(0)] == [GENERATOR]
    for kind in ("none", "fake_fm"):
        with pytest.raises(ValidationError, match="nothing to learn from"):
            dmd(gt={"kind": kind}, matching_weight=0.0)


def test_noise_of_the_scores_is_fresh(gaussian: Any, no_cond: Conds) -> None:
    """The scores see the sample noised with noise that the generator did not have as its input."""
    method = dmd(trained_steps=1)
    method.models = models = toys(gaussian, method)
    fed, scored = Spy(), Spy()
    models[GENERATOR], models[FAKE], models[REAL] = fed, scored, Spy()
    batch = Batch(gaussian(MEAN, COV).sample(64, 0), no_cond(64))
    method.generator_loss(batch, Rng(0))
    (noise, _, _), (x_t, t, with_gradient) = fed.calls[0], scored.calls[0]
    x = noise - 0.3 * noise
    drawn = (x_t - add_noise(x, torch.zeros_like(x), t)) / t.view(-1, 1, 1, 1, 1)
    assert abs(float((drawn * noise).mean())) < 0.25
    assert float(drawn.detach().std()) == pytest.approx(1.0, abs=0.2)
    assert not with_gradient
