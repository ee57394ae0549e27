"""How groups reach the workers of a cluster, and what is said if there is none; Ray itself is played here."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest

from attcl_cli import cluster
from attcl_cli.errors import AttclError, UsageError


class DiedError(Exception):
    """Stands for Ray's error about a worker that died."""


class LostError(Exception):
    """Stands for Ray's error about a result that was on a machine which died."""


class RaisedError(Exception):
    """Stands for Ray's error about what a worker raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback")
        self.cause = cause


class Workers:
    """Workers that finish their groups in the reverse order; those that hold "dead" die."""

    exceptions = SimpleNamespace(
        RayActorError=DiedError, ObjectLostError=LostError, RayTaskError=RaisedError
    )

    def __init__(self, count: int) -> None:
        self.pool = [SimpleNamespace(work=SimpleNamespace(remote=self.start)) for _ in range(count)]
        self.given = 0
        self.groups: dict[int, tuple[str, ...]] = {}

    def start(self, group: tuple[str, ...]) -> int:
        self.given += 1
        self.groups[self.given] = group
        return self.given

    def wait(self, running: list[int]) -> tuple[list[int], list[int]]:
        return [max(running)], []

    def get(self, reference: int) -> str:
        if "dead" in self.groups[reference]:
            raise DiedError("killed\nby somebody")
        if "gone" in self.groups[reference]:
            raise LostError("not found")
        if "full" in self.groups[reference]:
            raise RaisedError(OSError(errno.ENOSPC, "No space left on device", "out/a"))
        return "+".join(self.groups[reference])


def outcomes(workers: Workers, groups: list[list[str]]):
    return cluster._in_order(
        workers, workers.pool, groups, lambda group, reason: f"lost {'+'.join(group)}: {reason}"
    )


def test_groups_come_back_in_their_order_whichever_is_done_first():
    groups = [[f"{number}a", f"{number}b"] for number in range(30)]
    assert list(outcomes(Workers(3), groups)) == ["+".join(group) for group in groups]


def test_no_more_than_four_groups_per_worker_are_given_out_behind_one_that_is_slow():
    workers = Workers(2)
    next(outcomes(workers, [[str(number)] for number in range(100)]))
    assert workers.given <= 4 * 2


def test_a_group_whose_workers_died_is_lost_with_the_reason_and_the_others_are_not():
    assert list(outcomes(Workers(2), [["a"], ["dead"], ["b"]])) == ["a", "lost dead: killed", "b"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_of_a_group_whose_workers_died_the_item_that_kills_them_is_lost_alone(workers):
    groups = [
        ["x"],
        ["a", "dead", "b"],
        ["y", "z"],
        ["dead", "c"],
        *([f"{it}"] for it in range(40)),
    ]
    assert list(outcomes(Workers(workers), groups)) == [
        *("x", "a", "lost dead: killed", "b", "y+z", "lost dead: killed", "c"),
        *(f"{number}" for number in range(40)),
    ]


def test_a_result_that_went_with_its_machine_is_lost_and_the_others_are_not():
    assert list(outcomes(Workers(2), [["a"], ["gone"], ["b"]])) == [
        "a",
        "lost gone: not found",
        "b",
    ]


def test_what_a_worker_raises_is_raised_here_with_all_that_it_says():
    with pytest.raises(OSError, match="No space left") as caught:
        list(outcomes(Workers(1), [["a"], ["full"]]))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "out/a")


@pytest.mark.parametrize(
    ("items", "workers", "sizes"),
    [(0, 2, []), (3, 8, [1, 1, 1]), (16, 2, [4] * 4), (8, 2, [2] * 4), (17, 2, [4, 4, 4, 4, 1])],
)
def test_few_items_are_divided_among_all_workers(items, workers, sizes):
    groups = cluster._divided(range(items), workers, 4)
    assert [len(group) for group in groups] == sizes
    assert [item for group in groups for item in group] == list(range(items))


def test_a_worker_that_died_is_an_error_with_the_name_of_its_case():
    error = cluster.worker_died("Case_1", "killed")
    assert error.code == "worker-died"
    assert error.message.startswith("Case_1: its worker died 3 times (killed)")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="--ray: Ray is not installed") as caught:
        cluster.require("local")
    assert (caught.value.code, "attcl[ray]" in caught.value.hint) == ("no-ray", True)


def test_an_address_where_nobody_answers_is_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1: nobody answers"):
        cluster.require("127.0.0.1:1")
    cluster.require("local")


def test_a_machine_without_the_drivers_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttclError, match="expected the folder in which the command was started"):
        cluster.enter(str(tmp_path / "elsewhere"))


def test_a_share_of_a_gpu_puts_several_workers_on_each():
    def places(
        gpus: float, on: cluster.Cluster, cores: float = 16.0
    ) -> tuple[int, dict[str, float]]:
        resources = {"CPU": cores, **({"GPU": gpus} if gpus else {})}
        return cluster._places(SimpleNamespace(cluster_resources=lambda: resources), on)

    assert places(3, cluster.Cluster("auto", "auto")) == (3, {"num_gpus": 1.0, "num_cpus": 1})
    assert places(3, cluster.Cluster("auto", "cuda", 0.5)) == (6, {"num_gpus": 0.5, "num_cpus": 1})
    assert places(3, cluster.Cluster("auto", "cuda", 0.4))[0] == 6  # not 7: none is on two GPUs
    assert places(1, cluster.Cluster("auto", "cuda", 0.1))[0] == 10
    assert places(8, cluster.Cluster("auto", "cuda"), 2.0)[0] == 2  # each has a core, too
    assert places(3, cluster.Cluster("auto", "cpu")) == (16, {"num_cpus": 1})
    assert places(0, cluster.Cluster("auto", "auto")) == (16, {"num_cpus": 1})
    with pytest.raises(
        UsageError, match=r"--gpu-share: 0\.5, but no machine of the cluster has a GPU"
    ):
        places(0, cluster.Cluster("auto", "auto", 0.5))
    with pytest.raises(UsageError, match="no machine of the cluster has a GPU"):
        places(0, cluster.Cluster("auto", "cuda"))


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0,cuda:1", "mps", "tpu"])
def test_a_device_that_only_one_machine_can_have_is_refused(device):
    with pytest.raises(UsageError, match=f"--ray: given with --device {device}") as caught:
        cluster.asked_for("auto", device, None)
    assert caught.value.code == "options-exclude-each-other"


class Actor:
    """Stands for a class of workers."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def remote(self, *_given: object) -> SimpleNamespace:
        return self.workers.pool.pop()


