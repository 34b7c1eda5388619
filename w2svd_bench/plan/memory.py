"""The memory of a training run, by role and by GPU.

Between updates a GPU holds every role's weights, moments and averages. An update of one role adds its gradients
(the trainer frees them afterwards, so there is one role's at a time) and, for each network pass whose graph is alive,
the inputs of all blocks, or without checkpointing all that the blocks keep; on top of those comes what one block needs
while it is computed again and its backward runs. The bytes a token of each are measured (`backbones.costs`).

Not in the plan: text encoders and codec, for training reads a cache of latents; the moment of loading; evaluation.
Bytes everywhere; parameters are numbers of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from w2svd_bench.backbones.costs import ATTENTION_BACKWARD, Cost, Reach, attention_operations, cost
from w2svd_bench.backbones.skeleton import Kind, Skeleton
from w2svd_bench.config import Engine, Recipe, Video, validated
from w2svd_bench.method import GENERATOR, TEACHER, Method, RoleSpec, average_of
from w2svd_bench.plan.machine import CONTEXT, Machine
from w2svd_bench.plan.work import Pass, Step, Work, work_of
from w2svd_bench.world import BUCKET_BYTES

Sharding = Literal["replicate", "fsdp"]
KINDS: tuple[Kind, ...] = ("double", "single")
FLOAT32 = 4
CHECKPOINTS = 2  # on disk while one is written: the one before it goes when the new one is whole


@dataclass(frozen=True)
class Setup:
    """All that a plan depends on.

    Attributes:
        method: an instance that serves nothing else.
        specs: its roles; work: the passes of its updates.
        skeleton: of the backbone.
        video: size of the clips.
        engine: precision, checkpointing, sharding.
        batch_size: clips of one optimiser step, over all GPUs; micro_batch: clips that a GPU takes at a time, None
            for its whole share.
        iterations: of the whole training.
        machine: what it is to run on.
    """

    method: Method
    specs: Mapping[str, RoleSpec]
    work: Work
    skeleton: Skeleton
    video: Video
    engine: Engine
    batch_size: int
    micro_batch: int | None
    iterations: int
    machine: Machine

    @classmethod
    def of(
        cls, method_class: Any, recipe: Recipe, skeleton: Skeleton, machine: Machine, video: Video | None = None
    ) -> Setup:
        """From a recipe; ``video`` is used instead of the recipe's.

        Raises:
            BenchError: the recipe's settings are not the method's, or the method's losses can't be run on their own.
        """
        config = validated(method_class.Config, recipe.settings, f"the settings section of {method_class.name}")
        method = method_class(config, recipe.shift or skeleton.shift)
        training = recipe.training
        return cls(
            method,
            method.roles(),
            work_of(method),
            skeleton,
            video or recipe.video or skeleton.video,
            recipe.engine,
            training.batch_size,
            training.micro_batch,
            training.iterations,
            machine,
        )

    @property
    def clips(self) -> int:
        """Clips that one GPU has in hand at a time."""
        share = -(-self.batch_size // self.machine.gpus)
        return min(share, self.micro_batch or share)

    @property
    def dtype(self) -> torch.dtype:
        """Of frozen weights and activations: ``auto`` is planned for a GPU."""
        return torch.float32 if self.engine.dtype == "float32" else torch.bfloat16

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained number."""
        return 2 if self.engine.trained_dtype == "bfloat16" else FLOAT32

    def rank(self, role: str) -> int:
        """Of the LoRA that a role's passes go through; 0 for none."""
        spec = self.spec(role)
        if spec is not None and spec.weights == "view":
            spec = self.specs[spec.of]
        return spec.rank if spec is not None and spec.weights == "lora" else 0

    def spec(self, role: str) -> RoleSpec | None:
        """A role's spec, or that of the role whose average it is; None for the teacher."""
        averages = {average_of(name): spec for name, spec in self.specs.items()}
        return self.specs.get(role, averages.get(role))


