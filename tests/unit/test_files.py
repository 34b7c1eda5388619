"""Media files as they lie in a folder: every kind that is read, every way a file can be wrong, and mixed folders."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from w2svd_bench.data.files import Unreadable, left_aside, list_media, measure, read_media
from w2svd_bench.data.stock import take_stock
from w2svd_bench.errors import BenchError
from w2svd_bench.evaluate.pictures import write_video

RED, GREEN, BLUE = (200, 40, 30), (30, 180, 60), (20, 50, 210)


def picture(height: int = 24, width: int = 32, corner: tuple[int, int, int] = RED) -> np.ndarray:
    """Blue with a corner of another colour at the top left, in blocks that survive any codec: uint8 (H, W, 3)."""
    pixels = np.full((height, width, 3), BLUE, np.uint8)
    pixels[: height // 2, : width // 2] = corner
    return pixels


def clip(frames: int = 6) -> np.ndarray:
    return np.stack([picture(corner=RED if i % 2 else GREEN) for i in range(frames)])


def image(path: Path, pixels: np.ndarray | None = None) -> Path:
    Image.fromarray(picture() if pixels is None else pixels).save(path)
    return path


def array(path: Path, values: np.ndarray | None = None) -> Path:
    np.save(path, clip() if values is None else values)
    return path


def video(path: Path, frames: np.ndarray | None = None, fps: float = 8) -> Path:
    """A video by the container that its ending names; mp4 and GIF by the writer that the benchmark itself uses."""
    frames = clip() if frames is None else frames
    if path.suffix in (".mp4", ".gif"):
        return write_video(frames, path, fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=int(fps))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def reason(path: Path) -> str:
    """Why a file is refused; always one line that does not say where the file lies."""
    with pytest.raises(Unreadable) as error:
        read_media(path)
    told = error.value.reason
    assert told and "\n" not in told and str(path.parent) not in told
    return told


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(BenchError) as error:
        call()
    return str(error.value)


def test_what_a_folder_holds_is_listed_by_name_and_the_rest_named(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.npy", "c.mp4", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "d.png").touch()
    (tmp_path / "frames.mp4").mkdir()
    assert [path.name for path in list_media(tmp_path)] == ["a.npy", "b.PNG", "c.mp4"]
    assert [path.name for path in left_aside(tmp_path)] == ["frames.mp4", "inner", "notes.txt"]


def test_a_folder_with_nothing_to_read_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    assert "nothing at all" in refusal(lambda: list_media(tmp_path))
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    (tmp_path / "deeper").mkdir()
    told = refusal(lambda: list_media(tmp_path))
    assert "2 x .txt, 1 x folder" in told and ".png" in told and ".mp4" in told and str(tmp_path) in told
    assert "no such folder" in refusal(lambda: list_media(tmp_path / "none"))
    assert "it is a file" in refusal(lambda: list_media(tmp_path / "a.txt"))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".PNG"])
def test_images(tmp_path: Path, ending: str) -> None:
    pixels = picture()
    path = tmp_path / f"a{ending}"
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)
    media, shape = read_media(path), measure(path)
    assert media.frames_FHWC.dtype == np.uint8 and media.fps is None and media.codec[:2] == ending[1:3].lower()
    assert (shape.frames, shape.height, shape.width, shape.fps) == (1, 24, 32, None)
    lossless = ending not in (".jpg", ".jpeg", ".webp")
    assert np.abs(media.frames_FHWC[0].astype(int) - pixels).mean() <= (0 if lossless else 5)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"])
def test_videos(tmp_path: Path, ending: str) -> None:
    path = video(tmp_path / f"a{ending}", fps=10)
    media, shape = read_media(path), measure(path)
    assert media.frames_FHWC.shape == (6, 24, 32, 3) and media.frames_FHWC.dtype == np.uint8
    assert media.fps == shape.fps == pytest.approx(10, rel=1e-3)
    assert (shape.frames, shape.height, shape.width) == (6, 24, 32)
    corners = media.frames_FHWC[:, 2:9, 2:12].reshape(6, -1, 3).mean(1)
    assert [("red", "green")[int(g > r)] for r, g, _ in corners] == ["green", "red"] * 3
    assert np.abs(media.frames_FHWC[:, 16:, 20:].astype(int) - BLUE).mean() < 8


def test_arrays(tmp_path: Path) -> None:
    media = read_media(array(tmp_path / "a.npy"))
    assert np.array_equal(media.frames_FHWC, clip()) and media.fps is None and media.codec == "npy"
    assert (measure(tmp_path / "a.npy").frames, measure(tmp_path / "a.npy").fps) == (6, None)


def test_a_single_frame_of_video_has_the_rate_that_its_file_states(tmp_path: Path) -> None:
    shape = measure(video(tmp_path / "a.mp4", clip(1), fps=12))
    assert shape.frames == 1 and shape.fps == pytest.approx(12)


def test_orientation_palette_grey_and_alpha(tmp_path: Path) -> None:
    """Turned as the camera says; grey thrice; of what is transparent, the stored colour."""
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the top left corner comes to the top right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_media(tmp_path / "turned.png").frames_FHWC
    assert np.array_equal(turned[0], np.rot90(pixels, -1))
    assert (measure(tmp_path / "turned.png").height, measure(tmp_path / "turned.png").width) == (32, 24)

    Image.fromarray(pixels).quantize(4).save(tmp_path / "palette.png")
    assert np.array_equal(read_media(tmp_path / "palette.png").frames_FHWC[0], pixels)

    grey = np.arange(24 * 32, dtype=np.uint8).reshape(24, 32)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_media(tmp_path / "grey.png").frames_FHWC[0], np.repeat(grey[..., None], 3, axis=2))

    alpha = np.dstack([pixels, np.where(np.arange(32) < 16, 0, 255)[None].repeat(24, 0).astype(np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_media(tmp_path / "alpha.png").frames_FHWC[0], pixels)


def test_images_that_8_bit_rgb_can_not_hold_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "ink.jpg")
    frames = [Image.fromarray(picture(corner=c)) for c in (RED, GREEN)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    assert "of kind I;16" in reason(tmp_path / "deep.png")
    assert "of kind CMYK" in reason(tmp_path / "ink.jpg")
    assert "holds 2 pictures" in reason(tmp_path / "moving.webp")
    assert "holds 2 pictures" in reason(tmp_path / "pages.tiff")


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")  # PIL's, beside the error
@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".mp4", ".webm", ".mkv", ".gif", ".npy"])
def test_empty_truncated_and_foreign_files(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)
    if ending in (".mp4", ".webm", ".mkv", ".gif"):
        whole = video(tmp_path / f"whole{ending}", noise).read_bytes()
    else:
        make, pixels = (array, noise) if ending == ".npy" else (image, noise[0])
        whole = make(tmp_path / f"whole{ending}", pixels).read_bytes()
    read_media(tmp_path / f"whole{ending}")
    for share in (0.02, 0.5, 0.9):
        (tmp_path / f"cut{ending}").write_bytes(whole[: int(len(whole) * share)])
        reason(tmp_path / f"cut{ending}")
    (tmp_path / f"empty{ending}").touch()
    assert reason(tmp_path / f"empty{ending}") == "an empty file (0 bytes)"
    (tmp_path / f"page{ending}").write_text("<!DOCTYPE html><html>" + "not found " * 300)
    assert reason(tmp_path / f"page{ending}")


@pytest.mark.parametrize(
    ("named", "content", "told"),
    [
        ("a.mp4", "b.png", r"ends in .mp4, but it holds png"),
        ("a.mp4", "b.gif", r"ends in .mp4, but it holds gif"),
        ("a.mp4", "b.mkv", r"ends in .mp4, but it holds matroska"),
        ("a.png", "b.jpg", r"ends in .png, but it holds JPEG"),
        ("a.jpg", "b.mp4", "no image at all"),
        ("a.gif", "b.mp4", r"ends in .gif, but it holds mov"),
        ("a.npy", "b.png", "no array at all"),
    ],
)
def test_an_ending_that_lies(tmp_path: Path, named: str, content: str, told: str) -> None:
    other = tmp_path / content
    (image if other.suffix in (".png", ".jpg") else video)(other).rename(tmp_path / named)
    assert told in reason(tmp_path / named)


def test_an_ending_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert "'.txt' is not among" in reason(tmp_path / "a.txt")
    assert "No such file" in reason(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "float32, not uint8"),
        (np.zeros((8, 8, 3), np.uint8), r"shape (8, 8, 3)"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape (4, 8, 8, 4)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape (0, 8, 8, 3)"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, values: np.ndarray, told: str) -> None:
    assert told in reason(array(tmp_path / "a.npy", values))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never be printed",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "object.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", clip())
    (tmp_path / "a.npz").rename(tmp_path / "archive.npy")
    reason(tmp_path / "plain.npy")
    reason(tmp_path / "object.npy")
    assert "an npz archive" in reason(tmp_path / "archive.npy")
    assert "never" not in capsys.readouterr().out


def test_a_decoder_that_stumbles_in_the_middle(tmp_path: Path) -> None:
    """Players patch such a picture up, and other readers leave its frame out."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    path = write_video(noise, tmp_path / "a.mp4", 24)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    assert measure(path).frames == 24
    assert "damaged: frame" in reason(path)


