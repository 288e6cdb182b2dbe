"""Names of spots as names of files, all at once: no loop over spots is Python's."""

import polars as pl

from stfast._platform import DEVICES

_LONGEST = 200
"""Bytes of a name that file systems take with an ending to spare."""


def file_names(names: pl.Series, *, dots: bool) -> pl.Series:
    r"""Names with what a file's name cannot hold percent-encoded, as in a URL.

    Encoded are ``/ \ % : * ? " < > |`` and control characters, a dot or a space
    at either end, the first letter of what Windows takes for a device (``NUL``, ``aux.x``)
    and, unless ``dots``, any dot: WebDataset's key ends at the first.
    """
    unsafe = {chr(code): f"%{code:02X}" for code in (*range(32), 127)}
    unsafe |= {char: f"%{ord(char):02X}" for char in '/\\:*?"<>|'}
    safe = names.str.replace_all("%", "%25", literal=True)
    safe = safe.str.replace_many(unsafe)
    if not dots:
        safe = safe.str.replace_all(".", "%2E", literal=True)
    safe = safe.str.replace_all(r"^\.", "%2E").str.replace_all(r"\.$", "%2E")
    safe = safe.str.replace_all("^ ", "%20").str.replace_all(" $", "%20")
    device = safe.str.contains(rf"^(?i:{DEVICES})(\.|$)")
    first = safe.str.slice(0, 1).replace({char: f"%{ord(char):02X}" for char in "acnlpACNLP"})
    safe = (first + safe.str.slice(1)).zip_with(device, safe)
    longest = safe.str.len_bytes().max()
    most = longest if isinstance(longest, int) else 0
    if (safe == "").any() or most > _LONGEST:
        raise ValueError(f"names: expected 1 to {_LONGEST} bytes, got {most} or none")
    return safe
