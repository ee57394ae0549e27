"""Change the methods and losses in one place at a time, and name the changes that no test notices.

Works on a copy in a temporary folder. A change is caught if a test of its file fails; the tests that caught most come
first, and the first failure ends it. What survives shows a test that is missing, or code that does nothing. The record
is kept in a file: a second call goes on where the first one stopped, `--again` repeats what survived.

    python benchmarks/mutate.py --output mutants.jsonl --kinds sign drop network detach
    python benchmarks/mutate.py --output mutants.jsonl --files losses.py --sample 50 --seed 1
    python benchmarks/mutate.py --output mutants.jsonl --files plave.py --match lambda_seg --list

Needs fork: Linux or macOS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mutants import KINDS, Mutant, mutants_of

REPOSITORY = Path(__file__).resolve().parents[1]
METHODS = Path("attcl_cli/methods")
_ATTCL = (
    "methods/test_attcl_gan_literal.py",
    "methods/test_attcl_gan.py",
    "methods/test_attcl_gan_paper.py",
    "methods/test_attcl_gan_ours.py",
)
_PLAVE = (
    "methods/test_plave.py",
    "methods/test_plave_paper.py",
    "methods/test_plave_ancestors.py",
)
_W2GAN = ("methods/test_w2gan.py", "methods/test_wavelets.py")
_UNET = ("methods/test_unet.py",)
_ATTGAN = ("methods/test_attgan.py",)
_SUPERSTARGAN = ("methods/test_superstargan.py",)
_ADVERSARIAL = ("methods/test_adversarial.py",)
_TOWERS = ("methods/test_towers.py",)
_PAIRWISE = ("methods/test_pairwise.py", "methods/test_cyclegan.py")
_U_GAT_IT = ("methods/test_u_gat_it.py", "methods/test_adalin.py")
_ATTENTIONGAN = ("methods/test_attentiongan.py",)
_MSA_GAN = ("methods/test_msa_gan.py",)
_EVERY = ("test_every_method.py",)
TESTS: Mapping[str, Sequence[str]] = {
    "attcl_gan.py": (*_ATTCL, "methods/test_samplers.py", *_EVERY),
    "plave.py": (*_PLAVE, "methods/test_plave_settings.py", "methods/test_samplers.py", *_EVERY),
    "w2gan.py": (*_W2GAN, *_EVERY),
    "unet.py": (*_UNET, "methods/test_samplers.py", *_EVERY),
    "attgan.py": (*_ATTGAN, "methods/test_samplers.py", *_EVERY),
    "superstargan.py": (*_SUPERSTARGAN, "methods/test_samplers.py", *_EVERY),
    "labelled.py": (*_ATTGAN, *_SUPERSTARGAN, "methods/test_samplers.py", *_EVERY),
    "pairwise.py": (*_PAIRWISE, "methods/test_samplers.py", *_EVERY),
    "cyclegan.py": (*_PAIRWISE, *_EVERY),
    "u_gat_it.py": (*_U_GAT_IT, *_EVERY),
    "attentiongan.py": (*_ATTENTIONGAN, *_EVERY),
    "msa_gan.py": (*_MSA_GAN, *_EVERY),
    "adversarial.py": (*_ADVERSARIAL, *_ATTGAN, *_SUPERSTARGAN),
    "losses.py": ("methods/test_losses.py", *_PLAVE, *_ATTCL, *_UNET),
    "updates.py": (*_ATTCL, *_PLAVE),
    "networks/attgan.py": _ATTGAN,
    "networks/adalin.py": _U_GAT_IT,
    "networks/attention_maps.py": _ATTENTIONGAN,
    "networks/attention.py": ("methods/test_networks.py", "methods/test_fusion.py", *_ATTCL),
    "networks/blocks.py": ("methods/test_networks.py", *_ATTCL, *_PLAVE),
    "networks/brain_norm.py": ("methods/test_brain_norm.py", "methods/test_styled_unet.py", *_ATTCL),
    "networks/cam.py": _U_GAT_IT,
    "networks/discriminator.py": ("methods/test_networks.py", "methods/test_fusion.py", *_ATTCL, *_PLAVE),
    "networks/fusion.py": ("methods/test_fusion.py", *_PLAVE, *_EVERY),
    "networks/generator.py": ("methods/test_networks.py", *_ATTCL, *_W2GAN),
    "networks/layers.py": ("methods/test_fusion.py", *_PLAVE),
    "networks/patches.py": ("methods/test_networks.py", *_ATTCL, *_PLAVE),
    "networks/resnet.py": (*_PAIRWISE, *_MSA_GAN, *_ATTENTIONGAN, *_U_GAT_IT, *_SUPERSTARGAN),
    "networks/style.py": ("methods/test_networks.py", *_ATTCL),
    "networks/superstargan.py": _SUPERSTARGAN,
    "networks/styled_unet.py": ("methods/test_styled_unet.py", "methods/test_networks.py", *_ATTCL),
    "networks/towers.py": (*_TOWERS, *_ATTGAN, *_SUPERSTARGAN, *_PAIRWISE, *_U_GAT_IT),
    "networks/u_gat_it.py": _U_GAT_IT,
    "networks/wavelets.py": _W2GAN,
    "muon.py": ("methods/test_muon.py", *_ATTCL),
}  # fmt: skip
"""Which tests belong to a file, below `tests/`."""

# Imported once, before forks: what costs more than a test.
_HEAVY = ("pytest", "torch._dynamo", "scipy.stats", "monai.networks.nets.basic_unet")
_FAILED, _PASSED, _TOO_LONG = "caught", "survived", "too long"


def main() -> None:
    """Try every chosen mutant that has not been tried, and print a line for each."""
    options = _options()
    before = _read(options.output)
    chosen = _choose(options, before)
    if options.list:
        for mutant in chosen:
            print(f"{METHODS / mutant.file}:{mutant.line}  {mutant.kind}\n{_difference(mutant)}")
        print(f"{len(chosen)} mutants")
        return
    _import_heavy()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        _copy_to(copy)
        files = list(dict.fromkeys(mutant.file for mutant in chosen))
        tests = options.tests or list(dict.fromkeys(test for file in files for test in TESTS[file]))
        outcome, test, _ = _run(copy, tests, {}, options.seconds * len(tests))
        if outcome != _PASSED:
            sys.exit(f"the tests fail without a change: {test}")
        sys.dont_write_bytecode = True  # of a mutant, it would be taken for the original's
        for number, mutant in enumerate(chosen, 1):
            record = _try(copy, mutant, before, options)
            before.append(record)
            _append(options.output, record)
            print(
                f"{number}/{len(chosen)} {record['outcome']}: {METHODS / mutant.file}:{mutant.line}  {mutant.kind}, "
                f"{record['seconds']:.0f} s  {record['test']}\n{_difference(mutant)}",
                flush=True,
            )
    _print_summary(options, before)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the record, JSON lines")
    parser.add_argument("--files", nargs="+", choices=TESTS, default=list(TESTS), metavar="FILE")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--match", default="", help="only changed lines with this text in them")
    parser.add_argument("--sample", type=int, help="this many at random of those not tried yet")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="only those that survived")
    parser.add_argument("--tests", nargs="+", metavar="TESTS", help="below tests/, not the file's")
    parser.add_argument(
        "--seconds", type=int, default=240, help="of the processor, for the tests of a mutant"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants, and run nothing")
    return parser.parse_args()


def _choose(options: argparse.Namespace, before: Sequence[Mapping[str, Any]]) -> list[Mutant]:
    """Return the mutants that are to be tried, kind by kind."""
    last = {record["key"]: record["outcome"] for record in before}
    chosen = []
    for file in options.files:
        for mutant in mutants_of(file, (REPOSITORY / METHODS / file).read_text()):
            due = last.get(mutant.key) == _PASSED if options.again else mutant.key not in last
            if due and mutant.kind in options.kinds and options.match in mutant.before:
                chosen.append(mutant)
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    return sorted(chosen, key=lambda one: (list(KINDS).index(one.kind), one.file, one.line))


def _copy_to(copy: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("attcl_cli", "tests", "weights"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for path in REPOSITORY.glob("*.*"):
        if path.is_file():
            shutil.copy(path, copy)


def _try(
    copy: Path, mutant: Mutant, before: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Write the mutant, run its tests, put the file back as it was, and return the record."""
    path = copy / METHODS / mutant.file
    original = path.read_text()
    caught = Counter(
        record["test"]
        for record in before
        if record["file"] == mutant.file and record["outcome"] == _FAILED
    )
    path.write_text(mutant.source)
    tests = options.tests or TESTS[mutant.file]
    outcome, test, seconds = _run(copy, tests, caught, options.seconds)
    path.write_text(original)
    return {
        "key": mutant.key,
        "outcome": outcome,
        "file": mutant.file,
        "line": mutant.line,
        "place": mutant.place,
        "kind": mutant.kind,
        "before": mutant.before,
        "after": mutant.after,
        "test": test,
        "seconds": round(seconds, 1),
    }