def test_a_gif_cut_between_two_frames_is_noticed(tmp_path: Path) -> None:
    """It has no count of frames; only the mark at its end tells."""
    path = video(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-1])
    assert "the mark at its end is missing" in reason(path)


def test_a_stock_counts_what_can_not_be_read_and_names_what_is_left_aside(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "a.png", picture(corner=GREEN))
    (tmp_path / "c.png").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    stock = take_stock(tmp_path)
    assert [item.path.name for item in stock.items] == ["a.png", "b.png"]
    assert stock.unreadable == {"c.png": "an empty file (0 bytes)"}
    assert "1 folder(s) in it are not entered: more" in stock.warnings[0]
    assert "notes.txt" in stock.warnings[1] and len(stock.warnings) == 2
    assert (stock.size, stock.counts, stock.fps) == ((24, 32), [1], None)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"damaged")
    assert "none of the 3 files" in refusal(lambda: take_stock(tmp_path))


def test_copies_are_named_and_more_than_a_hundredth_refused(tmp_path: Path) -> None:
    for index in range(100):
        image(tmp_path / f"{index:03}.bmp", np.full((4, 4, 3), index, np.uint8))
    assert take_stock(tmp_path).warnings == ()
    image(tmp_path / "twin-a.bmp", np.full((4, 4, 3), 7, np.uint8))
    (warning,) = take_stock(tmp_path).warnings
    assert "1 of the 101 files" in warning and "007.bmp = twin-a.bmp" in warning
    image(tmp_path / "twin-b.bmp", np.full((4, 4, 3), 8, np.uint8))
    assert "2 of the 102 files" in refusal(lambda: take_stock(tmp_path))


