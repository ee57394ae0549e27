"""What every method promises, over the registry and over a method that another package brings.

A new method of the registry is tested here without a change; small settings of it go into `helpers.SMALL_NETWORKS`.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import REPOSITORY, changed, fresh_python, small_settings
from segmenters import segment
from torch import Tensor, nn
from toy_method import install
from training_runs import CPU, KilledError, require_same_runs, run

from attcl_cli import complete, prepare_splits, score
from attcl_cli.data.couples import CoupleBatch
from attcl_cli.data.sampling import Batch
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method, Runtime
from attcl_cli.methods.settings import Settings, dump, resolve
from attcl_cli.methods.settings import settings_of as settings_class
from attcl_cli.methods.weights import find_weights, load_method
from attcl_cli.training.state import STATE_FILE, load_state

FOUR = ("flair", "t1", "t1ce", "t2")
NAMES = (*METHODS, "toy", "toy-context")

pytestmark = pytest.mark.usefixtures("toy_package")
every_method = pytest.mark.parametrize("name", NAMES)


def settings_of(name: str, **changes: Any) -> Settings:
    """Return small settings of a run of 6 steps: PLAVE changes from its first phase to the second after 3."""
    return small_settings(name, steps=6, save_every=3, sample_every=6, **changes)


def method_of(settings: Settings) -> Method:
    """Return a new method, with the same weights for the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS[settings.method](settings, FOUR)


def ready(name: str, **changes: Any) -> Method:
    """Return a new method in eval mode, with references."""
    method = method_of(settings_of(name, **changes)).eval()
    noise = torch.Generator().manual_seed(2)
    method.remember_references({one: torch.rand(1, 1, 16, 16, generator=noise) for one in FOUR})
    return method


def images_of(
    method: Method, names: Sequence[str], size: tuple[int, int] = (16, 16), *, count: int = 2
) -> dict[str, Tensor]:
    """Return random sources as completion hands them over."""
    noise = torch.Generator().manual_seed(3)
    shape = (count, 1 + 2 * method.context, *size)
    images = {one: torch.rand(shape, generator=noise) * 2 - 1 for one in FOUR}
    return {one: images[one] for one in names}


