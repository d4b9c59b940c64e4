"""Weights & Biases offline and MLflow in a local store are told what metrics.jsonl holds, each step once, whatever
happens between; and whatever happens to them, training goes on."""

import json
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bissl_fast.errors import UserError
from bissl_fast.training.interruption import Interrupted
from bissl_fast.training.trackers import following as following_module
from bissl_fast.training.trackers.following import Follower, Following
from bissl_fast.training.trackers.to_mlflow import MlflowRun
from bissl_fast.training.trackers.to_wandb import WandbRun
from bissl_fast.training.trackers.tracker import About, Status, TrackingSettings, require_installed

MANY = {f"s{k}": k for k in range(120)}  # more than one request may hold
SETTINGS = {"seed": 3, "head": {"epochs": 5, "rates": [0.1, 0.2]}, "name": None, "many": MANY}
BLOCK, HEADER = 32768, struct.Struct("<IHB")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a local store of MLflow."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing leaves this machine, and nothing is written beside the tests."""
    wandb = pytest.importorskip("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.chdir(tmp_path_factory.mktemp("here"))  # where MLflow puts files
        yield
        wandb.teardown()


def about(folder: Path, store: str) -> About:
    folder.mkdir(parents=True, exist_ok=True)
    return About("demo", folder, SETTINGS, TrackingSettings("tests", store))


def write(folder: Path, stage: str, steps: Sequence[int], key: str = "one") -> Path:
    """A stage whose metrics.jsonl holds these steps."""
    path = folder / stage
    path.mkdir(parents=True, exist_ok=True)
    (path / "key.json").write_text(json.dumps({"key": key}))
    lines = [{"step": k, "loss": k / 8, "images_per_second": 9.5, "residuals": [1.0], "why": None} for k in steps]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def followed(kind: str, folder: Path, store: str, identity: str = "same") -> Follower:
    return Follower(kind, {"wandb": WandbRun, "mlflow": MlflowRun}[kind](), about(folder, store), identity)


def run_id(folder: Path, kind: str) -> str:
    return str(json.loads((folder / "tracking.json").read_text())[kind]["run"])


def records_of(path: Path) -> Iterator[bytes]:
    """What a .wandb file holds: LevelDB's log, after seven bytes of its own. A record may go on in the next block."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:  # padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        parts += data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


def in_wandb(folder: Path) -> SimpleNamespace:
    """What the offline run that was told last holds: losses by stage and step, settings, summary, exit code, files.

    A process of wandb's own writes it, and is a moment behind.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob(f"wandb/offline-run-*-{run_id(folder, 'wandb')}/*.wandb")
    deadline, records = time.monotonic() + 30, list[Any]()
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < deadline, "wandb has not written how the run ended"
        time.sleep(0.05)
        records = [Record.FromString(data) for data in records_of(path)]
    found = SimpleNamespace(losses=[], settings={}, summary={}, status=None, files=[])
    for record in records:
        found.settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        found.summary |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
        row = {name_of(item): json.loads(item.value_json) for item in record.history.item}
        stages = [name.removesuffix("/loss") for name in row if name.endswith("/loss")]
        found.losses += [(stage, row[f"{stage}/step"], row[f"{stage}/loss"]) for stage in stages]
        found.files += [entry.path for entry in record.artifact.manifest.contents]
        if record.HasField("exit"):
            found.status = {0: "finished", 1: "failed", 255: "killed"}[record.exit.exit_code]
    return found


def name_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def in_mlflow(folder: Path, store: str) -> SimpleNamespace:
    """Likewise of MLflow's run."""
    from mlflow import MlflowClient

    client, number = MlflowClient(store), run_id(folder, "mlflow")
    run = client.get_run(number)
    keys = [key for key in run.data.metrics if key.endswith("/loss")]
    points = [
        (key.removesuffix("/loss"), m.step, m.value) for key in keys for m in client.get_metric_history(number, key)
    ]
    status = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}.get(run.info.status)
    files = [file.path for file in client.list_artifacts(number)]
    return SimpleNamespace(
        losses=points, settings=run.data.params, summary=run.data.metrics, status=status, files=files
    )


