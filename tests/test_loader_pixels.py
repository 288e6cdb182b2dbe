"""Pixels as a model wants them: normalised, turned, coloured, by (seed, epoch, index) alone."""

import numpy as np
import pytest
from PIL import Image

import stfast

torch = pytest.importorskip("torch")
ArraySource, Augment, TileLoader = stfast.ArraySource, stfast.Augment, stfast.TileLoader

N, SIDE = 300, 6


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    return ArraySource(image, np.zeros((N, 1), np.float32))


def images(source, epoch=0, **options):
    """The epoch's images in the order of the rows."""
    loader = TileLoader(source, **{"batch_size": 64, "device": "cpu"} | options)
    loader.set_epoch(epoch)
    found = list(loader)
    order = torch.cat([batch.index for batch in found]).argsort()
    return torch.cat([batch.image for batch in found])[order]


def test_philox_is_random123s():
    """The known answers that Random123 (Salmon et al. 2011) publishes for philox4x32-10."""
    from stfast.loader._augment import philox

    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for counter, key, want in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        found = philox(np.array([counter], dtype=np.uint64), key)
        assert found[0].tolist() == list(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_normalised_and_channels_last(source, dtype):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    loader = TileLoader(
        source, dtype=dtype, mean=mean, std=std, shuffle=False, batch_size=N, device="cpu"
    )
    image = next(iter(loader)).image
    assert image.shape == (N, 3, SIDE, SIDE)
    assert image.is_contiguous(memory_format=torch.channels_last)
    scaled = source.image.astype(np.float32) * np.float32(1 / 255)
    want = (scaled - np.float32(mean)) / np.float32(std)
    want = torch.from_numpy(want.transpose(0, 3, 1, 2)).to(dtype)
    torch.testing.assert_close(image, want, rtol=0, atol=0)


def test_turned_tiles_are_among_the_eight_and_all_eight_occur(source):
    turned = images(source, augment=Augment()).numpy()
    seen = np.zeros(8, int)
    for before, after in zip(source.image, turned, strict=True):
        eight = [np.rot90(p, k) for p in (before, before[:, ::-1]) for k in range(4)]
        same = [np.array_equal(one, after) for one in eight]
        assert sum(same) == 1
        seen[int(np.argmax(same))] += 1
    assert seen.min() > 15


def test_augmentation_depends_on_seed_epoch_and_spot_alone(source):
    augment = Augment(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.05)
    first = images(source, augment=augment)
    assert (images(source, augment=augment, batch_size=7, shuffle=False) == first).all()
    assert (images(source, augment=augment, workers=1, sampler="block") == first).all()
    for other in ({"epoch": 1}, {"seed": 1}):
        assert (images(source, augment=augment, **other) != first).any(dim=(1, 2, 3)).all()
    ranks = [
        TileLoader(source, augment=augment, rank=r, world_size=2, batch_size=32, device="cpu")
        for r in (0, 1)
    ]
    for loader in ranks:
        for batch in loader:
            assert (batch.image == first[batch.index]).all()


@pytest.mark.parametrize("augment", [None, Augment(), Augment(flip=False), Augment(rotate=False)])
@pytest.mark.parametrize(
    "dtype", [None, torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_a_table_says_what_torch_computes(source, dtype, augment):
    from stfast.loader._augment import Finish
    from stfast.loader._pool import Pool

    finish = Finish(dtype, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), augment, seed=3)
    index = torch.arange(N)
    want = finish(torch.from_numpy(source.image), index, 2)
    for workers in (1, 2, 5):
        found = finish.on_cpu(source.image, index, 2, Pool(1), workers)
        assert found.permute(0, 2, 3, 1).is_contiguous() or dtype is None
        assert torch.equal(found, want)


def colours(pixel, **amounts):
    """A grey or coloured tile's channels after recolouring, over many spots."""
    image = np.full((N, 2, 2, 3), pixel, np.uint8)
    source = ArraySource(image, np.zeros((N, 1), np.float32))
    augment = Augment(flip=False, rotate=False, **amounts)
    return images(source, augment=augment)[:, 0, 0].numpy().astype(int)


def test_colours_change_as_their_names_say():
    grey = colours((100, 100, 100), saturation=0.5, hue=0.2)
    assert np.abs(grey - 100).max() <= 1
    flat = colours((100, 100, 100), contrast=0.5)
    assert np.abs(flat - 100).max() <= 1
    bright = colours((100, 100, 100), brightness=0.2)
    assert (bright.max(axis=1) - bright.min(axis=1)).max() <= 1
    assert bright.min() in range(79, 85)
    assert bright.max() in range(116, 122)
    vivid = colours((150, 100, 80), saturation=0.5)
    luma = vivid @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - luma.mean()).max() < 1.5
    assert np.ptp(vivid[:, 0] - vivid[:, 2]) > 40
    turned = colours((150, 100, 80), hue=0.25)
    hues = [Image.new("RGB", (1, 1), tuple(c)).convert("HSV").getpixel((0, 0))[0] for c in turned]
    assert len(set(hues)) > 50


def test_amounts_out_of_range_are_named():
    for name, value in (("brightness", -0.1), ("contrast", 2), ("hue", 0.6)):
        with pytest.raises(ValueError, match=f"{name}: expected 0 to"):
            Augment(**{name: value})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_finishes_as_the_cpu_does(source):
    augment = Augment(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.05)
    for options in ({"augment": Augment()}, {"augment": augment, "dtype": torch.float32}):
        cpu, cuda = (images(source, device=device, **options) for device in ("cpu", "cuda"))
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4)
