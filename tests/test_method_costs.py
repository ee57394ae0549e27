"""What methods cost: operations are counted without computing, as if they had been computed, and set in a table."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from helpers import REPOSITORY, fresh_python, small_settings
from torch import nn

from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import Settings, preset_names, resolve, title_of

sys.path.append(str(REPOSITORY / "benchmarks"))

import methods
from shapes import FlopCounter, example_store, made, slices_for, translations, without_values

STEPS = {"plave": (0, 3)}
"""Those that are counted of a run of four: PLAVE's first phase and its second; of other methods the first."""


def settings_of(name: str) -> Settings:
    """Return small settings of a method as a run has them, with what its training slices settle."""
    return METHODS[name].settled(small_settings(name), example_store(16))


def test_the_operations_of_a_convolution_and_its_gradients_are_counted_as_by_hand():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    forward = 2 * (2 * 3 * 3 * 3) * (5 * 8 * 8)  # multiply and add; weights; places of five images
    x = torch.zeros(5, 2, 8, 8, requires_grad=True)
    with FlopCounter() as counter:
        y = conv(x)
    assert counter.flop == forward
    with FlopCounter() as counter:
        y.sum().backward()
    assert counter.flop == 2 * forward  # by the image, and by the weights


def test_products_are_counted_in_inference_mode_too():
    with FlopCounter() as counter, torch.inference_mode():
        nn.Linear(4, 6)(torch.zeros(7, 4))
    assert counter.flop == 2 * 7 * 4 * 6


