"""The cache decodes once, detects damage, and turns a bad disk into a sentence."""

import errno
import os
import threading
import time

import numpy as np
import pytest

from bissl_fast.data.sets import cache
from bissl_fast.data.sets.readers.decode import UnreadableImageError
from bissl_fast.data.sets.readers.source import Source
from bissl_fast.errors import UserError


def make_source(count=10, broken=(), identity="a", reads=None):
    def read(index, size):
        if reads is not None:
            reads.append(index)
        if index in broken:
            raise UnreadableImageError("cut off")
        return np.full((size, size, 3), index % 256, dtype=np.uint8)

    labels = np.arange(count, dtype=np.int64) % 2
    return Source("toy/train", count, read, lambda i: f"{i}.png", identity, labels, ("even", "odd"))


def load(source, folder, size=8):
    return cache.load(source, size, folder, progress=False)


def test_a_second_load_decodes_nothing_and_gives_the_same(tmp_path):
    reads = []
    first = load(make_source(reads=reads), tmp_path)
    assert sorted(reads) == list(range(10))
    second = load(make_source(reads=reads), tmp_path)
    assert len(reads) == 10
    assert np.array_equal(first.images, second.images)
    assert first.content_hash == second.content_hash
    assert first.labels.tolist() == [0, 1] * 5


def test_an_entry_is_open_to_whom_the_folder_of_the_cache_is(tmp_path):
    load(make_source(), tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache", entry)}
    assert len(modes) == 1, modes


def test_images_are_a_read_only_memory_map(tmp_path):
    images = load(make_source(), tmp_path).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize("change", [{"identity": "b"}, {"size": 9}])
def test_other_content_or_size_is_another_entry(tmp_path, change):
    load(make_source(), tmp_path)
    reads = []
    load(make_source(identity=change.get("identity", "a"), reads=reads), tmp_path, change.get("size", 8))
    assert len(reads) == 10


def test_unreadable_images_are_left_out_and_named(tmp_path):
    for _ in ("built", "opened again"):
        images = load(make_source(count=1200, broken=(0, 5, 1199)), tmp_path)
        assert len(images) == 1197
        assert images.skipped == ("0.png: cut off", "5.png: cut off", "1199.png: cut off")
        assert images.images[:5, 0, 0, 0].tolist() == [1, 2, 3, 4, 6]
        assert images.labels[:5].tolist() == [1, 0, 1, 0, 0]


def test_no_readable_image_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"None of the 3 images of toy/train could be read: 0\.png: cut off"):
        load(make_source(3, broken=range(3)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def flip_a_pixel(entry):
    path = entry / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_off(entry):
    path = entry / "images.npy"
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_pixel,
        cut_off,
        lambda entry: (entry / "entry.json").write_text("{"),
        lambda entry: (entry / "entry.json").unlink(),
        lambda entry: (entry / "labels.npy").write_bytes(b""),
        lambda entry: np.save(entry / "labels.npy", np.zeros(10, dtype=np.int64)),
    ],
    ids=["flipped bit", "cut off", "broken description", "no description", "empty labels", "other labels"],
)
def test_a_damaged_entry_is_rebuilt(tmp_path, damage):
    good = load(make_source(), tmp_path).content_hash
    (entry,) = tmp_path.iterdir()
    damage(entry)
    reads = []
    assert load(make_source(reads=reads), tmp_path).content_hash == good
    assert len(reads) == 10
    assert list(tmp_path.iterdir()) == [entry]


