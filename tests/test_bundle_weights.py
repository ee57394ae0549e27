"""examples/bundle_weights.py: a finished run becomes a pair that is found by its name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import tomli_w
from helpers import REPOSITORY

from attcl_cli.files import sha256
from attcl_cli.methods import bundled
from attcl_cli.methods.weights import WEIGHTS_FILE, find_weights

CARD = {
    "kind": "patients",
    "title": "Any one modality into any other",
    "data": "3 patients",
    "terms": "CC BY 4.0, attributed to somebody",
    "citations": ["Somebody 2020"],
    "split": "3 trained on",
    "hours": 0.1,
    "device": "a CPU",
    "voxel_mm": 1.0,
    "skull_stripped": True,
    "scored": "as attcl complete makes them by default",
    "scores": [],
    "limits": ["made by a test"],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bundle_weights", REPOSITORY / "examples" / "bundle_weights.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def card(tmp_path: Path) -> Path:
    file = tmp_path / "card.toml"
    file.write_text(tomli_w.dumps(CARD))
    return file


@pytest.fixture
def own_run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_the_pair_is_found_by_its_name_and_verified(script, own_run, card, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    path = script.main(str(own_run), "brain-test", card, folder)
    assert path == folder / "brain-test.safetensors"
    assert path.read_bytes() == (own_run / WEIGHTS_FILE).read_bytes()
    monkeypatch.setenv("ATTCL_WEIGHTS", str(folder))
    weights = find_weights("brain-test")
    assert weights.info == find_weights(str(own_run)).info
    found = bundled.look_up("brain-test")
    assert found.card.model_dump(mode="json") == CARD
    assert (found.kind, found.problem) == ("patients", None)
    document = json.loads(path.with_suffix(".json").read_text())
    assert document["sha256"] == sha256(path)
    assert document["note"] == CARD["title"]
    assert document["trained_on"] == list(weights.info.trained_on)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run, card: (run / "run.json").write_text('{"status": "stopped"}'), "not finished"),
        (lambda run, card: card.write_text(tomli_w.dumps({**CARD, "hours": 0})), "hours"),
        (lambda run, card: card.write_text('kind = "patients"'), "terms"),
        (lambda run, card: card.unlink(), "card.toml"),
        (lambda run, card: (card.parent / "mine" / "brain-test.safetensors").touch(), "exists"),
    ],
)
def test_what_is_no_bundle_is_refused_in_one_line(change, words, script, own_run, card, tmp_path):
    (tmp_path / "mine").mkdir()
    change(own_run, card)
    with pytest.raises(SystemExit, match=words) as stop:
        script.main(str(own_run), "brain-test", card, tmp_path / "mine")
    assert str(stop.value).startswith("error: ")
    assert not (tmp_path / "mine" / "brain-test.json").exists()


def test_a_file_that_has_the_name_of_the_new_card_is_kept(script, own_run, card, tmp_path):
    notes = tmp_path / "brain-test.json"
    notes.write_text("mine")
    with pytest.raises(SystemExit, match=r"brain-test\.json: exists, expected a new name"):
        script.main(str(own_run), "brain-test", card, tmp_path)
    assert notes.read_text() == "mine"


def test_a_card_that_is_no_utf_8_is_refused_in_one_line(script, own_run, card, tmp_path):
    card.write_bytes("title = 'Wörter'".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"card\.toml: .*utf-8"):
        script.main(str(own_run), "brain-test", card, tmp_path)


def test_a_file_that_is_too_large_is_refused(script, own_run, card, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "MOST_MB", 0.001)
    with pytest.raises(SystemExit, match=r"MB, expected 0\.001 MB at most"):
        script.main(str(own_run), "brain-test", card, tmp_path)
