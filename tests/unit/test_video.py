"""Cutting clips out of real files: every frame bears its number, so that which ones were taken can be read off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import Colorspace
from PIL import Image

from w2svd_bench.data.video import Frames, Rejected, choose, fit, probe, read_clip
from w2svd_bench.errors import BenchError

SIZE = (48, 64)  # height, width
NTSC = Fraction(30000, 1001)


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture of 2 x 4 grey blocks, the bits of its number: uint8 (H, W, 3)."""
    bits = np.array([(number >> bit) & 1 for bit in range(8)]).reshape(2, 4)
    rows, columns = np.arange(size[0]) * 2 // size[0], np.arange(size[1]) * 4 // size[1]
    grey = np.where(bits[rows][:, columns] == 1, 210, 40).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def numbers(clip_FHWC: np.ndarray) -> list[int]:
    """The numbers that the frames of a clip bear, whatever the clip's size."""
    height, width = clip_FHWC.shape[1:3]
    rows = [int((row + 0.5) * height / 2) for row in range(2)]
    columns = [int((column + 0.5) * width / 4) for column in range(4)]
    bits = clip_FHWC[:, rows][:, :, columns, 0].reshape(len(clip_FHWC), 8) > 125
    return [int(value) for value in bits @ (1 << np.arange(8))]


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    rate: int | Fraction = 24,
    pts: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    setup: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Encodes pictures with libx264; ``pts`` gives presentation times in milliseconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": "10", "preset": "veryfast", **(options or {})}
        )
        stream.pix_fmt = pixels
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        setup(stream)
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def video(path: Path, count: int, rate: int | Fraction = 24, **more: Any) -> Path:
    return write(path, (numbered(i) for i in range(count)), rate, **more)


def small(num_frames: int, fps: float, start: Any = "begin", **more: Any) -> Frames:
    return Frames(num_frames, *SIZE, fps, start, **more)


def nearest(rate: Fraction, fps: int, num_frames: int) -> list[int]:
    """By exact fractions: the frame nearest to each time, the earlier of two as near."""
    return [min(range(200), key=lambda i: (abs(i / rate - Fraction(k, fps)), i)) for k in range(num_frames)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])  # mkv counts time in milliseconds
@pytest.mark.parametrize("rate", [24, 25, 30, NTSC, 60], ids=str)
def test_the_frames_nearest_in_time_are_taken(tmp_path: Path, rate: int | Fraction, suffix: str) -> None:
    path = video(tmp_path / f"a.{suffix}", 150, rate)
    clip = read_clip(path, small(33, 24))
    assert clip.shape == (33, *SIZE, 3) and clip.dtype == np.uint8
    assert numbers(clip) == nearest(Fraction(rate), 24, 33)


def test_the_choice_by_hand() -> None:
    """30 to 24 a second: frame k of the clip is at 1.25 k; 2.5 and 7.5 lie halfway, and the earlier frame is taken."""
    assert choose(np.arange(60) / 30, small(9, 24)) == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    assert choose(np.arange(60) / 24, small(5, 12)) == [0, 2, 4, 6, 8]
    assert choose(np.arange(60) / 24, small(5, 12, "middle")) == [25, 27, 29, 31, 33]
    assert choose(np.array([0.0]), small(1, 24)) == [0]
    assert choose(np.arange(17) / 24, small(17, 24, "middle")) == list(range(17))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(242, 10), 24], ids=str)
def test_rates_within_a_hundredth_are_taken_one_for_one(tmp_path: Path, rate: Fraction) -> None:
    """By the nearest time, 23.976 for 24 would show a frame twice after half a thousand, and 24.2 leave some out."""
    assert choose(np.arange(2001) / float(rate), small(2001, 24)) == list(range(2001))
    assert numbers(read_clip(video(tmp_path / "a.mp4", 70, rate), small(65, 24))) == list(range(65))


