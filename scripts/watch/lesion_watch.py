"""What a CT shows and the synthetic T1 made from it does not: dark or bright regions that went missing.

Both are looked at on a grid of about 3 mm, smoothed by Gaussians of several widths, so that noise averages out. Fluid
that the T1 shows explains dark CT: it is taken out of the CT in proportion. What is left is compared with its mirror
side, and with the darkest (or brightest) of the mirror's neighbours, since two sides are never quite alike; it must
differ from the HU that voxels of the same T1 intensity have in this brain, too. What is dark on both sides is compared
with these HU alone. A limit is a number of HU or a multiple of the volume's own scatter, whichever is larger. A region
counts when the T1 does not show it too.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy
from scipy import ndimage

from .midsagittal import MirrorPlane, find_mirror_plane

__all__ = ["BRIGHT", "DARK", "Criterion", "Finding", "LesionWatch", "LesionWatchd"]

DARK, BRIGHT = 1, 2  # labels of the marks


@dataclass(frozen=True)
class Finding:
    """A region that the CT shows and the synthetic T1 does not.

    Attributes:
        kind: "dark" or "bright" in the CT.
        ml: its volume.
        place_mm: RAS+ mm of its voxel nearest to its centre.
        hu: how far it is from what it was compared with, on average; fluid that the T1 shows is taken out.
        synthetic: brightness in the synthetic T1 relative to the same, 1 is equal.
        compared_with: "mirror side" or "tissue" of the same T1 intensity.
    """

    kind: str
    ml: float
    place_mm: tuple[float, float, float]
    hu: float
    synthetic: float
    compared_with: str


@dataclass(frozen=True)
class Criterion:
    """From where on a region is odd.

    Attributes:
        label: `DARK` or `BRIGHT`.
        sigma_mm: of the smoothing.
        scatters: least distance from the expectation as a multiple of the volume's own scatter.
        hu: least distance, HU.
        ml: least volume beyond both.
        mirror: compared with the mirror side, else with tissue of the same T1 intensity.
        inside: least share of the smoothing's weight within the brain: how far the edge is kept away from.
        tissue_share: with the mirror side, how far it must be from tissue of its T1 intensity, too, as a share of the
            limit: the healthy side opposite to a bright lesion is not dark.
    """

    label: int
    sigma_mm: float
    scatters: float
    hu: float
    ml: float = 0.5
    mirror: bool = True
    inside: float = 0.9
    tissue_share: float = 0.5


# Chosen on the simulated CT of eight people of the training, with the T1 they were simulated from. The limits for what
# is bright were raised after false alarms in held-out people, so that their rate of these is not quite independent.
CRITERIA = (
    Criterion(DARK, 3.0, 3.0, 3.0),
    Criterion(DARK, 4.5, 3.0, 3.0),
    Criterion(DARK, 6.0, 3.5, 3.0),
    Criterion(BRIGHT, 3.0, 5.0, 8.0, 0.3, inside=0.95),
    Criterion(DARK, 4.5, 5.0, 9.0, 2.0, mirror=False, inside=0.97),
)


# for asymmetries of any kind, whether the T1 explains them or not
LARGE = (
    Criterion(DARK, 6.0, 3.5, 3.0, 2.0, tissue_share=0.0),
    Criterion(BRIGHT, 3.0, 5.0, 8.0, 0.3, inside=0.95, tissue_share=0.0),
)
# least smoothing that leaves few enough HU of noise; extents are measured after it
MEASURED_AT_MM = 3.0


@dataclass(frozen=True)
class _Brain:
    """Sums over the blocks of voxels of a coarse grid: (H, W, Z) each.

    Attributes:
        weight: voxels within the brain.
        hu: CT, HU, what is brighter than tissue cut off.
        bright_hu: CT, HU.
        synthetic: T1, white matter 1.
        fluid: share of fluid by the T1.
        fluid_hu: HU of fluid minus HU of tissue.
        spacing: of the coarse grid, mm.
        plane: between the hemispheres.
    """

    weight: np.ndarray
    hu: np.ndarray
    bright_hu: np.ndarray
    synthetic: np.ndarray
    fluid: np.ndarray
    fluid_hu: float
    spacing: np.ndarray
    plane: MirrorPlane


@dataclass(frozen=True)
class _Compared:
    """A smoothed CT against its expectation, HU, positive where it is what is looked for; and the T1 with its own."""

    excess: np.ndarray
    cautious: np.ndarray
    valid: np.ndarray
    synthetic: np.ndarray
    synthetic_expected: np.ndarray

    @property
    def scatter(self) -> float:
        """Robust standard deviation of the excess."""
        values = self.excess[self.valid]
        return 1.4826 * float(np.median(np.abs(values))) if values.size else 0.0


def _pooled(volume: np.ndarray, block: Sequence[int]) -> np.ndarray:
    """Sums over blocks of voxels, filled up with zeros at the end."""
    padded = np.pad(volume, [(0, -n % k) for n, k in zip(volume.shape, block, strict=True)])
    (h, w, z), (i, j, k) = padded.shape, block
    return padded.reshape(h // i, i, w // j, j, z // k, k).sum(axis=(1, 3, 5), dtype=np.float32)


class LesionWatch:
    """Finds what a CT shows and the synthetic T1 does not.

    Args:
        criteria: from where on a region is odd.
        window: HU that 0 and 1 of the source stand for.
        working_mm: edge of the grid that is worked on.
        least_darkening: a dark region is shown by the T1 where it is at least this share darker there than its
            expectation is,
        share_of_darkening: and at least this share of how much darker the CT is.
        least_change: a bright one where the T1 differs by this share from its expectation.
    """

    def __init__(
        self,
        criteria: Sequence[Criterion] = CRITERIA,
        window: Sequence[float] = (0.0, 80.0),
        working_mm: float = 3.0,
        least_darkening: float = 0.1,
        share_of_darkening: float = 0.5,
        least_change: float = 0.2,
    ) -> None:
        self.criteria = tuple(criteria)
        self.window = tuple(window)
        self.working_mm = working_mm
        self.least_darkening = least_darkening
        self.share_of_darkening = share_of_darkening
        self.least_change = least_change

    def __call__(self, source: np.ndarray, synthetic: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, list]:
        """Look at one case.

        Args:
            source: CT as the network was given it, (H, W, Z) in RAS order, [0, 1], 0 outside the brain.
            synthetic: T1 made of it, the same shape, [0, 1].
            affine: voxel to RAS+ mm.

        Returns:
            marks (H, W, Z) uint8 (1: dark in the CT and not in the T1, 2: bright and not), and the list of `Finding`,
            the largest first.
        """
        marks = np.zeros(source.shape, np.uint8)
        mask = ndimage.binary_fill_holes(source > 0)
        spacing = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
        block = np.maximum(np.round(self.working_mm / spacing), 1).astype(int)
        brain = self._brain(source, synthetic, mask, spacing, block)
        if brain is None:
            return marks, []
        findings: list[Finding] = []
        taken = np.zeros(brain.weight.shape, bool)
        regions = {label: np.zeros_like(taken) for label in (DARK, BRIGHT)}
        # what is bright is told as bright alone: its dark surroundings are no second finding
        for criterion in sorted(self.criteria, key=lambda c: (-c.label, not c.mirror)):
            regions[criterion.label] |= self._regions(brain, criterion) & ~taken
            if criterion.label == BRIGHT:
                taken |= ndimage.binary_dilation(regions[BRIGHT], iterations=2)
        for label, region in regions.items():
            if region.any():
                marks[_upsampled(region, block, marks.shape) & mask & (marks == 0)] = label
                findings += self._findings(brain, label, region, marks, affine, block)
        return marks, sorted(findings, key=lambda finding: -finding.ml)

    def _brain(
        self, source: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, spacing: np.ndarray, block: np.ndarray
    ) -> _Brain | None:
        """What is compared, on the coarse grid; None where the brain is too small or the T1 is empty."""
        low, high = self.window
        if mask.sum() * np.prod(spacing) < 50_000:
            return None
        hu = low + (high - low) * np.asarray(source, np.float32)
        white = float(np.percentile(synthetic[mask], 85))
        if white <= 0:
            return None
        synthetic = np.asarray(synthetic, np.float32) / white
        # from grey matter, 0.6 of white matter and more, to fluid
        fluid = np.clip((0.6 - synthetic) / 0.4, 0, 1)
        tissue = float(np.median(hu[mask & (fluid < 0.1)]))
        inside = mask.astype(np.float32)
        weight = _pooled(inside, block)
        sums = [_pooled(v * inside, block) for v in (np.minimum(hu, tissue + 12), hu, synthetic, fluid)]
        coarse = spacing * block
        return _Brain(weight, *sums, _fluid_contrast(weight, sums[0], sums[3]), coarse, _plane(sums[0], coarse))

    def _compare(self, brain: _Brain, criterion: Criterion) -> _Compared:
        """CT and T1 beside what is expected of them."""
        widths = criterion.sigma_mm / brain.spacing
        weight = ndimage.gaussian_filter(brain.weight, widths)
        full = float(brain.weight.max())
        share = np.maximum(weight, 1e-3 * full)
        hu = brain.bright_hu if criterion.label == BRIGHT else brain.hu
        sign = 1.0 if criterion.label == BRIGHT else -1.0
        valid = (brain.weight > full / 2) & (weight > criterion.inside * full)
        synthetic = ndimage.gaussian_filter(brain.synthetic, widths) / share
        mirrored = brain.plane.reflected(weight)
        there = np.maximum(mirrored, 1e-3 * full)
        synthetic_expected = brain.plane.reflected(synthetic * weight) / there
        # where the T1 shows fluid, nothing that is dark is odd
        solid = brain.fluid < (0.15 if criterion.label == DARK else 2.0) * brain.weight
        by_tissue = np.where(solid, sign * (hu - _usual_hu(brain) * brain.weight), 0.0)
        by_tissue = ndimage.gaussian_filter(by_tissue, widths) / share
        by_tissue -= np.median(by_tissue[valid]) if valid.any() else 0.0
        if not criterion.mirror:
            # its blurred edge would be taken for tissue
            valid &= ndimage.gaussian_filter(brain.fluid, widths) < 0.1 * share
            return _Compared(by_tissue, by_tissue, valid, synthetic, synthetic_expected)
        explained = ndimage.gaussian_filter(hu - brain.fluid_hu * brain.fluid, widths) / share
        expected = brain.plane.reflected(explained * weight) / there
        valid &= mirrored > criterion.inside * full
        near = np.where(mirrored > full / 2, sign * expected, -np.inf)
        cautious = sign * explained - ndimage.maximum_filter(near, size=3)
        if criterion.tissue_share > 0:
            cautious = np.minimum(cautious, by_tissue / criterion.tissue_share)
        return _Compared(sign * (explained - expected), cautious, valid, synthetic, synthetic_expected)

    def _regions(self, brain: _Brain, criterion: Criterion) -> np.ndarray:
        """Where a criterion finds something: (H, W, Z) bool of the coarse grid."""
        compared = self._compare(brain, criterion)
        limit = max(criterion.hu, criterion.scatters * compared.scatter)
        odd = compared.valid & (compared.cautious > limit)
        odd, count = ndimage.label(odd)
        sizes = np.bincount(odd.ravel(), minlength=count + 1) * np.prod(brain.spacing) / 1000
        kept = sizes >= criterion.ml
        kept[0] = False
        found = np.zeros_like(odd, dtype=bool)
        fine = self._compare(brain, replace(criterion, sigma_mm=MEASURED_AT_MM))
        for number in np.flatnonzero(kept):
            region, core = _grown(fine, odd == number)
            if not self._shown(fine, core, brain, criterion):
                found |= region
        return found

    def _shown(self, compared: _Compared, region: np.ndarray, brain: _Brain, criterion: Criterion) -> bool:
        """Whether the T1 shows it too, beside its own mirror side."""
        change = float(compared.synthetic[region].mean() / max(compared.synthetic_expected[region].mean(), 1e-3)) - 1
        if criterion.label == BRIGHT:
            return abs(change) >= self.least_change
        level = float(brain.hu.sum() / brain.weight.sum())
        darkening = float(compared.excess[region].mean()) / level
        return -change >= max(self.least_darkening, self.share_of_darkening * darkening)

    def _findings(
        self, brain: _Brain, label: int, region: np.ndarray, marks: np.ndarray, affine: np.ndarray, block: np.ndarray
    ) -> list[Finding]:
        """The connected parts of what is marked."""
        kind = "dark" if label == DARK else "bright"
        mirror = self._compare(brain, Criterion(label, 3.0, 0.0, 0.0))
        tissue = self._compare(brain, Criterion(label, 3.0, 0.0, 0.0, mirror=False))
        sign = -1 if label == DARK else 1
        millilitres = abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])) / 1000
        parts, count = ndimage.label(marks == label)
        found = []
        for number in range(1, count + 1):
            voxels = np.argwhere(parts == number)
            nearest = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
            part = np.unique(voxels // block, axis=0)
            at = tuple(part.T)
            by_mirror = mirror.excess[at].mean() >= 2.0
            compared = mirror if by_mirror else tissue
            ratio = mirror.synthetic[at].mean() / max(mirror.synthetic_expected[at].mean(), 1e-3)
            found.append(
                Finding(
                    kind,
                    round(float(len(voxels) * millilitres), 1),
                    tuple(round(float(x), 1) for x in (np.asarray(affine) @ [*nearest, 1.0])[:3]),
                    round(sign * float(compared.excess[at].mean()), 1),
                    round(float(ratio), 2),
                    "mirror side" if by_mirror else "tissue",
                )
            )
        return [finding for finding in found if finding.ml >= 0.3]


def _grown(compared: _Compared, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A region as far as half of its own depth, which is where the edge of a blurred ball lies; and its core."""
    peak = float(np.median(compared.excess[seed]))
    near = ndimage.binary_dilation(seed, iterations=4) & compared.valid
    parts, _ = ndimage.label(near & (compared.excess > 0.5 * peak))
    region = np.isin(parts, np.unique(parts[seed & (parts > 0)])) & (parts > 0)
    core = region & (compared.excess > 0.8 * peak)
    return region, core if core.any() else seed


