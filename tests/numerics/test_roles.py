"""Roles that share one transformer: exact under every order of forward and backward passes, and W2SVD's limits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from w2svd_bench.backbones.adapters import AdapterState
from w2svd_bench.backbones.mini import TRANSFORMER, new_transformer
from w2svd_bench.backbones.network import Network
from w2svd_bench.backbones.roles import Role, Roles, both
from w2svd_bench.backbones.sharding import skeleton
from w2svd_bench.baselines.dmd.method import DMD, DMDConfig
from w2svd_bench.config import Engine, Optimizer
from w2svd_bench.data.latents import LatentPool
from w2svd_bench.matching import FAKE, REAL, DistributionMatching
from w2svd_bench.method import GENERATOR, RoleSpec
from w2svd_bench.methods.w2svd.method import W2SVD, W2SVDConfig
from w2svd_bench.rng import Rng
from w2svd_bench.types import TEACHER, Batch, Cond

ANY = Optimizer(learning_rate=1e-3)
LORA_ROLES = {
    GENERATOR: RoleSpec.lora(ANY, rank=4),
    FAKE: RoleSpec.lora(ANY, rank=2),
    REAL: RoleSpec.view(FAKE, 0.25),
}


def make_roles(specs: Mapping[str, RoleSpec], checkpointing: bool = False, size: float = 0.05) -> Roles:
    """Roles on the untrained miniature whose LoRAs (B starts at 0) are moved away from the identity."""
    roles = Roles(Network(new_transformer(0), 1.0), specs)
    generator = torch.Generator().manual_seed(1)
    for name in roles.trained():
        for key, parameter in roles.parameters(name).items():
            if "lora_B" in key:
                parameter.data.normal_(0.0, size, generator=generator)
    if checkpointing:
        roles.enable_checkpointing()
    return roles


@pytest.fixture
def batch(random_pool: Callable[..., LatentPool]) -> Batch:
    return random_pool(2).batch([1, 0])


@pytest.fixture
def inputs(batch: Batch) -> tuple[Tensor, Tensor, Cond]:
    return batch.x0_BCTHW, torch.tensor([0.9, 0.4]), batch.cond


def gradients(roles: Roles, name: str) -> dict[str, Tensor | None]:
    return {key: p.grad for key, p in roles.parameters(name).items()}


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in parameters.items()}


def same(first: Mapping[str, Tensor | None], second: Mapping[str, Tensor | None]) -> bool:
    """Whether two sets of tensors are equal bit by bit; a missing one equals nothing."""
    return first.keys() == second.keys() and all(
        a is not None and b is not None and torch.equal(a, b) for a, b in ((first[k], second[k]) for k in first)
    )


def error(first: Mapping[str, Tensor | None], second: Mapping[str, Tensor | None]) -> float:
    """Relative distance of two sets of gradients; infinite where one is missing."""
    if any(g is None for g in (*first.values(), *second.values())):
        return float("inf")
    a, b = (torch.cat([g.flatten() for g in s.values()]) for s in (first, second))  # type: ignore[union-attr]
    return float((a - b).norm() / b.norm())


# --- What the adapters are -----------------------------------------------------------------------------------------


def test_adapters_sit_on_attention_and_mlp_of_the_blocks_only() -> None:
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**TRANSFORMER)
    network = Network(transformer, 1.0)
    network.adapters.add(FAKE, 2)
    found = {key.rsplit(".lora_", 1)[0] for key in network.adapters.parameters(FAKE)}
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    expected = {f"transformer_blocks.0.attn.{name}" for name in attention}
    expected |= {f"transformer_blocks.0.{part}.net.{name}" for part in ("ff", "ff_context") for name in ("0.proj", "2")}
    for i in range(3):
        expected |= {f"single_transformer_blocks.{i}.attn.{name}" for name in ("to_q", "to_k", "to_v")}
        expected |= {f"single_transformer_blocks.{i}.{name}" for name in ("proj_mlp", "proj_out")}
    assert found == expected


@torch.no_grad()
def test_a_fresh_lora_is_the_teacher_and_roles_differ_once_it_moved(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    fresh = make_roles(LORA_ROLES, size=0.0)
    teacher = fresh[TEACHER](*inputs)
    for name in (GENERATOR, FAKE, REAL):
        assert torch.equal(fresh[name](*inputs), teacher)
    moved = make_roles(LORA_ROLES)
    out = {name: moved[name](*inputs) for name in (TEACHER, GENERATOR, FAKE, REAL)}
    assert torch.equal(out[TEACHER], teacher)
    for first, second in ((GENERATOR, TEACHER), (FAKE, TEACHER), (REAL, TEACHER), (REAL, FAKE), (GENERATOR, FAKE)):
        assert (out[first] - out[second]).abs().max() > 1e-3
    # The weak view stands between the teacher and the fake, nearer to the teacher.
    assert (out[REAL] - out[TEACHER]).norm() < (out[REAL] - out[FAKE]).norm()


@torch.no_grad()
def test_strength_0_is_the_base_bit_by_bit_and_strength_1_is_the_lora(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles(LORA_ROLES)
    network = roles.base
    assert torch.equal(Role(network, AdapterState(FAKE, 0.0))(*inputs), roles[TEACHER](*inputs))
    assert torch.equal(Role(network, AdapterState(FAKE, 1.0))(*inputs), roles[FAKE](*inputs))
    merged = new_transformer(0)
    weights = dict(merged.named_parameters())
    pairs = network.adapters.parameters(FAKE)
    for key, a in pairs.items():
        if "lora_A" in key:
            b = pairs[key.replace("lora_A", "lora_B")]
            weights[key.replace("lora_A.", "")] += 0.25 * b @ a
    assert torch.allclose(Network(merged, 1.0).velocity(*inputs), roles[REAL](*inputs), atol=1e-5)


# --- Exactness -----------------------------------------------------------------------------------------------------


def backward_of(name: str, roles: Roles, inputs: tuple[Tensor, Tensor, Cond], between: list[str]) -> dict[str, Any]:
    """The gradients of one role when others run, without gradients, between its forward pass and its backward."""
    roles.learn(name)
    out = roles[name](*inputs)
    with torch.no_grad():
        for other in between:
            roles[other](*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    found = gradients(roles, name)
    for parameter in roles.parameters(name).values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("name", [GENERATOR, FAKE])
def test_gradients_are_exact_whatever_runs_before_the_backward_pass(
    inputs: tuple[Tensor, Tensor, Cond], name: str
) -> None:
    plain, checkpointed = make_roles(LORA_ROLES), make_roles(LORA_ROLES, checkpointing=True)
    truth = backward_of(name, plain, inputs, [])
    assert all(g is not None for g in truth.values())
    assert sum(float(g.abs().max()) > 0 for g in truth.values()) == len(truth)
    others = [TEACHER, GENERATOR, FAKE, REAL]
    for order in ([], others, others[::-1], random.Random(0).choices(others, k=5)):
        for roles in (plain, checkpointed):
            assert same(backward_of(name, roles, inputs, order), truth), f"after {order}"
    assert checkpointed.base.adapters.state == AdapterState()


def test_two_graphs_on_one_transformer_may_be_backwarded_in_any_order(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    truth, found = {}, {}
    roles = make_roles(LORA_ROLES, checkpointing=True)
    for name in (GENERATOR, FAKE):
        truth[name] = backward_of(name, roles, inputs, [])
    parameters = {name: roles.parameters(name) for name in truth}
    for name in truth:
        for parameter in parameters[name].values():
            parameter.requires_grad_(True)
    for order in ([GENERATOR, FAKE], [FAKE, GENERATOR]):
        outs = {name: roles[name](*inputs) for name in (GENERATOR, FAKE)}
        for name in order:
            loss = (outs[name] * torch.linspace(-1, 1, outs[name].numel()).view_as(outs[name])).sum()
            grads = torch.autograd.grad(loss, list(parameters[name].values()))
            found[name] = dict(zip(parameters[name], grads, strict=True))
            assert same(found[name], truth[name])


def test_checkpointing_that_forgets_the_adapters_is_refused(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles(LORA_ROLES)
    roles.base.transformer.enable_gradient_checkpointing()
    for name in (TEACHER, GENERATOR, REAL):
        with pytest.raises(RuntimeError, match="gradient checkpointing"):
            roles[name](*inputs)
    roles.enable_checkpointing()
    roles[GENERATOR](*inputs)


def test_checkpointing_that_forgets_the_adapters_would_be_wrong(
    inputs: tuple[Tensor, Tensor, Cond], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the tests above: what the guard refuses does give wrong gradients, without any error."""
    truth = backward_of(FAKE, make_roles(LORA_ROLES, size=0.3), inputs, [])
    roles = make_roles(LORA_ROLES, size=0.3)
    roles.base.transformer.enable_gradient_checkpointing()
    monkeypatch.setattr(roles.base.adapters, "check_exact", lambda: None)
    roles.learn(FAKE)
    out = roles[FAKE](*inputs)
    adapters = roles.base.adapters
    # The state in force at backward time; the mask is left out as in the forward pass, or checkpointing would notice.
    with adapters.using(AdapterState(FAKE, 0.25)), adapters.without_mask(True):
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert error(gradients(roles, FAKE), truth) > 0.1


