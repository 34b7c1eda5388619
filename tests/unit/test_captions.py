"""Captions in every format, and the layouts of the portrait sets on folder trees made up after their authors' pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2svd_bench.data.captions import Entry, find_videos, read_captions
from w2svd_bench.data.layouts import HDTF_CAPTION, LAYOUTS, VFHQ_CAPTION, read_entries
from w2svd_bench.errors import BenchError


def tree(root: Path, *files: str, **texts: str) -> Path:
    """Empty files, and files with a text under names with ``__`` for a slash and ``_dot_`` for a dot."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        write(root / name.replace("__", "/").replace("_dot_", "."), text)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


TWO = [Entry("a", "a.mp4", "a man, talking"), Entry("sub/b", "sub/b.mov", "a woman")]

CONTENTS = {
    "captions.csv": 'file_name,caption\nsub/b.mov,a woman\na.mp4,"a man, talking"\n',
    "upper.csv": '\ufeffVideo , Text\n"a.mp4","a man,\n talking"\nsub/b.mov,a woman\n',
    "captions.tsv": "path\tprompt\na.mp4\ta man, talking\nsub/b.mov\ta woman\n",
    "mapping.json": '{"sub/b.mov": "a woman", "a.mp4": "a man, talking"}',
    "objects.json": '{"a": {"text": "a man, talking"}, "sub/b": {"text": "a woman"}}',
    "fastvideo.json": '[{"path": "a.mp4", "cap": ["a man, talking", "other"], "fps": 24}, '
    '{"path": "sub/b.mov", "cap": ["", "a woman"], "fps": 30}]',
    "captions.jsonl": '{"video": "a.mp4", "caption": "a man,  talking "}\n\n{"video": "sub/b", "caption": "a woman"}\n',
    "tabs.txt": "a.mp4\ta man, talking\n\nsub/b.mov\ta woman\n",
    "bars.txt": "a.mp4|a man, talking\nsub/b|a woman\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    videos = tree(tmp_path / "videos", "a.mp4", "sub/b.mov", "notes.md", ".hidden.mp4", ".cache/c.mp4")
    captions = write(tmp_path / name, CONTENTS[name])
    assert read_captions(videos, captions) == (TWO, [])


def test_parallel_lists(tmp_path: Path) -> None:
    """As finetrainers has them: names relative to the lists' folder, the videos below it."""
    tree(tmp_path, "videos/a.mp4", "videos/b.mp4", prompts_dot_txt="a man | talking\na woman\n\n")
    write(tmp_path / "videos.txt", "videos/a.mp4\nvideos/b.mp4\n")
    entries, rejected = read_captions(tmp_path / "videos", tmp_path / "prompts.txt")
    assert [(one.video, one.caption) for one in entries] == [("a.mp4", "a man | talking"), ("b.mp4", "a woman")]
    assert rejected == []
    write(tmp_path / "videos.txt", "videos/a.mp4\n")
    with pytest.raises(BenchError, match=r"prompts\.txt has 2 lines and videos\.txt beside it has 1"):
        read_captions(tmp_path / "videos", tmp_path / "prompts.txt")


def test_text_files_beside_the_videos(tmp_path: Path) -> None:
    tree(
        tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4", "d.webm", a_dot_txt="one\n two\n", c_dot_txt=" \n", d_dot_txt="dd"
    )
    entries, rejected = read_captions(tmp_path, None)
    assert entries == [Entry("a", "a.mp4", "one two"), Entry("d", "d.mp4", "dd")]
    assert rejected == [
        ("b", "no caption beside it: b.txt is missing"),
        ("c", "its caption is empty"),
        ("d", "named twice: d.mp4 was taken, d.webm not"),
    ]


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    videos = tree(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", "d.mp4", "d.mov", "e.mp4")
    tree(tmp_path, "secret.mp4")
    lines = [
        {"video": "a.mp4", "caption": "a"},
        {"video": "a", "caption": "again"},
        {"video": "b.mp4", "caption": " "},
        {"video": "c.mp4", "caption": 7},
        {"video": "d", "caption": "d"},
        {"video": "gone.mp4", "caption": "gone"},
        {"video": "../secret.mp4", "caption": "outside"},
        {"video": str(tmp_path / "secret.mp4"), "caption": "outside"},
        {"video": 3, "caption": "three"},
    ]
    captions = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines)))
    entries, rejected = read_captions(videos, captions)
    assert entries == [Entry("a", "a.mp4", "a")]
    nowhere = "there is no such file among the videos"
    assert dict(rejected) == {
        "a": "named twice: a.mp4 was taken, a.mp4 not",
        "b": "its caption is empty",
        "c": "its caption is no text but int",
        "d": "no caption in c.jsonl",
        "gone.mp4": nowhere,
        "../secret.mp4": nowhere,
        str(tmp_path / "secret.mp4"): nowhere,
        "3": "its name is no text",
        "e": "no caption in c.jsonl",
    }
    assert [reason for name, reason in rejected if name == "d"].count("no caption in c.jsonl") == 2
    assert rejected == sorted(rejected)


