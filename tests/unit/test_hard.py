"""The hard setting: prompts that name three attributes of eight, and a default setting that none of it touches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from w2svd_bench.backbones.base import Backbone
from w2svd_bench.backbones.locate import ASSETS, SIDE_FILE, MiniHard, Side, locate
from w2svd_bench.build_mini.build import SETTINGS
from w2svd_bench.data.attributes import PHRASES, SEPARATOR, parse_caption, portrait
from w2svd_bench.data.latents import portrait_pool
from w2svd_bench.data.palette import PALETTES
from w2svd_bench.data.portraits import captions
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.evalset import PortraitSet
from w2svd_bench.record import canonical_hash, read_records
from w2svd_bench.types import Attribute

NAMED = ("skin", "hair", "backdrop")
RESULTS = Path(__file__).resolve().parents[2] / "results" / "mini"


@pytest.fixture
def side() -> Side:
    return locate("mini")[1]


@pytest.fixture
def hard(side: Side) -> Side:
    return replace(side, prompt_attributes=NAMED)


def test_captions_name_what_is_asked_for_in_the_captions_own_order() -> None:
    assert captions("test", [0], NAMED) == ["tan skin, brown hair, green backdrop"]
    assert captions("test", [0], ("backdrop", "skin")) == ["tan skin, green backdrop"]
    assert captions("test", range(20), tuple(PHRASES)) == captions("test", range(20))
    for index in range(20):
        one = portrait("train", index)
        assert one.naming(None) == one.caption and len(one.caption.split(SEPARATOR)) == 8
        assert parse_caption(one.naming(NAMED)) == {name: one.classes[name] for name in NAMED}


def test_attributes_that_there_are_none_of_are_refused() -> None:
    for call in (lambda: captions("test", [0], ("skin", "hairs")), lambda: parse_caption("pale skin", ("hairs",))):
        with pytest.raises(BenchError, match=r"unknown attribute 'hairs'(.|\n)*did you mean 'hair'"):
            call()


def test_a_phrase_that_prompts_never_name_is_refused() -> None:
    assert parse_caption("pale skin, red hair", NAMED) == {"skin": 0, "hair": 3}
    with pytest.raises(BenchError, match="'big eyes'"):
        parse_caption("pale skin, big eyes", NAMED)
    assert parse_caption("pale skin, big eyes") == {"skin": 0, "eyes": 1}


# What a backbone's side says.


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the miniature's small files whose side says what is given."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "own"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ASSETS / "mini", folder, ignore=shutil.ignore_patterns("*.safetensors"))
        file = folder / SIDE_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def test_the_names_are_those_of_the_phrases() -> None:
    assert get_args(Attribute) == tuple(PHRASES)


def test_a_side_says_which_attributes_prompts_name(side: Side, own: Callable[..., Path]) -> None:
    assert side.prompt_attributes is None
    assert locate(str(own(prompt_attributes=None)))[1].prompt_attributes is None
    # The same set is the same side, whatever its order in the file.
    given = locate(str(own(prompt_attributes=["backdrop", "skin", "hair", "skin"])))[1]
    assert given.prompt_attributes == NAMED and given == replace(side, prompt_attributes=NAMED)


@pytest.mark.parametrize(
    ("wrong", "word"), [(["skin", "beard"], "'backdrop'"), ([], "at least 1"), ("skin", "tuple"), ([3], "'skin'")]
)
def test_attributes_that_a_side_can_not_name(wrong: object, word: str, own: Callable[..., Path]) -> None:
    with pytest.raises(BenchError, match="prompt_attributes") as caught:
        locate(str(own(prompt_attributes=wrong)))
    assert SIDE_FILE in str(caught.value) and word in str(caught.value)


def test_the_setting_that_is_built_is_the_backbone_that_is_named() -> None:
    setting = SETTINGS["hard"]
    assert setting.backbone == MiniHard.name and MiniHard().location() == ASSETS / "mini-hard"
    assert MiniHard.recipe == setting.side["recipe"] == "mini" and tuple(setting.side["prompt_attributes"]) == NAMED
    assert SETTINGS["default"].side == json.loads((ASSETS / "mini" / SIDE_FILE).read_text())
    assert {
        key: value for key, value in setting.side.items() if key not in ("backbone", "recipe", "prompt_attributes")
    } == {key: value for key, value in SETTINGS["default"].side.items() if key != "backbone"}


def test_the_hard_miniature_shares_everything_but_the_teacher() -> None:
    """Its latents and conditioning are the default's; its teacher is another one."""
    easy, hard = Backbone.load("mini"), Backbone.load("mini-hard")
    assert hard.name == "mini-hard" and hard.side == replace(easy.side, backbone="mini-hard", prompt_attributes=NAMED)
    assert hard.latents_sha256 == easy.latents_sha256 and hard.teacher_sha256 != easy.teacher_sha256
    assert hard.transformer.config.num_layers == easy.transformer.config.num_layers
    ours, theirs = hard.transformer.state_dict(), easy.transformer.state_dict()
    assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in theirs.items()}
    card = (ASSETS / "mini-hard" / "README.md").read_text()
    assert "not the default" in card and "teacher iteration 32000/32000" in card