def test_pefts_own_switch_would_lose_the_gradient(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    """Why roles never call it: it takes `requires_grad` away from the adapter whose backward pass is to come."""
    roles = make_roles(LORA_ROLES)
    roles.learn(GENERATOR)
    out = roles[GENERATOR](*inputs)
    roles.base.transformer.set_adapters([FAKE])
    assert not any(p.requires_grad for p in roles.parameters(GENERATOR).values())
    out.sum().backward()
    assert all(g is None for g in gradients(roles, GENERATOR).values())


def test_calling_roles_leaves_flags_and_state_alone(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles(LORA_ROLES)
    for learner in (GENERATOR, FAKE):
        roles.learn(learner)
        flags = {key: p.requires_grad for key, p in roles.base.transformer.named_parameters()}
        assert {key for key, flag in flags.items() if flag} == {
            key for key in flags if f".{learner}.weight" in key and "lora_" in key
        }
        for name in roles:
            roles[name](*inputs)
        assert {key: p.requires_grad for key, p in roles.base.transformer.named_parameters()} == flags
        assert roles.base.adapters.state == AdapterState()


def test_a_forward_pass_that_fails_puts_the_state_back(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles(LORA_ROLES)
    x, t, cond = inputs
    with pytest.raises(RuntimeError):
        roles[FAKE](x[:, :3], t, cond)
    assert roles.base.adapters.state == AdapterState()
    assert torch.equal(roles[TEACHER](*inputs), make_roles(LORA_ROLES)[TEACHER](*inputs))


def test_roles_learn_apart_and_the_base_never(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    specs = {**LORA_ROLES, "discriminator": RoleSpec.head(ANY), "copy": RoleSpec.full(ANY, ema=0.9)}
    roles = make_roles(specs, checkpointing=True)
    own = {id(p) for name in roles.trained() for p in roles.parameters(name).values()}
    base = {k: p for k, p in roles.base.transformer.named_parameters() if id(p) not in own}
    frozen = copied(base)
    assert not any(p.requires_grad for p in roles.base.transformer.parameters())  # until somebody learns
    for learner in (GENERATOR, FAKE, "discriminator", "copy"):
        before = {name: copied(roles.parameters(name)) for name in roles.trained()}
        roles.learn(learner)
        optimizer = torch.optim.AdamW(roles.parameters(learner).values(), lr=1e-2)
        sum(roles[name](*inputs).square().sum() for name in roles).backward()
        for name in roles.trained():
            assert all((p.grad is not None) == (name == learner) for p in roles.parameters(name).values()), name
        assert all(p.grad is None for p in base.values())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name in roles.trained():
            assert same(copied(roles.parameters(name)), before[name]) == (name != learner), name
        assert same(copied(base), frozen)


def test_a_full_copy_shares_no_memory_and_an_average_is_a_role(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles({GENERATOR: RoleSpec.full(ANY, ema=0.9), FAKE: RoleSpec.lora(ANY, rank=2)})
    assert not any("lora" in key for key in roles.parameters(GENERATOR))
    pointers = [{p.data_ptr() for p in roles.parameters(n).values()} for n in (GENERATOR, "generator_ema")]
    base = {p.data_ptr() for p in roles.base.transformer.parameters()}
    assert not (pointers[0] & pointers[1] or pointers[0] & base or pointers[1] & base)
    start = copied(roles.parameters("generator_ema"))
    assert same(start, copied(roles.parameters(GENERATOR)))
    with torch.no_grad():
        for parameter in roles.parameters(GENERATOR).values():
            parameter.add_(1.0)
    expected = dict(start)
    for update, decay in ((0, 0.1), (1, 2 / 11), (500, 0.9)):  # warmed up as (1 + u) / (10 + u)
        roles.update_average(GENERATOR, update)
        expected = {k: decay * v + (1 - decay) * (start[k] + 1) for k, v in expected.items()}
        found = roles.parameters("generator_ema")
        assert all(torch.allclose(found[k], v, atol=1e-5) for k, v in expected.items())
    with torch.no_grad():
        assert not torch.equal(roles["generator_ema"](*inputs), roles[TEACHER](*inputs))


@torch.no_grad()
def test_trained_weights_have_their_own_type_and_outlines_take_no_memory(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    base = Network(new_transformer(0).to(torch.bfloat16), 1.0)
    outline = skeleton(base, torch.float32)
    assert {p.device.type for p in outline.transformer.parameters()} == {"meta"}
    specs = {GENERATOR: RoleSpec.full(ANY, ema=0.9), FAKE: RoleSpec.lora(ANY, rank=2, ema=0.9)}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        network = Network(new_transformer(0).to(torch.bfloat16), 1.0)
        roles = Roles(network, specs, engine=Engine(trained_dtype=name))
        assert {p.dtype for role in roles.trained() for p in roles.parameters(role).values()} == {dtype}
        frozen = {k.replace(".base_layer", ""): p for k, p in network.transformer.named_parameters() if "lora" not in k}
        assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
        assert same(frozen, {k: p.to(torch.bfloat16) for k, p in roles.parameters(GENERATOR).items()})
        teacher = roles[TEACHER](*inputs)
        for role in roles.trained():
            assert torch.allclose(roles[role](*inputs), teacher, atol=0.05)  # activations are bfloat16 in all of them


def test_a_lora_average_follows_its_lora(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = Roles(Network(new_transformer(0), 1.0), {GENERATOR: RoleSpec.lora(ANY, rank=2, ema=0.5)})
    generator, average = roles.parameters(GENERATOR), roles.parameters("generator_ema")
    assert generator.keys() == average.keys()
    assert same(copied(generator), copied(average))
    with torch.no_grad():
        for parameter in generator.values():
            parameter.add_(0.05)
        assert not torch.equal(roles[GENERATOR](*inputs), roles["generator_ema"](*inputs))
        roles.update_average(GENERATOR, 1000)
        key = next(k for k in generator if "lora_B" in k)
        assert torch.allclose(average[key], torch.full_like(average[key], 0.025))


def test_a_view_needs_a_lora() -> None:
    with pytest.raises(ValueError, match="not a LoRA role"):
        make_roles({FAKE: RoleSpec.full(ANY), REAL: RoleSpec.view(FAKE, 0.25)})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_discriminator_sees_the_base_and_passes_gradients_to_its_input(
    inputs: tuple[Tensor, Tensor, Cond], checkpointing: bool
) -> None:
    roles = make_roles({**LORA_ROLES, "discriminator": RoleSpec.head(ANY)}, checkpointing)
    plain = make_roles({FAKE: LORA_ROLES[FAKE]}, size=0.0)
    plain_head = Roles(plain.base, {"discriminator": RoleSpec.head(ANY)})["discriminator"]
    plain_head.load_state_dict(roles["discriminator"].state_dict())
    x, t, cond = inputs
    grads = []
    for head in (roles["discriminator"], plain_head):
        leaf = x.clone().requires_grad_()
        logits = head(leaf, t, cond)
        assert logits.shape == (2,)
        with torch.no_grad():
            roles[FAKE](*inputs)
        grads.append((logits.detach(), torch.autograd.grad(logits.sum(), leaf)[0]))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert grads[0][1].abs().max() > 0


# --- One pass for two roles, and text without padding ---------------------------------------------------------------


@torch.no_grad()
def test_a_doubled_batch_is_two_passes(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    roles = make_roles(LORA_ROLES)
    before = roles.base.evaluations
    fake, real = both(roles[FAKE], roles[REAL], *inputs)
    assert roles.base.evaluations == before + 4
    assert torch.allclose(fake, roles[FAKE](*inputs), atol=1e-6)
    assert torch.allclose(real, roles[REAL](*inputs), atol=1e-6)
    assert (fake - real).abs().max() > 1e-3
    # Roles that share nothing are two passes; and neither way leaves anything behind.
    generator, teacher = both(roles[GENERATOR], roles[TEACHER], *inputs)
    assert torch.equal(generator, roles[GENERATOR](*inputs))
    assert torch.equal(teacher, roles[TEACHER](*inputs))
    assert roles.base.adapters.state == AdapterState()


@torch.no_grad()
def test_padded_text_is_trimmed_text(batch: Batch) -> None:
    network, t = Network(new_transformer(0), 1.0), torch.tensor([0.9, 0.4])
    lengths = (5, 8)
    mask = torch.stack([(torch.arange(8) < n).float() for n in lengths])
    padded = network.velocity(batch.x0_BCTHW, t, Cond(batch.cond.tokens_BLD, mask, batch.cond.pooled_BP))
    for i, n in enumerate(lengths):
        row = batch.cond.rows(slice(i, i + 1))
        trimmed = Cond(row.tokens_BLD[:, :n], torch.ones(1, n), row.pooled_BP)
        assert torch.allclose(network.velocity(batch.x0_BCTHW[i : i + 1], t[i : i + 1], trimmed), padded[i], atol=1e-5)
    # The control: the padding would matter if the mask were lost.
    assert (network.velocity(batch.x0_BCTHW, t, batch.cond)[0] - padded[0]).abs().max() > 1e-3


def test_time_and_guidance_reach_the_network_as_the_pipeline_gives_them(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise levels stay float32 beside bfloat16 latents; 6.0 is 6016 there; strengths never go in by keyword."""
    network = Network(new_transformer(0), 6.0, torch.bfloat16)
    seen: dict[str, Any] = {}

    def spy(**given: Any) -> tuple[Tensor]:
        seen.update(given)
        return (given["hidden_states"],)

    monkeypatch.setattr(network.transformer, "forward", spy)
    network.velocity(batch.x0_BCTHW.bfloat16(), torch.tensor([21 / 22, 0.7]), batch.cond)
    assert seen["timestep"].dtype == torch.float32
    assert torch.allclose(seen["timestep"], torch.tensor([954.5454, 700.0]))
    assert torch.equal(seen["guidance"], torch.tensor([6.0, 6.0], dtype=torch.bfloat16) * 1000.0)
    assert seen["guidance"].tolist() == [6016.0, 6016.0]
    assert "attention_kwargs" not in seen


# --- W2SVD's limits ------------------------------------------------------------------------------------------------


class LoraDMD(DistributionMatching):
    """DMD whose fake is a LoRA and whose real is the frozen teacher."""

    name = "lora-dmd"
    Config = W2SVDConfig

    def roles(self) -> dict[str, RoleSpec]:
        c = self.config
        rank = c.fake_rank  # type: ignore[attr-defined]
        return {
            GENERATOR: RoleSpec.full(c.generator, c.ema),
            FAKE: RoleSpec.lora(c.fake, rank),
            REAL: RoleSpec.teacher(),
        }


def settings(**given: Any) -> W2SVDConfig:
    return W2SVDConfig(**{"generator": ANY, "fake": ANY, "fake_rank": 2, "alpha_weak": 0.0, **given})


def generator_gradient(
    method: DistributionMatching, batch: Batch, specs: Mapping[str, RoleSpec] | None = None, size: float = 0.05
) -> tuple[dict[str, Tensor | None], Mapping[str, Any]]:
    """The gradient of one update of the generator, and its logs."""
    method.models = roles = make_roles(specs or method.roles(), size=size)
    roles.learn(GENERATOR)
    loss = method.generator_loss(batch, Rng(0))
    loss.total.backward()  # type: ignore[no-untyped-call]
    for name in roles.trained():
        if name != GENERATOR:
            assert all(g is None for g in gradients(roles, name).values())
    return gradients(roles, GENERATOR), loss.logs


def test_w2svd_without_weak_strength_is_lora_dmd_bit_by_bit(batch: Batch) -> None:
    ours, logs = generator_gradient(W2SVD(settings(), 3.0), batch)
    theirs, _ = generator_gradient(LoraDMD(settings(), 3.0), batch)
    assert same(ours, theirs)
    assert logs["dm_raw"] > 1e-3
    shifted, _ = generator_gradient(W2SVD(settings(alpha_weak=0.25), 3.0), batch)
    assert error(shifted, ours) > 1e-3


def test_a_real_as_strong_as_the_fake_gives_no_gradient(batch: Batch) -> None:
    method = W2SVD(settings(), 3.0)
    found, logs = generator_gradient(method, batch, {**method.roles(), REAL: RoleSpec.view(FAKE, 1.0)})
    assert logs["dm_raw"] == 0
    assert all(g is not None and not g.any() for g in found.values())


def test_a_fake_that_has_not_learned_gives_no_gradient(batch: Batch) -> None:
    found, logs = generator_gradient(W2SVD(settings(alpha_weak=0.25), 3.0), batch, size=0.0)
    assert logs["dm_raw"] == 0
    assert all(g is not None and not g.any() for g in found.values())


@torch.no_grad()
def test_alpha_is_a_factor_of_one_minus_alpha_for_a_small_lora(inputs: tuple[Tensor, Tensor, Cond]) -> None:
    """v_fake - v_real = (1 - alpha) (v_fake - v_base) + O(dW^2): what is left shrinks in proportion to dW."""
    remainder = []
    for size in (0.08, 0.02, 0.005):
        roles = make_roles(LORA_ROLES, size=size)
        fake, base = roles[FAKE](*inputs), roles[TEACHER](*inputs)
        worst = 0.0
        for alpha in (0.1, 0.25, 0.5):
            real = Role(roles.base, AdapterState(FAKE, alpha))(*inputs)
            worst = max(worst, float(((fake - real) / (1 - alpha) - (fake - base)).norm() / (fake - base).norm()))
        remainder.append(worst)
    assert remainder[0] > 2 * remainder[1] > 4 * remainder[2]
    assert remainder[2] < 0.02


def test_rescaling_undoes_the_factor_and_alpha_only_weakens_the_raw_norm(batch: Batch) -> None:
    small = 0.005
    base, logs = generator_gradient(W2SVD(settings(), 3.0), batch, size=small)
    raw = [float(logs["dm_raw"])]
    for alpha in (0.25, 0.5):
        plain, logs = generator_gradient(W2SVD(settings(alpha_weak=alpha), 3.0), batch, size=small)
        rescaled, _ = generator_gradient(W2SVD(settings(alpha_weak=alpha, rescale=True), 3.0), batch, size=small)
        raw.append(float(logs["dm_raw"]))
        assert error(rescaled, base) < 0.02
        assert error(plain, base) == pytest.approx(alpha, abs=0.02)
        assert raw[-1] == pytest.approx((1 - alpha) * raw[0], rel=0.02)
    assert raw == sorted(raw, reverse=True)


def test_dmds_roles_are_copies_and_its_real_is_the_teacher() -> None:
    roles = make_roles(DMD(DMDConfig(generator=ANY, fake=ANY), 3.0).roles())
    assert roles[REAL] is roles[TEACHER]
    assert roles.trained() == [GENERATOR, "generator_ema", FAKE]
    assert not roles.base.adapters.exist()