def test_windows_and_frame_rates(tmp_path: Path) -> None:
    """Two clips of one video; a frame rate is for a folder of images only, a video has its own."""
    videos = tree(tmp_path / "videos", "a.mp4", "b.mp4", "images/1.png")
    text = "video,caption,start,end,fps\na.mp4,first,0,4.5,\na.mp4,second,4.5,10,30\nimages,third,,,25\nb.mp4,x,5,2,\n"
    entries, rejected = read_captions(videos, write(tmp_path / "c.csv", text + "b.mp4,x,soon,9,\nb.mp4,x,1,,\n"))
    assert entries == [
        Entry("a@0-4.5", "a.mp4", "first", (0.0, 4.5)),
        Entry("a@4.5-10", "a.mp4", "second", (4.5, 10.0)),
        Entry("images", "images", "third", None, 25.0),
    ]
    reasons = [reason for _, reason in rejected]
    assert any(reason.startswith("from 5 to 2 s is no window") for reason in reasons)
    assert any(reason.startswith("from 1 to ") for reason in reasons) and "its start is no number: 'soon'" in reasons


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.csv", "clip,caption\na.mp4,x\n", r"no column for the video\n.*its columns are clip, caption; one of video"),
        ("c.csv", "video,words\na.mp4,x\n", r"no column for the caption\n.*its columns are video, words"),
        ("c.csv", "video,caption\n", "is empty"),
        ("c.json", '{"a": ', r"not valid JSON\n.*line 1, column 7"),
        ("c.json", '"a"', "neither a list of objects nor a mapping"),
        ("c.jsonl", '{"video": "a", "caption": "x"}\n{"video"\n', r"line 2 of .*c\.jsonl is not valid JSON"),
        ("c.jsonl", '["a", "b"]\n', "neither a list of objects"),
        ("c.txt", "a.mp4 x\n", "line 1 has neither a tab nor a |"),
        ("c.parquet", "", r"its name ends in \.parquet; known are \.csv"),
        ("c.csv", "video,caption\ngone.mp4,x\n", r"no clip in .* has both[\s\S]*gone\.mp4: there is no such file"),
    ],
)
def test_caption_files_that_can_not_be_used(tmp_path: Path, name: str, text: str, reason: str) -> None:
    videos = tree(tmp_path / "videos", "a.mp4")
    with pytest.raises(BenchError, match=reason):
        read_captions(videos, write(tmp_path / name, text))


def test_no_captions_at_all(tmp_path: Path) -> None:
    tree(tmp_path, "a.mp4")
    with pytest.raises(BenchError, match=r"a\.txt is missing[\s\S]*NAME\.txt beside each video"):
        read_captions(tmp_path, None)
    write(tmp_path / "metadata.csv", "file_name,caption\na.mp4,x\n")
    with pytest.raises(BenchError, match=r"--captions .*metadata\.csv"):
        read_captions(tmp_path, None)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match=r"a\.txt is not UTF-8 text"):
        read_captions(tmp_path, None)


def test_entries_of_no_layout(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="did you mean 'hdtf'"):
        read_entries(tmp_path, None, "hdft")
    with pytest.raises(BenchError, match="there is no such folder"):
        read_entries(tmp_path / "none", None, "plain")
    with pytest.raises(BenchError, match="it is a file"):
        read_entries(write(tmp_path / "a.mp4", ""), None, "plain")
    with pytest.raises(BenchError, match="captions can't be read"):
        read_entries(tmp_path, tmp_path / "none.csv", "plain")
    assert set(LAYOUTS) == {"plain", "vfhq", "hdtf", "celebv-hq", "celebv-text"}


@pytest.mark.parametrize("layout", ["hdtf", "vfhq", "celebv-hq", "celebv-text"])
def test_a_caption_file_takes_the_place_of_a_sets_own(tmp_path: Path, layout: str) -> None:
    name = "Clip+abc+P0+C0+F1-90" if layout == "vfhq" else "abc_0"
    videos = tree(tmp_path / "videos", f"{name}.mp4")
    captions = write(tmp_path / "c.csv", f"video,caption\n{name},a man\n")
    assert read_entries(videos, captions, layout) == ([Entry(name, f"{name}.mp4", "a man")], [])