def held(kind: str, folder: Path, store: str) -> SimpleNamespace:
    return in_wandb(folder) if kind == "wandb" else in_mlflow(folder, store)


def losses(stage: str, steps: Sequence[int]) -> list[tuple[str, int, float]]:
    return [(stage, k, k / 8) for k in steps]


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_after_a_kill_each_step_is_there_once_in_the_run_that_is_named(kind: str, tmp_path: Path, store: str) -> None:
    first = write(tmp_path, "pretext", range(1, 6))
    killed = followed(kind, tmp_path, store)
    killed.send([first])
    before = run_id(tmp_path, kind)
    write(tmp_path, "pretext", range(1, 4))  # back to the checkpoint of step 3, which the next process goes on from
    again = followed(kind, tmp_path, store)
    again.send([first])
    write(tmp_path, "pretext", range(1, 8))
    second = write(tmp_path, "bissl", [1, 2])
    again.send([first, second])
    again.send([first, second])
    again.end("finished", {}, ())
    found = held(kind, tmp_path, store)
    assert found.status == "finished"
    assert sorted(found.losses) == sorted(losses("pretext", range(1, 8)) + losses("bissl", [1, 2]))
    assert (run_id(tmp_path, kind) == before) == (kind == "mlflow")  # offline, nobody knows what was sent


@pytest.mark.parametrize(
    ("kind", "status"), [("wandb", "failed"), ("mlflow", "finished"), ("mlflow", "failed"), ("mlflow", "killed")]
)
def test_settings_results_files_and_the_end_are_those_of_the_run(
    kind: str, status: Status, tmp_path: Path, store: str
) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>told</p>")
    told = followed(kind, tmp_path, store)
    told.send([write(tmp_path, "pretext", [4])])
    told.end(status, {"results/bissl/top1": 41.5}, [report])
    found = held(kind, tmp_path, store)
    assert found.status == status
    assert found.summary["results/bissl/top1"] == 41.5
    assert found.files == ["report.html"]
    if kind == "wandb":
        assert {name: found.settings[name] for name in SETTINGS} == SETTINGS
    else:
        assert found.settings["head.epochs"] == "5"
        assert found.settings["head.rates"] == "[0.1, 0.2]"
        assert found.settings["many.s119"] == "119"


@pytest.mark.parametrize(("key", "identity"), [("two", "same"), ("one", "other")])
def test_a_stage_or_settings_of_another_kind_begin_a_run_of_their_own(
    key: str, identity: str, tmp_path: Path, store: str
) -> None:
    followed("mlflow", tmp_path, store).send([write(tmp_path, "pretext", [1, 2, 3])])
    before = run_id(tmp_path, "mlflow")
    followed("mlflow", tmp_path, store, identity).send([write(tmp_path, "pretext", [1, 2], key)])
    assert run_id(tmp_path, "mlflow") != before
    assert in_mlflow(tmp_path, store).losses == losses("pretext", [1, 2])


def test_a_stage_that_is_made_anew_while_it_is_followed_begins_a_run_of_its_own(tmp_path: Path, store: str) -> None:
    told = followed("mlflow", tmp_path, store)
    earlier = write(tmp_path, "pretext", [1, 2, 3])
    told.send([earlier])
    before = run_id(tmp_path, "mlflow")
    told.send([earlier, write(tmp_path, "pretext", [1], "two")])
    assert run_id(tmp_path, "mlflow") != before
    assert in_mlflow(tmp_path, store).losses == losses("pretext", [1])