def test_a_second_derivative_is_counted():
    x = torch.zeros(5, 4, requires_grad=True)
    line = nn.Linear(4, 6, bias=False)
    with FlopCounter() as counter:
        (gradient,) = torch.autograd.grad(line(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    product = 2 * 5 * 4 * 6
    assert counter.flop == 3 * product  # forward; by x; and that by the weights


def test_without_values_a_mask_of_a_network_is_true_everywhere():
    with without_values():
        made_mask = torch.zeros(3, 2) > 0
        assert bool(made_mask.any())
        assert torch.zeros(3, 2, 5)[made_mask].shape == (6, 5)
        assert torch.nonzero(made_mask).shape == (6, 2)


def test_without_values_a_mask_of_the_batch_has_its_own():
    mask = torch.tensor([True, False, True])
    with without_values():
        assert torch.zeros(3, 5)[mask].shape == (2, 5)
        assert not bool((~mask).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_what_is_counted_without_computing_is_what_is_computed(name):
    settings = settings_of(name)
    real = made(settings)
    with without_values():
        shapes = made(settings)
    target, sources = translations(real)[-1]
    with FlopCounter() as computed:
        real.synthesise(slices_for(real, sources, 1), [target])
    with without_values(), FlopCounter() as counted:
        shapes.synthesise(slices_for(shapes, sources, 1), [target])
    assert counted.flop == computed.flop > 0
    sampler = real.sampler(example_store(16))
    for method in (real, shapes):
        method.train()
    for step in STEPS.get(name, (0,)):
        batch = sampler.batch(step)
        with FlopCounter() as computed:
            real.training_step(batch, step)
        with without_values(), FlopCounter() as counted:
            shapes.training_step(batch, step)
        assert counted.flop == computed.flop > 0


@pytest.mark.slow
def test_a_step_costs_the_mean_of_the_phases_and_a_slice_that_of_the_targets():
    settings = settings_of("plave")
    method = made(settings)
    sampler = method.train().sampler(example_store(16))
    steps = []
    for step in (1, 3):  # the middle ones of two steps each
        with FlopCounter() as counter:
            method.training_step(sampler.batch(step), step)
        steps.append(counter.flop)
    slices = []
    for target, sources in translations(method.eval()):
        with FlopCounter() as counter:
            method.synthesise(slices_for(method, sources, 1), [target])
        slices.append(counter.flop)
    assert len(slices) == 4
    counts = methods.count(settings, steps=1)
    assert counts.step == pytest.approx(sum(steps) / 2e9)
    assert counts.slice_ == pytest.approx(sum(slices) / 4e9)
    assert counts.parameters == sum(it.numel() for it in method.parameters())


def test_ratios_of_times_are_medians_of_those_of_the_turns():
    counts = {
        "mine": methods.Counts(parameters=3_000_000, of_completion=1_500_000, step=6.0, slice_=0.5),
        "unet": methods.Counts(parameters=2_000_000, of_completion=2_000_000, step=3.0, slice_=1.0),
    }

    def times(step: float) -> methods.Times:
        return methods.Times(step=step, slice_=step / 10, training=20, completion=10)

    # Twice as slow as the yardstick in each turn; the machine drifts by more than that.
    turns = [{"mine": times(2 * unit), "unet": times(unit)} for unit in (1.0, 5.0, 9.0)]
    head, mine, unet = (" ".join(line.split()) for line in methods.table(counts, turns))
    assert head.startswith("method Mparam trained GF/slice / unet GF/step / unet s/slice")
    assert mine == "mine 1.50 3.00 0.500 0.50 6.00 2.00 1.00 2.00 10.0 2.00 10 20"
    assert unet == "unet 2.00 2.00 1.00 1.00 3.00 1.00 0.500 1.00 5.00 1.00 10 20"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--methods", "unett"], "unknown-method"),
        (["--methods", "cyclegan", "--set", "widht=4"], "unknown-setting"),
        (["--methods", "plave", "--preset", "paper", "--set", "plave_target=pd"], "unknown-target"),
    ],
)
def test_wrong_usage_is_known_before_anything_is_counted(options, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods.py", *options])
    with pytest.raises(UsageError) as caught:
        methods.main()
    assert caught.value.code == code
    assert capsys.readouterr().out == ""


def guide(heading: str = "All methods") -> dict[str, list[str]]:
    """Return the rows of a table of all methods in the guide: name -> further cells."""
    text = (REPOSITORY / "docs" / "guides" / "choose-a-method.md").read_text(encoding="utf-8")
    table = text.split(f"## {heading}")[1].split("\n\n")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_guide_has_a_row_per_method_with_its_title_and_page():
    rows = guide()
    assert set(rows) == set(METHODS)
    for name, row in rows.items():
        assert re.fullmatch(
            rf"\[{re.escape(METHODS.title(name))}\]\(\.\./methods/\d+-{name}\.md\)", row[0]
        )


def test_the_guide_says_of_each_method_what_it_was_written_from():
    rows = guide("Compare methods")
    assert set(rows) == set(METHODS)
    for name, (origin, published, _) in rows.items():
        assert ("re-specified" in origin) == ("re-specified" in METHODS.title(name))
        presets = preset_names(METHODS[name].settings_class)
        assert ("published" in published) == ("published" in presets)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_guide_has_the_costs_of_preset_base(name):
    with without_values():
        method = made(METHODS[name].settled(resolve(method=name, preset="base"), example_store(16)))
    *_, parameters, gflop, ratio = guide()[name]
    stored = method.stored_networks().values()
    assert float(parameters) == round(
        sum(it.numel() for net in stored for it in net.parameters()) / 1e6, 1
    )
    cost = methods.gflop_per_slice(method)
    assert float(gflop) == pytest.approx(cost, rel=0.005)
    assert float(ratio) == pytest.approx(cost / float(guide()["unet"][-2]), abs=0.01)


def test_without_names_every_published_method_is_counted_in_any_preset(monkeypatch):
    seen = []
    monkeypatch.setattr(methods, "count", lambda settings, **_: seen.append(settings))
    monkeypatch.setattr(methods, "table", lambda counts, turns: [*counts])
    for preset in ("tiny", "published"):
        monkeypatch.setattr(sys, "argv", ["methods.py", "--only-count", "--preset", preset])
        methods.main()
        titles = {title_of(settings) for settings in seen}
        assert titles >= {METHODS.title(name) for name in METHODS if name != "plave"}
        assert titles >= {"AttCL-GAN, variant stargan-v2", "PLAVE, variant aca-gan"}
        assert "PLAVE, variant auto-gan (re-specified)" in titles
        seen.clear()


@pytest.mark.slow
def test_the_benchmark_of_methods_prints_a_line_per_method_and_ratios_to_the_unet():
    options = (
        "--methods plave:aca-gan --preset tiny --batch-size 2 --counted-steps 1 --turns 1 --device cpu "
        "--set image_size=16 --set canvas=16 --set width=4"
    )
    output = fresh_python("benchmarks/methods.py", *options.split())
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines()[3:]}
    assert list(rows) == ["plave:aca-gan", "unet"]
    for row in rows.values():
        assert len(row) == 12
        assert all(re.fullmatch(r"\d+(\.\d+)?", cell) for cell in row)
        assert float(row[1]) >= float(row[0]) > 0  # no network of completion is not trained
    ratios = [float(rows["unet"][index]) for index in (3, 5, 7, 9)]
    assert ratios == [1, 1, 1, 1]
