"""Planning: bytes by role against figures worked out by hand, passes against the methods' cards."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from plan_kit import LARGE, SMALL, shipped
from w2svd_bench.backbones.skeleton import Skeleton
from w2svd_bench.cli import planning
from w2svd_bench.cli.training import resolve_recipe
from w2svd_bench.config import Engine, Optimizer, Recipe, Training
from w2svd_bench.errors import BenchError
from w2svd_bench.method import GENERATOR, TEACHER, Method, RoleSpec, Update
from w2svd_bench.plan.advice import advise, check_size, gpus_needed
from w2svd_bench.plan.machine import CONTEXT, GB, Machine
from w2svd_bench.plan.memory import Plan, RoleBytes, Setup, choose_sharding
from w2svd_bench.plan.table import as_data, first_iteration, summary
from w2svd_bench.plan.verify import reduced, verify_on_gpu
from w2svd_bench.plan.work import Pass, Step, Work, work_of
from w2svd_bench.registry import METHODS
from w2svd_bench.rng import Rng
from w2svd_bench.samplers import Sampler
from w2svd_bench.types import Batch, Loss

ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
ADAM = Optimizer(learning_rate=1e-4)
FULL, LORA = RoleSpec.full(ADAM), RoleSpec.lora(ADAM, 64)


class Fixed(Method):
    """Roles that a test chooses; every trained role has one loss, on the generator's velocity."""

    name = "fixed"

    def __init__(self, roles: dict[str, RoleSpec]) -> None:
        super().__init__(None, 7.0)
        self._roles = roles

    def roles(self) -> dict[str, RoleSpec]:
        return self._roles

    def updates(self, iteration: int) -> Sequence[Update]:
        return [Update(name, self.loss_of(name)) for name, spec in self._roles.items() if spec.optimizer]

    def loss_of(self, role: str) -> Any:
        def loss(batch: Batch, rng: Rng) -> Loss:
            t = rng.uniform(len(batch.x0_BCTHW), batch.x0_BCTHW)
            return Loss(self.models[role](batch.x0_BCTHW, t, batch.cond).square().mean(), {})

        return loss

    def sampler(self, steps: int) -> Sampler:
        return Sampler("ode", (1.0, 0.0))


@pytest.fixture(scope="module")
def hunyuan() -> Skeleton:
    return Skeleton.open("hunyuan")


@pytest.fixture(scope="module")
def attention(hunyuan: Skeleton) -> Skeleton:
    """HunyuanVideo with LoRAs on its attention layers alone, as the figures by hand have it."""
    return Skeleton("attention", hunyuan.config, targets=ATTENTION)


def plan_of(roles: dict[str, RoleSpec], skeleton: Skeleton, gpus: int = 8, gigabytes: float = 80, **more: Any) -> Plan:
    method = Fixed(roles)
    engine = Engine(gradient_checkpointing=True, **more.pop("engine", {}))
    work = work_of(method)
    values = {"video": SMALL, "batch_size": 16, "micro_batch": 1, "iterations": 10, **more}
    return Plan(Setup(method, roles, work, skeleton, engine=engine, machine=Machine.of(gpus, gigabytes), **values))


# Weights, gradients and AdamW's moments (and averages) of 12.82e9 parameters, in GB, by hand: 16 bytes a parameter
# that is trained in float32, 8 in bfloat16, 2 frozen, 4 an average; a LoRA of rank 64 has 113.2e6. The last column is
# an eighth of it. Left out are what our roles can't be: three separate bases, 8-bit moments.
ROWS = {
    "A: dmd, two full copies": ({GENERATOR: FULL, "fake": FULL, "real": RoleSpec.teacher()}, {}, 435.9, 54.5),
    "B: the same in bfloat16": ({GENERATOR: FULL, "fake": FULL}, {"trained_dtype": "bfloat16"}, 230.8, 28.8),
    "D: w2svd, two LoRAs": ({GENERATOR: LORA, "fake": LORA, "real": RoleSpec.view("fake", 0.25)}, {}, 29.3, 3.7),
    "E: w2svd, a full generator": ({GENERATOR: FULL, "fake": LORA}, {}, 232.6, 29.1),
    "G: lcm in full": ({GENERATOR: RoleSpec.full(ADAM, 0.95)}, {}, 282.1, 35.3),
    "H: lcm with a LoRA": ({GENERATOR: RoleSpec.lora(ADAM, 64, 0.95)}, {}, 27.9, 3.5),
}


