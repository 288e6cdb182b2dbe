"""stfast as a reader of wsidata, and so of lazyslide: ``import stfast.images.wsidata``.

The import adds :class:`StfastReader` to wsidata's registry; then
``wsidata.open_wsi(path, reader="stfast")`` reads whatever :func:`stfast.open_image`
reads, striped files and plain pictures among them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wsidata.reader import READERS, ReaderBase, SlideProperties

from stfast.images import SlideImage, open_image

_EXTENSIONS = (
    ".svs .ndpi .tif .tiff .btf .qptiff .ome.tif .ome.tiff .jpg .jpeg .png .jp2 .j2k .webp"
)


class StfastReader(ReaderBase):  # type: ignore[misc]
    """A slide that stfast reads, with wsidata's methods.

    Parameters
    ----------
    file
        The image file.
    **options
        ``channels`` and ``mpp`` are those of :func:`stfast.open_image`; others are
        ignored, as wsidata asks.
    """

    name = "stfast"
    pkg_namespaces = "stfast"
    extensions = tuple(_EXTENSIONS.split())

    def __init__(self, file: str | Path, **options: Any) -> None:
        self.file = str(file)
        self._options = {key: options[key] for key in ("channels", "mpp") if key in options}
        self.create_reader()
        image: SlideImage = self.reader
        height, width = image.shape
        self.set_properties(
            SlideProperties(
                shape=[height, width],
                n_level=len(image.levels),
                level_shape=[list(level.shape) for level in image.levels],
                level_downsample=[level.downsample[0] for level in image.levels],
                mpp=image.mpp,
                bounds=[0, 0, width, height],
                raw=json.dumps({"kind": image.kind, "mpp_source": image.mpp_source}),
            )
        )

    def get_region(
        self, x: float, y: float, width: int, height: int, level: int = 0, **_: Any
    ) -> NDArray[np.uint8]:
        """Read a rectangle: corner in level-0 px, size in px of the level; (height, width, 3)."""
        image: SlideImage = self.reader
        number = int(self.translate_level(level))
        return image.read_region((float(x), float(y)), number, (int(width), int(height)))

    def get_thumbnail(self, size: int, **_: Any) -> NDArray[np.uint8]:
        """The whole picture, no side longer than ``size`` px; (height, width, 3)."""
        from stfast.images import thumbnail

        return thumbnail(self.reader, int(size))[0]

    def create_reader(self) -> None:
        """Open the image; it holds no file cursor."""
        self.set_reader(open_image(self.file, **self._options))

    def detach_reader(self) -> None:
        """Let go of the image; it is opened again when it is asked for."""
        self.set_reader(None)


READERS["stfast"] = StfastReader