def _fluid_contrast(weight: np.ndarray, hu: np.ndarray, fluid: np.ndarray) -> float:
    """HU of fluid minus HU of tissue, away from the edge; -20 where there is too little fluid to tell."""
    core = ndimage.binary_erosion(weight > 0.85 * weight.max())
    values, share = hu[core] / weight[core], fluid[core] / weight[core]
    if (share > 0.8).sum() < 30 or (share < 0.1).sum() < 30:
        return -20.0
    return min(float(np.median(values[share > 0.8]) - np.median(values[share < 0.1])), -3.0)


def _plane(hu: np.ndarray, spacing: np.ndarray) -> MirrorPlane:
    """The plane between the hemispheres, found on voxels of twice the size."""
    found = find_mirror_plane(_pooled(hu, (2, 2, 2)), 2 * spacing)
    # the first voxel of the larger ones lies half a voxel further in
    return MirrorPlane(found.normal, found.offset + float(found.normal @ spacing) / 2, spacing)


def _usual_hu(brain: _Brain) -> np.ndarray:
    """HU that voxels of the same T1 intensity have in this brain: medians of 12 classes, interpolated."""
    weight = np.maximum(brain.weight, 1e-3)
    hu, synthetic = brain.hu / weight, brain.synthetic / weight
    core = ndimage.binary_erosion(brain.weight > 0.85 * brain.weight.max())
    if not core.any():
        return hu
    edges = np.quantile(synthetic[core], np.linspace(0, 1, 13))
    classes = np.clip(np.searchsorted(edges, synthetic[core], side="right") - 1, 0, 11)
    medians = [np.median(hu[core][classes == k]) if (classes == k).any() else np.nan for k in range(12)]
    known = np.isfinite(medians)
    return np.interp(synthetic, ((edges[1:] + edges[:-1]) / 2)[known], np.asarray(medians)[known])