def test_the_middle_of_a_long_video_is_found_by_seeking(tmp_path: Path) -> None:
    """Far from the first key frame, with frames stored out of order; and from a window."""
    path = video(tmp_path / "a.mp4", 240, 24, options={"g": "50", "bf": "3"})
    assert numbers(read_clip(path, small(17, 24, "middle"))) == list(range(111, 128))
    assert numbers(read_clip(path, small(9, 24), window=(4.0, 6.0))) == list(range(96, 105))
    assert numbers(read_clip(path, small(9, 24, "middle"), window=(4.0, 5.0))) == list(range(103, 112))
    with pytest.raises(Rejected, match=r"between 4 and 4.2 s: too short: 5 frames"):
        read_clip(path, small(9, 24), window=(4.0, 4.2))
    with pytest.raises(Rejected, match="no frames between 20 and 30 s"):
        read_clip(path, small(9, 24), window=(20.0, 30.0))


def test_containers_that_seek_badly_or_keep_no_times(tmp_path: Path) -> None:
    """A transport stream is found by decoding it from the start. An AVI knows the order of storage only."""
    options = {"g": "50", "bf": "3"}
    assert numbers(read_clip(video(tmp_path / "a.ts", 240, options=options), small(9, 24, "middle"))) == list(
        range(115, 124)
    )
    assert numbers(read_clip(video(tmp_path / "b.avi", 60, options={"bf": "0"}), small(9, 24))) == list(range(9))
    reordered = video(tmp_path / "c.avi", 60, options=options)
    for length in (5, 9, 13):
        with pytest.raises(Rejected, match="rewrap it as mp4"):
            read_clip(reordered, small(length, 24))


def test_frames_at_the_same_time_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        for number in range(6):
            for packet in stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")):
                packet.pts = packet.dts = 0
                container.mux(packet)
    with pytest.raises(Rejected, match="two of its frames have the same presentation time"):
        read_clip(tmp_path / "a.mkv", small(5, 24))


def test_variable_frame_rate_is_taken_by_its_times(tmp_path: Path) -> None:
    """60 a second at first, then 30: a clip at 15 keeps its pace, which counting frames would not."""
    pts = [round(i * 1000 / 60) for i in range(30)] + [500 + round(i * 1000 / 30) for i in range(30)]
    path = video(tmp_path / "a.mp4", 60, 60, pts=pts)
    assert probe(path).variable
    wanted = [1000 * k / 15 for k in range(21)]
    expected = [min(range(60), key=lambda i: (round(abs(pts[i] - t)), i)) for t in wanted]
    assert numbers(read_clip(path, small(21, 15))) == expected == [*range(0, 30, 4), *range(31, 56, 2)]


def test_a_hole_in_a_variable_rate_is_refused_where_the_clip_meets_it(tmp_path: Path) -> None:
    pts = [round(i * 1000 / 30) + (300 if i >= 40 else 0) for i in range(60)]
    path = video(tmp_path / "a.mp4", 60, 30, pts=pts)
    assert numbers(read_clip(path, small(25, 24))) == nearest(Fraction(30), 24, 25)
    with pytest.raises(Rejected, match=r"its frame rate varies: .* at 1\.4.* s, the nearest is .* ms away"):
        read_clip(path, small(41, 24))


def test_jitter_is_taken_and_a_stutter_refused() -> None:
    """Mean rate 24 in both; in the second, frames come in pairs and would have to stand in for what is not there."""
    jitter, stutter = (np.cumsum([0.0, *gaps * 30]) for gaps in ([1 / 36, 1 / 18], [1 / 60, 1 / 15]))
    assert choose(jitter, small(33, 24)) == list(range(33))
    with pytest.raises(Rejected, match="its frame rate varies"):
        choose(stutter, small(33, 24))
    with pytest.raises(Rejected, match="its frame rate varies"):  # 1.5 is the nearest to both 1 and 2
        choose(np.array([0, 1.5, 2.6, 3.4, 4]), small(5, 1))


