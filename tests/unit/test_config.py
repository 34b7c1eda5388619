"""Recipes: merged and overridden as their users expect, and no typo survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from w2svd_bench.config import Frozen, Optimizer, Recipe, Training, apply_overrides, load_recipe, validated
from w2svd_bench.errors import BenchError

RECIPE: dict[str, Any] = {
    "method": "lcm",
    "backbone": "mini",
    "training": {"iterations": 100},
    "settings": {"generator": {"learning_rate": 1e-4}, "levels": [1.0, 0.5]},
}


class Settings(Frozen):
    generator: Optimizer
    fake: Optimizer | None = None
    alpha_weak: float = 0.5
    levels: tuple[float, ...] = ()


def test_frozen() -> None:
    training = Training(iterations=5)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        training.iterations = 6  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="finite"):
        Settings.model_validate({"generator": {"learning_rate": 1}, "alpha_weak": float("nan")})


def test_rate_is_constant_by_default() -> None:
    assert {Optimizer(learning_rate=0.5).rate(update, 10) for update in range(10)} == {0.5}


def test_rate_warms_up_and_decays() -> None:
    """Against the rates written out by hand: a rise over 4 updates, a fall over the last half of 20."""
    plan = Optimizer(learning_rate=2.0, warmup=4, decay_from=0.5)
    rates = [plan.rate(update, 20) for update in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[5:11] == [2.0] * 6
    assert rates[11:] == pytest.approx([1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert Optimizer(learning_rate=1.0, decay_from=0.0).rate(3, 4) == 0.25


@pytest.mark.parametrize("update", [-1, 10, 11])
def test_rate_outside_of_the_run(update: int) -> None:
    with pytest.raises(ValueError, match="not part of a run of 10"):
        Optimizer(learning_rate=1.0).rate(update, 10)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"learning_rate": 1, "betas": [0.9, 1.0]}, {"learning_rate": 1, "decay_from": 1.5},
     {"learning_rate": 1, "warmup": -1}, {"learning_rate": 1, "clip": 0}],
)  # fmt: skip
def test_optimizer_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(BenchError, match="optimizer is not valid"):
        validated(Optimizer, wrong, "optimizer")


def test_recipe_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mini.yaml"
    path.write_text(
        "method: lcm\nbackbone: mini\ntraining: {iterations: 100}\n"
        'settings:\n  generator: {learning_rate: 1e-4}\n  levels: [1.0, 0.5]\nexpected: {"fid[mini]@4": 12.3}\n'
    )
    recipe = validated(Recipe, load_recipe(path), f"recipe {path.name}")
    assert recipe.training == Training(iterations=100, batch_size=16)
    assert recipe.settings == RECIPE["settings"]
    assert recipe.expected == {"fid[mini]@4": 12.3}


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("1E5", 1e5), ("-2.e3", -2e3), (".5e1", 5.0), ("3", 3), ("0.25", 0.25)]
)
def test_numbers_are_numbers(text: str, number: float) -> None:
    """YAML 1.1 reads 1e-4 as text, which would reach a method's free settings as a string."""
    value = apply_overrides({}, [f"a={text}"])["a"]
    assert value == number and not isinstance(value, str)


def test_what_only_looks_like_a_number_stays_text() -> None:
    assert apply_overrides({}, ["a=e4", "b=1e", "c=4f2e1", "d='1e5'"]) == {
        "a": "e4",
        "b": "1e",
        "c": "4f2e1",
        "d": "1e5",
    }


def test_base_is_merged_under(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "root.yaml").write_text(
        "training: {iterations: 1, batch_size: 2}\nsettings: {a: {b: 1, c: 2}}"
    )
    (tmp_path / "shared" / "base.yaml").write_text(
        "base: root.yaml\nmethod: lcm\nsettings: {a: {c: 3}, levels: [1, 2]}"
    )
    path = tmp_path / "top.yaml"
    path.write_text(
        "base: shared/base.yaml\nbackbone: mini\nsettings: {levels: [9], a: {d: null}}\ntraining: {iterations: 7}"
    )
    assert load_recipe(path) == {
        "method": "lcm",
        "backbone": "mini",
        "training": {"iterations": 7, "batch_size": 2},
        "settings": {"a": {"b": 1, "c": 3, "d": None}, "levels": [9]},
    }


