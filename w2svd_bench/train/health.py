"""The health of a run with a fake: a collapse alarm, its confirmation, and whether alpha is more than a factor.

What tells a collapse was measured on the miniature: the fake's loss rises to many times the teacher's own, and then the
generated latents leave the spread of real ones. The norm of the matching gradient and the distance of the fake from the
teacher do not tell: they rise with the learning rate in healthy runs, too. An update is one of the generator.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from w2svd_bench.matching import FAKE
from w2svd_bench.rng import Rng
from w2svd_bench.types import GENERATOR, Batch

# Means of 50 updates part healthy runs (up to 2.6 times the teacher's loss) from collapsed ones (from 23 times) better
# than means of 10; before update 100 fakes that only begin to learn are as bad.
WAIT, WINDOW = 100, 50
ALARM = 4.0  # of the teacher's own loss on real latents
SPREAD = (0.8, 1.25)  # of the standard deviation of real latents
SCALAR = 0.97  # a cosine above which alpha is but a factor on the matching gradient, which Adam takes out again
TEACHER_CLIPS = 64  # whose loss under the teacher is measured, once a run

FAKE_LOSS, STD, RAW = "fake_loss", "generated_std", "dm_raw"
# What is followed from update to update: by role, the names in the logs of its loss.
WATCHED: Mapping[str, tuple[str, ...]] = {FAKE: (FAKE_LOSS,), GENERATOR: (STD, RAW)}


@runtime_checkable
class Watchable(Protocol):
    """A method whose health can be told; `DistributionMatching` is one.

    The loss of its role ``fake`` logs ``fake_loss``, and that of the generator ``generated_std``.
    """

    def teacher_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """The frozen teacher's loss on real latents at the noise levels that the fake is trained at: a scalar."""
        ...

    def weak_strength(self) -> float | None:
        """The strength of the fake's LoRA in the real score; None where that is no view of a fake that learns."""
        ...

    def alpha_cosine(self, batch: Batch, rng: Rng) -> Tensor:
        """The mean cosine between v(1) - v(alpha) and v(1) - v(0) on generated samples: a scalar in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Health:
    """How a run with a fake fared.

    Attributes:
        updates: of the generator.
        teacher_loss: its mean square error on real latents, which the alarm is measured by.
        real_std: standard deviation of the same latents.
        alarm_at: the first update at which the fake's loss, the mean of the last 50 updates, was above 4 times
            ``teacher_loss``; not before update 100, and never taken back. None: it never was.
        confirmed_at: from the alarm on, the first update at which the standard deviation of generated latents (the mean
            of the last 50) was outside 0.8 to 1.25 of ``real_std``.
        collapsed_at: ``confirmed_at``: an alarm alone is no collapse.
        fake_loss, generated_std: the last such means; None where the loss logs none.
        alpha: strength of the fake's LoRA in the real score; None where that is no view of a fake that learns.
        alpha_cosine: between v(1) - v(alpha) and v(1) - v(0) at the end; None where there is no alpha above 0.
    """

    updates: int
    teacher_loss: float
    real_std: float
    alarm_at: int | None = None
    confirmed_at: int | None = None
    collapsed_at: int | None = None
    fake_loss: float | None = None
    generated_std: float | None = None
    alpha: float | None = None
    alpha_cosine: float | None = None

    def plain(self) -> dict[str, float | int | None]:
        """As ``run.json`` and records keep it."""
        return asdict(self)


@dataclass
class Vitals:
    """What health is told from, update by update: plain data, so that a checkpoint keeps it to the last bit.

    Attributes:
        recent: by name, the last `WINDOW` values.
    """

    teacher_loss: float
    real_std: float
    updates: int = 0
    alarm_at: int | None = None
    confirmed_at: int | None = None
    alpha_cosine: float | None = None
    recent: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> bool:
        """Takes the values of one update in; returns whether the alarm rings now, which it does once."""
        self.updates += 1
        for name, value in values.items():
            self.recent[name] = [*self.recent.get(name, []), value][-WINDOW:]
        if self.updates < WAIT:
            return False
        loss, std = self._full(FAKE_LOSS), self._full(STD)
        rings = self.alarm_at is None and loss is not None and loss > ALARM * self.teacher_loss
        if rings:
            self.alarm_at = self.updates
        if self.alarm_at is not None and self.confirmed_at is None and std is not None:
            low, high = SPREAD
            if not low * self.real_std <= std <= high * self.real_std:
                self.confirmed_at = self.updates
        return rings

    def mean(self, name: str) -> float | None:
        """The mean of the last updates, at most `WINDOW` of them; None if there was none."""
        return statistics.fmean(self.recent[name]) if self.recent.get(name) else None

    def _full(self, name: str) -> float | None:
        return self.mean(name) if len(self.recent.get(name, [])) == WINDOW else None

    def health(self, alpha: float | None) -> Health:
        return Health(
            updates=self.updates,
            teacher_loss=self.teacher_loss,
            real_std=self.real_std,
            alarm_at=self.alarm_at,
            confirmed_at=self.confirmed_at,
            collapsed_at=self.confirmed_at if self.alarm_at is not None else None,
            fake_loss=self.mean(FAKE_LOSS),
            generated_std=self.mean(STD),
            alpha=alpha,
            alpha_cosine=self.alpha_cosine,
        )


def alarm(vitals: Vitals) -> str:
    """What is said at once when the alarm rings."""
    return f"collapse alarm at update {vitals.alarm_at}: {_loss(vitals.mean(FAKE_LOSS), vitals.teacher_loss)}"


def told(health: Mapping[str, Any]) -> list[str]:
    """What is said of a run's health at its end, line by line; nothing for a run without a fake."""
    if not health:
        return []
    return [_collapse(health), *_alpha(health["alpha"], health["alpha_cosine"])]


def _collapse(health: Mapping[str, Any]) -> str:
    loss = _loss(health["fake_loss"], health["teacher_loss"])
    if health["collapsed_at"] is not None:
        ratio = health["generated_std"] / health["real_std"]
        back = health["fake_loss"] <= ALARM * health["teacher_loss"] and SPREAD[0] <= ratio <= SPREAD[1]
        return (
            f"collapsed at update {health['collapsed_at']} (alarm at {health['alarm_at']})"
            f"{', from which it came back' if back else ''}: at the end the standard deviation of generated latents is "
            f"{ratio:.2f} of real ones, and {loss}"
        )
    if health["alarm_at"] is not None:
        return (
            f"collapse alarm at update {health['alarm_at']}, not confirmed by the generated latents; at the end {loss}"
        )
    if health["updates"] < WAIT:
        return f"no collapse alarm: it takes {WAIT} updates to tell; {loss}"
    return f"no collapse alarm: {loss}"


def _loss(fake: float | None, teacher: float) -> str:
    if fake is None:
        return "the fake logs no loss"
    return f"the fake's loss is {fake:.3g}, {fake / teacher:.1f} times the teacher's own on real latents"


def _alpha(alpha: float | None, cosine: float | None) -> list[str]:
    if alpha is None:
        return []
    if alpha == 0:
        return ["alpha is 0: the real score is the teacher's, and there are no two directions to compare"]
    if cosine is None:
        return ["alpha was not measured"]
    if cosine > SCALAR:
        return [f"alpha acts as a scalar here (cosine {cosine:.4f} > {SCALAR})"]
    return [f"alpha turns the matching gradient (cosine {cosine:.4f}, at most {SCALAR})"]