# --- tests in a process of their own ----------------------------------------------------------------------------------


def _import_heavy() -> None:
    """Import what the tests need, and then forget the package itself: each child imports its mutant's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _HEAVY:
            importlib.import_module(name)
        package = importlib.import_module("attcl_cli")
        for module in pkgutil.walk_packages(package.__path__, "attcl_cli."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.split(".")[0] == "attcl_cli"]:
        del sys.modules[name]


def _run(
    copy: Path, tests: Sequence[str], caught: Mapping[str, int], seconds: int
) -> tuple[str, str, float]:
    """Run tests up to the first failure; return the outcome, the test that failed, and seconds of the processor.

    Args:
        copy: the changed tree.
        tests: files below `tests/`.
        caught: how many mutants each test has caught: those with the most come first.
        seconds: of the processor, after which the tests count as too long.
    """
    note = copy / "failed.txt"
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _child(copy, tests, caught, seconds, note)
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    spent = usage.ru_utime + usage.ru_stime
    failed = note.read_text() if note.exists() else "before any test"
    if os.WIFSIGNALED(status):
        long = os.WTERMSIG(status) in {signal.SIGXCPU, signal.SIGKILL}
        return _TOO_LONG if long else _FAILED, failed, spent
    if os.WEXITSTATUS(status) == 0:
        return _PASSED, "", spent
    return _FAILED, failed, spent


def _child(
    copy: Path, tests: Sequence[str], caught: Mapping[str, int], seconds: int, note: Path
) -> int:
    import pytest

    class Order:
        """Puts the tests that have caught most before the others, and writes down which one failed."""

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items.sort(key=lambda item: -caught.get(item.nodeid, 0))

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                note.write_text(report.nodeid)

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path) != REPOSITORY)]
    with Path("output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    chosen = [f"tests/{name}" for name in tests]
    return int(
        pytest.main(
            [
                "-x",
                "-q",
                "--durations=30",
                "-m",
                "not slow",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                *chosen,
            ],
            plugins=[Order()],
        )
    )


# --- the record -------------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _difference(mutant: Mutant) -> str:
    return f"    - {mutant.before}\n    + {mutant.after}"


def _print_summary(options: argparse.Namespace, records: Sequence[Mapping[str, Any]]) -> None:
    """Print how many of the chosen files' mutants were caught, by kind; and what survives."""
    last = {record["key"]: record for record in records if record["file"] in options.files}
    print()
    for kind in KINDS:
        outcomes = Counter(record["outcome"] for record in last.values() if record["kind"] == kind)
        if outcomes:
            print(
                f"{kind:<10}  {outcomes[_FAILED] + outcomes[_TOO_LONG]} of {outcomes.total()} caught"
            )
    survivors = [record for record in last.values() if record["outcome"] == _PASSED]
    print(f"{len(survivors)} survive")
    for record in sorted(survivors, key=lambda one: (one["file"], one["line"])):
        print(f"{METHODS / record['file']}:{record['line']}  {record['kind']}")
        print(f"    - {record['before']}\n    + {record['after']}")


if __name__ == "__main__":
    main()
