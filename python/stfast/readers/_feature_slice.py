"""``feature_slice.h5`` of Visium HD: what it says that the other files do not.

It is never needed. Where it lies beside the bins, its name of the slide and its exact
map from squares to the picture are recorded.
"""

import json
from pathlib import Path
from typing import Any

import h5py

from stfast._core import FormatError
from stfast.readers._tenx import _word


def describe_feature_slice(path: Path) -> dict[str, Any]:
    """Slide name, grid and transforms, if there is such a file."""
    found = [*path.glob("*feature_slice.h5"), *path.absolute().parent.glob("*feature_slice.h5")]
    found = [p for p in found if p.is_file()]
    if not found:
        return {}
    try:
        with h5py.File(found[0]) as file:
            content = json.loads(_word(file.attrs["metadata_json"]))
    except (OSError, KeyError, ValueError) as error:
        raise FormatError(f"{found[0]}: expected a feature slice, got {error}") from error
    known = ("sample_id", "slide_name", "nrows", "ncols", "spot_pitch", "transform_matrices")
    kept = {name: content[name] for name in known if content.get(name) is not None}
    return {"feature_slice": json.dumps(kept)}