@pytest.mark.parametrize(
    ("count", "rate", "reason"),
    [
        (20, 24, r"^too short: 20 frames at 24 a second are 0\.83 s, but 33 frames at 24 a second need 1\.38 s$"),
        (40, 30, r"^too short: 40 frames at 30 a second"),  # the 33rd is at 40 of the source
        (60, 15, r"^15 frames a second, but the clip needs 24: some would be shown twice$"),
        (60, 23, r"^23 frames a second"),
    ],
)
def test_what_has_too_few_frames_is_refused(tmp_path: Path, count: int, rate: int, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        read_clip(video(tmp_path / "a.mp4", count, rate), small(33, 24))


def test_the_shortest_video_that_suffices() -> None:
    assert choose(np.arange(41) / 30, small(33, 24))[-1] == 40
    assert choose(np.arange(33) / 24, small(33, 24)) == list(range(33))


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def noise(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("start", ["begin", "middle"])
@pytest.mark.parametrize(
    ("name", "muxer"),
    [
        ("a.mp4", {}),
        ("index_first.mp4", {"movflags": "faststart"}),
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
    ],
)
def test_a_cut_off_file_is_refused(tmp_path: Path, name: str, muxer: dict[str, str], start: str) -> None:
    """Also where the clip itself lies in what is left: what else is wrong with the file can't be known."""
    path = write(tmp_path / name, noise(60), options={"g": "12"}, muxer=muxer)
    assert len(read_clip(path, small(9, 24, start))) == 9
    with pytest.raises(Rejected, match=r"unreadable|truncated"):
        read_clip(cut(path, 0.6), small(9, 24, start))


@pytest.mark.parametrize("missing", ["the second half, between two frames", "the last byte"])
def test_a_cut_anywhere_is_noticed(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path / "a.mp4", noise(60), muxer={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = sorted((packet.pos or 0) + packet.size for packet in container.demux(video=0) if packet.size)
    data = path.read_bytes()
    path.write_bytes(data[: ends[29] if missing.startswith("the second") else ends[-1] - 1])
    reason = "truncated: it announces 60 frames and holds 30" if missing.startswith("the second") else "frame 60 is inc"
    with pytest.raises(Rejected, match=reason):
        read_clip(path, small(9, 24))


def test_damage_inside_is_refused_where_the_clip_meets_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", noise(72), options={"g": "12", "bf": "0"})
    whole = read_clip(path, small(9, 24))
    data = bytearray(path.read_bytes())
    middle = data.find(b"mdat") + (data.find(b"moov") - data.find(b"mdat")) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(Rejected, match=r"^damaged: frame .* can't be decoded"):
        read_clip(path, small(33, 24, "middle"))
    assert np.array_equal(read_clip(path, small(9, 24)), whole)


def test_pictures_patched_up_by_the_decoder_are_refused(tmp_path: Path) -> None:
    """Small damage in one of a picture's slices, which players conceal: never a clip that differs."""
    path = write(tmp_path / "a.mp4", [numbered(i, (240, 320)) for i in range(34)], options={"slices": "4", "g": "12"})
    frames = Frames(33, 240, 320, 24, "begin")
    whole, data = read_clip(path, frames), path.read_bytes()
    begin, end = data.find(b"mdat") + 8, data.find(b"moov")
    refused = 0
    for at in np.linspace(begin, end - 64, 16).astype(int):
        path.write_bytes(data[:at] + bytes(range(100, 132)) + data[at + 32 :])
        try:
            assert np.array_equal(read_clip(path, frames), whole)
        except Rejected:
            refused += 1
    assert refused > 8


def test_files_without_a_picture_are_refused(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "cover.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = *SIZE, "yuvj420p", Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(0), format="rgb24")))
        container.mux(cover.encode())
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not found\n" * 200)
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "sound.mp4": "no video stream: the file holds only audio",
        "cover.mp4": "no video stream: the file holds no moving pictures",
        "empty.mp4": "unreadable: Invalid data found",
        "text.mp4": "unreadable: Invalid data found",
        "none.mp4": "unreadable: No such file or directory",
        "folder": "a folder of images has no frame rate of its own",
    }.items():
        for attempt in (lambda path: read_clip(path, small(5, 24)), probe):
            with pytest.raises(Rejected, match=reason) as error:
                attempt(tmp_path / name)
            assert "\n" not in error.value.reason and str(tmp_path) not in error.value.reason


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_is_honoured(tmp_path: Path, turn: int) -> None:
    """A white corner at the top left comes, turned counterclockwise, to the bottom left, bottom right, top right."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:16, :16] = 255
    path = write(tmp_path / "a.mp4", [picture] * 6, setup=lambda stream: stream.set_display_rotation(turn))
    height, width = SIZE if turn % 180 == 0 else SIZE[::-1]
    seen = probe(path)
    assert (seen.height, seen.width, seen.rotation) == (height, width, turn)
    clip = read_clip(path, Frames(5, height, width, 24))
    corners = {0: (8, 8), 90: (height - 8, 8), 180: (height - 8, width - 8), 270: (8, width - 8)}
    white = [angle for angle, (y, x) in corners.items() if clip[0, y, x, 0] > 200]
    assert white == [turn]


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """48 x 48 pixels twice as wide as high show as 96 x 48: a square clip keeps the middle half, without border."""
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[:, 12:36] = 0

    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    path = write(tmp_path / "a.mp4", [picture] * 6, setup=wide)
    assert probe(path).pixel_aspect == 2
    with pytest.raises(Rejected, match=r"too small: 48 x 48 pixels must be enlarged 2\.00 times"):
        read_clip(path, Frames(5, 48, 48, 24))
    assert read_clip(path, Frames(5, 48, 48, 24, allow_upscale=True))[:, :, 3:45].max() < 20
    tall = write(tmp_path / "b.mp4", [picture] * 6, setup=lambda s: (wide(s), s.set_display_rotation(90)))
    assert probe(tall).pixel_aspect == 0.5
    assert read_clip(tall, Frames(5, 48, 48, 24, allow_upscale=True))[:, 3:45].max() < 20


def test_what_can_not_be_shown_faithfully_is_refused(tmp_path: Path) -> None:
    def hdr(stream: Any) -> None:
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9

    pictures = [numbered(i) for i in range(6)]
    for setup, options, reason in (
        (lambda s: s.set_display_rotation(0, hflip=True), {}, "mirrors the picture"),
        (lambda s: s.set_display_rotation(30), {}, "turns the picture by (29|30|31) degrees"),
        (hdr, {}, "high dynamic range"),
        (lambda s: None, {"x264-params": "interlaced=1"}, "interlaced"),
    ):
        path = write(tmp_path / "a.mp4", pictures, setup=setup, options=options)
        with pytest.raises(Rejected, match=reason):
            read_clip(path, small(5, 24))


@pytest.mark.parametrize(("size", "pixels"), [((49, 65), "yuv444p"), (SIZE, "yuv420p10le"), ((48, 64), "yuv422p")])
def test_odd_sizes_and_other_pixels(tmp_path: Path, size: tuple[int, int], pixels: str) -> None:
    path = write(tmp_path / "a.mp4", [numbered(i, size) for i in range(12)], pixels=pixels)
    assert (probe(path).height, probe(path).width) == size
    clip = read_clip(path, Frames(9, *size, 24, "begin"))
    assert numbers(clip) == list(range(9))
    inside = clip[5, 8:16, 4:12].astype(float)  # the first bit of 5 is set: grey 210
    assert np.abs(inside - 210).max() <= 3


@pytest.mark.parametrize(("matrix", "tag"), [(Colorspace.ITU709, 1), (Colorspace.ITU601, 6), (Colorspace.ITU601, 2)])
def test_colours_are_those_of_the_files_own_matrix(tmp_path: Path, matrix: Colorspace, tag: int) -> None:
    """BT.709 and BT.601 as the file says; BT.601 where it says nothing (2)."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:] = (200, 60, 20)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.colorspace = tag
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", src_colorspace=matrix, dst_colorspace=matrix)
            frame.colorspace = tag
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = read_clip(path, small(5, 24)).astype(int)
    assert np.abs(clip - picture).max() <= 4


def test_pictures_are_covered_and_cropped_around_the_centre() -> None:
    ramp = np.zeros((40, 100, 3), np.uint8)
    ramp[:] = np.arange(100, dtype=np.uint8)[None, :, None]
    same = fit(ramp, Frames(1, 40, 100, 24))
    assert np.array_equal(same, ramp)
    square = fit(ramp, Frames(1, 40, 40, 24))  # columns 30 to 69, untouched
    assert np.array_equal(square, ramp[:, 30:70])
    half = fit(ramp, Frames(1, 20, 20, 24)).astype(float)
    assert np.abs(half[5, :, 0] - (30.5 + 2 * np.arange(20))).max() <= 1  # centres of pairs of columns
    tall = fit(ramp.transpose(1, 0, 2), Frames(1, 40, 40, 24))
    assert np.array_equal(tall, ramp.transpose(1, 0, 2)[30:70])


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = fit(stripes, Frames(1, 20, 20, 24)).astype(float)
    assert np.abs(shrunk - 127.5).max() < 30


def test_small_pictures_are_not_enlarged_unasked() -> None:
    small_one = numbered(3)
    with pytest.raises(Rejected, match=r"too small: 64 x 48 pixels must be enlarged 1.50 times to cover 96 x 72"):
        fit(small_one, Frames(1, 72, 96, 24))
    assert fit(small_one, Frames(1, 72, 96, 24, allow_upscale=True)).shape == (72, 96, 3)
    assert fit(small_one, Frames(1, 50, 66, 24)).shape == (50, 66, 3)  # 4 %


def test_folders_of_numbered_images(tmp_path: Path) -> None:
    for index in range(30):
        Image.fromarray(numbered(index)).save(tmp_path / f"{index + 1}.png")  # 10.png must not come before 2.png
    assert numbers(read_clip(tmp_path, small(9, 24), fps=24)) == list(range(9))
    assert numbers(read_clip(tmp_path, small(9, 24), fps=30)) == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    assert numbers(read_clip(tmp_path, small(5, 24, "middle"), window=(0.5, 1.0), fps=24)) == list(range(15, 20))
    seen = probe(tmp_path, fps=25)
    assert (seen.frames, seen.seconds, seen.fps, seen.height, seen.width) == (30, 1.2, 25, *SIZE)
    with pytest.raises(Rejected, match="no frame rate of its own"):
        read_clip(tmp_path, small(9, 24))
    last = tmp_path / "30.png"
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.raises(Rejected, match=r"image 30\.png is damaged"):
        read_clip(tmp_path, small(9, 24), window=(0.85, 9.0), fps=24)
    (tmp_path / "7.png").unlink()
    with pytest.raises(Rejected, match="number 7 is missing"):
        read_clip(tmp_path, small(9, 24), fps=24)


def test_a_picture_that_changes_size_is_refused(tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(numbered(index, (48, 64 + 8 * (index == 3)))).save(tmp_path / f"{index:08d}.png")
    with pytest.raises(Rejected, match="changes size"):
        read_clip(tmp_path, small(5, 24), fps=24)


@pytest.mark.parametrize("rate", [24, NTSC, 60], ids=str)
def test_probe(tmp_path: Path, rate: int | Fraction) -> None:
    seen = probe(video(tmp_path / "a.mkv", 40, rate))
    assert (seen.frames, seen.height, seen.width, seen.codec, seen.rotation) == (40, *SIZE, "h264", 0)
    assert seen.fps == pytest.approx(float(rate), rel=2e-3) and seen.seconds == pytest.approx(
        40 / float(rate), abs=2e-3
    )
    assert not seen.variable and seen.pixel_aspect == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_frames": 16}, "use 13 or 17"),
        ({"num_frames": 0}, "use 1 or 5"),
        ({"height": 0}, "must be positive"),
        ({"fps": 0.0}, "must be positive"),
        ({"start": "end"}, "begin or middle"),
    ],
)
def test_impossible_clips_are_errors(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        Frames(**{"num_frames": 17, "height": 48, "width": 64, "fps": 24.0, **change})
