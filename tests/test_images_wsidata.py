"""stfast registered as a reader of wsidata; run where that package is."""

import pickle

import numpy as np
import pytest
import tifffile

import oracles

wsidata = pytest.importorskip("wsidata", reason="wsidata is large: pip install wsidata")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "striped.tif"
    with tifffile.TiffWriter(path) as tiff:
        options = {"photometric": "rgb", "rowsperstrip": 16, "compression": "deflate"}
        tiff.write(oracles.picture(400, 320), subifds=1, **options)
        tiff.write(oracles.picture(200, 160, seed=1), subfiletype=1, **options)
    return path


def test_wsidata_reads_through_stfast(path):
    import stfast.images.wsidata

    reader = wsidata.reader.READERS["stfast"](path, mpp=0.5)
    assert reader.properties.shape == [400, 320]
    assert reader.properties.level_shape == [[400, 320], [200, 160]]
    assert (reader.properties.n_level, reader.properties.mpp) == (2, 0.5)
    expected = oracles.window(oracles.picture(400, 320), 10, 20, 30, 40)
    np.testing.assert_array_equal(reader.get_region(10, 20, 30, 40), expected)
    expected = oracles.window(oracles.picture(200, 160, seed=1), 5, 10, 30, 40)
    np.testing.assert_array_equal(reader.get_region(10, 20, 30, 40, level=-1), expected)
    thumbnail = stfast.thumbnail(path, 100)[0]
    np.testing.assert_array_equal(reader.get_thumbnail(100), thumbnail)
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.get_region(0, 0, 9, 9), reader.get_region(0, 0, 9, 9))


def test_open_wsi_takes_it_by_name(path):
    import stfast.images.wsidata  # noqa: F401

    slide = wsidata.open_wsi(path, reader="stfast", store=None)
    assert slide.reader.name == "stfast"