def test_load_copies_a_mapping() -> None:
    recipe = load_recipe(RECIPE)
    recipe["training"]["iterations"] = 5
    assert RECIPE["training"]["iterations"] == 100
    with pytest.raises(BenchError, match="can't have a base"):
        load_recipe({"base": "mini.yaml"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice (line 3, column 1)"),
        ("- 1\n- 2\n", "not keys and values"),
        ("", "not keys and values"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("base: [a.yaml]\n", "its base is ['a.yaml']"),
        ("base: recipe.yaml\n", "its own base"),
        ("base: other/../recipe.yaml\n", "its own base"),
        ("base: nothing.yaml\n", "nothing.yaml can't be read"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "other").mkdir()
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        load_recipe(path)
    assert problem in str(caught.value) and "recipe" in caught.value.what


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BenchError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides() -> None:
    overrides = [
        "training.iterations=7",
        "settings.alpha_weak = 0.25",
        "settings.levels=[1, 0.75]",
        "settings.new.deep=yes",
    ]
    result = apply_overrides(RECIPE, overrides)
    assert result["training"] == {"iterations": 7}
    assert result["settings"] == {
        "generator": {"learning_rate": 1e-4},
        "levels": [1, 0.75],
        "alpha_weak": 0.25,
        "new": {"deep": True},
    }
    assert RECIPE["settings"]["levels"] == [1.0, 0.5], "the original is left alone"


def test_overrides_in_order_and_null() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2", "c=x=y", "d=null"]) == {"a": {"b": 2}, "c": "x=y", "d": None}


@pytest.mark.parametrize(
    "override", ["training", "training.iterations", "=3", ".a=3", "a..b=3", "a.=3", "a.b=", "a=[1"]
)
def test_bad_overrides(override: str) -> None:
    with pytest.raises(BenchError, match="override"):
        apply_overrides(RECIPE, [override])


def test_override_through_a_value() -> None:
    with pytest.raises(BenchError, match="not a section") as caught:
        apply_overrides(RECIPE, ["settings.levels.first=3"])
    assert "settings.levels is [1.0, 0.5]" in caught.value.why


def test_typo_in_a_key() -> None:
    with pytest.raises(BenchError) as caught:
        validated(Recipe, {**RECIPE, "training": {"iterations": 1, "batchsize": 8}}, "recipe mini.yaml")
    assert caught.value.what == "recipe mini.yaml is not valid"
    assert "training.batchsize: unknown key (given 8)" in caught.value.why
    assert "did you mean 'batch_size'?" in caught.value.cure


def test_typo_behind_an_optional_part() -> None:
    data = {"generator": {"learning_rate": 1}, "fake": {"learning_rat": 1}}
    with pytest.raises(BenchError) as caught:
        validated(Settings, data, "settings of 'lcm'")
    assert "fake.learning_rat: unknown key" in caught.value.why
    assert "fake.learning_rate: is required but missing" in caught.value.why
    assert "did you mean 'learning_rate'?" in caught.value.cure


def test_all_problems_are_named_at_once() -> None:
    data = {"method": "lcm", "training": {"iterations": "many"}, "expected": {"fid": 3.0}, "extra": 1}
    with pytest.raises(BenchError) as caught:
        validated(Recipe, data, "recipe x.yaml")
    for part in (
        "backbone: is required but missing",
        "training.iterations:",
        "'many'",
        "expected.fid",
        "extra: unknown key",
    ):
        assert part in caught.value.why
    assert len(caught.value.why.splitlines()) == 4


def test_a_key_where_nothing_is_known() -> None:
    class Nothing(Frozen):
        pass

    with pytest.raises(BenchError) as caught:
        validated(Nothing, {"a": 1}, "settings of 'euler'")
    assert caught.value.cure == "remove a"
