"""Formulas: scores of a predicted image against the true one, and distances of two sets of feature vectors.

Leaves to the caller which cases, regions and intensity windows are compared, where features come from, and what becomes
of a NaN. How the scores are called and read is written in `metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage
from scipy.linalg import blas

from attcl_cli.data.intensities import bounding_box, to_unit

Array = NDArray[Any]

# Wang et al. 2004, Image quality assessment: from error visibility to structural similarity
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # a window of 11 voxels
SSIM_K1 = 0.01
SSIM_K2 = 0.03

BRASYN_PERCENTILES = (0.5, 99.5)

# Xue et al. 2014, Gradient magnitude similarity deviation: 170 for grey values up to 255, so 170 / 255^2
GMS_C = 0.0026


def ssim_map(prediction: Array, truth: Array, *, data_range: float) -> Array:
    """Return the structural similarity of each voxel's Gaussian neighbourhood (Wang et al. 2004, Eq 13).

    Means, variances and the covariance are population moments under an n-dimensional Gaussian
    (sigma 1.5, 11 voxels wide); beyond its border the image is mirrored.

    Args:
        prediction: any shape with one axis or more.
        truth: the same shape.
        data_range: the largest possible minus the smallest possible value; positive.

    Returns:
        float64 of the same shape, in [-1, 1].

    Raises:
        ValueError: shapes differ, or the data range is not positive.
    """
    # Variances are differences of nearly equal numbers, too coarse beside c2 in float32.
    x, y = _pair(prediction, truth)
    _require_range(data_range)
    return _similarity(x, y, data_range=data_range, border="reflect")


def ssim(prediction: Array, truth: Array, *, data_range: float, mask: Array | None = None) -> float:
    """Return the mean of `ssim_map`, over the mask if there is one.

    Neighbourhoods reach across the mask's border: a voxel's value does not depend on the mask.

    Args:
        prediction: any shape with one axis or more.
        truth: the same shape.
        data_range: as in `ssim_map`.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        A number in [-1, 1], 1 for equal images; NaN for an empty mask.

    Raises:
        ValueError: as `ssim_map`, or the mask is not bool of the same shape.
    """
    _require_mask(mask, prediction)
    if mask is None:
        return _mean(ssim_map(prediction, truth, data_range=data_range))
    _pair_shapes(prediction, truth)
    _require_range(data_range)
    # No voxel of the mask sees anything beyond this block, so cutting it out changes no digit.
    block = bounding_box(mask, margin=SSIM_RADIUS)
    if block is None:
        return float("nan")
    values = ssim_map(prediction[block], truth[block], data_range=data_range)
    return _mean(values[mask[block]])


def ssim_brasyn(prediction: Array, truth: Array, tumour: Array) -> tuple[float, float]:
    """Return the two similarities that the BraSyn challenge ranks by: of the tumour, and of everything else.

    Each volume is clipped at its own 0.5 and 99.5 percentiles over all voxels (the lower one at
    least 0) and scaled to [0, 1], then multiplied by the tumour's mask or by its complement. The
    similarity is that of torchmetrics: a 3-D Gaussian (sigma 1.5, 11 voxels wide), images mirrored
    about their outermost voxels, the data range the larger of the two images' own. Its mean is over
    the whole volume, not over the mask: the challenge's script indexes by an integer mask, which
    selects no region. Most voxels are 0 in both images and count as 1, so even poor images score
    high: read it beside a baseline's score.

    Args:
        prediction: (X, Y, Z) intensities of any scale.
        truth: (X, Y, Z), likewise.
        tumour: (X, Y, Z) bool, of all tumour tissue.

    Returns:
        (tumour, healthy), each in [-1, 1]. A volume without contrast between its percentiles counts
        as zeros. NaN, counted by the caller, if both masked images are constant (an empty tumour,
        two empty volumes: without a data range there is no similarity), or if a volume holds a NaN.

    Raises:
        ValueError: shapes differ, or the mask is not bool of the same shape.

    Source: Li et al. 2023, The Brain Tumor Segmentation (BraTS) Challenge 2023: Brain MR Image
    Synthesis for Tumor Segmentation (BraSyn).
    """
    _pair_shapes(prediction, truth)
    _require_mask(tumour, prediction)
    x, y = _own_window(prediction), _own_window(truth)
    return _masked_similarity(x, y, tumour), _masked_similarity(x, y, ~tumour)


def ssim_of_regions(
    prediction: Array, truth: Array, regions: Mapping[str, Array | None], *, data_range: float
) -> dict[str, float]:
    """Return the `ssim` of several regions, at the cost of one map.

    Args:
        prediction: any shape with one axis or more.
        truth: the same shape.
        regions: name -> bool mask of the same shape, or None for all voxels.
        data_range: as in `ssim_map`.

    Returns:
        name -> what `ssim` gives with that mask.

    Raises:
        ValueError: as `ssim`.
    """
    _pair_shapes(prediction, truth)
    for mask in regions.values():
        _require_mask(mask, prediction)
    values = np.ones(prediction.shape)
    # Two empty neighbourhoods have a similarity of exactly 1: only the others are computed.
    block = bounding_box((prediction != 0) | (truth != 0), margin=SSIM_RADIUS)
    if block is not None:
        values[block] = ssim_map(prediction[block], truth[block], data_range=data_range)
    return {name: _mean(values if mask is None else values[mask]) for name, mask in regions.items()}


def psnr(prediction: Array, truth: Array, *, data_range: float, mask: Array | None = None) -> float:
    """Return the peak signal-to-noise ratio: 10 log10(data_range^2 / mean squared error).

    Args:
        prediction: any shape.
        truth: the same shape.
        data_range: as in `ssim_map`.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        dB; infinity for equal images; NaN for an empty mask.

    Raises:
        ValueError: shapes differ, the data range is not positive, or the mask is not bool of the
            same shape.
    """
    _require_range(data_range)
    x, y = _inside(prediction, truth, mask)
    error = _mean((x - y) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def nmse(prediction: Array, truth: Array, *, mask: Array | None = None) -> float:
    """Return the squared error over the squared truth: sum (prediction - truth)^2 / sum truth^2.

    Args:
        prediction: any shape.
        truth: the same shape.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        0 for equal images, 1 for a prediction of zeros; NaN for an empty mask and for a truth that
        is 0 throughout.

    Raises:
        ValueError: shapes differ, or the mask is not bool of the same shape.
    """
    x, y = _inside(prediction, truth, mask)
    energy = float(np.sum(y**2))
    return float("nan") if energy == 0 else float(np.sum((x - y) ** 2)) / energy


def gms_map(prediction: Array, truth: Array) -> Array:
    """Return the similarity of the gradient magnitudes at each pixel (Xue et al. 2014, Eq 1 to 4), slice by slice.

    Blurring lowers the gradients of edges and texture, and so the similarity; where both images are flat it is 1. The
    paper averages blocks of 2 x 2 pixels before; here the slices keep their size, since the finest detail counts.
    Beyond its border a slice goes on with its outermost pixels.

    Args:
        prediction: (..., H, W) in [0, 1].
        truth: the same shape, in [0, 1].

    Returns:
        float64 of the same shape, above 0 and at most 1.

    Raises:
        ValueError: shapes differ.
    """
    x, y = (_squared_gradient(image) for image in _pair(prediction, truth))
    value: Array = (2 * np.sqrt(x * y) + GMS_C) / (x + y + GMS_C)
    return value


def gms_of_regions(
    prediction: Array, truth: Array, regions: Mapping[str, Array]
) -> dict[str, float]:
    """Return the mean of `gms_map` over several regions.

    Args:
        prediction: (..., H, W) in [0, 1].
        truth: the same shape, in [0, 1].
        regions: name -> bool mask of the same shape.

    Returns:
        name -> a number in (0, 1], 1 for equal images; NaN for an empty mask.

    Raises:
        ValueError: shapes differ, or a mask is not bool of the same shape.
    """
    _pair_shapes(prediction, truth)
    for mask in regions.values():
        _require_mask(mask, prediction)
    values = np.ones(prediction.shape)
    # Two flat neighbourhoods have a similarity of exactly 1: only the others are computed.
    block = bounding_box((prediction != 0) | (truth != 0), margin=1)
    if block is not None:
        values[block] = gms_map(prediction[block], truth[block])
    return {name: _mean(values[mask]) for name, mask in regions.items()}


class Moments:
    """Count, mean and covariance of feature vectors, gathered batch by batch.

    Memory is that of one covariance, however many vectors come, and batches of any sizes give the
    same moments but for rounding: they are merged about their common mean (Chan, Golub and LeVeque
    1979), in float64.

    Attributes:
        count: vectors so far.
        mean: (dim,) float64; zeros while there are none.
    """

    def __init__(self, dim: int) -> None:
        """Begin without any vector.

        Args:
            dim: the length of a vector.
        """
        self.count = 0
        self.mean: Array = np.zeros(dim)
        # Sum of outer products about the mean; the upper triangle only, as BLAS adds to it in place.
        self._scatter: Array = np.zeros((dim, dim), order="F")

    def add(self, features: Array) -> None:
        """Add a batch.

        Args:
            features: (B, dim) numbers; B may be 0.

        Raises:
            ValueError: another shape, or a value that is not finite.
        """
        batch = _features(features, dim=len(self.mean))
        if len(batch) == 0:
            return
        total = self.count + len(batch)
        mean = batch.mean(axis=0)
        shift = mean - self.mean
        # The shift between the two means is one more vector: a single product adds everything.
        rows = np.vstack([batch - mean, shift * np.sqrt(self.count * len(batch) / total)])
        self._scatter = blas.dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=True)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """Return the unbiased covariance, (dim, dim) float64.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        _require_two(self.count)
        upper = np.triu(self._scatter) / (self.count - 1)
        return upper + np.triu(upper, 1).T


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Frechet distance of two normal distributions; FID if the features are Inception's.

    |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), AttCL-GAN Eq 17. The last trace is that of
    (S1^(1/2) S2 S1^(1/2))^(1/2), whose matrices are symmetric: nothing becomes complex, and
    singular covariances (fewer vectors than dimensions) need no repair. The smaller the sets, the
    larger the expected distance: compare only distances of equally many vectors.

    Args:
        first: moments of one set.
        second: those of the other, of the same dimension.

    Returns:
        0 or more.

    Raises:
        ValueError: dimensions differ, or a set has fewer than two vectors.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features of {len(first.mean)} and {len(second.mean)} dimensions: expected one number"
        )
    # The rank is below the count: the smaller set has the smaller root.
    small, large = sorted((first, second), key=lambda moments: moments.count)
    small_covariance, large_covariance = small.covariance, large.covariance
    root = _root(small_covariance, rank=small.count - 1)
    eigenvalues = linalg.eigvalsh(root.T @ large_covariance @ root)
    cross = float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())
    spread = float(np.trace(small_covariance) + np.trace(large_covariance))
    shift = float(np.sum((first.mean - second.mean) ** 2))
    return max(shift + spread - 2 * cross, 0.0)


