"""Outputs that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends without error.

    It lies beside ``path``, so that the renaming is one step of the file system;
    on an error it is removed and what was at ``path`` stays as it was.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(2, "No such directory", str(path.absolute().parent))
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
