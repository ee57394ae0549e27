"""With --json, a failure is one JSON document on stdout, too, and nothing else is there."""

from __future__ import annotations

import json

import pytest

from attcl_cli.errors import EXIT_INCOMPLETE

# Options, exit code, code of the error
FAILURES = [
    (("prepare-splits", "nowhere"), 1, "dataset-not-found"),
    (("train", "--data", "nowhere"), 1, "dataset-not-found"),
    (("train", "--method", "nonsense"), 2, "unknown-method"),
    (("complete", "--ori", "nowhere"), 1, "dataset-not-found"),
    (("complete", "--bogus"), 2, "command-line-invalid"),
    (("score", "--ori", "nowhere"), 1, "dataset-not-found"),
    (("segment", "--ori", "nowhere"), 1, "dataset-not-found"),
    (("evaluate",), 2, "one-of-two"),
    (("export", "nonsense", "Dataset001_x"), 2, "unknown-format"),
    (("info", "nowhere"), 1, "dataset-not-found"),
    (("demo", "--cases", 1), 2, "command-line-invalid"),
    (("weights", "show", "nothing"), 2, "unknown-weights"),
    (("weights", "verify", "nothing"), 2, "unknown-weights"),
    (("nonsense",), 2, "command-line-invalid"),
]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    FAILURES,
    ids=[" ".join(map(str, arguments)) for arguments, *_ in FAILURES],
)
def test_a_failure_is_a_document_and_a_line_on_stderr(arguments, exit_code, code, attcl, here):
    ended, out, err = attcl(*arguments, "--json")
    document = json.loads(out)
    assert (ended, document["exit_code"], document["code"]) == (exit_code, exit_code, code)
    assert err.splitlines()[0] == f"error: {document['error']}"
    assert f"hint: {document['hint']}" in err.splitlines()
    assert document["problems"] == [
        {name: document[name] for name in ("error", "hint", "code")},
    ]
    assert attcl(*arguments) == (ended, "", err)


def test_all_problems_are_in_the_document(incomplete_root, attcl, here):
    files = [incomplete_root / f"Phantom_{n:05d}/Phantom_{n:05d}_flair.nii.gz" for n in (1, 3)]
    for file in files:
        file.write_bytes(b"no volume")
    code, out, err = attcl("train", "--data", incomplete_root, "--dry-run", "--json")
    document = json.loads(out)
    assert (code, document["exit_code"]) == (1, 1)
    assert [problem["error"].split(":")[0] for problem in document["problems"]] == [
        str(file) for file in files
    ]
    assert document["error"] == document["problems"][0]["error"]
    assert err.count("error: ") == 2


def test_a_result_with_failed_cases_holds_the_error_too(incomplete_root, trained_run, attcl, here):
    (incomplete_root / "Phantom_00001/Phantom_00001_flair.nii.gz").write_bytes(b"no volume")
    command = ("complete", "--ori", incomplete_root, "-w", trained_run, "--keep-going")
    code, out, err = attcl(*command, "--json")
    document = json.loads(out)
    assert (code, document["exit_code"]) == (EXIT_INCOMPLETE, EXIT_INCOMPLETE)
    assert (document["written"], document["failed"]) == (2, 1)
    assert document["code"] == "cases-failed"
    assert err.splitlines()[-2] == f"error: {document['error']}"


def test_scores_with_missing_volumes_hold_the_error_too(study, attcl):
    for file in (study.root / "out").rglob("*_t1.nii.gz"):
        file.unlink()
    command = ("score", "--split", "all", "--psnr", "--allow-missing", "--json")
    code, out, _ = attcl(*command)
    document = json.loads(out)
    assert (code, document["code"]) == (EXIT_INCOMPLETE, "volumes-missing")
    assert document["missing"]
    assert document["scores"]


def test_an_interruption_is_a_document_too(attcl, here, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("attcl_cli.data.info.dataset_info", interrupt)
    code, out, err = attcl("info", "data", "--json")
    assert (code, json.loads(out)["code"]) == (130, "interrupted")
    assert err.count("error: interrupted") == 1


def test_a_success_says_nothing_of_errors(phantom_root, attcl, here):
    code, out, _ = attcl("info", phantom_root, "--json")
    assert code == 0
    assert not {"error", "exit_code"} & set(json.loads(out))