@pytest.mark.parametrize("row", ROWS)
def test_bytes_by_role_are_those_worked_out_by_hand(attention: Skeleton, row: str) -> None:
    roles, engine, total, eighth = ROWS[row]
    found = plan_of(roles, attention, engine=engine).roles
    summed = sum(role.total for role in found.values())
    assert (round(summed / GB, 1), round(summed / 8 / GB, 1)) == (total, eighth)


def test_the_parts_of_a_full_copy(attention: Skeleton) -> None:
    found = plan_of({GENERATOR: RoleSpec.full(ADAM, 0.9), "real": RoleSpec.teacher()}, attention).roles
    assert [round(n / GB, 1) for n in (found[GENERATOR].total - found[GENERATOR].ema, found[GENERATOR].ema)] == [
        205.1,
        51.3,
    ]
    assert round(found[TEACHER].total / GB, 1) == 25.6 and found[TEACHER].gradients == 0
    assert found["real"] == RoleBytes(0, 0)


def test_a_gpu_holds_one_roles_gradients_and_its_share(hunyuan: Skeleton) -> None:
    plan = plan_of({GENERATOR: FULL, "fake": FULL}, hunyuan)
    size = hunyuan.parameters
    replicas, sharded = plan.per_gpu["replicate"], plan.per_gpu["fsdp"]
    assert replicas.kept == size * (2 + 2 * 12) and replicas.gradients == size * 4
    assert (sharded.kept, sharded.gradients) == (replicas.kept / 8, replicas.gradients / 8)
    assert sharded.activations == replicas.activations
    # Two double blocks in bfloat16, one of which gives back its gradients in both precisions.
    assert sharded.buffers == 339_831_296 * (2 * 2 + 2 + 4)
    assert sharded.total == sharded.allocated + CONTEXT


def test_activations_grow_as_they_are_known_to(hunyuan: Skeleton) -> None:
    """One graph under checkpointing: 60 block inputs, and some 30 tokens' worth in the block at work."""
    for video, inputs, rule in ((SMALL, 3.9, 6.5), (LARGE, 24.9, 41.5)):
        one = plan_of({GENERATOR: LORA}, hunyuan, video=video)
        assert 60 * sum(hunyuan.tokens(video)) * 3072 * 2 / GB == pytest.approx(inputs, abs=0.05)
        assert one.chosen.activations / GB == pytest.approx(rule, rel=0.1)
    two = plan_of({GENERATOR: LORA}, hunyuan, micro_batch=2)
    one = plan_of({GENERATOR: LORA}, hunyuan)
    assert two.chosen.activations / one.chosen.activations == pytest.approx(2, rel=0.02)
    whole = Plan(replace(one.setup, engine=Engine()))
    assert whole.chosen.activations / GB == pytest.approx(86, rel=0.1), "without checkpointing"


def test_a_graph_behind_another_costs_as_much_again(hunyuan: Skeleton) -> None:
    plan = plan_of({GENERATOR: LORA, "judge": RoleSpec.head(ADAM)}, hunyuan)
    alone, through = Pass(GENERATOR, "weights", True), Pass("judge", "input", True, head=True)
    one, two = (plan.activations(Step(GENERATOR, passes)) for passes in ((alone,), (alone, through)))
    inputs = 60 * sum(hunyuan.tokens(SMALL)) * 3072 * 2
    assert inputs * 0.95 < two - one < inputs * 1.3
    # The head alone learns: no graph in the network.
    learning = plan.activations(Step("judge", (Pass("judge", "weights", True, head=True),)))
    assert learning < one / 2