def frechet_distance_of_few(first: Array, second: Array) -> float:
    """Return `frechet_distance` of the moments of two sets of vectors, at a cost that grows with their number.

    With X and Y the centred sets, n and m their numbers, Tr((S1 S2)^(1/2)) is the sum of the singular values of
    X Y^T / sqrt((n - 1) (m - 1)): for fewer vectors than dimensions, no covariance needs to be decomposed.

    Args:
        first: (n, dim) numbers, n at least 2.
        second: (m, dim), m at least 2.

    Returns:
        0 or more.

    Raises:
        ValueError: another shape, fewer than two vectors, or a value that is not finite.
    """
    x = _features(first, dim=np.shape(first)[-1] if np.ndim(first) else 0)
    y = _features(second, dim=x.shape[1])
    _require_two(len(x))
    _require_two(len(y))
    shift = float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2))
    x, y = ((z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y))
    cross = float(linalg.svdvals(x @ y.T).sum())
    return max(shift + float(np.sum(x**2)) + float(np.sum(y**2)) - 2 * cross, 0.0)


def kernel_distance(first: Array, second: Array) -> float:
    """Return the squared MMD of two sets under ((x . y) / dim + 1)^3; KID if the features are Inception's.

    Unbiased whatever the sizes of the sets, so distances of few slices can be compared. All pairs
    count; the mean over random subsets that is often reported estimates the same number with more
    noise.

    Args:
        first: (n, dim) numbers, n at least 2.
        second: (m, dim), m at least 2.

    Returns:
        Around 0 for sets of one distribution, negative ones included.

    Raises:
        ValueError: another shape, fewer than two vectors, or a value that is not finite.

    Source: Binkowski et al. 2018, Demystifying MMD GANs, Eq 4.
    """
    x = _features(first, dim=np.shape(first)[-1] if np.ndim(first) else 0)
    y = _features(second, dim=x.shape[1])
    _require_two(len(x))
    _require_two(len(y))
    within = sum(
        (_kernel_sum(z, z) - float(_cubic((z**2).sum(axis=1), z.shape[1]).sum()))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    )
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def mean_distance(network: Any, first: Sequence[Any], second: Sequence[Any]) -> float:
    """Return the perceptual distance of two stacks of slices, mean over slices; LPIPS if that is the network.

    Args:
        network: a `feature_networks.Perceptual`.
        first: the slices as the network embedded them, batch by batch.
        second: as many slices, in batches of the same sizes.

    Returns:
        0 or more; NaN without slices.
    """
    values = [network.between(one, other).numpy() for one, other in zip(first, second, strict=True)]
    return float(np.concatenate(values).mean()) if values else float("nan")


