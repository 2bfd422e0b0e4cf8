"""Rigid registration of a source to its target by Mattes mutual information, and the check of what came out.

All geometry is in RAS millimetres. Both volumes are first resampled to axis-aligned grids there, so that oblique and
left-handed affines need no further thought. Grey values become ranks: HU and the units of an MRI are then alike, and
no bin of the histogram is spent on a range that holds nothing.

Mattes et al., PET-CT image registration in the chest using free-form deformations, IEEE TMI 22, 2003.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import itk
import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..errors import CaseError

HISTOGRAM_BINS = 32
AIR = -1000.0  # HU; what lies below is padding
PADDING = 40.0  # mm about a source, its border continued: a head that is cut off gets no edge there
MARGIN = 10.0  # mm about the target's foreground that count too: the outline of the head is told by both sides
INNER_DEPTH = 4.0  # mm below the target's surface; what lies deeper is inside the head
HEAD_RADIUS = 80.0  # mm: turns an angle into the way of a point on the head
START_ANGLES = (-24.0, -12.0, 0.0, 12.0, 24.0)  # degrees about each axis
START_HEIGHTS = (0.0, -20.0, 20.0, -40.0, 40.0)  # mm
NUM_TURNED = 8
NUM_STARTS = 1 + 2 * len(START_HEIGHTS) + NUM_TURNED


@dataclass(frozen=True)
class Level:
    """One resolution of the search; lengths in mm.

    Attributes:
        spacing: edge of the voxels.
        num_samples: points that the mutual information is estimated from.
        first_step: of the ascent.
        last_step: the ascent stops when its steps are shorter.
        num_starts: how many starts are followed from here, the best first.
    """

    spacing: float
    num_samples: int
    first_step: float
    last_step: float
    num_starts: int


ITERATIONS = 60  # of an ascent, at most
LEAST_OVERLAP = 0.1  # of the points; fewer tell nothing, since a few points always agree
AS_GOOD = 0.99  # of the mutual information: headers as good as that, half a millimetre or so, are left as they are
SHIFT = 4.0  # mm

# Two images of one person fit clearly better, or clearly worse, than one of them and the other's mirror image, and they
# fit at a sharp place: |ln(gain over mirrored)| + sharpness / 2 was 0.32 and more in good pairs (in a noisy phantom
# 0.29), at most 0.25 in pairs of two people, but for one whose mirrored place was not found (sharpness 0.06). Less will
# do where they have more in common than two people have, whose mutual information was at most 0.53. Symmetric targets
# cannot be judged so: the symmetry of CT and T1 templates is 0.99 and more, that of people 0.06 to 0.34.
SAME_PERSON = 0.29
SAME_PERSON_IN_COMMON = 0.1
MOST_GAIN = 0.25  # of ln(gain) that counts: a search for the mirrored place that went astray must not decide alone
MUCH_IN_COMMON = 0.65  # nats
SYMMETRIC = 0.8
MIRRORED = 0.03  # of ln(gain over mirrored); symmetric templates differ by 0.01
LEVELS = (Level(8.0, 3_000, 4.0, 0.5, NUM_STARTS), Level(4.0, 10_000, 3.0, 0.2, 3), Level(2.0, 30_000, 1.0, 0.02, 1))


@dataclass(frozen=True)
class Registration:
    """What a rigid registration found.

    The mutual informations are in nats, all estimated from the same points of the target's foreground and about it.

    Attributes:
        matrix: (4, 4) target RAS mm -> source RAS mm; the identity where the headers are as good to 1 %.
        mutual_information_before: with the headers as they are; 0 where by these the two hardly overlap.
        mutual_information_after: with `matrix`.
        mutual_information_mirrored: the most that the target, mirrored left to right, reaches.
        gain_over_mirrored: after / mirrored; the geometric mean of this ratio at those points, where the outline of the
            head steadies it, and at points inside the head alone, where people differ.
        sharpness: of the better fit of these two, the fraction of the mutual information inside the head that is lost,
            on average, when the source is shifted by `SHIFT` along an axis.
        symmetry: mutual information of the target and the mirrored target inside the head, as a fraction of that of the
            target with itself; 1 for a symmetric image.
        displacement_mm: the longest way of a point of the target's foreground.
    """

    matrix: np.ndarray
    mutual_information_before: float
    mutual_information_after: float
    mutual_information_mirrored: float
    gain_over_mirrored: float
    sharpness: float
    symmetry: float
    displacement_mm: float


NOT_FOUND = Registration(np.eye(4), 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
"""Of two volumes that overlap at no place that was tried; `check_registration` refuses it."""


@dataclass(frozen=True)
class _Volume:
    """A volume on an axis-aligned RAS grid.

    Attributes:
        data: (H, W, Z) float32, 0 in the background, else the rank of the grey value in (0, 1].
        foreground: (H, W, Z) bool, inside the field of view.
        origin: (3,) mm.
        spacing: edge of the voxels, mm.
    """

    data: np.ndarray
    foreground: np.ndarray
    origin: np.ndarray
    spacing: float

    @classmethod
    def of(cls, image: nib.Nifti1Image, spacing: float, padding: float) -> _Volume:
        """The image at a spacing, padded by so many mm."""
        data, view, origin = _on_ras_grid(image, spacing, padding)
        if not view.any():
            raise CaseError("A volume is too small to be registered; give the whole volume.")
        foreground = data > foreground_threshold(data[view])
        if not (foreground & view).any():
            raise CaseError("A volume has one value everywhere; check the files.")
        ranks = np.linspace(0.1, 1, 129)
        values = np.interp(data, np.quantile(data[foreground & view], np.linspace(0, 1, ranks.size)), ranks)
        values[~foreground] = 0
        return cls(values.astype(np.float32), foreground & view, origin, spacing)

    @property
    def centre(self) -> np.ndarray:
        """(3,) centre of mass of the foreground, mm."""
        return self.points(np.array(ndimage.center_of_mass(self.foreground)))

    @property
    def box_centre(self) -> np.ndarray:
        """(3,) centre of the foreground's box, mm."""
        found = np.argwhere(self.foreground)
        return self.points((found.min(axis=0) + found.max(axis=0)) / 2)

    def points(self, voxels: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices -> mm."""
        return self.origin + self.spacing * voxels

    def mirrored(self) -> _Volume:
        """Mirrored left to right about the middle of its grid."""
        return _Volume(self.data[::-1], self.foreground[::-1], self.origin, self.spacing)

    def mirrored_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) where points of this volume are in the mirrored one, mm."""
        middle = self.origin[0] + self.spacing * (self.data.shape[0] - 1) / 2
        return np.column_stack([2 * middle - points[:, 0], points[:, 1:]])

    def samples(self, count: int, margin: float = MARGIN) -> np.ndarray:
        """(count, 3) points in mm, off the grid, whose own points are sharper than others.

        Args:
            count: how many.
            margin: mm about the foreground; below 0 for points that lie deeper than that inside it.
        """
        inside = self.foreground if margin >= 0 else ~self.foreground
        distance = ndimage.distance_transform_edt(~inside, sampling=self.spacing)
        voxels = np.argwhere(distance <= margin if margin >= 0 else distance > -margin)
        if not len(voxels):
            voxels = np.argwhere(self.foreground)
        random = np.random.default_rng(0)
        chosen = voxels[random.integers(len(voxels), size=count)]
        jittered = chosen + random.uniform(-0.5, 0.5, chosen.shape)
        return self.points(jittered.clip(0, np.array(self.data.shape) - 1))

    def itk_image(self, centre: np.ndarray, unit: float) -> itk.Image:
        """As ITK has it, with lengths from a centre (3,) mm in units of so many mm."""
        image = itk.image_from_array(np.ascontiguousarray(self.data.transpose(2, 1, 0)))
        image.SetOrigin(((self.origin - centre) / unit).tolist())
        image.SetSpacing([self.spacing / unit] * 3)
        return image


def foreground_threshold(values: np.ndarray) -> float:
    """What lies above is no background: halfway between the background's median and Otsu's threshold.

    Otsu's own would put dark fluid into the background of a stripped volume.
    """
    low, high = np.percentile(values, [0.5, 99.5])
    counts, edges = np.histogram(values.clip(low, high), bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    weight, total = np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    between = (total[-1] * weight / counts.sum() - total[:-1]) ** 2 / (weight * (counts.sum() - weight))
    otsu = centres[:-1][between.argmax()]
    return float((np.median(values[values <= otsu]) + otsu) / 2)


def _on_ras_grid(image: nib.Nifti1Image, spacing: float, padding: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Data on an axis-aligned grid, its border continued; where the image's field of view is; the grid's origin, mm."""
    data = np.nan_to_num(np.asanyarray(image.dataobj, dtype=np.float32)).clip(AIR, None)
    sigmas = np.maximum((spacing / nib.affines.voxel_sizes(image.affine) - 1) / 2, 0)
    data = ndimage.gaussian_filter(data, sigmas, mode="nearest")
    corners = nib.affines.apply_affine(image.affine, list(product(*[(0, n - 1) for n in data.shape])))
    shape = np.ceil((np.ptp(corners, axis=0) + 2 * padding) / spacing).astype(int) + 1
    origin = (corners.min(axis=0) + corners.max(axis=0)) / 2 - spacing * (shape - 1) / 2
    grid = nib.affines.from_matvec(np.eye(3) * spacing, origin)
    matrix, offset = nib.affines.to_matvec(np.linalg.inv(image.affine) @ grid)
    resampled = ndimage.affine_transform(data, matrix, offset, tuple(shape), order=1, mode="nearest")
    voxels = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1) @ matrix.T.astype(np.float32) + offset
    view = ((voxels > -0.5) & (voxels < np.array(data.shape) - 0.5)).all(axis=-1)
    return resampled, view, origin


class _MutualInformation:
    """Mutual information of two volumes as a function of a rigid transform: fixed points, one thread, deterministic.

    A transform is a (4, 4), target mm -> source mm.

    Args:
        source: the moving volume.
        target: the fixed volume.
        points: (N, 3) points of the target that it is estimated from, mm.
        ascends: whether `ascend` will be called: it needs the source's gradient, which takes most of the time.
    """

    def __init__(self, source: _Volume, target: _Volume, points: np.ndarray, ascends: bool = True) -> None:
        self.source, self.points = source, points
        # In units of the head's radius about its centre an angle and a shift of the same number move the head alike,
        # so that the ascent needs no other scales.
        self.centre = target.centre
        self.transform = itk.Euler3DTransform[itk.D].New()
        image_type = itk.Image[itk.F, 3]  # here and not above: ITK takes seconds to load what it is asked for
        self.metric = itk.MattesMutualInformationImageToImageMetricv4[image_type, image_type].New()
        self.metric.SetNumberOfHistogramBins(HISTOGRAM_BINS)
        self.metric.SetFixedImage(target.itk_image(self.centre, HEAD_RADIUS))
        self.metric.SetMovingImage(source.itk_image(self.centre, HEAD_RADIUS))
        self.metric.SetMovingTransform(self.transform)
        self.metric.SetMaximumNumberOfWorkUnits(1)
        point_set = itk.PointSet[itk.F, 3].New()
        scaled = ((points - self.centre) / HEAD_RADIUS).astype(np.float32)
        point_set.SetPoints(itk.vector_container_from_array(scaled.ravel()))
        self.metric.SetFixedSampledPointSet(point_set)
        self.metric.UseSampledPointSetOn()
        self.metric.SetUseMovingImageGradientFilter(ascends)
        self.metric.Initialize()

    def at(self, matrix: np.ndarray) -> float:
        """Nats; 0 where no point falls into the source."""
        self._place(matrix)
        try:
            return -self.metric.GetValue()
        except RuntimeError:  # ITK's error for that
            return 0.0

    def overlaps(self, matrix: np.ndarray) -> bool:
        """Whether so many points fall into the padded source that their mutual information means something."""
        voxels = (nib.affines.apply_affine(matrix, self.points) - self.source.origin) / self.source.spacing
        inside = ((voxels > -0.5) & (voxels < np.array(self.source.data.shape) - 0.5)).all(axis=1)
        return bool(inside.mean() >= LEAST_OVERLAP)

    def ascend(self, matrix: np.ndarray, level: Level) -> np.ndarray | None:
        """The transform at the top of the hill on which the given one stands; None where no point is in the source."""
        self._place(matrix)
        optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
        optimizer.SetMetric(self.metric)
        optimizer.DoEstimateLearningRateAtEachIterationOff()
        optimizer.DoEstimateLearningRateOnceOff()
        optimizer.SetLearningRate(level.first_step / HEAD_RADIUS)
        optimizer.SetMinimumStepLength(level.last_step / HEAD_RADIUS)
        optimizer.SetGradientMagnitudeTolerance(1e-9)
        optimizer.SetNumberOfIterations(ITERATIONS)
        try:
            optimizer.StartOptimization()
        except RuntimeError:  # ITK's error where all points are outside
            return None
        linear = itk.array_from_matrix(self.transform.GetMatrix())
        shift = HEAD_RADIUS * np.array(list(self.transform.GetOffset()))
        return nib.affines.from_matvec(linear, shift + self.centre - linear @ self.centre)

    def _place(self, matrix: np.ndarray) -> None:
        linear, offset = nib.affines.to_matvec(matrix)
        self.transform.SetMatrix(itk.matrix_from_array(linear))
        self.transform.SetTranslation(((linear @ self.centre + offset - self.centre) / HEAD_RADIUS).tolist())


def _starts(information: _MutualInformation, source: _Volume, target: _Volume) -> list[np.ndarray]:
    """The headers as they are, aligned centres and places above and below them, the best of many turns; (4, 4) each.

    Two scans of one head may end elsewhere in the neck, which moves their centres by some centimetres.
    """
    centre = target.centre
    shifts = [source.centre - centre, source.box_centre - target.box_centre]
    rotations = Rotation.from_euler("xyz", list(product(START_ANGLES, repeat=3)), degrees=True).as_matrix()
    turned = [nib.affines.from_matvec(r, centre + s - r @ centre) for s in shifts for r in rotations]
    turned.sort(key=information.at, reverse=True)
    raised = [nib.affines.from_matvec(np.eye(3), s + np.array([0, 0, z])) for z in START_HEIGHTS for s in shifts]
    straight = _different([np.eye(4), *raised], centre)
    return _different([*straight, *turned], centre)[: len(straight) + NUM_TURNED]


@dataclass(frozen=True)
class _Scene:
    """A pair at one level, with the points of the target, (N, 3) mm, from which mutual information is estimated."""

    level: Level
    source: _Volume
    target: _Volume
    points: np.ndarray

    @classmethod
    def of(cls, level: Level, source: nib.Nifti1Image, target: nib.Nifti1Image) -> _Scene:
        fixed = _Volume.of(target, level.spacing, MARGIN)
        return cls(level, _Volume.of(source, level.spacing, PADDING), fixed, fixed.samples(level.num_samples))

    def mirrored(self) -> _Scene:
        """The same with a mirrored target."""
        return _Scene(self.level, self.source, self.target.mirrored(), self.target.mirrored_points(self.points))

    def information(self, ascends: bool = False) -> _MutualInformation:
        return _MutualInformation(self.source, self.target, self.points, ascends)


def _search(pyramid: Sequence[_Scene]) -> np.ndarray | None:
    """The best rigid (4, 4) that was found, target mm -> source mm, through the scenes from coarse to fine.

    None where no start leads to a place at which the two overlap.
    """
    found: list[np.ndarray] = []
    for scene in pyramid:
        information = scene.information(ascends=True)
        starts = _different(found, information.centre) if found else _starts(information, scene.source, scene.target)
        ascended = [information.ascend(start, scene.level) for start in starts[: scene.level.num_starts]]
        found = [matrix for matrix in ascended if matrix is not None and information.overlaps(matrix)]
        if not found:
            return None
        found.sort(key=information.at, reverse=True)
    return found[0]


def _different(matrices: Sequence[np.ndarray], centre: np.ndarray) -> list[np.ndarray]:
    """Those of rigid (4, 4) that bring no point of the head close to where one before them brings it."""
    sphere = centre + HEAD_RADIUS * np.concatenate([np.eye(3), -np.eye(3)])
    kept: list[np.ndarray] = []
    places = np.empty((0, *sphere.shape))
    for matrix in matrices:
        place = nib.affines.apply_affine(matrix, sphere)
        ways = np.linalg.norm(places - place, axis=-1).max(axis=-1)
        if (ways > LEVELS[0].spacing / 2).all():
            kept.append(matrix)
            places = np.concatenate([places, place[None]])
    return kept


def longest_way(matrix: np.ndarray, points: np.ndarray) -> float:
    """How far the point that a (4, 4) moves most is moved; points (N, 3), mm."""
    return float(np.linalg.norm(nib.affines.apply_affine(matrix, points) - points, axis=1).max())


def register_rigid(source: nib.Nifti1Image, target: nib.Nifti1Image) -> Registration:
    """Register a source rigidly to its target, and its mirrored target too, for `check_registration`.

    Deterministic; one thread. The headers may place the two apart: places at which their centres meet are tried too.

    Args:
        source: (H, W, Z), any contrast and affine.
        target: (H, W, Z), any contrast and affine.

    Returns:
        The registration; where no place was found at which they overlap, `NOT_FOUND`.

    Raises:
        CaseError: a volume has one value everywhere, or is smaller than the voxels of the coarsest level.
    """
    pyramid = _pyramid(source, target)
    matrix, mirrored_matrix = _search(pyramid), _search([scene.mirrored() for scene in pyramid])
    if matrix is None or mirrored_matrix is None:
        return NOT_FOUND
    finest = pyramid[-1]
    deeper = finest.target.samples(finest.level.num_samples, -INNER_DEPTH)
    whole, inside = (replace(finest, points=_shown(source, points, matrix)) for points in (finest.points, deeper))
    information = whole.information()
    if information.overlaps(np.eye(4)) and information.at(np.eye(4)) >= information.at(matrix) * AS_GOOD:
        matrix = np.eye(4)
    mirrored = whole.mirrored().information().at(mirrored_matrix)
    fits = [(inside.information(), matrix), (inside.mirrored().information(), mirrored_matrix)]
    inner, inner_mirrored = (fit.at(place) for fit, place in fits)
    if min(information.at(matrix), mirrored, inner, inner_mirrored) <= 0:
        return NOT_FOUND
    return Registration(
        matrix=matrix,
        mutual_information_before=information.at(np.eye(4)) if information.overlaps(np.eye(4)) else 0.0,
        mutual_information_after=information.at(matrix),
        mutual_information_mirrored=mirrored,
        gain_over_mirrored=float(np.sqrt(information.at(matrix) / mirrored * inner / inner_mirrored)),
        sharpness=_sharpness(*fits[inner < inner_mirrored]),
        symmetry=_symmetry([*pyramid[1:], inside], np.linalg.inv(mirrored_matrix) @ matrix),
        displacement_mm=longest_way(matrix, whole.points),
    )


def _pyramid(source: nib.Nifti1Image, target: nib.Nifti1Image) -> list[_Scene]:
    """From coarse to fine, as far as the voxels allow; at least two."""
    edge = max(np.cbrt(abs(np.linalg.det(image.affine[:3, :3]))) for image in (source, target))
    levels = [level for level in LEVELS if level in LEVELS[:2] or level.spacing >= edge / 2]
    return [_Scene.of(level, source, target) for level in levels]


def _shown(source: nib.Nifti1Image, points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Those of the target's points that the source shows; all of them where next to none is shown."""
    voxels = nib.affines.apply_affine(np.linalg.inv(source.affine) @ matrix, points)
    shown = ((voxels > -0.5) & (voxels < np.array(source.shape[:3]) - 0.5)).all(axis=1)
    return points[shown] if shown.mean() > 0.1 else points


def _sharpness(information: _MutualInformation, matrix: np.ndarray) -> float:
    shifts = [sign * SHIFT * axis for axis in np.eye(3) for sign in (-1, 1)]
    shifted = [information.at(nib.affines.from_matvec(np.eye(3), shift) @ matrix) for shift in shifts]
    return 1 - float(np.mean(shifted)) / information.at(matrix)


def _symmetry(scenes: Sequence[_Scene], start: np.ndarray) -> float:
    """See `Registration`; the search begins at (4, 4), target mm -> mirrored target mm."""
    matrix = start
    for scene in scenes:
        information = replace(scene, source=scene.target.mirrored()).information(ascends=True)
        ascended = information.ascend(matrix, scene.level)
        matrix = matrix if ascended is None else ascended
    return information.at(matrix) / replace(scenes[-1], source=scenes[-1].target).information().at(np.eye(4))


def register_checked(
    source: nib.Nifti1Image, target: nib.Nifti1Image, name: str, files: tuple[str, str]
) -> Registration:
    """`register_rigid` of two scans of a head, with all that is refused about it.

    Args:
        source: (H, W, Z), any contrast and affine.
        target: (H, W, Z), any contrast and affine.
        name: the subject and what is registered to what, for the sentence.
        files: the names of the source's and the target's file.

    Raises:
        CaseError: a volume too thin to be registered or of one value, or a registration that cannot be right
            (`check_registration`); the sentence begins with the name.
    """
    for image, file in zip((source, target), files, strict=True):
        thickness = float((nib.affines.voxel_sizes(image.affine) * image.shape[:3]).min())
        if thickness < LEVELS[0].spacing:
            raise CaseError(
                f"{name}: {file} is only {thickness:.1f} mm thick, and {LEVELS[0].spacing:.0f} mm are needed "
                "to register it; give the whole volume, or trust the headers with registration False."
            )
    try:
        registration = register_rigid(source, target)
    except CaseError as error:
        raise CaseError(f"{name}: {error}") from None
    check_registration(registration, name)
    return registration


def check_registration(registration: Registration, name: str) -> None:
    """Refuse a registration that cannot be right.

    Args:
        registration: of one pair.
        name: the subject, for the message.

    Raises:
        CaseError: no place was found at which the two overlap; mutual information was not raised; or the source fits
            the target and the mirrored target alike and at no sharp place, so that it is another person's; or it fits
            the mirrored target better.
    """
    before, after = registration.mutual_information_before, registration.mutual_information_after
    mirrored = registration.mutual_information_mirrored
    if after <= 0:
        raise CaseError(
            f"{name}: no place was found at which source and target overlap; check that both show the head, and that "
            "their voxel sizes are right."
        )
    if after < before:
        raise CaseError(
            f"{name}: registration did not raise the mutual information of source and target ({before:.3f} to "
            f"{after:.3f} nats); check that both show the whole head."
        )
    gain = float(np.log(registration.gain_over_mirrored))
    least = SAME_PERSON if max(after, mirrored) < MUCH_IN_COMMON else SAME_PERSON_IN_COMMON
    if min(abs(gain), MOST_GAIN) + registration.sharpness / 2 < least and registration.symmetry < SYMMETRIC:
        raise CaseError(
            f"{name}: the source fits the target as little as its mirror image ({after:.3f} against "
            f"{mirrored:.3f} nats), so the two seem to show different people; check that they belong together."
        )
    if gain < -MIRRORED:
        raise CaseError(
            f"{name}: the source fits the mirrored target better than the target ({mirrored:.3f} against {after:.3f} "
            "nats), so one of the two is mirrored left to right; correct its header."
        )