def test_hdtf(tmp_path: Path) -> None:
    """By its README, Radio11_0.mp4; by its download.py, RD_Radio11_000.mp4 and whole videos in _videos_raw."""
    tree(tmp_path, "Radio11_0.mp4", "RD_Radio11_001.mp4", "Radio12.mp4", "_videos_raw/RD_Radio_11.mp4")
    entries, rejected = read_entries(tmp_path, None, "hdtf")
    assert [(one.id, one.caption) for one in entries] == [
        ("RD_Radio11_001", HDTF_CAPTION),
        ("Radio11_0", HDTF_CAPTION),
    ]
    assert [name for name, _ in rejected] == ["Radio12"] and "a whole video" in rejected[0][1]
    (tmp_path / "Radio11_0.mp4").unlink()
    (tmp_path / "RD_Radio11_001.mp4").unlink()
    with pytest.raises(BenchError, match=r"a whole video[\s\S]*such as Radio11_0\.mp4"):
        read_entries(tmp_path, None, "hdtf")


CLIP = "Clip+-91nXXjrVo+P0+C0+F1537-1825"
META = "H 1080\nW 1920\nFPS 29.97002997\n\nCROP 100 100 612 612\n"


def test_vfhq(tmp_path: Path) -> None:
    one, two, three = (CLIP.replace("C0", f"C{n}") for n in range(1, 4))
    videos = tree(tmp_path / "vfhq", f"{CLIP}/00000000.png", f"id/{one}.mp4", f"{two}/1.png", f"{three}/1.png", "x.mp4")
    with pytest.raises(BenchError, match=r"frame rates .* unknown[\s\S]*unpack VFHQ's meta_info\.zip there"):
        read_entries(videos, None, "vfhq")
    write(tmp_path / "meta_info" / f"{CLIP}.txt", META)
    write(tmp_path / "meta_info" / f"{three}.txt", "FPS unknown\n")
    entries, rejected = read_entries(videos, None, "vfhq")
    assert entries == [
        Entry(CLIP, CLIP, VFHQ_CAPTION, None, 29.97002997),
        Entry(f"id/{one}", f"id/{one}.mp4", VFHQ_CAPTION),
    ]
    assert rejected == [
        (two, f"its frame rate is unknown: meta_info has no {two}.txt"),
        (three, f"its frame rate is unknown: {three}.txt in meta_info has no line FPS with a number"),
    ]
    captions = write(tmp_path / "c.json", json.dumps({CLIP: "a man", two: "no rate"}))
    entries, rejected = read_entries(videos, captions, "vfhq")
    assert entries == [Entry(CLIP, CLIP, "a man", None, 29.97002997)]
    assert sorted(name for name, _ in rejected) == sorted([f"id/{one}", two, three])
    with pytest.raises(BenchError, match=r"does not hold VFHQ[\s\S]*Clip\+ID"):
        read_entries(tmp_path / "meta_info", None, "vfhq")


def celebv_hq(**changes: Any) -> str:
    """An annotation file after the README's: two clips, the second with two emotions."""
    clips = {
        "M2Ohb0FAaJU_1": {
            "ytb_id": "M2Ohb0FAaJU",
            "attributes": {
                "appearance": [0, 1, 1],
                "action": [0, 1],
                "emotion": {"sep_flag": False, "labels": "neutral"},
            },
        },
        "_0tf2n3rlJU_0": {
            "attributes": {
                "appearance": [0, 0, 0],
                "action": [1, 1],
                "emotion": {"sep_flag": True, "labels": [{"emotion": "neutral"}, {"emotion": "happy"}]},
            },
        },
        "gone_0": {"attributes": {"appearance": [0, 0, 1], "action": [0, 0], "emotion": {"labels": "fear"}}},
        "broken_0": {"attributes": {"appearance": [0, 1], "action": [0, 0], "emotion": {"labels": "fear"}}},
    }
    names = {"appearance_mapping": ["Blurry", "Male", "Wavy_Hair"], "action_mapping": ["blow", "head_wagging"]}
    return json.dumps({"meta_info": names, "clips": clips, **changes})