# Training clips.


def test_a_pool_of_shorter_captions_is_another_entry_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W2SVD_BENCH_CACHE", str(tmp_path))
    backbone = Backbone.load("mini")
    facts = {  # what the default's entries have been named by since before there was another setting
        "renderer": 1,
        "split": "train",
        "count": 6,
        "geometry": [17, 48, 48],
        "encoders": backbone.latents_sha256,
        "precision": ["torch.float32", "torch.float32"],
    }
    whole = portrait_pool(backbone, "train", 6)
    assert [path.stem for path in (tmp_path / "latents").iterdir()] == [canonical_hash(facts)[:32]]
    assert whole.name == "portraits, split train, 6 clips" and whole.cond.tokens_BLD.shape[1] == 8

    backbone.side = replace(backbone.side, prompt_attributes=NAMED)
    few = portrait_pool(backbone, "train", 6)
    assert few.name == "portraits, split train, 6 clips, captions of skin, hair, backdrop"
    assert torch.equal(few.latents, whole.latents)
    expected = backbone.encode_prompts(captions("train", range(6), NAMED))
    assert few.cond.tokens_BLD.shape[1] == 3 and torch.equal(few.cond.tokens_BLD, expected.tokens_BLD)
    assert torch.equal(few.cond.pooled_BP, expected.pooled_BP) and not torch.equal(
        few.cond.pooled_BP, whole.cond.pooled_BP
    )
    key = canonical_hash(facts | {"named": list(NAMED)})[:32]
    assert {path.stem for path in (tmp_path / "latents").iterdir()} == {canonical_hash(facts)[:32], key}


# Eval sets.


def test_the_default_eval_set_is_that_of_the_records(side: Side) -> None:
    described = PortraitSet(side).describe()
    recorded = [record.eval_set for record in read_records(RESULTS)]
    assert recorded and {one.name for one in recorded} == {"portraits-test-512"} == {described.name}
    assert {one.prompts_sha256 for one in recorded} == {described.prompts_sha256}
    assert {one.reference_sha256 for one in recorded} == {described.reference_sha256}


def test_prompts_of_three_attributes_are_an_eval_set_of_their_own(side: Side, hard: Side) -> None:
    easy, few = PortraitSet(side), PortraitSet(hard)
    assert few.name == "portraits-3of8-test-512" and PortraitSet(hard, 32, "validation").name == (
        "portraits-3of8-validation-32"
    )
    assert few.describe().prompts_sha256 != easy.describe().prompts_sha256
    assert few.prompts == captions("test", range(512), NAMED) and len(set(few.prompts)) == 64
    assert few.keys == few.prompts  # clips of one prompt are left out together
    assert set(few.colours[0]) == set(NAMED) and few.colours[0]["hair"] == PALETTES["hair"][1]
    # Real clips of any kind are the same: only what is asked of a generator differs.
    assert few.describe().reference_sha256 == easy.describe().reference_sha256
    assert (few.real([0, 3]) == easy.real([0, 3])).all()
    backbone = Backbone.load("mini")
    assert few.conditioning(backbone, range(4)).tokens_BLD.shape == (4, 3, 32)
