"""Video: what is cut out of films, frames rolled out, figures by horizon, and a training from files to a GIF."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from runs import Kept
from typer.testing import CliRunner
from zoo import game_of

from ganlib import shard_writer, shards
from ganlib.config import DatasetConfig, load_params, override, parse_params
from ganlib.data import _film, video
from ganlib.data._spec import Spec
from ganlib.export import load_generator
from ganlib.metrics.picture import ssim as of_images
from ganlib.metrics.video import psnr, ssim
from ganlib.noise import Noise
from ganlib.sources import moving_images, video_files
from ganlib.spaces.video import clip, last_frame
from ganlib.trainer import train
from pipelines._stage import StageError
from pipelines.cli import app
from pipelines.prepare import prepare

CONFIG = video.Config(resolution=(16, 16), channels=1, past=2, future=4)


def film(path, count=30, codec="mpeg4", pixels="yuv420p", size=(32, 24), times=None, first=0):
    """A film of frames that grow lighter: frame i has the level 4 i, those before the `first` left out."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, width=size[0], height=size[1], pix_fmt=pixels)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 4 * (first + i), np.uint8), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def coded_film(path, count=90, codec="mpeg4", container_format=None, gop=12, b_frames=None):
    """A film of frames whose number is coded in black and white squares, which `codes_in` reads."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25, width=32, height=32, pix_fmt="yuv420p")
        stream.bit_rate, stream.codec_context.gop_size = 2_000_000, gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for i in range(count):
            squares = np.array([255 * (i >> bit & 1) for bit in range(16)], np.uint8).reshape(4, 4)
            pixels = np.repeat(squares.repeat(8, 0).repeat(8, 1)[..., None], 3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def codes_in(frames):
    """Which frames of `coded_film` these are."""
    levels = [np.asarray(frame).mean(-1).reshape(4, 8, 4, 8).mean((1, 3)).reshape(-1) for frame in frames]
    return [sum(int(level > 128) << bit for bit, level in enumerate(squares)) for squares in levels]


def numbers_in(frames):
    """Which frames of `film` these are."""
    return [round(float(np.asarray(frame).mean()) / 4) for frame in frames]


def items_of(source):
    return [item for part in source.parts for item in part()]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p"),  # with frames that are stored in another order
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_every_frame_of_a_film_in_order_from_wherever_one_begins(tmp_path, name, codec, pixels):
    path = film(tmp_path / name, codec=codec, pixels=pixels)
    known = _film.times(path)
    assert len(known) == 30
    for first in (0, 17):
        numbers, frames = zip(*_film.decoded(path, known, first), strict=True)
        assert [*numbers] == [*range(first, 30)]
        assert np.abs(np.array(numbers_in(frames)) - numbers).max() <= (2 if name == "a.gif" else 1)  # 256 colours


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {"b_frames": 2}),
        ("a.mp4", "libx264", {}),
        ("a.avi", "mpeg4", {"b_frames": 2}),
        ("a.avi", "libx264", {}),
        ("a.flv", "libx264", {}),
        ("a.mpg", "mpeg1video", {}),
        ("a.mpg", "mpeg2video", {"b_frames": 2}),
        ("a.mpg", "mpeg2video", {"container_format": "mpegts"}),
        ("a.wmv", "wmv2", {}),
        ("a.webm", "libvpx", {}),
    ],
)
def test_a_seek_finds_the_frame_and_loses_none(tmp_path, name, codec, options):
    path = coded_film(tmp_path / name, codec=codec, **options)
    known = _film.times(path)
    assert len(known) == 90
    for first in (*range(1, 90, 9), 86):
        numbers, frames = zip(*_film.decoded(path, known, first), strict=True)
        assert [*numbers] == codes_in(frames) == [*range(first, 90)]
    assert codes_in(_film.last_frames(path, 4)) == [86, 87, 88, 89]


def test_frames_cut_off_by_an_edit_list_are_not_counted(tmp_path):
    path = tmp_path / "cut.mp4"
    with av.open(str(coded_film(tmp_path / "a.mp4", codec="libx264", gop=50))) as whole, av.open(str(path), "w") as cut:
        stream = whole.streams.video[0]
        copied, start = cut.add_stream_from_template(stream), round(1 / stream.time_base)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copied
                cut.mux(packet)
    known = _film.times(path)
    assert len(known) == 65
    numbers, frames = zip(*_film.decoded(path, known), strict=True)
    assert [*numbers] == [*range(65)]
    assert codes_in(frames) == [*range(25, 90)]
    numbers, frames = zip(*_film.decoded(path, known, 40), strict=True)
    assert codes_in(frames) == [25 + number for number in numbers] == [*range(65, 90)]


def test_uneven_frames_are_taken_by_the_clock(tmp_path):
    path = film(tmp_path / "a.mkv", 4, "libx264", times=[0, 100, 400, 500])
    assert _film.times(path).every(None) == [0, 1, 2, 3]
    assert _film.times(path).every(10.0) == [0, 1, 1, 1, 2, 3]


def test_clips_stay_in_their_file_and_those_of_a_file_stay_together(tmp_path):
    for i in range(12):
        film(tmp_path / f"{i}.mp4", 26 + i)
    items = items_of(video_files.load(video_files.Config(frames=6, stride=5), tmp_path))
    assert len(items) == sum((26 + i - 6) // 5 + 1 for i in range(12))
    for item in items:
        _, _, span = item.id.partition("[")
        start = int(span.split(":")[0])
        assert numbers_in(item.payload) == pytest.approx(range(start, start + 6), abs=1)
    assert len({item.group for item in items}) == 12
    splits = {item.group: shard_writer.split_of_group(item.group, 0.5) for item in items}
    assert set(splits.values()) == {"train", "test"}


def test_blocks_of_a_film_share_no_frame(tmp_path):
    film(tmp_path / "a.mp4", 30)
    items = items_of(video_files.load(video_files.Config(frames=6, stride=1, block=10), tmp_path))
    assert [item.id for item in items][4:6] == ["a.mp4[4:10]", "a.mp4[10:16]"]
    groups = {item.group for item in items}
    assert len(groups) == 3


def test_numbered_images_are_the_frames_of_a_film(tmp_path):
    (tmp_path / "walk").mkdir()
    for i in range(12):
        Image.new("L", (20, 16), 4 * i).save(tmp_path / "walk" / f"frame{i}.png")
    Image.new("L", (20, 16)).save(tmp_path / "poster.png")
    source = video_files.load(video_files.Config(frames=6), tmp_path)
    first, second = items_of(source)
    assert [path.name for path in first.payload] == [f"frame{i}.png" for i in range(6)]
    assert numbers_in(video.encode(CONFIG, second.payload)["sample"]) == [8, 9, 10, 11]
    assert source.passed_over == {".png": 1}
    assert numbers_in(video.take(CONFIG, "given", tmp_path / "walk")) == [10, 11]


def test_given_and_prepared_folders_have_the_same_frames(tmp_path):
    (tmp_path / "walk").mkdir()
    for i in range(6):
        Image.new("L", (20, 16), 4 * i).save(tmp_path / "walk" / f"frame{i}.png")
    for name in ("thumbnail.png", "preview.jpg"):
        Image.new("L", (20, 16), 255).save(tmp_path / "walk" / name)
    (tmp_path / "walk" / "._frame7.png").write_bytes(b"what macOS leaves")
    (tmp_path / "walk" / "frame8.png").mkdir()
    (only,) = items_of(video_files.load(video_files.Config(frames=6), tmp_path))
    assert only.payload == _film.frames_of_folder(tmp_path / "walk")
    assert numbers_in(video.take(CONFIG, "given", tmp_path / "walk")) == [4, 5]


def test_no_clip_has_frames_of_two_films_in_a_folder(tmp_path):
    (tmp_path / "walk").mkdir()
    for name in ("a_004", "a_005", "a_006", "b_000", "b_001", "b_002", "b_003", "poster2"):
        Image.new("L", (20, 16), int(name[-1])).save(tmp_path / "walk" / f"{name}.png")
    source = video_files.load(video_files.Config(frames=2, stride=1), tmp_path)
    clips = {item.id: [path.stem for path in item.payload] for item in items_of(source)}
    assert clips == {
        "walk/a[0:2]": ["a_004", "a_005"],
        "walk/a[1:3]": ["a_005", "a_006"],
        "walk/b[0:2]": ["b_000", "b_001"],
        "walk/b[1:3]": ["b_001", "b_002"],
        "walk/b[2:4]": ["b_002", "b_003"],
    }
    assert source.passed_over == {".png": 1}
    assert [path.stem for path in _film.frames_of_folder(tmp_path / "walk")] == ["b_000", "b_001", "b_002", "b_003"]


def test_what_cannot_be_cut_is_said(tmp_path):
    film(tmp_path / "one.mp4", 1)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("no film")
    whole = bytearray(film(tmp_path / "hurt.mp4", 60).read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 400] = bytes(400)
    (tmp_path / "hurt.mp4").write_bytes(whole)
    items = items_of(video_files.load(video_files.Config(frames=6), tmp_path))
    reasons = {item.id: item.reason for item in items if item.payload is None}
    assert "1 frames" in reasons["one.mp4"]
    assert "FFmpeg" in reasons["empty.mp4"]
    assert "FFmpeg" in reasons["text.avi"]
    lost = [why for name, why in reasons.items() if name.startswith("hurt")]
    assert lost
    assert all("cannot be decoded" in why for why in lost)
    good = [item for item in items if item.payload is not None]
    assert all(len(item.payload) == 6 for item in good)
    assert 10 - len(lost) == len(good) > 0


def test_a_playlist_that_is_called_a_video_reads_no_other_file(tmp_path):
    film(tmp_path / "secret.mp4", 30)
    names = {
        "hls": "#EXTM3U\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, text in names.items():
        (tmp_path / f"{name}.mp4").write_text(text)
        with pytest.raises(ValueError, match="no video that FFmpeg reads"):
            _film.times(tmp_path / f"{name}.mp4")


def test_a_frame_that_is_a_link_to_nothing_is_a_reject(tmp_path):
    for i in range(6):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    (tmp_path / "1\N{SUPERSCRIPT TWO}3.png").symlink_to(tmp_path / "gone.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "4\N{SUPERSCRIPT TWO}.png")
    film, link = items_of(video_files.load(video_files.Config(frames=7), tmp_path))
    assert len(film.payload) == 7
    assert (link.id, link.payload, link.reason) == ("1\N{SUPERSCRIPT TWO}3.png", None, "a link to nothing")


def test_a_frame_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(_film, "_MAX_PIXELS", 32 * 24 - 1)
    path = film(tmp_path / "a.mp4", 3, "libx264")
    with pytest.raises(ValueError, match="no video that FFmpeg reads"):
        [*_film.decoded(path, _film.times(path))]
    items = items_of(video_files.load(video_files.Config(frames=3), tmp_path))
    assert [item.payload for item in items] == [None]  # rejects, and not the end of the stage


def test_the_last_frames_are_not_decoded_where_they_are_too_large(tmp_path, monkeypatch):
    path = film(tmp_path / "a.gif", 4, "gif", "rgb8", (32, 32))
    too_large = r"^32x32 are 0.00102 megapixels; sample.max_megapixels allows 0.001$"
    assert video.take(CONFIG.model_copy(update={"max_megapixels": 0.001024}), "given", path).shape == (2, 1, 16, 16)
    monkeypatch.setattr(_film, "_upright", None)
    monkeypatch.setattr(_film, "_good_frames", None)
    with pytest.raises(ValueError, match=too_large):
        video.take(CONFIG.model_copy(update={"max_megapixels": 0.001}), "given", path)


def test_no_frame_that_is_larger_than_the_limit_is_held(tmp_path):
    small, large = (film(tmp_path / f"{size}.mpg", 4, "mpeg2video", size=(size, size)) for size in (16, 32))
    path = tmp_path / "grows.mpg"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    sizes = list[int]()
    with pytest.raises(ValueError, match=r"^32x32 are 0.00102 megapixels; sample.max_megapixels allows 0.001$"):
        sizes.extend(len(frame) for _, frame in _film.decoded(path, _film.times(path), 0, 0.001))
    assert set(sizes) == {16}


def test_the_background_lies_under_transparent_pixels_of_films(tmp_path):
    pictures = [Image.new("P", (32, 32), 0) for _ in range(6)]
    for i, picture in enumerate(pictures):
        picture.putpalette([255, 0, 0, 0, 255, 0])
        picture.paste(1, (0, i, 32, 16 + i))
    pictures[0].save(
        tmp_path / "a.gif", save_all=True, append_images=pictures[1:], transparency=0, disposal=2, duration=100
    )
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=25, width=32, height=32, pix_fmt="rgba")
        for picture in pictures:
            pixels = np.asarray(picture.convert("RGB"))
            alpha = np.where(pixels[..., :1] == 255, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate([pixels, alpha], -1), format="rgba")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    cfg = video.Config(resolution=(32, 32), past=2, future=4, background=(0, 0, 255))
    expected = np.zeros((2, 3, 32, 32), np.uint8)
    expected[:, 2] = 255
    for frame, top in zip(expected, (4, 5), strict=True):
        frame[:, top : top + 16] = np.array([0, 255, 0])[:, None, None]
    source = video_files.load(video_files.Config(frames=6), tmp_path)
    for name in ("a.gif", "a.mov"):
        np.testing.assert_array_equal(video.take(cfg, "given", tmp_path / name), expected)
    for item in items_of(source):
        np.testing.assert_array_equal(video.encode(cfg, item.payload)["sample"][2:], expected)


def test_a_folder_without_films_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(video_files.SourceError, match=r"no videos .* it holds 1 other files, as notes.txt"):
        video_files.load(video_files.Config(), tmp_path)


def test_frames_of_any_size_are_made_to_fit_and_a_wrong_number_is_refused():
    frames = [np.full((24 + i, 40, 3), 4 * i, np.uint8) for i in range(6)]
    encoded = video.encode(CONFIG, frames)
    assert {name: x.shape for name, x in encoded.items()} == {"given": (2, 1, 16, 16), "sample": (4, 1, 16, 16)}
    assert numbers_in(encoded["sample"]) == [2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"5 frames; expected past \+ future = 6"):
        video.encode(CONFIG, frames[:5])


def test_moving_images_stay_on_the_canvas_and_move_by_their_speed():
    cfg = moving_images.Config(frames=20, canvas=40, images=1, speed=(3.0, 3.0))
    image = np.full((1, 28, 28), 255, np.uint8)
    for seed in range(20):
        made = moving_images._clip(cfg, image, np.random.RandomState(seed))
        assert (made.sum((1, 2)) == 255 * 28 * 28).all()
        middles = [np.argwhere(frame).mean(0) for frame in made]
        steps = np.abs(np.diff(middles, axis=0))
        assert steps.max() <= 4
        assert np.hypot(*steps.T).max() >= 2


def test_moving_images_need_an_image(tmp_path):
    for prefix, count in (("train", 1), ("t10k", 0)):
        header = np.array([0x0803, count, 28, 28], ">u4").tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
    with pytest.raises(moving_images.SourceError, match=r"^\S+/t10k-images-idx3-ubyte: no images$"):
        moving_images.load(moving_images.Config(), tmp_path)


@pytest.mark.parametrize("fps", [0.0, 1000.5, 1e9])
def test_frames_a_second_have_bounds(fps):
    with pytest.raises(ValidationError, match="fps"):
        video_files.Config(fps=fps)


def test_pictures_show_what_was_given_once_and_films_every_frame():
    given, made = torch.full((3, 2, 1, 16, 16), -1.0), torch.ones(3, 4, 1, 16, 16)
    picture = np.asarray(video.preview(CONFIG, {"given": given, "sample": made, "target": made}, 5))
    side = 16 * 4 + 2
    assert picture.shape == (3 * 2 * side, 6 * side, 3)
    assert picture[side // 2, side // 2].tolist() == [0, 0, 0]
    assert picture[side + side // 2, side // 2].tolist() == [128, 128, 128]  # given once
    frames = [np.asarray(frame) for frame in video.film(CONFIG, {"given": given, "sample": made, "target": made})]
    assert [frame.shape for frame in frames] == [(3 * side, 2 * side, 3)] * 6
    assert [frame[side // 2, side // 2, 0] for frame in frames] == [0, 0, 255, 255, 255, 255]


def test_scores_of_clips_are_means_of_those_of_their_frames():
    made, true = torch.rand(2, 3, 4, 1, 16, 16) * 2 - 1
    for metric in (psnr, ssim):
        seen, wanted = (video.views(CONFIG, x) for x in (made, true))
        by_frame = [metric.score(CONFIG, seen[f"frame_{i}"], wanted[f"frame_{i}"]) for i in (1, 2, 3, 4)]
        assert torch.allclose(metric.score(CONFIG, made, true), torch.stack(by_frame).mean(0))
    assert torch.equal(ssim.score(CONFIG, made[:, 0], true[:, 0]), of_images.score(CONFIG, made[:, 0], true[:, 0]))


def test_features_of_clips_see_frames_and_how_fast_they_change():
    still = torch.rand(2, 1, 1, 16, 16).expand(-1, 4, -1, -1, -1) * 2 - 1
    moving = torch.rand(2, 4, 1, 16, 16) * 2 - 1
    found = clip.load()(torch.cat([still, moving]))
    assert found.shape == (4, 2560)
    assert found[:2, 1280:].abs().max() < 1e-4 < found[2:, 1280:].abs().max()
    assert torch.allclose(last_frame.load()(still), found[:2, :1280], atol=1e-4)


def spec_of():
    return Spec(CONFIG, "video", (), {"train": 9, "test": 9}, "")


def test_later_frames_are_made_from_the_frames_made_before():
    game = game_of("frames", spec_of(), at_once=2, levels=2, fold=1, latent_dim=0)
    given = torch.rand(3, 2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        whole = game.generator.train()(given)
        assert whole.shape == (3, 4, 1, 16, 16)
        assert torch.allclose(game.generator(whole[:, :2])[:, :2], whole[:, 2:], atol=1e-5)


def test_a_latent_chooses_one_of_several_futures():
    game = game_of("frames", spec_of(), levels=2, fold=1)
    given = {"given": torch.rand(1, 2, 1, 16, 16).expand(2, -1, -1, -1, -1) * 2 - 1}
    inputs = game.ask(given, Noise(0, "sample", size=2), None)
    one, other = game.generator(inputs, None)
    assert not torch.allclose(one, other)
    alone = game_of("frames", spec_of(), levels=2, fold=1, latent_dim=0)
    one, other = alone.generator(alone.ask(given, Noise(0, "sample", size=2), None), None)
    assert torch.equal(one, other)


def test_sizes_that_cannot_be_halved_are_refused():
    wrong = Spec(CONFIG.model_copy(update={"resolution": (24, 16)}), "video", (), {"train": 9, "test": 9}, "")
    with pytest.raises(
        ValueError, match=r"network\.levels 3 and fold 2 need multiples of 16 pixels a side, found 24x16"
    ):
        game_of("frames", wrong, levels=3, fold=2)


def dataset(**source):
    return DatasetConfig.model_validate(
        {
            "source": {"name": "video_files", "frames": 6, **source},
            "sample": CONFIG.model_dump(mode="json"),
            "test_share": 0.4,
        }
    )


def test_from_films_to_a_film_of_what_follows(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(40):
        film(raw / f"{i}.mp4", 6 + i % 5, first=i)
    prepare(dataset(), raw, tmp_path / "prepared")
    spec = shards.read_spec(tmp_path / "prepared")
    assert spec.parts["given"].shape == (2, 1, 16, 16)
    shipped = load_params(Path(__file__).parents[2] / "params.yaml").model_dump(mode="json")
    budget = {"kimg": 0.032, "report_kimg": 0.016, "checkpoint_kimg": 0.016, "quality_samples": 0}
    params = parse_params({**shipped, "model": "frames", "train": {**shipped["train"], **budget}})
    small = {"width": 4, "levels": 2, "fold": 1, "discriminator_width": 4}
    changes = {f"network.{name}": value for name, value in small.items()}
    kept = Kept(tmp_path)
    train(override(params, {**changes, "batch": 8, "fits.pixels.kimg": 0.032}), kept, prepared=tmp_path / "prepared")
    exported = kept.folders[-1] / "generator"
    generator = load_generator(exported)
    assert generator.translates
    shutil.copy(raw / "5.mp4", tmp_path / "new.mp4")
    out = tmp_path / "next.gif"
    done = CliRunner().invoke(app, ["sample", str(exported), "--given", str(tmp_path / "new.mp4"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    with Image.open(out) as gif:
        assert gif.n_frames == 6


def test_too_few_films_are_refused_in_one_line(tmp_path):
    film(tmp_path / "a.mp4", 30)
    with pytest.raises(StageError, match="too few data"):
        prepare(dataset(), tmp_path, tmp_path / "prepared")
