"""Weights and checkpoints: what is saved comes back, what is damaged or foreign is refused, nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import changed, small_settings
from safetensors import safe_open
from safetensors.torch import save_file

from attcl_cli.data.intensities import Scale
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import sha256
from attcl_cli.methods import METHODS
from attcl_cli.methods import weights as weights_module
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import to_tables
from attcl_cli.methods.sources import AnyOne
from attcl_cli.methods.weights import (
    BUNDLED,
    SCHEMA_VERSION,
    WEIGHTS_FILE,
    Weights,
    WeightsInfo,
    find_weights,
    load_method,
    named_weights,
    read_metadata,
    save_weights,
)
from attcl_cli.training.state import STATE_FILE, TrainingState, load_state, save_state

CPU = torch.device("cpu")
FOUR = ("flair", "t1", "t1ce", "t2")


@pytest.fixture
def own_run(trained_run, tmp_path) -> Path:
    """A copy of the trained run that may be damaged."""
    return Path(shutil.copytree(trained_run, tmp_path / "runs" / "mine"))


@pytest.fixture(autouse=True)
def no_named_weights(monkeypatch):
    monkeypatch.delenv("ATTCL_WEIGHTS", raising=False)


def saved_method(path: Path, settings, **changes) -> tuple[Method, WeightsInfo]:
    torch.manual_seed(3)
    method = METHODS["attcl-gan"](settings, FOUR)
    method.remember_references({name: torch.rand(1, 1, 16, 16) for name in FOUR})
    info = WeightsInfo(
        settings=settings,
        modalities=FOUR,
        scales={name: Scale(1.5, 1000.25) for name in FOUR},
        references={name: {"case": "A", "slice": 7} for name in FOUR},
        trained_on=("A", "B"),
        steps=12,
        **changes,
    )
    save_weights(path, method, info, note="for a test")
    return method, info


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_come_back_to_float16_precision(tiny_settings, tmp_path):
    method, _ = saved_method(tmp_path / "w.safetensors", tiny_settings)
    again = load_method(find_weights(str(tmp_path / "w.safetensors")), CPU)
    networks = again.stored_networks()
    # E made the references, and these are kept instead.
    assert set(networks) == set(method.inference) - {"style_encoder"}
    for name, network in method.stored_networks().items():
        loaded = networks[name].state_dict()
        for key, value in network.state_dict().items():
            assert loaded[key].dtype == torch.float32
            assert torch.equal(loaded[key], value.half().float()), f"{name}.{key}"
    for name, code in method.references.items():
        assert torch.equal(again.references[name], code.half().float())


def test_what_a_weights_file_says_of_itself_comes_back(tiny_settings, tmp_path):
    _, info = saved_method(tmp_path / "w.safetensors", tiny_settings)
    weights = find_weights(str(tmp_path / "w.safetensors"))
    assert weights.info == info
    assert weights.name == "w"
    assert weights.sha256 == sha256(tmp_path / "w.safetensors")


@pytest.mark.parametrize("background", ["auto", "keep", -1024.0])
def test_the_background_of_training_comes_back_and_auto_goes_without_saying(
    background, tiny_settings, tmp_path
):
    saved_method(tmp_path / "w.safetensors", tiny_settings, background=background)
    assert find_weights(str(tmp_path / "w.safetensors")).info.background == background
    stored = "background" in read_metadata(tmp_path / "w.safetensors")
    assert stored == (background != "auto")


def test_several_sources_are_those_that_a_training_case_had_together(tiny_settings, tmp_path):
    vectors = {"t1": "AB", "t2": "AC", "t1ce": "C", "flair": "ABC"}
    known = {name: dict.fromkeys(cases, (0.5,)) for name, cases in vectors.items()}
    settings = changed(tiny_settings, sources="many")
    saved_method(tmp_path / "w.safetensors", settings, training_statistics=known)
    info = find_weights(str(tmp_path / "w.safetensors")).info
    assert info.patterns == {
        frozenset({"flair", "t1", "t2"}),
        frozenset({"flair", "t1"}),
        frozenset({"flair", "t2", "t1ce"}),
    }
    assert info.rule.sources_for("t2", ["flair", "t1", "t1ce"]) == ("flair", "t1")
    assert info.rule.sources_for("t1", ["flair", "t1ce"]) == ("flair",)
    del known["t1ce"]  # then nobody knows who had it
    saved_method(tmp_path / "w.safetensors", settings, training_statistics=known)
    info = find_weights(str(tmp_path / "w.safetensors")).info
    assert info.rule.sources_for("t1", ["flair", "t1ce"]) == ("flair", "t1ce")


def test_what_was_measured_on_the_training_volumes_comes_back_and_is_not_on_the_card(
    tiny_settings, tmp_path
):
    measured = {
        "quantiles": {"t2": (-1.0, 0.25, 1.0)},
        "training_statistics": {"t1": {"A": (0.5, -2.0), "B": (0.25, -1.0)}},
    }
    _, info = saved_method(tmp_path / "w.safetensors", tiny_settings, **measured)
    assert find_weights(str(tmp_path / "w.safetensors")).info == info
    assert (info.quantiles, info.training_statistics) == tuple(measured.values())
    assert not set(measured) & set(json.loads((tmp_path / "w.json").read_text()))


def test_weights_of_before_say_nothing_of_their_training_volumes(tiny_settings, tmp_path):
    saved_method(tmp_path / "w.safetensors", tiny_settings)
    assert not {"quantiles", "training_statistics"} & set(read_metadata(tmp_path / "w.safetensors"))
    info = find_weights(str(tmp_path / "w.safetensors")).info
    assert (info.quantiles, info.training_statistics) == ({}, {})


def test_training_measures_its_volumes(trained_run, store):
    info = find_weights(str(trained_run)).info
    assert {name: set(cases) for name, cases in info.training_statistics.items()} == {
        name: set(store.trained_on) for name in FOUR
    }
    assert {len(values) for values in info.quantiles.values()} == {129}
    assert all(list(values) == sorted(values) for values in info.quantiles.values())


def test_a_weights_file_knows_its_method_and_what_that_makes_from_what(tiny_settings, tmp_path):
    saved_method(tmp_path / "w.safetensors", tiny_settings)
    info = find_weights(str(tmp_path / "w.safetensors")).info
    assert info.method is AttclGan
    assert info.rule == AnyOne(FOUR)


def test_loaded_networks_are_ready_for_synthesis_alone(trained_run):
    method = load_method(find_weights(str(trained_run)), CPU)
    for network in method.inference_networks().values():
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    images = method.synthesise({"t1": torch.zeros(2, 1, 16, 16)}, ["t2"])
    assert torch.isfinite(images["t2"]).all()


def test_neither_the_discriminator_nor_the_style_encoder_is_in_the_weights(trained_run):
    with safe_open(trained_run / WEIGHTS_FILE, framework="pt") as file:
        networks = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118 - not a dict
    assert networks == {"generator", "attention", "mapping", "reference"}


def test_the_card_holds_the_hash_the_note_and_the_description(tiny_settings, tmp_path):
    saved_method(tmp_path / "w.safetensors", tiny_settings)
    card = json.loads((tmp_path / "w.json").read_text())
    assert card["sha256"] == sha256(tmp_path / "w.safetensors")
    assert (card["note"], card["steps"], card["trained_on"]) == ("for a test", 12, ["A", "B"])
    assert card["modalities"] == list(FOUR)
    assert card["method_title"] == "AttCL-GAN"


def test_the_same_method_gives_the_same_bytes(tiny_settings, tmp_path):
    for name in ("a", "b"):
        saved_method(tmp_path / f"{name}.safetensors", tiny_settings)
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")


def test_weights_without_a_card_stand_for_themselves(own_run):
    (own_run / "weights.json").unlink()
    assert find_weights(str(own_run)).sha256 == sha256(own_run / WEIGHTS_FILE)


def test_a_stale_card_is_gone_before_new_weights_are_there(tiny_settings, tmp_path, monkeypatch):
    saved_method(tmp_path / "w.safetensors", tiny_settings)

    def refuse(*_args):
        raise AttclError("killed")

    monkeypatch.setattr(weights_module, "write_json", refuse)
    with pytest.raises(AttclError, match="killed"):
        saved_method(tmp_path / "w.safetensors", tiny_settings, attcl_version="9")
    assert find_weights(str(tmp_path / "w.safetensors")).info.attcl_version == "9"


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_folder_and_called_by_it(own_run):
    weights = find_weights(str(own_run))
    assert (weights.name, weights.path) == ("mine", own_run / WEIGHTS_FILE)


def test_named_weights_lie_in_the_folder_of_the_environment(own_run, tmp_path, monkeypatch):
    (tmp_path / "named").mkdir()
    shutil.copy(own_run / WEIGHTS_FILE, tmp_path / "named" / "special.safetensors")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "named"))
    assert named_weights()["special"] == tmp_path / "named" / "special.safetensors"
    assert find_weights("special").name == "special"


def test_the_environment_comes_before_the_bundled_weights(own_run, tmp_path, monkeypatch):
    (tmp_path / "named").mkdir()
    shutil.copy(own_run / WEIGHTS_FILE, tmp_path / "named" / f"{BUNDLED}.safetensors")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "named"))
    weights = find_weights(BUNDLED)
    assert weights.path == tmp_path / "named" / f"{BUNDLED}.safetensors"
    assert weights.name == BUNDLED


def test_a_name_of_nothing_lists_the_known_ones(own_run, tmp_path, monkeypatch):
    (tmp_path / "named").mkdir()
    shutil.copy(own_run / WEIGHTS_FILE, tmp_path / "named" / "special.safetensors")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "named"))
    with pytest.raises(UsageError, match=r"'speciel' is no file and no known name.*special"):
        find_weights("speciel")


def test_a_folder_without_weights_is_no_run(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_weights(str(tmp_path))
    assert caught.value.code == "unknown-weights"


# --- damaged and foreign files ----------------------------------------------------------------------------------------


def test_weights_that_are_not_those_of_the_card_are_refused(own_run):
    data = bytearray((own_run / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (own_run / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(
        AttclError, match=r"SHA-256 \w{16}\.\.\., expected \w{16}\.\.\. as its card"
    ):
        find_weights(str(own_run))


@pytest.mark.parametrize("card", ["[]", "{}", '"text"'])
def test_a_card_that_says_nothing_of_the_hash_is_no_proof(card, own_run):
    (own_run / "weights.json").write_text(card)
    with pytest.raises(AttclError) as caught:
        find_weights(str(own_run))
    assert caught.value.code == "weights-changed"


@pytest.mark.parametrize("content", [b"", b"x", b"not weights at all" * 100, b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(AttclError, match="not readable as safetensors") as caught:
        find_weights(str(tmp_path / "w.safetensors"))
    assert caught.value.code == "weights-unreadable"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_weights_that_are_cut_off_are_refused(share, own_run):
    (own_run / "weights.json").unlink()
    data = (own_run / WEIGHTS_FILE).read_bytes()
    (own_run / WEIGHTS_FILE).write_bytes(data[: int(share * len(data))])
    with pytest.raises(AttclError) as caught:
        find_weights(str(own_run))
    assert caught.value.code == "weights-unreadable"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(how, tmp_path):
    stream = io.BytesIO()
    if how == "pickle":
        pickle.dump(Bomb(tmp_path / "ran"), stream)
    else:
        torch.save({"x": Bomb(tmp_path / "ran")}, stream)
    pickle.loads(pickle.dumps(Bomb(tmp_path / "control")))
    assert (tmp_path / "control").exists()  # the bomb works
    path = tmp_path / "w.safetensors"
    path.write_bytes(stream.getvalue())
    for read in (find_weights, load_state):
        with pytest.raises(AttclError) as caught:
            read(path)
        assert caught.value.code == "weights-unreadable"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"attcl": "{"}, {"attcl": "[1]"}])
def test_safetensors_of_somebody_else_are_refused(metadata, tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "w.safetensors", metadata)
    with pytest.raises(AttclError, match="safetensors without a description by attcl"):
        find_weights(str(tmp_path / "w.safetensors"))


def described(run: Path, change) -> Path:
    """Give a run's weights another description, and return the run."""
    with safe_open(run / WEIGHTS_FILE, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        document = json.loads(file.metadata()["attcl"])
    change(document, tensors)
    (run / "weights.json").unlink()
    save_file(tensors, run / WEIGHTS_FILE, {"attcl": json.dumps(document)})
    return run


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d, _: d.update(schema_version=99), "schema_version 99, expected 2 or lower"),
        (lambda d, _: d.pop("schema_version"), "schema_version None, expected 2 or lower"),
        (lambda d, _: d.pop("modalities"), "its description is incomplete"),
        (lambda d, _: d.update(scales={"t1": {"low": 0}}), "its description is incomplete"),
        (lambda d, _: d["settings"]["attcl-gan"].update(width="many"), "description is incomplete"),
        (lambda d, _: d["settings"]["attcl-gan"].update(unknown=1), "description is incomplete"),
        (
            lambda d, _: d["settings"]["attcl-gan"].update(plave_blocks=2),
            "description is incomplete",
        ),
        (
            lambda d, _: d["settings"]["run"].update(method="magic") or d.update(method="magic"),
            "made by method 'magic', expected one of attcl-gan, plave",
        ),
    ],
)
def test_a_description_that_is_not_ours_is_refused(change, complaint, own_run):
    with pytest.raises(AttclError, match=complaint):
        find_weights(str(described(own_run, change)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d, _: d["settings"]["attcl-gan"].update(width=8),
        lambda _, t: t.pop("generator.stem.weight"),
        lambda _, t: t.update({"generator.extra": torch.zeros(1)}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, own_run):
    weights = find_weights(str(described(own_run, change)))
    with pytest.raises(AttclError) as caught:
        load_method(weights, CPU)
    assert caught.value.code == "weights-do-not-fit"


def test_weights_that_miss_a_reference_are_refused(own_run):
    weights = find_weights(str(described(own_run, lambda _, t: t.pop("reference.t2"))))
    with pytest.raises(AttclError, match="reference") as caught:
        load_method(weights, CPU)
    assert caught.value.code == "weights-without-reference"


# --- the schemas ------------------------------------------------------------------------------------------------------


def test_settings_stand_in_tables_in_the_file_and_on_the_card(trained_run, tiny_settings):
    card = json.loads((trained_run / "weights.json").read_text())
    assert card["schema_version"] == SCHEMA_VERSION == 2
    assert set(card["settings"]) == {"run", "image", "optimiser", "attcl-gan"}
    expected = json.loads(json.dumps(to_tables(tiny_settings)))
    assert card["settings"] == expected


def to_first_schema(document, _tensors) -> None:
    """Describe as version 0.1 did: flat settings, with those of every method."""
    flat = {
        key: value
        for name in METHODS
        for key, value in small_settings(name).model_dump(mode="json").items()
    }
    for table in document["settings"].values():
        flat |= table
    document.update(schema_version=1, settings=flat)


def test_weights_of_the_first_schema_load_to_the_same_bits(own_run, tmp_path):
    new = find_weights(str(own_run))
    old_run = Path(shutil.copytree(own_run, tmp_path / "runs" / "old"))
    old = find_weights(str(described(old_run, to_first_schema)))
    assert old.info == new.info
    x = {"t1": torch.linspace(-1, 1, 2 * 16 * 16).reshape(2, 1, 16, 16)}
    one, two = (load_method(weights, CPU).synthesise(x, FOUR) for weights in (new, old))
    assert all(torch.equal(one[name], two[name]) for name in FOUR)


def test_the_bundled_weights_load():
    weights = find_weights(BUNDLED)
    assert load_method(weights, CPU).modalities == FOUR


# --- training states --------------------------------------------------------------------------------------------------


def test_a_state_comes_back_to_the_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(7.0), "c": torch.randn(4, 3).T}
    save_state(tmp_path / "s.safetensors", TrainingState(9, tensors, {"best": None, "n": 2}))
    state = load_state(tmp_path / "s.safetensors")
    assert (state.step, state.extra) == (9, {"best": None, "n": 2})
    assert set(state.tensors) == set(tensors)
    assert all(torch.equal(state.tensors[key], tensors[key]) for key in tensors)


def test_a_state_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(
        UsageError, match=r"--resume: .* does not exist, expected the folder of a run"
    ):
        load_state(tmp_path / STATE_FILE)


def test_weights_are_no_state_to_resume_from(trained_run):
    with pytest.raises(AttclError) as caught:
        load_state(trained_run / WEIGHTS_FILE)
    assert caught.value.code == "not-a-checkpoint"


def test_a_weights_record_names_its_file(trained_run):
    weights = find_weights(str(trained_run / WEIGHTS_FILE))
    assert isinstance(weights, Weights)
    assert weights.name == "tiny"
