"""The collapse alarm and its confirmation, from made-up curves: when they ring, and what is said."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from w2svd_bench.record import TrainingCost
from w2svd_bench.train.health import ALARM, FAKE_LOSS, STD, WAIT, WINDOW, Vitals, alarm, told

TEACHER, REAL = 0.17, 0.98


def followed(losses: list[float], stds: list[float] | None = None) -> Vitals:
    """Vitals after these fake losses and standard deviations, one an update."""
    vitals = Vitals(TEACHER, REAL)
    for loss, std in zip(losses, stds or [REAL] * len(losses), strict=True):
        vitals.add({FAKE_LOSS: loss, STD: std})
    return vitals


def test_the_alarm_rings_at_the_update_whose_mean_of_fifty_passes_four_times_the_teacher() -> None:
    vitals = Vitals(TEACHER, REAL)
    rung = [vitals.add({FAKE_LOSS: 0.2 if update <= 300 else 2.0, STD: REAL}) for update in range(1, 401)]
    # (50 - k) * 0.2 + k * 2 > 50 * 4 * 0.17 from k = 14 on
    assert [update for update, rings in enumerate(rung, start=1) if rings] == [314]
    assert vitals.alarm_at == 314
    assert vitals.confirmed_at is None
    assert vitals.health(None).collapsed_at is None


@pytest.mark.parametrize("bad", range(10, 100, 30))
def test_a_bad_start_rings_nothing(bad: int) -> None:
    assert followed([5.0] * min(bad, WAIT - WINDOW) + [0.2] * 200).alarm_at is None
    assert followed([5.0] * (WAIT - 1)).alarm_at is None
    assert followed([5.0] * WAIT).alarm_at == WAIT


def test_just_below_the_threshold_rings_nothing() -> None:
    assert followed([TEACHER * ALARM * 0.999] * 300).alarm_at is None
    assert followed([TEACHER * ALARM * 1.001] * 300).alarm_at == WAIT


def test_a_collapse_is_an_alarm_that_the_latents_confirm_and_it_is_never_taken_back() -> None:
    losses = [0.2] * 200 + [5.0] * 100 + [0.2] * 300
    stds = [REAL] * 240 + [3.0] * 60 + [REAL] * 300
    health = followed(losses, stds).health(None)
    assert health.alarm_at == 206
    # (50 - k) * 0.98 + k * 3 > 50 * 1.25 * 0.98 from k = 7 on
    assert health.confirmed_at == health.collapsed_at == 247
    assert health.updates == 600
    assert health.fake_loss == pytest.approx(0.2)
    assert health.generated_std == pytest.approx(REAL)


@pytest.mark.parametrize("std", [0.79 * REAL, 1.26 * REAL])
def test_latents_out_of_range_alone_are_no_collapse_but_confirm_an_alarm_at_once(std: float) -> None:
    assert followed([0.2] * 300, [std] * 300).health(None).collapsed_at is None
    assert followed([0.2] * 300, [std] * 300).confirmed_at is None
    assert followed([0.2] * 200 + [5.0] * 100, [std] * 300).confirmed_at == 206
    inside = [0.81 * REAL] * 300
    assert followed([0.2] * 200 + [5.0] * 100, inside).confirmed_at is None


def test_a_checkpoint_keeps_the_vitals_to_the_last_bit() -> None:
    losses, stds = [0.1 + update / 400 for update in range(400)], [1 + update / 900 for update in range(400)]
    whole = followed(losses, stds)
    half = followed(losses[:163], stds[:163])
    again = Vitals(**json.loads(json.dumps(asdict(half))))
    assert again == half
    for loss, std in zip(losses[163:], stds[163:], strict=True):
        again.add({FAKE_LOSS: loss, STD: std})
    assert again == whole
    assert again.alarm_at is not None
    assert all(len(values) == WINDOW for values in again.recent.values())


def test_a_watch_that_began_late_waits_for_a_whole_window() -> None:
    """As in a run whose checkpoint is older than the watching."""
    vitals = Vitals(TEACHER, REAL, updates=200)
    rung = [vitals.add({FAKE_LOSS: 5.0, STD: REAL}) for _ in range(WINDOW)]
    assert rung == [False] * (WINDOW - 1) + [True]


def test_a_fake_that_logs_no_loss_is_not_judged() -> None:
    vitals = Vitals(TEACHER, REAL)
    for _ in range(200):
        vitals.add({})
    health = vitals.health(None)
    assert (health.alarm_at, health.fake_loss, health.generated_std) == (None, None, None)
    assert told(health.plain()) == ["no collapse alarm: the fake logs no loss"]


def test_health_is_kept_in_records_as_it_is() -> None:
    plain = followed([0.2] * 200 + [5.0] * 100, [3.0] * 300).health(0.25).plain()
    cost = TrainingCost(health=plain)
    assert json.loads(cost.model_dump_json())["health"] == plain
    assert isinstance(cost.health["collapsed_at"], int)
    assert TrainingCost.model_validate({}).health == {}
    with pytest.raises(ValueError, match="finite"):
        TrainingCost(health={"fake_loss": float("nan")})


def test_what_is_said() -> None:
    fine = followed([TEACHER] * 200)
    assert told({}) == []
    assert told(fine.health(None).plain()) == [
        "no collapse alarm: the fake's loss is 0.17, 1.0 times the teacher's own on real latents"
    ]
    assert "it takes 100 updates" in told(followed([0.2] * 99).health(None).plain())[0]
    bad = followed([0.2] * 200 + [5.0] * 6)
    assert alarm(bad).startswith("collapse alarm at update 206: the fake's loss is 0.776, 4.6 times")
    assert "at update 206, not confirmed" in told(bad.health(None).plain())[0]
    gone = followed([0.2] * 200 + [5.0] * 100, [REAL] * 200 + [2 * REAL] * 100).health(None).plain()
    assert told(gone)[0].startswith("collapsed at update 213 (alarm at 206): ")
    assert "latents is 2.00 of real ones" in told(gone)[0]
    back = followed([0.2] * 200 + [5.0] * 100 + [0.2] * 60, [REAL] * 200 + [2 * REAL] * 100 + [REAL] * 60).health(None)
    assert told(back.plain())[0].startswith("collapsed at update 213 (alarm at 206), from which it came back: ")


@pytest.mark.parametrize(
    ("alpha", "cosine", "said"),
    [
        (None, None, []),
        (0.0, None, ["alpha is 0: the real score is the teacher's, and there are no two directions to compare"]),
        (0.25, 0.99, ["alpha acts as a scalar here (cosine 0.9900 > 0.97)"]),
        (0.25, 0.97, ["alpha turns the matching gradient (cosine 0.9700, at most 0.97)"]),
        (0.25, None, ["alpha was not measured"]),
    ],
)
def test_what_is_said_of_alpha(alpha: float | None, cosine: float | None, said: list[str]) -> None:
    vitals = followed([0.2] * 200)
    vitals.alpha_cosine = cosine
    assert told(vitals.health(alpha).plain())[1:] == said