def _similarity(x: Array, y: Array, *, data_range: float, border: str) -> Array:
    """Return the similarity at each voxel of two float64 images; `border` is scipy's name of what lies beyond."""
    smooth = partial(ndimage.gaussian_filter, sigma=SSIM_SIGMA, radius=SSIM_RADIUS, mode=border)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2

    mean_x, mean_y = smooth(x), smooth(y)
    product_of_means = mean_x * mean_y
    sum_of_squares = mean_x**2 + mean_y**2
    covariance = smooth(x * y) - product_of_means
    # Only the sum of the variances is needed: one filter for both.
    variances = smooth(x**2 + y**2) - sum_of_squares

    luminance = (2 * product_of_means + c1) / (sum_of_squares + c1)
    value: Array = luminance * (2 * covariance + c2) / (variances + c2)
    return value


def _squared_gradient(image: Array) -> Array:
    """Return the squared magnitude of Prewitt's gradient of each slice (Xue et al. 2014, Eq 1 and 2)."""
    total = np.zeros(image.shape)
    for along, across in ((-2, -1), (-1, -2)):
        # a filter of all axes, as scipy's `prewitt`, would also average over neighbouring slices
        smooth = ndimage.correlate1d(image, [1 / 3] * 3, axis=across, mode="nearest")
        total += ndimage.correlate1d(smooth, [-1, 0, 1], axis=along, mode="nearest") ** 2
    return total


