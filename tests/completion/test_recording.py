"""What `run.json` says of the cases of a completion."""

from __future__ import annotations

from completers import LACKING, plan_of

from attcl_cli import cluster
from attcl_cli.completion.jobs import Completed
from attcl_cli.completion.recording import make_all
from attcl_cli.progress import SILENT
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