def test_workers_are_ended_with_the_run_though_the_cluster_goes_on(monkeypatch):
    workers = Workers(2)
    pool, killed = list(workers.pool), []
    ray = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 2.0},
        put=lambda shared: shared,
        remote=lambda **_needs: lambda _kind: Actor(workers),
        kill=killed.append,
        wait=workers.wait,
        get=workers.get,
        exceptions=workers.exceptions,
        is_initialized=lambda: True,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    on = cluster.Cluster("local", "cpu")
    made = cluster.work_on_ray(
        object, ["a", "b", "c"], lambda *_: "lost", at_once=1, shared=None, arguments=(), on=on
    )
    assert next(made) == "a"
    assert not killed
    made.close()
    assert sorted(map(id, killed)) == sorted(map(id, pool))


def joining(monkeypatch, init) -> None:
    """Join a local cluster with a Ray of which `init` is all that works."""
    ray = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with cluster._joined(cluster.LOCAL):
        pass


def test_a_local_cluster_is_a_new_one_though_another_runs_here(monkeypatch):
    asked = []
    joining(monkeypatch, lambda **options: asked.append(options["address"]))
    assert asked == ["local"]  # None would join the other one


def test_a_cluster_whose_processes_do_not_start_in_time_is_an_error_with_a_next_step(monkeypatch):
    def init(**_options):
        raise Exception("The current node timed out during startup.")

    with pytest.raises(UsageError, match="--ray: local: The current node timed out") as caught:
        joining(monkeypatch, init)
    assert "run the same command again" in caught.value.hint


def test_a_share_that_is_none_or_has_no_cluster_is_refused():
    assert cluster.asked_for(None, "auto", None) is None
    assert cluster.asked_for("local", "cpu", None) == cluster.Cluster("local", "cpu", 1.0)
    assert cluster.asked_for("auto", "cuda", 0.25) == cluster.Cluster("auto", "cuda", 0.25)
    with pytest.raises(UsageError, match="--gpu-share: given without --ray"):
        cluster.asked_for(None, "cuda", 0.5)
    with pytest.raises(UsageError, match="--gpu-share: given with --device cpu"):
        cluster.asked_for("local", "cpu", 0.5)
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(UsageError, match=r"--gpu-share: .*expected more than 0 and at most 1"):
            cluster.asked_for("auto", "cuda", share)