def test_passes_are_counted_by_running_the_losses(hunyuan: Skeleton) -> None:
    """What the methods' cards say: lcm takes 3 evaluations, dmd 2 for each fake update and 3 for the generator."""
    machine = Machine.of(1, 80)
    lcm = shipped("lcm", hunyuan, machine).setup.work
    assert lcm.evaluations() == {
        "generator": {"with_gradient": 1.0, "without": 0.0, "backward": 1.0},
        "generator_ema": {"with_gradient": 0.0, "without": 1.0, "backward": 0.0},
        "teacher": {"with_gradient": 0.0, "without": 1.0, "backward": 0.0},
    }
    from_data = ["settings.input=data", "settings.fake_updates=5"]
    dmd = shipped("dmd", hunyuan, machine, overrides=from_data).setup.work
    assert sum(dmd.passes().values()) == 2 * 5 + 3
    assert dmd.updates() == {"fake": 5.0, "generator": 1.0}
    # Backward simulation walks 0 to 3 steps, 1.5 in the mean, before each of the six updates.
    simulated = shipped("dmd", hunyuan, machine).setup.work
    assert sum(simulated.passes().values()) == 2 * 5 + 3 + 1.5 * 6
    w2svd = shipped("w2svd", hunyuan, machine, overrides=["settings.input=data", "settings.gt.kind=gan"]).setup.work
    assert sum(w2svd.passes().values()) == 2 * 5 + 3 + 1 + 3
    assert len(w2svd.first[0]) - len(w2svd.usual[0]) == 100, "the warm-up"
    judged = w2svd.evaluations()["discriminator"]
    assert judged == {"with_gradient": 1.0, "without": 2.0, "backward": 1.0}


class Opening(Fixed):
    """Some updates more in the first iteration; every loss takes 1 to 3 passes, by chance. A third of the iterations
    leave the last role out.
    """

    warmup = 100

    def updates(self, iteration: int) -> Sequence[Update]:
        usual = super().updates(iteration)
        rare = usual if iteration % 3 == 0 else usual[:-1]
        return [usual[0]] * (self.warmup if iteration == 0 else 0) + list(rare)

    def loss_of(self, role: str) -> Any:
        def loss(batch: Batch, rng: Rng) -> Loss:
            t = rng.uniform(len(batch.x0_BCTHW), batch.x0_BCTHW)
            passes = range(1 + rng.choose_one(3))
            return Loss(sum(self.models[role](batch.x0_BCTHW, t, batch.cond).mean() for _ in passes), {})

        return loss


def test_a_first_iteration_with_a_warm_up_is_told_and_counted(hunyuan: Skeleton) -> None:
    roles = {GENERATOR: LORA, "fake": LORA}
    plan = plan_of(roles, hunyuan, batch_size=1)
    setup = replace(plan.setup, method=Opening(roles), work=work_of(Opening(roles)))
    work, plan = setup.work, Plan(setup)
    assert work.opens
    assert sum(work.passes().values()) == pytest.approx((2 * 1 + 2 + 3) / 3)
    assert sum(work.passes(work.first).values()) == 102 * 2, "the mean over all choices"
    assert work.updates(work.first) == {GENERATOR: 101, "fake": 1}
    each = Plan(replace(setup, work=work_of(Fixed({GENERATOR: LORA})))).operations  # of one pass and its backward
    assert plan.first_operations == pytest.approx(204 * each)
    assert plan.all_operations == plan.first_operations + 9 * plan.operations
    words = first_iteration(plan)
    assert words is not None and words.startswith("the first iteration makes 204 network evaluations a clip, a usual")
    assert as_data(plan)["first_iteration"]["operations"] == plan.first_operations
    assert as_data(plan)["all_operations"] == plan.all_operations