@pytest.fixture(scope="module")
def undisturbed(
    toy_package: None, store: SliceStore, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`undisturbed(name)` is the folder of a finished run of 6 steps; read-only."""
    runs: dict[str, Path] = {}

    def finished(name: str) -> Path:
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("undisturbed") / name
            run(settings_of(name), store, runs[name])
        return runs[name]

    return finished


# --- training ---------------------------------------------------------------------------------------------------------


@every_method
def test_three_steps_give_finite_losses_and_change_weights(name, store):
    method = method_of(settings_of(name))
    sampler = method.sampler(store)
    before = {key: value.clone() for key, value in method.named_parameters()}
    for step in range(3):
        losses = method.training_step(sampler.batch(step), step)
        assert losses
        assert all(math.isfinite(value) and not value.requires_grad for value in losses.values())
    assert all(torch.isfinite(parameter).all() for parameter in method.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in method.named_parameters())


@every_method
def test_the_losses_of_the_progress_line_are_among_those_of_a_run(name, store):
    method = method_of(settings_of(name))
    sampler = method.sampler(store)
    logged = {key for step in (0, 5) for key in method.training_step(sampler.batch(step), step)}
    assert set(method.shown) <= logged


@every_method
def test_a_stopped_run_resumes_to_the_same_bits(name, store, undisturbed, tmp_path):
    with pytest.raises(KilledError):
        run(settings_of(name), store, tmp_path / "run", kill_after=4)
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3
    run(settings_of(name), store, tmp_path / "run", resume=True)
    require_same_runs(undisturbed(name), tmp_path / "run")


@every_method
def test_how_often_pictures_are_drawn_changes_nothing(name, store, undisturbed, tmp_path):
    run(changed(settings_of(name), sample_every=1), store, tmp_path / "run")
    one, two = (load_state(folder / STATE_FILE) for folder in (undisturbed(name), tmp_path / "run"))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(value, two.tensors[key]) for key, value in one.tensors.items())


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        (name, preset)
        for name, preset in itertools.product(METHODS, ("published", "paper"))
        if name != "unet" and preset in settings_class(name).presets
    ],
)
def test_what_is_ours_is_off_in_what_was_published(name, preset):
    known = {key for each in METHODS for key in settings_class(each).model_fields}
    changes = {"plave_target": "t1ce"} if name == "plave" else {}
    settings = resolve(preset=preset, method=name, overrides=changes).model_dump()
    ours = {"lambda_pair": 0.0, "augment": 0.0, "warp": 0.0, "crop": 0, "supervised": 0.0}
    ours |= {"plave_supervised": 0.0, "plave_coarse": 0.0, "plave_lambda_structure": 0.0}
    ours |= {"coarse": 0.0, "muon": False}
    assert ours.keys() <= known
    assert {key: settings[key] for key in ours if key in settings} == {
        key: value for key, value in ours.items() if key in settings
    }


# --- parts and processes ----------------------------------------------------------------------------------------------


def steady(method: Method) -> Method:
    """Return the method with its batch norms in eval mode: what they do to a batch has no parts (and is refused)."""
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return method


def gradients_of(method: Method) -> list[Tensor]:
    """Return a list that every optimiser step of the method adds its gradients to."""
    seen: list[Tensor] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        seen.append(torch.cat([one.grad.flatten() for one in parameters if one.grad is not None]))

    for optimiser in method.optimisers().values():
        optimiser.register_step_pre_hook(note)
    return seen


def require_equal_steps(
    losses: dict[str, Tensor], gradients: list[Tensor], one: dict[str, Tensor], whole: list[Tensor]
) -> None:
    """Check losses and gradients against those of the whole batch, but for rounding."""
    assert losses.keys() == one.keys()
    for key, value in one.items():
        assert losses[key].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), key
    for other, expected in zip(gradients, whole, strict=True):
        assert (other - expected).norm() <= 1e-4 * expected.norm()


@every_method
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_add_up_to_the_whole(size, step, name, store):
    settings = settings_of(name, batch_size=4)
    whole, parts = steady(method_of(settings)), steady(method_of(settings))
    parts.runtime = Runtime(micro_batch=size)
    batch = whole.sampler(store).batch(step)
    seen_whole, seen_parts = gradients_of(whole), gradients_of(parts)
    expected = whole.training_step(batch, step)
    losses = parts.training_step(batch, step)
    require_equal_steps(losses, seen_parts, expected, seen_whole)


class Together:
    """Two processes in threads: gradients are averaged when both have come to the same update."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.slots: list[list[Tensor]] = [[], []]

    @contextmanager
    def averaging(self, rank: int, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        yield
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.slots[rank] = [parameter.grad.clone() for parameter in parameters]
        self.barrier.wait()
        for parameter, one, two in zip(parameters, *self.slots, strict=True):
            parameter.grad = (one + two) / 2
        self.barrier.wait()


def step_of_two(
    settings: Settings, batch: Batch, step: int
) -> tuple[list[Method], list[Any], list[Any]]:
    """Return two methods that have taken a step on a half of the batch each, their losses and their gradients."""
    together = Together()
    methods = [steady(method_of(settings)) for _ in range(2)]
    gradients = [gradients_of(method) for method in methods]
    losses: list[Any] = [None, None]

    def work(rank: int) -> None:
        method = methods[rank]
        method.runtime = Runtime(
            rank=rank, processes=2, averaging=partial(together.averaging, rank)
        )
        losses[rank] = method.training_step(batch.part(method.runtime.share(len(batch))), step)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return methods, losses, gradients


@every_method
@pytest.mark.parametrize("step", [0, 5])
def test_processes_add_up_to_the_whole_and_stay_the_same(step, name, store):
    settings = settings_of(name, batch_size=4)
    whole = steady(method_of(settings))
    batch = whole.sampler(store).batch(step)
    seen = gradients_of(whole)
    expected = whole.training_step(batch, step)
    (one, two), (first, second), (gradients, others) = step_of_two(settings, batch, step)
    mean = {key: (first[key] + second[key]) / 2 for key in first}
    require_equal_steps(mean, gradients, expected, seen)
    assert all(map(torch.equal, gradients, others))
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


# --- weights and synthesis --------------------------------------------------------------------------------------------


def first_target(method: Method) -> tuple[str, tuple[str, ...]]:
    """Return a target that the method makes of four modalities, and its sources."""
    target = method.rule.targets[-1]
    sources = method.sources_for(target, [name for name in FOUR if name != target])
    assert sources
    return target, sources


@every_method
def test_saved_weights_give_the_same_output(name, store, undisturbed):
    weights = find_weights(str(undisturbed(name)))
    loaded, again = load_method(weights, CPU), load_method(weights, CPU)
    target, sources = first_target(loaded)
    images = images_of(loaded, sources)
    result = loaded.synthesise(images, [target])[target]
    assert torch.equal(result, again.synthesise(images, [target])[target])
    state = load_state(undisturbed(name) / STATE_FILE).tensors
    averaged = method_of(settings_of(name)).eval()
    for network, module in averaged.inference_networks().items():
        prefix = f"average.{network}."
        module.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
        )
    averaged.references = loaded.references
    for sample in (None, 3) if loaded.styled else (None,):
        result, expected = (
            each.synthesise(images, [target], sample=sample)[target] for each in (loaded, averaged)
        )
        assert (result - expected).abs().max() < 0.02  # float16 on disk


@every_method
def test_a_slice_does_not_depend_on_the_others_of_its_batch(name):
    method = ready(name)
    target, sources = first_target(method)
    images = images_of(method, sources, count=4)
    together = method.synthesise(images, [target])[target]
    alone = [
        method.synthesise({key: image[[row]] for key, image in images.items()}, [target])[target]
        for row in range(4)
    ]
    assert torch.allclose(torch.cat(alone), together, atol=1e-5)


@every_method
def test_the_batch_size_of_completion_changes_no_byte(name, undisturbed, gappy, tmp_path):
    data = gappy(lacking=[["t2"], [], [], []])
    images = []
    for size in (1, 9):
        out = tmp_path / str(size)
        complete(data, out, weights=undisturbed(name), batch_size=size, device="cpu")
        (image,) = out.rglob("*_t2.nii.gz")
        images.append(image.read_bytes())
    assert images[0] == images[1]


@pytest.mark.parametrize("name", METHODS)  # toys make one target alone
def test_a_run_serves_all_commands_after_training(name, undisturbed, phantoms, tmp_path):
    root, data = phantoms("brats"), tmp_path / "data"
    ratio = tmp_path / "two.toml"
    ratio.write_text('hidden = [["t2"], ["t1"]]')
    prepare_splits(root, data, ratio=str(ratio), sizes=(2, 1, 1))
    weights = undisturbed(name)
    made = complete(data, tmp_path / "out", weights=weights, device="cpu")
    assert made.written == 4
    for case in made.plan.dataset.cases:
        (image,) = (tmp_path / "out" / case.id).glob("*.nii.gz")
        voxels = np.asarray(nib.load(image).dataobj)
        background = np.ones(voxels.shape, bool)
        for files in case.files.values():
            background &= np.asarray(nib.load(data / files[0]).dataobj) == 0
        assert voxels.any()
        assert not voxels[background].any()
    options: dict[str, Any] = {"truth": root, "metrics": ["ssim"], "device": "cpu"}
    scores = score(data, tmp_path / "out", output=tmp_path / "scores", **options)
    assert scores.figure("ssim", region="brain").n == 1
    options |= {"directions": True, "weights": weights}
    directions = score(data, output=tmp_path / "directions", **options)
    assert directions.figure("ssim", region="brain").n == 12
    places = {"ori": data, "cpl": tmp_path / "out", "output": tmp_path / "segment"}
    result = segment(**places)
    assert result.scores is not None
    assert {row.input for row in result.scores.rows} == {"completed"}


@every_method
@pytest.mark.parametrize("multiples", [(1, 2), (3, 3), (5, 4)], ids=str)
def test_synthesis_takes_any_multiple_of_the_stride(multiples, name):
    method = ready(name)
    target, sources = first_target(method)
    height, width = (method.stride * number for number in multiples)
    image = method.synthesise(images_of(method, sources, (height, width)), [target])[target]
    assert image.shape == (2, 1, height, width)
    assert torch.isfinite(image).all()


@every_method
def test_a_styled_method_draws_the_same_style_for_the_same_number(name):
    method = ready(name)
    target, sources = first_target(method)
    images = images_of(method, sources)
    one, again, two = (method.synthesise(images, [target], sample=n)[target] for n in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, two) is not method.styled


# --- sources ----------------------------------------------------------------------------------------------------------


SUBSETS = [subset for count in range(5) for subset in itertools.combinations(reversed(FOUR), count)]


def dedicated(name: str) -> list[dict[str, Any]]:
    """Return changes of the settings that give the method other source rules."""
    return [{}, {"plave_target": "t1ce"}] if name == "plave" else [{}]


@every_method
def test_whatever_sources_for_answers_synthesis_accepts(name):
    for changes in dedicated(name):
        method = ready(name, **changes)
        answered = 0
        for target, present in itertools.product(FOUR, SUBSETS):
            sources = method.sources_for(target, present)
            if sources is None:
                continue
            answered += 1
            assert target in method.rule.targets
            assert set(sources) <= set(present) - {target}
            result = method.synthesise(images_of(method, sources), [target])
            assert list(result) == [target]
            assert result[target].shape == (2, 1, 16, 16)
            assert torch.isfinite(result[target]).all()
        assert answered


@every_method
def test_the_sources_of_a_target_are_known_without_networks(name):
    for changes in dedicated(name):
        settings = settings_of(name, **changes)
        rule = METHODS[name].sources(settings, FOUR)
        assert rule == method_of(settings).rule
        assert all(rule.describe(target) for target in rule.targets)
        assert rule.sources_for(rule.targets[0], []) is None
        assert rule.sources_for("pd", FOUR) is None


def targets_in(batch) -> list[int]:
    if isinstance(batch, CoupleBatch):
        return list(batch.pair)  # each way
    return (batch.target if hasattr(batch, "target") else batch.y_ref).tolist()


@every_method
def test_every_target_of_the_rule_is_learned_and_no_other(name, store):
    for changes in dedicated(name):
        method = method_of(settings_of(name, batch_size=8, **changes))
        sampler = method.sampler(store)
        batches = [sampler.batch(step) for step in range(8)]
        assert {len(batch) for batch in batches} == {8}
        learned = {FOUR[index] for batch in batches for index in targets_in(batch)}
        assert learned == set(method.rule.targets)


# --- settings ---------------------------------------------------------------------------------------------------------


def foreign_to(name: str) -> dict[str, Any]:
    """Return a setting of each other method that this one does not have."""
    own = METHODS[name].settings_class.model_fields
    return {
        key: field.default
        for other in NAMES
        for key, field in METHODS[other].settings_class.model_fields.items()
        if key not in own
    }


@every_method
def test_settings_of_other_methods_are_refused_on_the_line_and_in_every_table(name, tmp_path):
    for key, value in foreign_to(name).items():
        with pytest.raises(UsageError) as caught:
            resolve(preset="tiny", method=name, overrides={key: value})
        assert caught.value.code == "setting-of-another-method", key
    key = next(iter(foreign_to(name)))
    file = tmp_path / "config.toml"
    for table in ("", "[run]\n", "[image]\n", "[optimiser]\n", *(f"[{one}]\n" for one in NAMES)):
        file.write_text(f"{table}{key} = 1\n")
        with pytest.raises(UsageError) as caught:
            resolve(preset="tiny", method=name, file=file)
        assert caught.value.code == "setting-of-another-method", table


@every_method
def test_a_run_s_own_settings_file_gives_them_back(name, tmp_path):
    settings = settings_of(name)
    (tmp_path / "config.toml").write_text(dump(settings))
    assert resolve(file=tmp_path / "config.toml") == settings


# --- the registry -----------------------------------------------------------------------------------------------------


def test_the_registry_lists_names_and_loads_neither_torch_nor_a_method(tmp_path):
    install(tmp_path)
    loaded = fresh_python(
        "-c",
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY / 'tests')!r}]\n"
        "from attcl_cli.methods import METHODS\n"
        "assert len(METHODS) == len(list(METHODS)) and METHODS.listing() and METHODS.title('toy')\n"
        "print(*METHODS, *sorted({'torch', 'toy_method', 'numpy'} & set(sys.modules)))",
    )
    assert tuple(loaded.split()) == NAMES
