"""Pictures that are one stream: JPEG, PNG, JPEG 2000, WebP; Pillow reads their headers."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, Jpeg2KImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from stfast._native import Header
from stfast.images._header import whole_file

_Opener = Callable[[Path], Image.Image]

_GREY_OR_RGB = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")

_KINDS: dict[str, tuple[_Opener, tuple[str, ...], str]] = {
    "jpeg": (JpegImagePlugin.JpegImageFile, ("L", "RGB", "CMYK"), "grey, RGB or CMYK"),
    "png": (PngImagePlugin.PngImageFile, _GREY_OR_RGB, "grey or RGB"),
    "jpeg2000": (Jpeg2KImagePlugin.Jpeg2KImageFile, _GREY_OR_RGB, "grey or RGB"),
    "webp": (WebPImagePlugin.WebPImageFile, ("RGB", "RGBA"), "RGB"),
}

_UM_PER_INCH = 25_400.0


def kind_of(start: bytes) -> str | None:
    """What the first bytes of a file are the start of."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "jpeg2000"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    return None


def open_plain(path: Path, kind: str) -> tuple[Header, float | None]:
    """Header of a picture, and µm per pixel if its resolution says so."""
    opener, modes, wanted = _KINDS[kind]
    with opener(path) as image:
        if image.mode not in modes:
            raise NotImplementedError(f"{path}: expected a {wanted} image, got {image.mode}")
        if getattr(image, "is_animated", False):
            raise NotImplementedError(f"{path}: expected one picture, got an animation")
        dpi = image.info.get("dpi")
        per_inch = sum(dpi) / 2 if dpi else 0.0
        return whole_file(path, kind, image.size), _UM_PER_INCH / per_inch if per_inch else None