def test_a_first_iteration_like_the_others_is_not_told(hunyuan: Skeleton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance and a rhythm alone make no first iteration of its own."""
    monkeypatch.setattr(Opening, "warmup", 0)
    roles = {GENERATOR: LORA, "fake": LORA}
    setup = replace(plan_of(roles, hunyuan).setup, work=work_of(Opening(roles)))
    assert not setup.work.opens and first_iteration(Plan(setup)) is None
    assert Plan(setup).all_operations == 10 * Plan(setup).operations
    one = shipped("lcm", hunyuan, Machine.of(1, 80))
    assert not one.setup.work.opens and one.all_operations == 1000 * one.operations
    assert not shipped("euler", hunyuan, Machine.of(1, 80)).setup.work.opens


def test_a_view_learns_with_the_role_that_it_looks_at() -> None:
    class Both(Fixed):
        def loss_of(self, role: str) -> Any:
            def loss(batch: Batch, rng: Rng) -> Loss:
                t = rng.uniform(len(batch.x0_BCTHW), batch.x0_BCTHW)
                with torch.no_grad():
                    x = self.models[TEACHER](batch.x0_BCTHW, t, batch.cond)
                return Loss(self.models["weak"](x, t, batch.cond).mean(), {})

            return loss

    work = work_of(Both({"fake": LORA, "weak": RoleSpec.view("fake", 0.5)}))
    assert work.usual[0][0].passes == (Pass(TEACHER, "nothing"), Pass("weak", "weights", True))


def test_a_loss_that_fails_says_so() -> None:
    class Broken(Fixed):
        def loss_of(self, role: str) -> Any:
            return lambda batch, rng: self.models["nobody"]

    with pytest.raises(BenchError, match="'fixed' can't be planned") as caught:
        work_of(Broken({GENERATOR: LORA}))
    assert "KeyError: 'nobody'" in caught.value.why


def test_a_method_without_training_is_sampled_only(hunyuan: Skeleton) -> None:
    plan = shipped("euler", hunyuan, Machine.of(1, 80))
    assert plan.fits and plan.setup.work == Work(((),) * 12, ((),) * 12)
    assert plan.operations == 0 and list(plan.roles) == [TEACHER]
    # 2 operations for each weight and token, and attention, which is about an eighth of it at this size.
    assert plan.generator_forward == pytest.approx(2 * 6.8e9 * 10_496 + 60 * 4 * 3072 * 10_496**2, rel=0.01)


def test_the_methods_on_machines_of_the_day(hunyuan: Skeleton) -> None:
    """On eight GPUs w2svd trains 544x960x129 and vanilla DMD does not; 320x512x61 takes one GPU instead of eight."""
    one, eight = Machine.of(1, 80), Machine.of(8, 80)
    assert shipped("w2svd", hunyuan, one).fits and not shipped("dmd", hunyuan, one).fits
    assert shipped("w2svd", hunyuan, eight, LARGE).fits and not shipped("dmd", hunyuan, eight, LARGE).fits
    assert gpus_needed(shipped("dmd", hunyuan, one)) == 8


def test_sharding_is_chosen_by_what_fits(hunyuan: Skeleton) -> None:
    lora, full = {GENERATOR: LORA}, {GENERATOR: FULL}
    assert choose_sharding(plan_of(lora, hunyuan)) == "replicate"
    assert choose_sharding(plan_of(full, hunyuan)) == "fsdp"
    assert choose_sharding(plan_of(lora, hunyuan, engine={"sharding": "fsdp"})) == "replicate"
    assert plan_of(lora, hunyuan, engine={"sharding": "fsdp"}).sharding == "fsdp", "an explicit wish is followed"
    assert choose_sharding(plan_of(full, hunyuan, gpus=1)) == "replicate", "one GPU has nobody to share with"
    method = Fixed(full)
    setup = replace(plan_of(full, hunyuan).setup, method=method, machine=Machine.here(4, "cpu"))
    assert choose_sharding(Plan(setup)) == "replicate" and Plan(setup).fits


def test_advice_fits_and_is_the_cheapest(hunyuan: Skeleton) -> None:
    hungry = plan_of({GENERATOR: LORA}, hunyuan, gpus=1, micro_batch=None)
    advice = advise(Plan(replace(hungry.setup, engine=Engine(), micro_batch=1)))
    assert advice is not None and advice.plan.fits
    assert [change.split(" (")[0] for change in advice.changes] == ["gradient checkpointing"]
    advice = advise(hungry)
    assert advice is not None and advice.changes == ("one clip at a time (training.micro_batch=1)",)
    advice = advise(plan_of({GENERATOR: FULL}, hunyuan, gpus=1))
    assert advice is not None and len(advice.changes) == 1 and "LoRA" in advice.changes[0]
    both = advise(Plan(replace(hungry.setup, engine=Engine())))
    assert both is not None and len(both.changes) == 2 and both.plan.fits
    # LoRA and bfloat16 do it together; dropping the averages, which was tried between them, is not needed.
    needed = advise(shipped("dmd", hunyuan, Machine.of(1, 80), LARGE))
    assert needed is not None and needed.plan.fits
    assert ["LoRA" in needed.changes[0], "bfloat16" in needed.changes[1], len(needed.changes)] == [True, True, 2]
    shorter = advise(plan_of({GENERATOR: LORA}, hunyuan, gpus=1, video=LARGE, gigabytes=60))
    assert shorter is not None and "frames in place of 129" in shorter.changes[0]
    frames = shorter.plan.setup.video.num_frames
    longer = replace(shorter.plan.setup, video=LARGE.model_copy(update={"num_frames": frames + 4}))
    assert not Plan(longer).fits, "no more frames are taken away than needed"
    assert advise(plan_of({GENERATOR: LORA}, hunyuan, gpus=1, gigabytes=20)) is None


def test_the_summary_says_what_and_the_cure(hunyuan: Skeleton) -> None:
    lines = summary(shipped("dmd", hunyuan, Machine.of(1, 80))).split("\n")
    assert len(lines) == 3 and "dmd on hunyuan at 320x512x61" in lines[0] and "1 x 80 GB" in lines[0]
    assert "kept 384.6" in lines[1] and "LoRA" in lines[2] and "8 such GPUs" in lines[2]
    assert summary(shipped("w2svd", hunyuan, Machine.of(1, 80))).endswith("it fits by this plan")


def test_what_can_not_be_run_is_refused(hunyuan: Skeleton) -> None:
    with pytest.raises(BenchError, match="batch of 16 can't be shared by 6") as caught:
        check_size(plan_of({GENERATOR: LORA}, hunyuan, gpus=6).setup)
    assert "batch_size=18" in caught.value.cure
    with pytest.raises(BenchError, match="no machine"):
        Machine.of(8, -1)


@pytest.mark.parametrize("method", ["euler", "lcm", "dmd", "w2svd"])
@pytest.mark.parametrize("size", ["hunyuan", "hunyuan-544p"])
def test_recipes_for_the_real_backbone_are_valid(method: str, size: str) -> None:
    folder = Path(inspect.getfile(METHODS.get(method))).parent
    recipe = resolve_recipe(METHODS.get(method), "hunyuan", folder / f"{size}.yaml", [])
    assert recipe.backbone == "hunyuan" and recipe.status == "not yet run on real weights"
    assert recipe.video == (SMALL if size == "hunyuan" else LARGE)
    assert recipe.engine.gradient_checkpointing and recipe.engine.dtype == "auto"
    assert (recipe.training.batch_size, recipe.training.micro_batch) == (16, 1)


def test_without_a_gpu_nothing_is_verified(hunyuan: Skeleton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchError, match="can't be verified here") as caught:
        verify_on_gpu(plan_of({GENERATOR: LORA}, hunyuan).setup)
    assert "no CUDA GPU" in caught.value.why


def test_a_reduced_setup_keeps_its_blocks_and_its_clips(hunyuan: Skeleton) -> None:
    setup = plan_of({GENERATOR: LORA}, hunyuan).setup
    small = reduced(setup, Machine.of(1, 80))
    assert (small.skeleton.doubles, small.skeleton.singles) == (2, 4)
    assert small.skeleton.by_kind["double"] == 339_831_296 and small.clips == setup.clips == 1


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("plan")(planning.plan)
    app.command("other")(lambda: None)
    return app


def test_the_command_prints_data(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["plan", "--method", "w2svd", "--gpus", "1", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.output)
    assert data["parameters"] == 12_821_012_544 and data["fits"] is True and data["advice"] is None
    assert {"weights", "gradients", "optimizer", "ema"} <= set(data["roles"]["generator"])
    assert data["per_gpu"]["activations"] == data["activations"] and data["per_gpu"] == data["replicate"]
    assert data["machine"]["bytes"] == 80e9 and data["tokens"] == 10_496


def test_the_command_prints_a_page_and_a_comparison(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.console, "width", 200)
    done = CliRunner().invoke(
        app, ["plan", "--method", "dmd", "--gpus", "1", "--set", "training.batch_size=4", "--frames", "29"]
    )
    assert done.exit_code == 0 and "does not fit" in done.output and "320x512x29" in done.output
    done = CliRunner().invoke(app, ["plan", "--compare", "--backbone", "mini", "--gpus", "1"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("euler", "lcm", "dmd", "w2svd", "mini at 48x48x17"))
    assert "w2svd: the first iteration makes" in done.output and "dmd: the first iteration" not in done.output


@pytest.mark.parametrize("what", [["--method", "w2svd"], ["--compare"]])
def test_nothing_is_cut_at_80_columns(what: list[str], app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "console", Console(width=80, force_terminal=True, color_system=None, record=True))
    done = CliRunner().invoke(app, ["plan", *what, "--variant", "544p", "--gpus", "8", "--gpu-memory", "80"])
    shown = planning.console.export_text()
    assert done.exit_code == 0 and "71.5" in shown and "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_variant_is_planned_by_its_recipe(app: typer.Typer) -> None:
    """As `train` takes it; a size that is asked for still wins."""
    done = CliRunner().invoke(app, ["plan", "--compare", "--variant", "544p", "--frames", "29", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.output)
    assert {"euler", "lcm", "dmd", "w2svd"} <= {one["method"] for one in data}
    assert all(one["video"] == LARGE.model_copy(update={"num_frames": 29}).model_dump() for one in data)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "no method is named"),
        (["--method", "lcm", "--compare"], "exclude each other"),
        (["--method", "lcm", "--backbone", "owner/model"], "can't be planned"),
        (["--method", "lcm", "--frames", "60"], "can't make clips"),
        (["--method", "lcm", "--gpus", "3"], "can't be shared by 3 GPUs"),
        (["--method", "lcm", "--variant", "540p"], "no recipe for backbone 'hunyuan-540p'"),
        (["--compare", "--variant", "540p"], "no method has a recipe for backbone 'hunyuan-540p'"),
        (["--method", "lcm", "--variant", "544p", "--recipe", "mine.yaml"], "--recipe and --variant exclude"),
    ],
)
def test_mistakes_are_told(app: typer.Typer, arguments: list[str], what: str) -> None:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert isinstance(done.exception, BenchError) and what in done.exception.what


def test_a_setup_takes_what_a_recipe_says(hunyuan: Skeleton) -> None:
    settings = {"generator": {"learning_rate": 1e-4}, "rank": 8}
    recipe = Recipe(
        method="lcm", backbone="hunyuan", video=LARGE, settings=settings, training=Training(iterations=3, batch_size=8)
    )
    setup = Setup.of(METHODS.get("lcm"), recipe, hunyuan, Machine.of(2, 80))
    assert (setup.video, setup.clips, setup.specs[GENERATOR].rank) == (LARGE, 4, 8)
    assert setup.dtype == torch.bfloat16 and setup.trained_bytes == 4
    assert setup.rank("generator_ema") == 8 and setup.rank(TEACHER) == 0