@dataclass(frozen=True)
class RoleBytes:
    """What a role's own weights take, over all GPUs and counted once."""

    parameters: int
    weights: int
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0

    @property
    def kept(self) -> int:
        """Bytes that stay between updates."""
        return self.weights + self.optimizer + self.ema

    @property
    def total(self) -> int:
        return self.kept + self.gradients


@dataclass(frozen=True)
class PerGpu:
    """What one GPU holds at the peak.

    Attributes:
        kept: weights, moments and averages of all roles.
        gradients: of the role whose update is the most expensive, as are the following.
        activations: graphs, and what is under way.
        buffers: weights that FSDP has gathered, weights cast to the activations' type.
        step: what the optimiser's step adds when the activations are gone.
        context: of CUDA and NCCL.
        peak_role: whose update that is.
    """

    kept: float
    gradients: float
    activations: float
    buffers: float
    step: float
    context: float
    peak_role: str

    @property
    def allocated(self) -> float:
        """The most bytes that torch has allocated: what ``torch.cuda.max_memory_allocated`` would say."""
        return self.kept + self.gradients + max(self.activations + self.buffers, self.step)

    @property
    def total(self) -> float:
        return self.allocated + self.context


@dataclass(frozen=True)
class Plan:
    """A setup on its machine; everything is computed when it is asked for."""

    setup: Setup

    @cached_property
    def roles(self) -> dict[str, RoleBytes]:
        """Bytes by role, over all GPUs; the teacher is the frozen base that LoRA roles share."""
        skeleton, setup = self.setup.skeleton, self.setup
        frozen = skeleton.parameters
        found = {TEACHER: RoleBytes(frozen, frozen * setup.dtype.itemsize)}
        for name, spec in setup.specs.items():
            if spec.weights in ("view", "teacher"):
                found[name] = RoleBytes(0, 0)
                continue
            count = {
                "full": skeleton.parameters,
                "lora": skeleton.lora(spec.rank),
                "head": skeleton.discriminator,
            }[spec.weights]
            size = count * (FLOAT32 if spec.weights == "head" else setup.trained_bytes)  # heads are always float32
            found[name] = RoleBytes(count, size, size, 2 * size, 0 if spec.ema is None else size)
        return found

    @cached_property
    def per_gpu(self) -> dict[Sharding, PerGpu]:
        """One GPU's peak with replicas and with FSDP."""
        return {"replicate": self._per_gpu("replicate"), "fsdp": self._per_gpu("fsdp")}

    @property
    def sharding(self) -> Sharding:
        """What the engine asks for; ``auto`` takes replicas where they fit, for they are faster, else FSDP."""
        wanted = self.setup.engine.sharding
        if self.setup.machine.gpus == 1:
            return "replicate"
        if wanted != "auto":
            return wanted
        return "replicate" if self._fits("replicate") else "fsdp"

    @property
    def chosen(self) -> PerGpu:
        """One GPU's peak as the run would be sharded."""
        return self.per_gpu[self.sharding]

    @property
    def fits(self) -> bool:
        """Whether one GPU has room for it."""
        return self._fits(self.sharding)

    def _fits(self, sharding: Sharding) -> bool:
        return self.per_gpu[sharding].allocated <= self.setup.machine.usable

    def _per_gpu(self, sharding: Sharding) -> PerGpu:
        steps = self.setup.work.steps or {Step(TEACHER, (Pass(TEACHER, "nothing"),))}
        return max((self.at(step, sharding) for step in steps), key=lambda one: (one.allocated, one.peak_role))

    def at(self, step: Step, sharding: Sharding) -> PerGpu:
        """One GPU's peak during one optimiser step."""
        shards = {name: self._shards(name, sharding) for name in self.roles}
        return PerGpu(
            sum(role.kept / shards[name] for name, role in self.roles.items()),
            self.roles[step.role].gradients / shards[step.role],
            self.activations(step),
            self._buffers(step, sharding),
            self._step(step, sharding, shards[step.role]),
            CONTEXT,
            step.role,
        )

    def _shards(self, role: str, sharding: Sharding) -> int:
        """Parts that a role is dealt out in; a discriminator's head is whole everywhere."""
        spec = self.setup.specs.get(role)
        whole = sharding == "replicate" or (spec is not None and spec.weights == "head")
        return 1 if whole else self.setup.machine.gpus

    def activations(self, step: Step) -> float:
        """Bytes on one GPU when an update is at its worst.

        Graphs pile up in the order of the passes and are taken down in the opposite one, so while one pass runs, or
        its backward, there are its own graph and those before it.
        """
        channels, frames, height, width = self.setup.skeleton.latent_shape(self.setup.video)
        latents = step.latents * self.setup.clips * channels * frames * height * width * FLOAT32
        held = worst = 0.0
        for one in step.passes:
            held += self._graph(one)
            worst = max(worst, held + self._under_way(one))
        return latents + worst

    def _graph(self, one: Pass) -> float:
        """What a pass leaves for its backward."""
        setup, skeleton = self.setup, self.setup.skeleton
        image, text = skeleton.tokens(setup.video)
        clips = setup.clips
        if one.reach == "nothing":
            return 0.0
        held = cost(skeleton, "head", one.reach, 0, setup.dtype).saved.at(clips * image) if one.head else 0.0
        if one.network == "nothing":
            return held
        # What stands before the blocks keeps its text tokens; what stands behind is gone when the blocks' turn comes.
        held += clips * cost(skeleton, "shell", one.network, 0, setup.dtype).saved.at(0)
        held += 2 * FLOAT32 * image * skeleton.head_width  # the rotary embedding's sines and cosines
        counts = {"double": skeleton.doubles, "single": skeleton.singles}
        if setup.engine.gradient_checkpointing:
            return held + sum(counts.values()) * clips * (image + text) * skeleton.width * setup.dtype.itemsize
        return held + sum(
            counts[kind] * self._cost(kind, one.role, one.network).saved.at(clips * (image + text)) for kind in KINDS
        )

    def _under_way(self, one: Pass) -> float:
        """The most that one block of a pass needs at a time, beside what graphs hold."""
        setup, skeleton = self.setup, self.setup.skeleton
        image, text = skeleton.tokens(setup.video)
        tokens = setup.clips * (image + text)
        if one.network == "nothing":
            inputs = tokens * skeleton.width * setup.dtype.itemsize
            at_work = [inputs + self._cost(kind, one.role, "input").quiet.at(tokens) for kind in KINDS]
        else:
            blocks = [self._cost(kind, one.role, one.network) for kind in KINDS]
            checkpointing = setup.engine.gradient_checkpointing
            at_work = [(each.again if checkpointing else each.beyond).at(tokens) for each in blocks]
        if one.head and one.reach != "nothing":
            at_work.append(cost(skeleton, "head", one.reach, 0, setup.dtype).beyond.at(setup.clips * image))
        return max(at_work)

    def _cost(self, kind: Kind, role: str, reach: Reach) -> Cost:
        return cost(self.setup.skeleton, kind, reach, self.setup.rank(role), self.setup.dtype)

    def _buffers(self, step: Step, sharding: Sharding) -> float:
        """Weights beyond a GPU's own: FSDP gathers one part while another is in use, both in the activations' type,
        and gives back one part's gradients in float32; without FSDP, weights that are kept in a higher precision are
        cast, and autocast keeps the casts through a pass.
        """
        setup = self.setup
        learns = setup.specs.get(step.role)
        full = learns is not None and learns.weights == "full"
        if sharding == "fsdp":
            ranks = {setup.rank(one.role) for one in step.passes}
            largest = setup.skeleton.largest_part + max((setup.skeleton.lora_part(rank) for rank in ranks), default=0)
            gradients = setup.skeleton.largest_part if full else setup.skeleton.lora_part(setup.rank(step.role))
            return 2 * largest * setup.dtype.itemsize + gradients * (setup.dtype.itemsize + FLOAT32)
        if full and setup.trained_bytes > setup.dtype.itemsize:
            return setup.skeleton.parameters * setup.dtype.itemsize
        return 0.0

    def _step(self, step: Step, sharding: Sharding, shards: int) -> float:
        """What is needed when backward is over: AdamW's temporary copy of the second moments (torch's foreach
        implementation makes one), and the bucket in which replicas average their gradients.
        """
        gradients = self.roles[step.role].gradients / shards
        bucket = min(BUCKET_BYTES, gradients) if sharding == "replicate" and self.setup.machine.gpus > 1 else 0.0
        return max(gradients, bucket)

    @cached_property
    def operations(self) -> float:
        """Floating point operations of a usual iteration's blocks, over all GPUs; a checkpointed pass is computed
        twice.
        """
        return self._operations(self.setup.work.passes())

    @cached_property
    def first_operations(self) -> float:
        """Those of the first iteration."""
        return self._operations(self.setup.work.passes(self.setup.work.first))

    @property
    def all_operations(self) -> float:
        """Those of the whole training."""
        if not self.setup.iterations:
            return 0.0
        first = self.first_operations if self.setup.work.opens else self.operations
        return first + (self.setup.iterations - 1) * self.operations

    def _operations(self, passes: Mapping[Pass, float]) -> float:
        setup = self.setup
        total = 0.0
        for one, count in passes.items():
            each = self._forward(one.role)
            if one.returned and one.network != "nothing":
                again = each if setup.engine.gradient_checkpointing else 0.0
                each += again + self._backward(one.role, one.network)
            total += count * setup.batch_size * each
        return total

    def _forward(self, role: str) -> float:
        """Operations of all blocks of a role on one clip."""
        tokens = sum(self.setup.skeleton.tokens(self.setup.video))
        attention = attention_operations(self.setup.skeleton, tokens)
        return self._over_blocks(lambda kind: self._cost(kind, role, "input").forward.at(tokens) + attention)

    def _backward(self, role: str, reach: Reach) -> float:
        tokens = sum(self.setup.skeleton.tokens(self.setup.video))
        attention = ATTENTION_BACKWARD * attention_operations(self.setup.skeleton, tokens)
        return self._over_blocks(lambda kind: self._cost(kind, role, reach).backward.at(tokens) + attention)

    def _over_blocks(self, of: Callable[[Kind], float]) -> float:
        return self.setup.skeleton.doubles * of("double") + self.setup.skeleton.singles * of("single")

    @property
    def generator_forward(self) -> float:
        """Operations of one network evaluation on one clip, as sampling makes them."""
        return self._forward(TEACHER)

    @cached_property
    def disk(self) -> dict[str, float]:
        """Bytes of the exported generator, of a checkpoint, of all ``checkpoints`` that stand at a time, and of one
        training clip's latents with its text.
        """
        setup, config = self.setup, self.setup.skeleton.config
        channels, frames, height, width = setup.skeleton.latent_shape(setup.video)
        _, text = setup.skeleton.tokens(setup.video)
        numbers = channels * frames * height * width + text * config["text_embed_dim"] + config["pooled_projection_dim"]
        trained = [self.roles[name] for name in setup.specs if self.roles[name].parameters]
        checkpoint = float(sum(role.kept for role in trained))
        return {
            "generator": self._exported,
            "checkpoint": checkpoint,
            "checkpoints": CHECKPOINTS * checkpoint,
            "clip": float(2 * numbers),
        }

    @property
    def _exported(self) -> float:
        """Bytes of the exported generator: whole weights in the backbone's type, a LoRA as it was trained."""
        generator, spec = self.roles.get(GENERATOR), self.setup.specs.get(GENERATOR)
        if generator is None or spec is None:
            return 0.0
        return float(generator.parameters * self.setup.dtype.itemsize if spec.weights == "full" else generator.weights)


def choose_sharding(plan: Plan) -> Sharding:
    """What ``engine.sharding: auto`` means for a plan: ``replicate`` where replicas fit, else ``fsdp``."""
    return Plan(replace(plan.setup, engine=plan.setup.engine.model_copy(update={"sharding": "auto"}))).sharding