def _own_window(volume: Array) -> Array:
    """Scale a volume between its own percentiles to [0, 1]; zeros without contrast, NaN if it holds a NaN."""
    low, high = np.percentile(volume, BRASYN_PERCENTILES)
    low = np.maximum(low, 0)  # keeps a NaN
    if low >= high:
        return np.zeros(volume.shape, np.float32)
    if np.isnan(low):
        return np.full(volume.shape, np.nan, np.float32)
    return to_unit(volume, low, high)


def _masked_similarity(x: Array, y: Array, mask: Array) -> float:
    x, y = np.where(mask, x, 0), np.where(mask, y, 0)
    data_range = float(np.maximum(np.ptp(x), np.ptp(y)))
    if not data_range > 0:
        return float("nan")
    # If both are 0 as far as a window reaches, the similarity is exactly 1: there is nothing to compute.
    block = bounding_box((x != 0) | (y != 0), margin=2 * SSIM_RADIUS) or ()
    inner_x, inner_y = x[block].astype(np.float64), y[block].astype(np.float64)
    values = _similarity(inner_x, inner_y, data_range=data_range, border="mirror")
    return (float(values.sum()) + x.size - values.size) / x.size


def _root(covariance: Array, *, rank: int) -> Array:
    """Return a (dim, rank) matrix whose product with its transpose is a covariance of at most that rank."""
    eigenvalues, vectors = linalg.eigh(covariance, driver="evd")  # ascending
    kept = slice(max(len(covariance) - rank, 0), None)
    value: Array = vectors[:, kept] * np.sqrt(np.clip(eigenvalues[kept], 0, None))
    return value


def _cubic(products: Array, dim: int) -> Array:
    return (products / dim + 1) ** 3


def _kernel_sum(x: Array, y: Array) -> float:
    """Sum the kernel over all pairs, some rows at a time: memory does not grow with the square of the sets."""
    rows = 1024
    return float(
        sum(
            _cubic(x[start : start + rows] @ y.T, x.shape[1]).sum()
            for start in range(0, len(x), rows)
        )
    )


def _features(features: Array, *, dim: int) -> Array:
    batch = np.asarray(features, np.float64)
    if batch.ndim != 2 or batch.shape[1] != dim:  # noqa: PLR2004
        raise ValueError(f"features {batch.shape}: expected vectors of one length, (B, {dim})")
    if not np.isfinite(batch).all():
        raise ValueError("features: NaN or infinity among them, expected finite numbers")
    return batch


def _require_two(count: int) -> None:
    if count < 2:  # noqa: PLR2004
        raise ValueError(f"{count} feature vectors: expected two or more for their spread")


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else float("nan")


def _inside(prediction: Array, truth: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return the voxels that count, as float64 (unsigned integers would wrap in a difference)."""
    _pair_shapes(prediction, truth)
    _require_mask(mask, prediction)
    if mask is None:
        return _pair(prediction, truth)
    return _pair(prediction[mask], truth[mask])


def _pair(prediction: Array, truth: Array) -> tuple[Array, Array]:
    _pair_shapes(prediction, truth)
    return prediction.astype(np.float64), truth.astype(np.float64)


def _pair_shapes(prediction: Array, truth: Array) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: expected one shape"
        )


def _require_range(data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range {data_range}: expected a positive number")


def _require_mask(mask: Array | None, image: Array) -> None:
    # An integer mask would select by position instead of by truth: silently another number.
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape):
        raise ValueError(f"mask {mask.dtype} {mask.shape}: expected bool {image.shape}")