def test_an_interrupted_build_leaves_nothing_that_counts(tmp_path):
    source = make_source()

    def interrupted(index, size):
        if index == 5:
            raise KeyboardInterrupt
        return source.read(index, size)

    with pytest.raises(KeyboardInterrupt):
        load(Source("toy/train", 10, interrupted, source.describe, "a", source.labels, source.classes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_removed_once_it_is_old(tmp_path):
    name = cache.entry_name(make_source(), 8)
    old, fresh = tmp_path / f"{name}.building-old", tmp_path / f"{name}.building-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "images.npy").write_bytes(b"half")
    for path in (old / "images.npy", old, fresh):  # which has been there as long, and is written to
        os.utime(path, (time.time() - 3600,) * 2)
    load(make_source(), tmp_path)
    assert not old.exists()
    assert fresh.exists()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, r"The disk is full: toy/train needs \d+ MB in .*BISSL_FAST_CACHE"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EROFS, r"cannot be written \(Read-only file system\): set BISSL_FAST_CACHE"),
        (errno.EACCES, r"cannot be written \(Permission denied\): set BISSL_FAST_CACHE"),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(tmp_path, monkeypatch, number, sentence):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache, "_flush", fail)
    with pytest.raises(UserError, match=sentence):
        load(make_source(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        load(make_source(), tmp_path / "file" / "cache")


def test_an_intact_entry_is_opened_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    load(make_source(), tmp_path)
    monkeypatch.setattr(cache, "_build", None)
    assert len(load(make_source(), tmp_path)) == 10


def test_two_builds_of_one_entry_both_get_it(tmp_path):
    source = make_source()

    def read(index, size):
        if index == 9:
            load(make_source(), tmp_path)  # the other process is done first
        return source.read(index, size)

    ours = load(Source("toy/train", 10, read, source.describe, "a", source.labels, source.classes), tmp_path)
    assert ours.images[:, 0, 0, 0].tolist() == list(range(10))
    assert len(list(tmp_path.iterdir())) == 1


def test_losing_the_race_for_the_final_name_is_no_error(tmp_path, monkeypatch):
    build = cache._build

    def lose(*arguments):
        build(*arguments)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(cache, "_build", lose)
    assert len(load(make_source(), tmp_path)) == 10


def test_the_folder_is_set_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BISSL_FAST_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path
    monkeypatch.delenv("BISSL_FAST_CACHE")
    assert cache.default_folder().parts[-2:] == (".cache", "bissl-fast")


def test_the_content_hash_covers_pixels_labels_and_classes():
    images = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1])
    other = images.copy()
    other[3, 1, 1, 2] = 1
    hashes = {
        cache.content_hash(images, labels, ("a", "b")),
        cache.content_hash(other, labels, ("a", "b")),
        cache.content_hash(images, labels[::-1].copy(), ("a", "b")),
        cache.content_hash(images, labels, ("a", "c")),
        cache.content_hash(images, None, ()),
    }
    assert len(hashes) == 5


def test_a_subset_copies_its_images_and_has_a_hash_of_its_own(tmp_path):
    whole = load(make_source(), tmp_path)
    part, reordered = whole.subset([4, 1], "toy/two"), whole.subset([1, 4], "toy/two")
    assert part.images[:, 0, 0, 0].tolist() == [4, 1]
    assert part.labels.tolist() == [0, 1]
    assert len({whole.content_hash, part.content_hash, reordered.content_hash}) == 3


@pytest.mark.parametrize("broken", [(), (3, 400)])
def test_the_hash_taken_while_writing_is_that_of_the_content(tmp_path, broken):
    for _ in ("built", "opened again"):
        images = load(make_source(count=600, broken=broken), tmp_path)
        assert images.content_hash == cache.content_hash(images.images, images.labels, images.classes)


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_behind(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the kernel refuses the write, as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\): set BISSL_FAST_CACHE"):
            load(make_source(count=100), tmp_path, size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_large_images_are_decoded_in_a_shorter_window(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cache, "_WINDOW_BYTES", 4 * 3 * 8**2)  # four images
    reads = []
    images = cache.decode(make_source(count=100, reads=reads), 8, progress=False)
    for taken in range(1, 101):
        next(images)
        assert len(reads) <= taken + 4
    assert sorted(reads) == list(range(100))


def test_no_image_waits_for_a_batch_of_slow_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    next_began = threading.Event()
    source = make_source(count=300)

    def read(index, size):
        if index == cache._WINDOW:
            next_began.set()
        if index == cache._WINDOW - 1:
            assert next_began.wait(30), "the next image is not begun before this one is done"
        return source.read(index, size)

    images = load(Source("toy/train", 300, read, source.describe, "a", source.labels, source.classes), tmp_path)
    assert images.images[:, 0, 0, 0].tolist() == [i % 256 for i in range(300)]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", [(b"(", b"(("), (b"), }", b"000000000000), }"), (b"|u1", b"|O ")])
def test_an_array_whose_header_is_damaged_is_made_anew(name, damage, tmp_path):
    whole = load(make_source(), tmp_path)
    (entry,) = tmp_path.iterdir()
    header = (entry / name).read_bytes()
    (entry / name).write_bytes(header.replace(*damage, 1).replace(b"<i8", b"|O " if b"O" in damage[1] else b"<i8"))
    assert (entry / name).read_bytes() != header
    assert load(make_source(), tmp_path).content_hash == whole.content_hash
    assert (entry / name).read_bytes() == header


@pytest.mark.parametrize("change", [('"notes": []', '"notes": [3]'), ('"skipped": []', '"skipped": [null]')])
def test_what_a_user_is_told_is_text_or_is_made_anew(change, tmp_path):
    load(make_source(), tmp_path)
    (entry,) = tmp_path.iterdir()
    text = (entry / "entry.json").read_text()
    assert change[0] in text
    (entry / "entry.json").write_text(text.replace(*change))
    found = load(make_source(), tmp_path)
    assert found.notes == found.skipped == ()
