"""Where the grid of squares lies in the picture.

A Visium HD array and its microscope picture do not share axes: the map
between them has a reflection and a turn of nearly half a circle. The layout
states that map once, so that the counts, the positions and the picture all
derive from it, and so that a test can compare against it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SQUARE_UM = 2.0
TURN_DEGREES = 178.5
MARGIN = 0.02
_HIRES_LONGEST = 6000
_LOWRES_LONGEST = 600
_HIRES_MPP = 1.1
_FIDUCIAL_UM = 330.0


@dataclass(frozen=True)
class Layout:
    """The grid, the picture and the affine map from one to the other.

    Attributes
    ----------
    squares
        2 µm squares per side of the grid.
    mpp
        µm per pixel of the full-resolution picture.
    height, width
        Full-resolution picture, in pixels.
    affine
        Shape (2, 3), float64. ``affine @ (array_col, array_row, 1)`` is the
        centre (x, y) of a square in full-resolution pixels. The determinant of
        its left half is negative: the map holds a reflection.
    """

    squares: int
    mpp: float
    height: int
    width: int
    affine: NDArray[np.float64]

    def pixels(
        self, rows: NDArray[np.integer], columns: NDArray[np.integer]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (x, y) of square centres in full-resolution pixels."""
        (xc, xr, x0), (yc, yr, y0) = self.affine
        return xc * columns + xr * rows + x0, yc * columns + yr * rows + y0

    @property
    def hires_factor(self) -> int:
        """Full-resolution pixels per side of a hires pixel.

        A hires pixel is about 1.1 µm wide, as on a real slide, whatever the
        size of this one; none of the hires sides exceeds 6 000 pixels.
        """
        fit = math.ceil(max(self.height, self.width) / _HIRES_LONGEST)
        return max(fit, round(_HIRES_MPP / self.mpp), 1)

    @property
    def lowres_factor(self) -> int:
        """Full-resolution pixels per side of a lowres pixel.

        A multiple of the hires factor, so that boxes of boxes stay boxes.
        """
        hires = math.ceil(max(self.height, self.width) / self.hires_factor)
        return self.hires_factor * math.ceil(hires / _LOWRES_LONGEST)

    def scalefactors(self) -> dict[str, float]:
        """Return the content of Space Ranger's ``scalefactors_json.json``."""
        return {
            "spot_diameter_fullres": SQUARE_UM / self.mpp,
            "bin_size_um": SQUARE_UM,
            "microns_per_pixel": self.mpp,
            "regist_target_img_scalef": 1.0 / self.hires_factor,
            "tissue_lowres_scalef": 1.0 / self.lowres_factor,
            "fiducial_diameter_fullres": _FIDUCIAL_UM / self.mpp,
            "tissue_hires_scalef": 1.0 / self.hires_factor,
        }


def lay_out(side_um: float, mpp: float) -> Layout:
    """Place a square grid of ``side_um`` µm in a picture a little larger."""
    squares = round(side_um / SQUARE_UM)
    turn, step = math.radians(TURN_DEGREES), SQUARE_UM / mpp
    c, s = math.cos(turn) * step, math.sin(turn) * step
    # A rotation by `turn` after the reflection row -> -row.
    linear = np.array([[c, s], [s, -c]])
    end = squares - 0.5
    corners = linear @ np.array([[-0.5, -0.5, end, end], [-0.5, end, -0.5, end]])
    low, high = corners.min(axis=1), corners.max(axis=1)
    margin = max(MARGIN * squares * step, 2.0 * step)
    width, height = (math.ceil(v) for v in high - low + 2 * margin)
    affine = np.column_stack([linear, margin - low])
    return Layout(squares, mpp, height, width, affine)
