"""A download goes on where it stopped, arrives as it should be or not at all, and is unpacked nowhere else."""

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bissl_fast.data.sets.fetch import Archive, fetch
from bissl_fast.data.sets.unpack import unpack
from bissl_fast.errors import UserError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; closes each connection after `budget` bytes, and counts what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.budget, self.ranged, self.asked = CONTENT, len(CONTENT), True, []
        self.shift = 0

    def url(self, name="set.bin"):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked and server.ranged else 0
        if start >= len(server.content) and asked:
            self.send_error(416)
            return
        self.send_response(206 if asked and server.ranged else 200)
        if asked and server.ranged:
            end = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start + server.shift}-{end}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.budget])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.budget = 400_000
    fetch(server.url(), tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=400000-", "bytes=800000-"]
    assert os.listdir(tmp_path) == ["set.bin"]


def test_an_interrupted_download_goes_on_in_the_next_call(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:300_000])
    server.budget = 0
    with pytest.raises(UserError, match=r"stopped after 300,000 bytes \(the connection was closed\).*it goes on from"):
        fetch(server.url(), tmp_path / "set.bin", MD5)
    server.budget, server.asked = len(CONTENT), []
    fetch(server.url(), tmp_path / "set.bin", MD5)
    assert server.asked == ["bytes=300000-"]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_sends_all_of_it_again(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(b"of another attempt")
    server.ranged = False
    fetch(server.url(), tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_part_that_was_complete_is_only_checked(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    fetch(server.url(), tmp_path / "set.bin", MD5)
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    fetch(server.url(), tmp_path / "set.bin", MD5)
    assert len(server.asked) == 1  # the file is there


def test_another_part_than_asked_for_is_not_appended(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    server.shift = 5
    with pytest.raises(UserError, match="the server sent another part than asked for: bytes 1005-"):
        fetch(server.url(), tmp_path / "set.bin", MD5)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[:1000]


def test_a_wrong_md5_is_refused_and_the_file_removed(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(
        UserError, match=rf"arrived with the MD5 [0-9a-f]{{32}} where {MD5} is expected, and was removed"
    ):
        fetch(server.url(), tmp_path / "set.bin", MD5)
    assert os.listdir(tmp_path) == []


def test_a_server_that_is_not_there_is_a_sentence(server, tmp_path):
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"stopped after 0 bytes \(.*Connection refused.*check the network"):
        fetch(url, tmp_path / "set.bin", MD5)


def test_an_archive_is_fetched_checked_unpacked_and_removed(server, tmp_path):
    path = make_tar(tmp_path / "made.tar.gz", {"set/images/a.txt": b"one", "set/b.txt": b"two"})
    server.content = path.read_bytes()
    server.budget = 50
    archive = Archive(server.url("set.tgz"), hashlib.md5(server.content).hexdigest(), limit=10)
    archive.get(tmp_path / "root")
    assert contents(tmp_path / "root") == {"set/images/a.txt": b"one", "set/b.txt": b"two"}


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def make_tar(path, files, odd=()):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in odd:
            tar.addfile(member)
    return path


def make_zip(path, files, links=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in links:
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, target)
    return path


def odd_member(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


GOOD = {"set/first.txt": b"first"}
HOSTILE = {
    "climbing tar": (make_tar, GOOD | {"set/../../out.txt": b"x"}, (), r"'set/\.\./\.\./out\.txt', which leaves"),
    "absolute tar": (make_tar, GOOD | {"/out.txt": b"x"}, (), "holds the absolute path '/out.txt'"),
    "link out": (make_tar, GOOD, [odd_member("set/out", tarfile.SYMTYPE, "../..")], "holds a link, 'set/out'"),
    "hard link": (make_tar, GOOD, [odd_member("set/out", tarfile.LNKTYPE, "/etc/passwd")], "holds a link, 'set/out'"),
    "device": (make_tar, GOOD, [odd_member("set/null", tarfile.CHRTYPE)], "holds a device, 'set/null'"),
    "large tar": (make_tar, GOOD | {"set/large": bytes(2000)}, (), r"unpacks to more than the 0\.0 GB"),
    "climbing zip": (make_zip, GOOD | {"../out.txt": b"x"}, (), r"'\.\./out\.txt', which leaves its folder"),
    "absolute zip": (make_zip, GOOD | {"/out.txt": b"x"}, (), "holds the absolute path '/out.txt'"),
    "Windows zip": (make_zip, GOOD | {"C:\\out.txt": b"x"}, (), "holds the absolute path 'C:"),
    "zip with link": (make_zip, GOOD, [("set/out", "../..")], "holds a link, 'set/out'"),
    "large zip": (make_zip, GOOD | {"set/large": bytes(2000)}, (), "unpacks to more than"),
}


@pytest.mark.parametrize(("make", "files", "odd", "sentence"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(make, files, odd, sentence, tmp_path):
    archive = make(tmp_path / "archive", files, odd)
    with pytest.raises(UserError, match=rf"archive .*{sentence}.*: nothing was unpacked"):
        unpack(archive, tmp_path / "deep" / "root", limit=1000)
    assert os.listdir(tmp_path / "deep" / "root") == []
    assert sorted(os.listdir(tmp_path)) == ["archive", "deep"]
    assert os.listdir(tmp_path / "deep") == ["root"]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_good_archive_joins_what_is_there(make, tmp_path):
    archive = make(tmp_path / "archive", {"set/a.txt": b"new", "set/deep/b.txt": b"b", "c.txt": b"c"})
    root = tmp_path / "root"
    (root / "set").mkdir(parents=True)
    (root / "set" / "a.txt").write_bytes(b"old")
    (root / "set" / "kept.txt").write_bytes(b"kept")
    root.chmod(0o755)
    unpack(archive, root, limit=1000)
    expected = {"set/a.txt": b"new", "set/deep/b.txt": b"b", "c.txt": b"c", "set/kept.txt": b"kept"}
    assert contents(root) == expected
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


@pytest.mark.parametrize("cut", [0, 60, -40])
def test_a_damaged_archive_is_a_sentence(cut, tmp_path):
    whole = make_tar(tmp_path / "whole.tar.gz", {"set/a.txt": os.urandom(5000)}).read_bytes()
    archive = tmp_path / "set.tar.gz"
    archive.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"set\.tar\.gz is cut off or damaged .*remove it and download it again"):
        unpack(archive, tmp_path / "root", limit=10**6)
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize(("at", "value"), [(10, b"\x63\x00"), (8, b"\x01\x00"), (42, b"\xff\xff\xff\x7f"), (46, b"\0")])
def test_a_zip_that_its_reader_cannot_follow_is_damaged(at, value, tmp_path):
    """Another method of packing, encryption, a member that begins nowhere, a name that no file can have."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a" * 300, CONTENT[:100])
    whole = path.read_bytes()
    at += whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:at] + value + whole[at + len(value) :])
    with pytest.raises(UserError, match=r"set\.zip is cut off or damaged"):
        unpack(path, tmp_path / "place", 10_000)
    assert list((tmp_path / "place").iterdir()) == []
