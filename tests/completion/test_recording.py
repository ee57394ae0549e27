"""What `run.json` says of the cases of a completion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from completers import LACKING, plan_of

from attcl_cli import cluster
from attcl_cli.completion import recording
from attcl_cli.completion.jobs import Completed
from attcl_cli.completion.recording import make_all
from attcl_cli.progress import SILENT, Silent
from attcl_cli.run_record import RunRecord

__all__ = ["LACKING"]  # of the fixture gappy


def test_a_case_whose_worker_died_has_on_record_what_it_had_written(gappy, weights, tmp_path):
    plan = plan_of(gappy(lacking=[("t1", "t2"), ("t2",), (), ()]), tmp_path / "out", weights)
    job = plan.jobs[0]
    written, missing = (str(file) for files in job.outputs.values() for file in files)
    (plan.output / written).parent.mkdir(parents=True)
    (plan.output / written).write_bytes(b"volume")
    record = RunRecord(tmp_path / "out/run.json", "complete")
    lost = (Completed(it, (), 0.0, cluster.worker_died(it.case.id, "killed")) for it in plan.jobs)
    made, failed = make_all(plan, record, lost, {}, SILENT)
    assert (made, set(failed)) == (0, {it.case.id for it in plan.jobs})
    outputs = {case["id"]: case["outputs"] for case in record.cases}
    assert outputs[job.case.id] == [written]
    assert missing not in outputs[job.case.id]


class Estimates(Silent):
    def __init__(self) -> None:
        self.left: list[float | None] = []

    @contextmanager
    def bar(self, total, title, *, every_seconds=0) -> Iterator[object]:
        yield lambda _item, *, left: self.left.append(left)


def test_the_time_that_is_left_is_that_of_the_volumes(gappy, weights, tmp_path, monkeypatch):
    """The first case lacks two volumes, and the others one each: half of the four is done after it."""
    plan = plan_of(gappy(lacking=[("t1", "t2"), ("t2",), ("t2",), ()]), tmp_path / "out", weights)
    clock = iter([0.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(recording, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    failed = (Completed(it, (), 0.0, cluster.worker_died(it.case.id, "killed")) for it in plan.jobs)
    said = Estimates()
    record = RunRecord(tmp_path / "run.json", "complete")
    make_all(plan, record, failed, {}, said)
    assert said.left == [20.0, 10.0, 0.0]