def test_celebv_hq(tmp_path: Path) -> None:
    files = ("processed/M2Ohb0FAaJU_1.mp4", "processed/happy/_0tf2n3rlJU_0.mp4", "processed/other_3.mp4")
    tree(tmp_path, *files, "processed/broken_0.mp4", "raw/M2Ohb0FAaJU_1.mp4")
    with pytest.raises(BenchError, match=r"there is no .*celebvhq_info\.json, nor one beside"):
        read_entries(tmp_path / "processed", None, "celebv-hq")
    write(tmp_path / "celebvhq_info.json", celebv_hq())
    entries, rejected = read_entries(tmp_path / "processed", None, "celebv-hq")
    first = "A portrait video of a person. Appearance: male, wavy hair. Action: head wagging. Emotion: neutral."
    second = "A portrait video of a person. Action: blow, head wagging. Emotion: neutral, then happy."
    assert entries == [
        Entry("M2Ohb0FAaJU_1", "M2Ohb0FAaJU_1.mp4", first),
        Entry("happy/_0tf2n3rlJU_0", "happy/_0tf2n3rlJU_0.mp4", second),
    ]
    assert rejected == [
        ("broken_0", "its attributes in celebvhq_info.json are not complete"),
        ("gone_0", "there is no such file among the videos"),
        ("other_3", "not in celebvhq_info.json"),
    ]
    whole, rejected = read_entries(tmp_path, None, "celebv-hq")
    assert not [name for name, _ in rejected if name.startswith("raw")]
    assert [one.video for one in whole] == [f"processed/{one.video}" for one in entries]
    with pytest.raises(BenchError, match=r"there is no such file among the videos[\s\S]*not those in raw/"):
        (tmp_path / "empty").mkdir()
        read_entries(tmp_path / "empty", tmp_path / "celebvhq_info.json", "celebv-hq")
    write(tmp_path / "celebvhq_info.json", celebv_hq(meta_info=[]))
    with pytest.raises(BenchError, match="is not CelebV-HQ's annotations"):
        read_entries(tmp_path, None, "celebv-hq")


def test_celebv_text(tmp_path: Path) -> None:
    videos = tree(tmp_path / "videos", "celebvtext_6/a_0.mp4", "celebvtext_6/b_1.mp4", "c_2.mp4", "d_3.mp4", "e.mp4")
    with pytest.raises(BenchError, match=r"texts were not found[\s\S]*give the folder"):
        read_entries(videos, None, "celebv-text")
    texts = tmp_path / "texts"
    write(texts / "face40_details_new" / "a_0.txt", "\nShe has brown hair.\nHer hair is brown.\n")
    write(texts / "action_dur" / "a_0.txt", "She talks.\n")
    write(texts / "light_intensity" / "a_0.txt", "The light is bright.\n")
    write(texts / "emotion" / "a_0.txt", "She is happy.\n")
    write(texts / "emotion" / "b_1_4.txt", "He is sad.\n")
    for number in (1, 2):
        write(texts / "emotion" / f"c_2_{number}.txt", "He is calm.\n")
    write(texts / "emotion" / "gone_9.txt", "It is gone.\n")
    write(texts / "light_dir" / "d_3.txt", " \n")
    entries, rejected = read_entries(videos, None, "celebv-text")
    assert entries == [
        Entry(
            "celebvtext_6/a_0",
            "celebvtext_6/a_0.mp4",
            "She has brown hair. She talks. She is happy. The light is bright.",
        ),
        Entry("celebvtext_6/b_1", "celebvtext_6/b_1.mp4", "He is sad."),
    ]
    gone = "there is no such file among the videos"
    neither = "no text of its name, or several"
    assert rejected == [
        ("c_2", neither),
        ("c_2_1", gone),
        ("c_2_2", gone),
        ("d_3", "its caption is empty"),
        ("e", neither),
        ("gone_9", gone),
    ]
    assert read_entries(videos, texts, "celebv-text") == (entries, rejected)
    (texts / "emotion_old").mkdir()
    with pytest.raises(BenchError, match=r"emotion and emotion_old are of the same kind"):
        read_entries(videos, None, "celebv-text")


def test_a_text_belongs_to_the_video_of_its_very_name(tmp_path: Path) -> None:
    """``a_0_2`` is a video of its own, not the second text of ``a_0``."""
    tree(tmp_path, "a_0.mp4", "a_0_2.mp4", texts__emotion__a_0_2_dot_txt="Sad.")
    entries, rejected = read_entries(tmp_path, None, "celebv-text")
    assert [(one.id, one.caption) for one in entries] == [("a_0_2", "Sad.")]
    assert [name for name, _ in rejected] == ["a_0"]


def test_find_videos(tmp_path: Path) -> None:
    tree(tmp_path, "b.MP4", "a/c.webm", "a/.d.mp4", ".e/f.mp4", "raw/g.mp4", "h.txt")
    assert find_videos(tmp_path, ["raw"]) == ["a/c.webm", "b.MP4"]