def test_files_of_several_sizes(tmp_path: Path) -> None:
    image(tmp_path / "a.png", picture(24, 32))
    image(tmp_path / "b.png", picture(24, 32, GREEN))
    image(tmp_path / "c.png", picture(48, 48))
    told = refusal(lambda: take_stock(tmp_path))
    assert "2 of 32x24, 1 of 48x48" in told and "--resize-mixed" in told
    stock = take_stock(tmp_path, resize_mixed=True)
    assert [item.pixels().shape for item in stock.items] == [(1, 24, 32, 3)] * 3
    assert stock.size == (24, 32) and stock.resized == 1
    assert "1 of 3 files are scaled and cropped to 32x24" in stock.warnings[0]
    untouched = {item.path.name: item.key for item in stock.items}
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    assert take_stock(tmp_path).items[0].key != untouched["c.png"]  # other pixels, other features


def test_clips_of_several_rates(tmp_path: Path) -> None:
    """23.976 and 24 are one rate; arrays have that which is given, and videos keep their own."""
    video(tmp_path / "a.mp4", fps=24)
    video(tmp_path / "b.mp4", clip(7), fps=24000 / 1001)
    assert take_stock(tmp_path).fps == pytest.approx(24, rel=0.01)
    array(tmp_path / "c.npy")
    assert take_stock(tmp_path, fps=24).items[2].shape.fps == 24
    assert "2 of 24" not in refusal(lambda: take_stock(tmp_path, fps=8))
    video(tmp_path / "d.mp4", fps=8)
    told = refusal(lambda: take_stock(tmp_path))
    assert "different rates" in told and "1 of 8 a second" in told


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for frame in clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert "2 times as wide as high" in reason(tmp_path / "a.mp4")
