"""Rigid registration of a source to its target by Mattes mutual information, and the check of what came out.

All geometry is in RAS millimetres. Both volumes are first resampled to axis-aligned grids there, so that oblique and
left-handed affines need no further thought.

Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE TMI 22, 2003.
"""

from __future__ import annotations

from dataclasses import dataclass

import itk
import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.files import CaseError

ImageType = itk.Image[itk.F, 3]
MetricType = itk.MattesMutualInformationImageToImageMetricv4[ImageType, ImageType]

HISTOGRAM_BINS = 32
PADDING = 40.0  # mm
MARGIN = 10.0  # mm around the target's foreground that are sampled too
HEAD_RADIUS = 80.0  # mm: turns an angle into the way of a point at the surface of the head
START_ANGLE = 20.0  # degrees


@dataclass(frozen=True)
class Registration:
    """What a rigid registration found.

    Attributes:
        matrix: (4, 4) target RAS mm -> source RAS mm.
        mutual_information_before: with the headers as they are, nats.
        mutual_information_after: with `matrix`.
        mutual_information_mirrored: the best that a left-right mirrored target reaches.
        displacement_mm: the longest way of a point of the target's foreground.
    """

    matrix: np.ndarray
    mutual_information_before: float
    mutual_information_after: float
    mutual_information_mirrored: float
    displacement_mm: float


@dataclass(frozen=True)
class _Volume:
    """A volume on an axis-aligned RAS grid: data (H, W, Z) in [0, 1], origin (3,) mm, spacing mm, foreground."""

    data: np.ndarray
    origin: np.ndarray
    spacing: float
    foreground: np.ndarray

    def centre_of_mass(self) -> np.ndarray:
        return self.origin + self.spacing * np.array(ndimage.center_of_mass(self.foreground))

    def centre_of_box(self) -> np.ndarray:
        found = np.argwhere(self.foreground)
        return self.origin + self.spacing * (found.min(axis=0) + found.max(axis=0)) / 2

    def mirrored(self) -> _Volume:
        """The volume mirrored left to right about the centre of its grid."""
        return _Volume(self.data[::-1], self.origin, self.spacing, self.foreground[::-1])

    def itk_image(self):
        image = itk.image_from_array(np.ascontiguousarray(self.data.transpose(2, 1, 0), dtype=np.float32))
        image.SetOrigin([float(x) for x in self.origin])
        image.SetSpacing([float(self.spacing)] * 3)
        return image