def test_a_run_that_its_user_has_deleted_is_told_anew(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    stage = write(tmp_path, "pretext", [1, 2])
    followed("mlflow", tmp_path, store).send([stage])
    MlflowClient(store).delete_run(run_id(tmp_path, "mlflow"))
    followed("mlflow", tmp_path, store).send([stage])
    assert in_mlflow(tmp_path, store).losses == losses("pretext", [1, 2])


def test_online_wandb_is_gone_on_with_after_what_its_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def init(**given: Any) -> SimpleNamespace:
        asked.append(given)
        summary = {"pretext/step": 2} if given["resume"] else {}
        return SimpleNamespace(
            id=given["id"] or "first", resumed=bool(given["resume"]), summary=summary, log=rows.append,
            define_metric=lambda *names, **how: None,
        )  # fmt: skip

    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")))
    monkeypatch.setattr(wandb, "login", lambda **how: True)
    monkeypatch.setattr(wandb, "init", init)
    stage = write(tmp_path, "pretext", [1, 2, 3])
    followed("wandb", tmp_path, "").send([stage])  # of which the server gets two, and the process is killed
    rows.clear()
    followed("wandb", tmp_path, "").send([stage])
    assert (asked[0]["id"], asked[0]["resume"]) == (None, None)
    assert (asked[1]["id"], asked[1]["resume"]) == ("first", "allow")
    assert [row["pretext/step"] for row in rows] == [3]
    monkeypatch.setattr(wandb, "login", lambda **how: False)
    with pytest.raises(UserError, match="nobody is logged in"):
        followed("wandb", tmp_path, "").send([stage])


class Broken:
    """A tracker that fails for a while, or waits for ever."""

    place = "nowhere"

    def __init__(self, fails: int, hangs: bool = False) -> None:
        self.fails, self.hangs, self.ended = fails, hangs, ""
        self.steps: list[int] = []

    def open(self, about: About, earlier: str | None) -> str:
        if self.hangs:
            threading.Event().wait()
        self.fails -= 1
        if self.fails >= 0:
            raise ConnectionError("no route to host.\nand more")
        return "one"

    def told(self, stage: str) -> int:
        return self.steps[-1] if self.steps else 0

    def log(self, stage: str, records: Sequence[dict[str, Any]]) -> None:
        self.steps += [record["step"] for record in records[:2]]
        if len(records) > 2:  # fails in the middle
            raise OSError("the disk is full")

    def end(self, status: Status, summary: object, files: object) -> None:
        self.ended = status


def work(tracker: Broken, folder: Path, said: list[str], error: BaseException | None = None) -> None:
    """A training that looks at its tracker often, and ends as it is told to."""
    follower = Follower("mlflow", tracker, about(folder, ""), "same")
    with Following([follower], said.append, lambda name: f"send it to {name}", seconds=0.01) as told:
        told.follow(write(folder, "pretext", range(1, 6)))
        if error is not None:
            raise error


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "SECONDS", 0.01)
    monkeypatch.setattr(following_module, "LONGEST_PAUSE", 0.01)


@pytest.mark.usefixtures("at_once")
def test_a_tracker_that_fails_is_told_of_once_and_told_all_later(tmp_path: Path) -> None:
    tracker, said = Broken(fails=3), list[str]()
    follower = Follower("mlflow", tracker, about(tmp_path, ""), "same")
    with Following([follower], said.append, seconds=0.01) as told:
        told.follow(write(tmp_path, "pretext", range(1, 6)))
        while tracker.steps != [1, 2, 3, 4, 5]:
            threading.Event().wait(0.01)
    assert tracker.ended == "finished"
    assert said == ["mlflow: no route to host; training goes on, and it is tried again", "mlflow: nowhere"]


@pytest.mark.usefixtures("at_once")
def test_what_a_tracker_lacks_in_the_end_is_told_with_the_command_that_sends_it(tmp_path: Path) -> None:
    said: list[str] = []
    work(Broken(fails=10**9), tmp_path, said)
    assert said[-1] == "mlflow lacks a part of the run (no route to host): `send it to mlflow` sends it"
    assert len(said) <= 2


def test_a_tracker_that_does_not_answer_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "CLOSING_SECONDS", 0.1)
    said: list[str] = []
    work(Broken(0, hangs=True), tmp_path, said)
    assert "has not answered" in said[-1]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "failed"), (Interrupted("x"), "killed"), (KeyboardInterrupt(), "killed")]
)
def test_an_error_passes_through_and_is_how_the_run_ends(error: BaseException, status: str, tmp_path: Path) -> None:
    tracker = Broken(0)
    tracker.steps = [3]
    with pytest.raises(type(error)):
        work(tracker, tmp_path, [], error)
    assert tracker.ended == status


def test_a_tracker_that_is_not_installed_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from bissl_fast.training.trackers import tracker

    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bissl-fast\[mlflow\]'"):
        require_installed(["mlflow"])
