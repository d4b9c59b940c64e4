"""Images of one channel, or of many, come from pictures, TIFF and `.npy` files, or a reason why they do not."""

import sys

import numpy as np
import pytest
from PIL import Image

from bissl_fast.cli.data import prepare_command, verify_command
from bissl_fast.data.sets import cache, textures
from bissl_fast.data.sets.catalogue import load_downstream, load_pretext, notes_of
from bissl_fast.data.sets.readers import stacks
from bissl_fast.data.sets.readers.decode import UnreadableImageError, decode_file, resize_square, resize_whole
from bissl_fast.data.sets.readers.folder import image_folder, loose_images
from bissl_fast.data.sets.readers.stacks import decode_channels
from bissl_fast.data.sets.readers.table import labelled_table
from bissl_fast.errors import UserError

COLOURED = "have colours, of which the luma is taken"


def stack(channels=5, height=40, width=60):
    """(H, W, C) uint8: in channel c a ramp up to 255 - 20 c, of other direction in every second one."""
    ramps = np.linspace(0, 1, width) * (255 - 20 * np.arange(channels))[:, None]  # (C, W)
    ramps[1::2] = ramps[1::2, ::-1]
    return np.ascontiguousarray(np.broadcast_to(np.rint(ramps.T).astype(np.uint8), (height, width, channels)))


def resized(pixels, size, resize=resize_square):
    return np.stack([resize(Image.fromarray(pixels[..., c].copy()), size) for c in range(pixels.shape[2])], axis=-1)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["channels last", "channels first"])
def test_an_array_is_read_with_its_channels_first_or_last(tmp_path, axes):
    path = save(tmp_path / "image.npy", stack().transpose(axes))
    image, sides = decode_channels(path, 24, channels=5)
    assert sides == (40, 60)
    assert np.array_equal(image, resized(stack(), 24))
    whole, _ = decode_channels(path, 24, whole=True, channels=5)
    assert np.array_equal(whole, resized(stack(), 24, resize_whole))


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (stack().astype(np.uint16) * 257, 65_535),
        (stack().astype(">u2") * 16, 4095),
        (stack().astype(np.int64), None),
        (stack().astype(np.float32) / 255, 1),
        (stack().astype(np.float16), None),
    ],
)
def test_values_of_any_depth_keep_their_range_and_the_ratios_of_channels(tmp_path, values, white):
    told = []
    image, _ = decode_channels(save(tmp_path / "deep.npy", values), 24, tell=told.append, channels=5)
    assert np.abs(image.astype(int) - resized(stack(), 24)).max() <= 1
    assert told == ([f"hold gray values that were scaled, {white:,} taken for white"] if white else [])


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((2, 0, 1), {"photometric": "minisblack"}),
        ((2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}),
        ((0, 1, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((0, 1, 2), {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "predictor": True}),
        ((2, 0, 1), {"imagej": True}),
    ],
    ids=["pages", "planes", "samples", "compressed", "ImageJ"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_and_samples_of_a_tiff_are_channels(tmp_path, axes, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, stack().astype(dtype).transpose(axes), **options)
    image, sides = decode_channels(path, 24, channels=5)
    assert sides == (40, 60)
    assert np.array_equal(image, resized(stack(), 24))


def test_tiffs_of_pillow_with_several_pages_are_read(tmp_path):
    pytest.importorskip("tifffile")
    pages = [Image.fromarray(stack()[..., c].copy()) for c in range(5)]
    pages[0].save(tmp_path / "image.tiff", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode_channels(tmp_path / "image.tiff", 24, channels=5)[0], resized(stack(), 24))


def test_without_tifffile_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "image.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match=r"`pip install 'bissl-fast\[tiff\]'`, or save the images as .npy"):
        decode_channels(tmp_path / "image.tif", 24, channels=5)


def test_one_channel_is_the_luma_of_a_picture_and_gray_stays_as_it_is(tmp_path):
    told, gray = [], Image.fromarray(stack()[..., 0].copy())
    gray.save(tmp_path / "gray.png")
    image, _ = decode_channels(tmp_path / "gray.png", 24, tell=told.append, channels=1)
    assert np.array_equal(image, resized(stack()[..., :1], 24))
    assert told == []
    Image.new("RGB", (30, 30), (200, 100, 50)).save(tmp_path / "colour.png")
    image, _ = decode_channels(tmp_path / "colour.png", 24, tell=told.append, channels=1)
    assert (image == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    assert told == [COLOURED]


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (1, 40, 60)])
def test_one_channel_is_an_array_with_or_without_an_axis_for_it(tmp_path, shape):
    path = save(tmp_path / "image.npy", stack()[..., 0].reshape(shape))
    assert np.array_equal(decode_channels(path, 24, channels=1)[0], resized(stack()[..., :1], 24))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (stack(4), "has 4 channels, and 5 are expected"),
        (stack(4).transpose(2, 0, 1), "has 4 channels, and 5 are expected"),
        (stack(1)[..., 0], "has 1 channel, and 5 are expected"),
        (stack()[None], "has the shape (1, 40, 60, 5), and (H, W), (H, W, C) or (C, H, W) is expected"),
        (stack().astype(complex), "holds values of type complex128, and whole or real numbers are expected"),
        (stack().astype(bool), "holds values of type bool, and whole or real numbers are expected"),
        (stack() - 1.0, "holds values that are negative or no numbers, so white is unknown"),
        (np.full((8, 8, 5), np.nan), "holds values that are negative or no numbers, so white is unknown"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_found(tmp_path, array, reason):
    with pytest.raises(UnreadableImageError) as error:
        decode_channels(save(tmp_path / "image.npy", array), 24, channels=5)
    assert str(error.value) == reason


def test_files_that_hold_no_stack_are_refused_with_a_reason(tmp_path):
    path = save(tmp_path / "image.npy", stack())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableImageError, match="greater than file size"):
        decode_channels(path, 24, channels=5)
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**5, 10**5, 5)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(6 * 10**10)  # a sparse file: nothing of it may be read
    with pytest.raises(UnreadableImageError, match="at most 178,956,970 values serve"):
        decode_channels(path, 24, channels=5)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImageError, match="Python objects"):
        decode_channels(path, 24, channels=5)
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    with pytest.raises(UnreadableImageError, match=r"neither TIFF nor .npy, which alone hold images of 5 channels"):
        decode_channels(tmp_path / "image.png", 24, channels=5)