def _foreground_threshold(values: np.ndarray) -> float:
    low, high = np.percentile(values, [0.5, 99.5])
    lowest, count = np.unique(values, return_counts=True)
    if count[0] > 0.2 * values.size:  # a background of one value
        return float(lowest[0])
    histogram, edges = np.histogram(values.clip(low, high), bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(histogram)
    mean = np.cumsum(histogram * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight / weight[-1] - mean) ** 2 / (weight * (weight[-1] - weight))
    return float(centres[np.nanargmax(between[:-1])])


def _resampled(image: nib.Nifti1Image, spacing: float, padding: float) -> tuple[np.ndarray, np.ndarray]:
    data = np.nan_to_num(np.asanyarray(image.dataobj, dtype=np.float32))
    voxels = nib.affines.voxel_sizes(image.affine)
    sigmas = np.maximum((spacing / voxels - 1) / 2, 0)
    data = ndimage.gaussian_filter(data, sigmas, mode="nearest")
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in data.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = nib.affines.apply_affine(image.affine, corners)
    origin = corners.min(axis=0) - padding
    shape = np.ceil((corners.max(axis=0) + padding - origin) / spacing).astype(int) + 1
    grid = np.diag([spacing] * 3 + [1.0])
    grid[:3, 3] = origin
    to_voxels = np.linalg.inv(image.affine) @ grid
    result = ndimage.affine_transform(
        data, to_voxels[:3, :3], to_voxels[:3, 3], tuple(shape), order=1, mode="constant", cval=float(data.min())
    )
    return result, origin


def _volume(image: nib.Nifti1Image, spacing: float) -> _Volume:
    """The image at a spacing; grey values as ranks, so that every bin of the histogram counts alike."""
    data, origin = _resampled(image, spacing, PADDING)
    threshold = _foreground_threshold(data)
    foreground = data > threshold
    foreground = ndimage.binary_opening(foreground) if spacing <= 4 else foreground
    if not foreground.any():
        foreground = data > threshold
    quantiles = np.quantile(data[data > threshold], np.linspace(0, 1, 129))
    ranks = np.interp(data, quantiles, np.linspace(0.1, 1, 129))
    ranks[data <= threshold] = 0
    return _Volume(ranks.astype(np.float32), origin, spacing, foreground)


class _MutualInformation:
    """Mutual information of two volumes as a function of a rigid transform; one thread, fixed samples.

    A transform is six numbers: Euler angles (radians) about the target's centre, then the translation (mm).
    """

    def __init__(self, source: _Volume, target: _Volume, num_samples: int) -> None:
        self.centre = target.centre_of_mass()
        self.transform = itk.Euler3DTransform[itk.D].New()
        self.transform.SetCenter([float(x) for x in self.centre])
        self.metric = MetricType.New()
        self.metric.SetNumberOfHistogramBins(HISTOGRAM_BINS)
        self.metric.SetFixedImage(target.itk_image())
        self.metric.SetMovingImage(source.itk_image())
        self.metric.SetMovingTransform(self.transform)
        self.metric.SetMaximumNumberOfWorkUnits(1)
        self.metric.SetFixedSampledPointSet(_point_set(_samples(target, num_samples)))
        self.metric.UseSampledPointSetOn()
        self.metric.Initialize()

    def value(self, parameters: np.ndarray) -> float:
        self._set(parameters)
        return -self.metric.GetValue()

    def optimise(self, parameters: np.ndarray, step: float, smallest_step: float, iterations: int) -> np.ndarray:
        """Climb from a start with steps that begin at `step` mm and end at `smallest_step` mm."""
        self._set(parameters)
        estimator = itk.RegistrationParameterScalesFromPhysicalShift[MetricType].New()
        estimator.SetMetric(self.metric)
        optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
        optimizer.SetMetric(self.metric)
        optimizer.SetScalesEstimator(estimator)
        optimizer.DoEstimateLearningRateAtEachIterationOff()
        optimizer.DoEstimateLearningRateOnceOff()
        optimizer.SetLearningRate(step)
        optimizer.SetMinimumStepLength(smallest_step)
        optimizer.SetRelaxationFactor(0.5)
        optimizer.SetNumberOfIterations(iterations)
        optimizer.StartOptimization()
        return np.array(list(self.transform.GetParameters()))

    def _set(self, parameters: np.ndarray) -> None:
        values = itk.OptimizerParameters[itk.D](6)
        for i, value in enumerate(parameters):
            values.SetElement(i, float(value))
        self.transform.SetParameters(values)


def _samples(target: _Volume, count: int) -> np.ndarray:
    """(count, 3) points in mm, between the grid's own, in the target's foreground and a margin about it."""
    near = ndimage.distance_transform_edt(~target.foreground, sampling=target.spacing) <= MARGIN
    voxels = np.argwhere(near)
    random = np.random.default_rng(0)
    chosen = voxels[random.choice(len(voxels), min(count, len(voxels)), replace=False)]
    points = chosen + random.uniform(-0.5, 0.5, chosen.shape)
    points = points.clip(0, np.array(target.data.shape) - 1.001)
    return target.origin + target.spacing * points


def _point_set(points: np.ndarray):
    point_set = itk.PointSet[itk.F, 3].New()
    point_set.SetPoints(itk.vector_container_from_array(points.astype(np.float32).ravel()))
    return point_set


def _matrix(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(4, 4) of the six numbers; ITK's Euler3DTransform turns about y, then x, then z."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("ZXY", np.asarray(parameters)[[2, 0, 1]]).as_matrix()
    matrix[:3, 3] = centre + parameters[3:] - matrix[:3, :3] @ centre
    return matrix


def _parameters(matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The six numbers of a rigid (4, 4), the reverse of `_matrix`."""
    angles = Rotation.from_matrix(matrix[:3, :3]).as_euler("ZXY")[[1, 2, 0]]
    return np.concatenate([angles, matrix[:3, :3] @ centre + matrix[:3, 3] - centre])


def _starts(source: _Volume, target: _Volume) -> list[np.ndarray]:
    shifts = [
        np.zeros(3),
        source.centre_of_mass() - target.centre_of_mass(),
        source.centre_of_box() - target.centre_of_box(),
    ]
    angle = np.deg2rad(START_ANGLE)
    turns = [np.zeros(3)] + [sign * angle * axis for axis in np.eye(3) for sign in (-1, 1)]
    return [np.concatenate([turn, shift]) for shift in shifts for turn in turns]


def _search(
    levels: list[tuple[_Volume, _Volume]], starts_also: list[np.ndarray] = ()
) -> tuple[np.ndarray, _MutualInformation]:
    coarse, middle, fine = levels
    information = _MutualInformation(*coarse, 4000)
    starts = _starts(*coarse) + [_parameters(m, information.centre) for m in starts_also]
    found = [information.optimise(start, 8.0, 1.0, 25) for start in starts]
    found.sort(key=information.value, reverse=True)
    matrices = [_matrix(p, information.centre) for p in found]
    information = _MutualInformation(*middle, 10000)
    chosen = _distinct(matrices, information.centre)[:3]
    found = [information.optimise(_parameters(m, information.centre), 3.0, 0.2, 60) for m in chosen]
    best = _matrix(max(found, key=information.value), information.centre)
    information = _MutualInformation(*fine, 30000)
    best = information.optimise(_parameters(best, information.centre), 1.0, 0.02, 60)
    return _matrix(best, information.centre), information


def _distinct(matrices: list[np.ndarray], centre: np.ndarray) -> list[np.ndarray]:
    kept: list[np.ndarray] = []
    for matrix in matrices:
        if all(_displacement(np.linalg.inv(other) @ matrix, _sphere(centre)) > 6 for other in kept):
            kept.append(matrix)
    return kept


def _sphere(centre: np.ndarray) -> np.ndarray:
    return centre + HEAD_RADIUS * np.concatenate([np.eye(3), -np.eye(3)])


def _displacement(matrix: np.ndarray, points: np.ndarray) -> float:
    """The longest way of a point, mm."""
    return float(np.linalg.norm(nib.affines.apply_affine(matrix, points) - points, axis=1).max())


def register_rigid(source: nib.Nifti1Image, target: nib.Nifti1Image) -> Registration:
    """Register a source rigidly to its target.

    Args:
        source: (H, W, Z), any contrast and affine.
        target: (H, W, Z), any contrast and affine.

    Returns:
        The registration.
    """
    levels = [(_volume(source, spacing), _volume(target, spacing)) for spacing in (8.0, 4.0, 2.0)]
    matrix, information = _search(levels)
    before = information.value(np.zeros(6))
    after = information.value(_parameters(matrix, information.centre))
    if before >= after:
        matrix, after = np.eye(4), before
    mirrored_levels = [(s, t.mirrored()) for s, t in levels]
    _, mirrored_information = mirror = _search(mirrored_levels)
    mirrored = mirrored_information.value(_parameters(mirror[0], mirrored_information.centre))
    points = _samples(levels[-1][1], 2000)
    return Registration(matrix, before, after, mirrored, _displacement(matrix, points))


def check_registration(registration: Registration, name: str) -> None:
    """Refuse a registration that cannot be right.

    Args:
        registration: of one pair.
        name: the subject, for the message.

    Raises:
        CaseError: mutual information was not raised, or a mirrored target fits better.
    """
    before, after = registration.mutual_information_before, registration.mutual_information_after
    if after < before:
        raise CaseError(f"{name}: registration did not raise mutual information ({before:.3f} to {after:.3f} nats).")
    if registration.mutual_information_mirrored > after:
        raise CaseError(
            f"{name}: the target fits better mirrored left to right ({registration.mutual_information_mirrored:.3f} "
            f"against {after:.3f} nats), so one of the two images is mirrored: correct its header or leave it out."
        )
