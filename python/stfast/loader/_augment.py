"""Pixels as a model wants them: turned, coloured, normalised, on whichever device they are.

What happens to a spot is drawn from Philox (Salmon et al. 2011, Random123) keyed by
(seed, epoch, index): it depends on neither batch, rank, worker nor device. The draws
are made on the host, a few numbers a spot; the pixels are changed where they lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from stfast import _core
from stfast.loader._pool import Pool

FLIP, QUARTER, HALF = 1, 2, 4

_MULTIPLY = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFF_FFFF)

_GREY = (0.299, 0.587, 0.114)
_YIQ = np.array([_GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10: (n, 4) counters of 32 bits to as many random words of 32 bits."""
    x = counter.astype(np.uint64)
    k0, k1 = key
    for _ in range(10):
        low, high = x[:, 0] * _MULTIPLY[0], x[:, 2] * _MULTIPLY[1]
        x = np.stack(
            [
                (high >> np.uint64(32)) ^ x[:, 1] ^ np.uint64(k0),
                high & _LOW,
                (low >> np.uint64(32)) ^ x[:, 3] ^ np.uint64(k1),
                low & _LOW,
            ],
            axis=1,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFF_FFFF, (k1 + _WEYL[1]) & 0xFFFF_FFFF
    return x


def draws(seed: int, epoch: int, index: ArrayLike) -> NDArray[np.float64]:
    """Eight numbers in [0, 1) for each spot of an epoch: (n, 8)."""
    spots = np.asarray(index, dtype=np.int64).astype(np.uint64)
    low, high = spots & _LOW, spots >> np.uint64(32)
    key = (seed & 0xFFFF_FFFF, (seed >> 32) & 0xFFFF_FFFF)
    words = []
    for number in (0, 1):
        turn = np.full_like(spots, epoch & 0xFFFF_FFFF)
        counter = np.stack([low, high, turn, np.full_like(spots, number)], axis=1)
        words.append(philox(counter, key))
    return np.concatenate(words, axis=1) / 2.0**32


@dataclass(frozen=True)
class Augment:
    """What a tile's picture may undergo; a histology slide has no upright.

    Attributes
    ----------
    flip
        Mirror left to right, half of the time.
    rotate
        Turn by a multiple of 90°.
    brightness, contrast, saturation
        Largest change of the factor from 1: 0.2 draws it from [0.8, 1.2].
    hue
        Largest turn of the hue, in turns: 0.05 draws it from ±18°.
    """

    flip: bool = True
    rotate: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected 0 to {most}, got {getattr(self, name)!r}")

    @property
    def recolours(self) -> bool:
        """Whether it changes colours."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def turns(self, drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
        """How each tile is turned: 1 mirrors left to right, then 2 is 90° and 4 is 180°."""
        flipped = (drawn[:, 0] < 0.5) * FLIP if self.flip else np.zeros(len(drawn))
        quarters = (drawn[:, 1] * 4).astype(np.uint8) if self.rotate else np.zeros(len(drawn))
        return (flipped + quarters * QUARTER).astype(np.uint8)

    def recolour(self, image: torch.Tensor, drawn: NDArray[np.float64]) -> torch.Tensor:
        """Change the colours of tiles (n, side, side, 3), floats in [0, 1].

        Brightness, saturation and hue are one linear map of the channels, the hue as a
        turn in YIQ; contrast is a factor around the tile's mean grey.
        """
        bright, contrast, saturation = (
            1 + most * (2 * drawn[:, 2 + at] - 1)
            for at, most in enumerate((self.brightness, self.contrast, self.saturation))
        )
        turn = 2 * np.pi * self.hue * (2 * drawn[:, 5] - 1)
        change = np.zeros((len(drawn), 3, 3))
        change[:, 0, 0] = 1
        change[:, 1, 1] = change[:, 2, 2] = saturation * np.cos(turn)
        change[:, 1, 2], change[:, 2, 1] = -saturation * np.sin(turn), saturation * np.sin(turn)
        linear = bright[:, None, None] * (np.linalg.inv(_YIQ) @ change @ _YIQ)

        def there(values: NDArray[np.float64]) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(image.device, non_blocking=True)

        n, side = image.shape[:2]
        image = torch.bmm(image.reshape(n, -1, 3), there(linear.transpose(0, 2, 1)))
        grey = (image.mean(1) * image.new_tensor(_GREY)).sum(1)[:, None, None]
        factor = there(contrast)[:, None, None]
        return (image * factor + grey * (1 - factor)).clamp_(0, 1).reshape(n, side, side, 3)


def turned(image: torch.Tensor, turns: NDArray[np.uint8]) -> torch.Tensor:
    """Tiles (n, side, side, 3), each mirrored and turned as :meth:`Augment.turns` says."""

    def where(bit: int, changed: torch.Tensor) -> torch.Tensor:
        mask = torch.from_numpy((turns & bit) != 0).to(image.device, non_blocking=True)
        return torch.where(mask[:, None, None, None], changed, image)

    image = where(FLIP, image.flip(2))
    image = where(QUARTER, image.rot90(1, (1, 2)))
    return where(HALF, image.flip(1, 2))


@dataclass(frozen=True)
class Finish:
    """From uint8 tiles to what the loader's user asked for."""

    dtype: torch.dtype | None
    mean: Sequence[float]
    std: Sequence[float]
    augment: Augment | None
    seed: int

    def __call__(self, image: torch.Tensor, index: torch.Tensor, epoch: int) -> torch.Tensor:
        """Finish the tiles (n, side, side, 3) of spots given by ``index`` (on the CPU)."""
        if self.augment is None:
            return self._normalised(image)
        drawn = draws(self.seed, epoch, index.numpy())
        if self.augment.flip or self.augment.rotate:
            image = turned(image, self.augment.turns(drawn))
        if not self.augment.recolours:
            return self._normalised(image)
        values = self.augment.recolour(image.float().mul_(1 / 255), drawn)
        if self.dtype is None:
            return (values * 255).round_().to(torch.uint8)
        return self._normalised(values)

    def on_cpu(
        self, tiles: NDArray[np.uint8], index: torch.Tensor, epoch: int, pool: Pool, workers: int
    ) -> torch.Tensor:
        """The same, to the bit, in one pass over the tiles wherever a table can say it."""
        if self.augment is not None and self.augment.recolours:
            return self(torch.from_numpy(tiles), index, epoch)
        if self.augment is None and self.dtype is None:
            return torch.from_numpy(tiles)
        turns = np.empty(0, np.uint8)
        if self.augment is not None:
            turns = self.augment.turns(draws(self.seed, epoch, index.numpy()))
        table = self._table()
        bits = np.dtype(f"u{table.itemsize}")
        out = pool.array(tiles.size * table.itemsize)
        lookup = (table.view(torch.uint8).numpy().view(bits), out.view(bits))
        _core.look_up_tiles(tiles, turns, lookup, workers)
        image = torch.from_numpy(out).view(table.dtype).view(tiles.shape)
        return image if self.dtype is None else image.permute(0, 3, 1, 2)

    def _table(self) -> torch.Tensor:
        """What each channel's 256 values become: (3, 256)."""
        ramp = torch.arange(256, dtype=torch.uint8)[None, None, :, None].repeat(1, 1, 1, 3)
        done = self._normalised(ramp)
        channels = done.permute(0, 3, 1, 2) if self.dtype is None else done
        return channels.reshape(3, 256).contiguous()

    def _normalised(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 or floats in [0, 1] as the wanted type, channels first; uint8 as it is."""
        if self.dtype is None:
            return image
        values = image if image.is_floating_point() else image.float().mul_(1 / 255)
        # A row of pixels at a time: three values alone would leave vector registers empty.
        values = values.contiguous()
        values.view(*image.shape[:2], -1).sub_(self._row(self.mean, values)).div_(
            self._row(self.std, values)
        )
        return values.to(self.dtype).permute(0, 3, 1, 2)

    def _row(self, channels: Sequence[float], values: torch.Tensor) -> torch.Tensor:
        """A value a channel, for each pixel of a tile's row."""
        return values.new_tensor(channels).repeat(values.shape[2])
