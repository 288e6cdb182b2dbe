"""The counts: which genes each 2 µm square holds, one band of rows at a time.

A square's total is Poisson around the tissue's local density, split over the
regions that meet there; each molecule then picks a gene from its region's
profile. A profile is a deck of 2^20 cards, as many of a gene as it is abundant,
so that picking is one look-up. A band has a fixed height and its own random
stream: neither memory nor threads can change what is drawn.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stfast.synthetic.layout import Layout
from stfast.synthetic.tissue import REGIONS, Floats, Tissue, ramp

BAND_ROWS = 32
BARCODE = b"s_002um_00000_00000-1"
MARKERS = {
    "epithelium": ("EPCAM", "KRT8", "KRT18", "KRT19", "CDH1", "CEACAM5"),
    "stroma": ("COL1A1", "COL1A2", "COL3A1", "DCN", "LUM", "SPARC"),
    "lymphoid": ("PTPRC", "CD3E", "CD79A", "MS4A1", "CXCL13", "CCL19"),
    "muscle": ("ACTA2", "MYH11", "DES", "CNN1", "TAGLN", "ACTG2"),
    "adipose": ("ADIPOQ", "PLIN1", "PLIN4", "FABP4", "LPL", "CIDEC"),
}
"""Genes abundant in one region and rare elsewhere."""

HOUSEKEEPING = ("ACTB", "B2M", "EEF1A1", "GAPDH", "MT-CO1", "MT-CO3", "RPLP0", "TMSB4X")
"""Genes abundant everywhere."""

OFF_TISSUE = 0.02
"""Counts off the tissue, as a share of those on it."""

_DECK = 1 << 20
# Share of a region's molecules that its markers hold, and all housekeeping genes.
_OWN, _HOUSE = 0.10, 0.12
# How much rarer a marker is outside its region.
_FOREIGN = 1 / 60
_SPREAD, _REGION_SPREAD = 1.7, 0.4
# Molecules per area, by region in the order of REGIONS, before scaling to mean 1.
_DENSITY = (1.5, 0.7, 1.3, 0.9, 0.3)
_LUMEN = 0.15
_FIELDS = ("inside", "depth", "gland", "follicle", "rna")


@dataclass(frozen=True)
class Genes:
    """The genes and how abundant each is where.

    Attributes
    ----------
    ids, names
        Accession numbers and symbols, as long as there are genes.
    profiles
        Shape (regions + 1, genes), float64, rows sum to 1; the last row is the
        mean of the others, which is what drifts off the tissue.
    """

    ids: list[str]
    names: list[str]
    profiles: NDArray[np.float64]

    def decks(self) -> NDArray[np.uint32]:
        """Return the profiles as decks to draw from, shape (profiles, 2^20)."""
        edges = np.rint(np.cumsum(self.profiles, axis=1) * _DECK).astype(np.int64)
        edges[:, -1] = _DECK
        cards = np.diff(edges, axis=1, prepend=0)
        genes = np.arange(len(self.names), dtype=np.uint32)
        return np.stack([np.repeat(genes, some) for some in cards])


@dataclass(frozen=True)
class Band:
    """The counts of 32 rows of squares, or fewer at the end.

    Attributes
    ----------
    in_tissue
        Shape (rows * squares), bool, every square of the band.
    squares
        Squares that hold a count, as places in ``in_tissue``, ascending.
    genes_per_square
        Non-zero genes of each of ``squares``.
    genes, counts
        Non-zeros, square by square, genes ascending within a square.
    """

    start: int
    in_tissue: NDArray[np.bool_]
    squares: NDArray[np.int64]
    genes_per_square: NDArray[np.int64]
    genes: NDArray[np.int64]
    counts: NDArray[np.int32]

    def within(self) -> Self:
        """Return the band with the counts of in-tissue squares only."""
        keep = self.in_tissue[self.squares]
        each = np.repeat(keep, self.genes_per_square)
        return type(self)(
            self.start,
            self.in_tissue,
            self.squares[keep],
            self.genes_per_square[keep],
            self.genes[each],
            self.counts[each],
        )


@dataclass(frozen=True)
class Sampler:
    """Draws any band of a slide; ``scale`` is molecules per unit of density."""

    layout: Layout
    tissue: Tissue
    n_genes: int
    decks: NDArray[np.uint32]
    scale: float

    def band(self, start: int) -> Band:
        """Return the counts of the band that starts at row ``start``."""
        n = self.layout.squares
        rows, columns = np.divmod(np.arange(start * n, min(start + BAND_ROWS, n) * n), n)
        x, y = ((a * self.layout.mpp).astype(np.float32) for a in self.layout.pixels(rows, columns))
        inside, means = self._means(x, y)
        rng = np.random.default_rng([self.tissue.seed, 4, start])
        # 32 bits sort twice as fast, and hold the keys of all but huge panels.
        small = rows.size * self.n_genes < 1 << 32
        keys = self._draw(rng, means, np.uint32 if small else np.uint64)
        keys.sort()
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: keys.size])
        counts = np.diff(first, append=keys.size).astype(np.int32)
        square, gene = np.divmod(keys[first], keys.dtype.type(self.n_genes))
        held = np.bincount(square.astype(np.int64), minlength=rows.size)
        squares = np.flatnonzero(held)
        return Band(start, inside > 0, squares, held[squares], gene.astype(np.int64), counts)

    def _means(self, x: Floats, y: Floats) -> tuple[Floats, list[Floats]]:
        """Return µm inside the tissue, and expected molecules by profile."""
        inside, densities = density(self.tissue, x, y)
        mask = ramp(inside, 2.0) * self.scale
        drift = (self.scale - mask) * OFF_TISSUE
        return inside, [d * mask for d in densities] + [drift]

    def _draw(
        self, rng: np.random.Generator, means: list[Floats], dtype: type[np.unsignedinteger]
    ) -> NDArray[np.unsignedinteger]:
        """Return one key per molecule: its square times the genes, plus its gene."""
        base = np.arange(means[0].size, dtype=dtype) * dtype(self.n_genes)
        keys = []
        for deck, mean in zip(self.decks, means, strict=True):
            some = np.flatnonzero(mean > 0)
            squares = np.repeat(base[some], rng.poisson(mean[some]))
            squares += deck[rng.integers(_DECK, size=squares.size, dtype=np.uint32)]
            keys.append(squares)
        return np.concatenate(keys)


def density(tissue: Tissue, x: Floats, y: Floats) -> tuple[Floats, list[Floats]]:
    """Return µm inside the tissue, and molecules per area by region, unscaled."""
    inside, depth, gland, follicle, rna = tissue.at(x, y, _FIELDS)
    shares = tissue.shares(depth, gland, follicle)
    shares[0] *= 1 - (1 - _LUMEN) * tissue.hollow(gland)
    lively = np.exp(0.3 * rna)
    return inside, [s * lively * d for s, d in zip(shares, _DENSITY, strict=True)]


def set_up_sampler(
    layout: Layout, tissue: Tissue, genes: Genes, *, umi_per_square: float
) -> Sampler:
    """Scale the density so that a square of tissue holds ``umi_per_square`` on average."""
    every = max(1, layout.squares // 400)
    rows, columns = (
        a.ravel() for a in np.mgrid[: layout.squares : every, : layout.squares : every]
    )
    x, y = ((a * layout.mpp).astype(np.float32) for a in layout.pixels(rows, columns))
    inside, densities = density(tissue, x, y)
    within = np.sum(densities, axis=0)[inside > 0]
    scale = umi_per_square / float(within.mean()) if within.size else umi_per_square
    return Sampler(layout, tissue, len(genes.names), genes.decks(), scale)


def invent_genes(n_genes: int, seed: int) -> Genes:
    """Name the genes and make each region's profile.

    Abundances are log-normal, hence heavy-tailed; regions vary around them;
    markers and housekeeping genes then get fixed shares. The real symbols stand
    at random places among invented ones.
    """
    rng = np.random.default_rng([seed, 3])
    known = [*HOUSEKEEPING, *(name for names in MARKERS.values() for name in names)]
    names = [f"SYN{i:05}" for i in range(1, n_genes + 1)]
    places = rng.permutation(n_genes)[: len(known)]
    for place, name in zip(places, known, strict=True):
        names[place] = name
    spread = _SPREAD * rng.standard_normal(n_genes)
    noise = _REGION_SPREAD * rng.standard_normal((len(REGIONS), n_genes))
    profiles = np.exp(spread + noise)
    profiles[:, places] = 0
    house, own = np.split(places, [len(HOUSEKEEPING)])
    profiles *= (1 - _HOUSE - _OWN) / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-300)
    profiles[:, house] = _HOUSE / house.size
    for region, markers in enumerate(np.split(own, len(REGIONS))):
        profiles[:, markers] = _OWN * _FOREIGN / markers.size
        profiles[region, markers] = _OWN / markers.size
    profiles /= profiles.sum(axis=1, keepdims=True)
    # Numbers far above any that Ensembl gave out.
    ids = [f"ENSG{90_000_000_000 + i}" for i in range(1, n_genes + 1)]
    return Genes(ids, names, np.vstack([profiles, profiles.mean(axis=0)]))


def barcodes(layout: Layout, band: Band, width: int) -> NDArray[np.bytes_]:
    """Return the names of a band's squares, padded to ``width`` bytes."""
    rows, columns = np.divmod(band.squares + band.start * layout.squares, layout.squares)
    text = np.zeros((rows.size, width), np.uint8)
    text[:, : len(BARCODE)] = np.frombuffer(BARCODE, np.uint8)
    for at, numbers in ((8, rows), (14, columns)):
        for digit in range(5):
            text[:, at + 4 - digit] += (numbers // 10**digit % 10).astype(np.uint8)
    return text.view(f"S{width}").ravel()