def test_tiffs_that_do_not_fit_are_refused_with_what_was_found(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, stack(4).transpose(2, 0, 1), photometric="minisblack")
    for channels, sentence in ((5, "has 4 channels, and 5 are expected"), (1, "has 4 channels, and 1 is expected")):
        with pytest.raises(UnreadableImageError, match=sentence):
            decode_channels(path, 24, channels=channels)
    tifffile.imwrite(path, stack(4), photometric="rgb", extrasamples=["unspecified"])  # Pillow shows three of them
    with pytest.raises(UnreadableImageError, match="has 4 channels, and 1 is expected"):
        decode_channels(path, 24, channels=1)
    with tifffile.TiffWriter(path) as file:
        file.write(stack(1)[..., 0])
        file.write(stack(1)[::2, ::2, 0])
    with pytest.raises(UnreadableImageError, match="pages of several sizes or types"):
        decode_channels(path, 24, channels=2)
    path.write_bytes(b"II*\0 and no more")
    with pytest.raises(UnreadableImageError):
        decode_channels(path, 24, channels=5)


def five_channels(root):
    for label in ("a", "b"):
        for i in range(6):
            save(root / label / f"{i}.npy", stack() // (i + 1))
    save(root / "a" / "other.npy", stack(4))
    Image.new("RGB", (9, 9)).save(root / "a" / "preview.png")
    return root


def test_a_folder_of_stacks_becomes_a_set_of_as_many_channels(tmp_path):
    splits = load_downstream(f"folder:{five_channels(tmp_path / 'set')}", None, 24, tmp_path / "cache", channels=5)
    assert {part.images.shape[1:] for part in (splits.train, splits.val, splits.test)} == {(24, 24, 5)}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 12
    notes = "\n".join(splits.notes)
    assert "other.npy: has 4 channels, and 5 are expected" in notes
    assert "1 of what lies in" in notes
    assert "a/preview.png" in notes
    whole = load_downstream(f"folder:{tmp_path / 'set'}", None, 24, tmp_path / "cache", whole=True, channels=5).test
    assert whole.images.shape[1:] == (24, 24, 5)
    assert whole.sizes.tolist() == [[40, 60]] * len(whole)
    pretext = load_pretext(f"folder:{tmp_path / 'set'}", None, 24, tmp_path / "cache", channels=5)
    assert pretext.channels == 5
    assert "other.npy: has 4 channels" in notes_of(pretext)[0]


def test_a_table_names_the_classes_of_stacks(tmp_path):
    five_channels(tmp_path / "set")
    lines = [f"a/{i}.npy,{'xy'[i % 2]}" for i in range(6)] + [f"b/{i}.npy,{'xy'[i % 2]}" for i in range(6)]
    (tmp_path / "classes.csv").write_text("path,class\n" + "\n".join([*lines, "a/preview.png,x"]))
    splits = load_downstream(
        f"folder:{tmp_path / 'set'}", None, 24, tmp_path / "cache", labels=tmp_path / "classes.csv", channels=5
    )
    assert splits.train.classes == ("x", "y")
    assert {part.images.shape[1:] for part in (splits.train, splits.val, splits.test)} == {(24, 24, 5)}
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 12
    assert any("preview.png: is neither TIFF nor .npy, which alone hold images of 5" in note for note in splits.notes)


def test_another_number_of_channels_is_another_entry_of_the_cache(tmp_path):
    Image.new("RGB", (9, 9), (9, 0, 0)).save(tmp_path / "image.png")
    rgb, gray = (cache.load(loose_images(tmp_path, channels), 8, tmp_path / "cache") for channels in (3, 1))
    assert (rgb.channels, gray.channels) == (3, 1)
    assert np.array_equal(rgb.images[0], decode_file(tmp_path / "image.png", 8))
    assert f"1 of 1 images of {tmp_path.name}/unlabelled {COLOURED}: image.png." in notes_of(gray)
    assert loose_images(tmp_path).identity != loose_images(tmp_path, 1).identity


def test_the_arrays_of_a_cache_below_the_folder_are_no_images(tmp_path):
    five_channels(tmp_path)
    before = loose_images(tmp_path, 5)
    cache.load(before, 24, tmp_path / "cache")
    stopped = tmp_path / "cache" / "set-24px-0.building-1"
    save(stopped / "images.npy", stack())
    after = loose_images(tmp_path, 5)
    assert after.files == before.files
    assert any("they are entries of bissl-fast's cache: cache/" in note for note in after.notes)


def test_a_folder_without_files_that_can_hold_the_channels_says_which_can(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    with pytest.raises(UserError, match=r"expected files ending in .npy .tif .tiff. 1 of what lies in"):
        loose_images(tmp_path, 2)
    with pytest.raises(UserError, match="no class folder"):
        image_folder(tmp_path, 2)


def test_arrays_read_as_rgb_are_named_with_the_setting_that_reads_them(tmp_path):
    five_channels(tmp_path / "set")
    (tmp_path / "set" / "a" / "preview.png").unlink()
    sentence = r"arrays are images of other than 3 channels, which --channels has to name .*: a/0\.npy, a/1\.npy"
    for read in (image_folder, loose_images):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / "set")


def test_arrays_that_a_table_does_not_name_are_counted(tmp_path):
    five_channels(tmp_path / "set")
    lines = [f"a/{i}.npy,{'xy'[i % 2]}" for i in range(6)]
    (tmp_path / "classes.csv").write_text("\n".join(lines))
    notes = labelled_table(tmp_path / "set", tmp_path / "classes.csv", 5).notes
    assert any("classes.csv does not name them" in note and "b/0.npy, b/1.npy" in note for note in notes)


def test_published_sets_are_read_as_gray_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "COUNTS", {"unlabelled": 23, "train": 12, "val": 12, "test": 12})
    rgb, gray = (load_downstream("textures", None, 32, tmp_path, channels=channels) for channels in (3, 1))
    luma = rgb.test.images.astype(float) @ (0.299, 0.587, 0.114)
    assert np.abs(gray.test.images[..., 0] - luma).max() <= 0.51
    assert any(COLOURED in note for note in gray.notes)
    assert load_pretext("textures", None, 32, tmp_path, channels=1).images.shape == (23, 32, 32, 1)
    with pytest.raises(UserError, match="3 channels, which serve as 3 or 1, not as 5: give folder:PATH"):
        load_downstream("textures", None, 32, tmp_path, channels=5)


def test_data_prepare_and_verify_take_channels(tmp_path, capsys):
    name = f"folder:{five_channels(tmp_path / 'set')}"
    prepare_command(name, cache_dir=tmp_path / "cache", size=24, channels=5)
    assert "set/test: 2 images of 24 px, 5 channels, 0.0 MB" in capsys.readouterr().out
    verify_command(name, channels=5)
    shown = capsys.readouterr().out
    assert "other.npy: has 4 channels, and 5 are expected" in shown
    assert "Some images cannot be read: training leaves them out." in shown
    with pytest.raises(UserError, match="--channels must be between 1 and 4096, found 0"):
        verify_command(name, channels=0)


def test_pages_without_end_are_refused_before_they_are_read(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((5, 8, 8), np.uint8), photometric="minisblack")
    monkeypatch.setattr(stacks, "MOST_CHANNELS", 3)
    with pytest.raises(UnreadableImageError, match="more than 3 pages"):
        stacks._tiff(tmp_path / "pages.tif")