def _upsampled(region: np.ndarray, block: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A region of the coarse grid on the fine one, its surface interpolated."""
    fine = ndimage.zoom(region.astype(np.float32), block, order=1, mode="nearest", grid_mode=True) > 0.5
    return fine[tuple(slice(0, n) for n in shape)]


class LesionWatchd(MapTransform):
    """`LesionWatch` for the dictionary of a translated case, on the network's grid.

    It adds `lesion_watch`, the findings as dictionaries, and where there are any `watch`, the marks (1, H, W, Z) uint8;
    and `asymmetric_ml`, what is unlike its mirror side whether the T1 shows it or not.

    Args:
        keys: key of the synthetic volume, (1, H, W, Z), [0, 1].
        source_key: key of what the network was given, a MetaTensor on the same grid; the marks can be inverted like it.
        enabled: look at all.
        window: HU that 0 and 1 of the source stand for.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        source_key: str = "image",
        enabled: bool = True,
        window: Sequence[float] | None = (0.0, 80.0),
    ) -> None:
        super().__init__(keys)
        self.source_key = source_key
        self.watch = LesionWatch(window=window) if enabled and window else None
        # nothing counts as shown by the T1
        self.asymmetry = LesionWatch(
            LARGE, window or (0.0, 80.0), least_darkening=math.inf, share_of_darkening=0.0, least_change=math.inf
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.watch is None:
            return d
        source = d[self.source_key]
        affine = convert_to_numpy(source.affine).astype(np.float64)
        volumes = convert_to_numpy(source[0]), convert_to_numpy(d[self.keys[0]][0])
        marks, findings = self.watch(*volumes, affine)
        d["asymmetric_ml"] = self._asymmetric_ml(*volumes, affine)
        d["lesion_watch"] = [asdict(finding) for finding in findings]
        if findings:
            d["watch"] = MetaTensor(marks[None], meta=source.meta, applied_operations=source.applied_operations)
        return d

    def _asymmetric_ml(self, source: np.ndarray, synthetic: np.ndarray, affine: np.ndarray) -> float:
        """Volume of the dark or of the bright side, whichever is larger: what is dark here is bright there."""
        marks = self.asymmetry(source, synthetic, affine)[0]
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        return float(max((marks == label).sum() for label in (DARK, BRIGHT)) * voxel_ml)
