"The same picture in every storage that tifffile can write has the same pixels, whichever command reads it."

import io

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ipb_nb.core import InputError, read_image, read_pixels, to_grey8
from ipb_nb.frames import list_frames, to_8bit
from ipb_nb.masks import lossy_format
from ipb_nb.reader import file_frames, grey, read_frame

DTYPES = 'bool uint8 int8 uint16 int16 uint32 int32 float16 float32 float64'.split()
CODECS = [None, 'lzw', 'zlib', 'packbits', 'zstd', 'lzma', 'png', 'jpeg2000', 'jpegxl']
KINDS = ['black is zero', 'white is zero', 'palette', 'RGB', 'RGB with alpha', 'grey with alpha', 'four bits']


def seen(dtype, shape, seed):
    "A picture as a viewer shows it."
    rng = np.random.default_rng(seed)
    if dtype == 'bool':
        return rng.random(shape) < 0.4
    if dtype.startswith('float'):
        return rng.normal(0.5, 2, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -3000), min(limits.max, 60000), shape, dtype, endpoint=True)


def inverted(im):
    if im.dtype == bool:
        return ~im
    return (
        -im if im.dtype.kind == 'f' else np.array(-1 if im.dtype.kind == 'i' else np.iinfo(im.dtype).max, im.dtype) - im
    )


def stored(im, kind, planar):
    "The array and options that tifffile takes for a picture in this storage."
    if kind == 'white is zero':
        return inverted(im), dict(photometric='miniswhite')
    if kind == 'palette':
        order = np.random.default_rng(1).permutation(256).astype(np.uint8)
        table = np.zeros((3, 256), np.uint16)
        table[:, order] = np.arange(256) * 257
        return order[im], dict(photometric='palette', colormap=table)
    if kind.startswith('RGB'):
        samples = [im] * 3 + [np.full_like(im, 1)] * kind.endswith('alpha')
        more = dict(photometric='rgb', extrasamples=['unassalpha'] * kind.endswith('alpha'))
    elif kind == 'grey with alpha':
        samples, more = [im, np.full_like(im, 1)], dict(photometric='minisblack', extrasamples=['unassalpha'])
    else:
        return im, dict(photometric='minisblack')
    return np.stack(samples, 0 if planar else -1), more | dict(planarconfig='separate' if planar else 'contig')


def written(path, im, kind, codec, orientation, tiled, order, big, planar):
    "Write a picture; False where tifffile cannot, or does not read back what it wrote."
    pixels, more = stored(im, kind, planar)
    try:
        tifffile.imwrite(
            path,
            pixels,
            compression=codec,
            tile=(16, 32) if tiled else None,
            rowsperstrip=None if tiled else 7,
            byteorder=order,
            bigtiff=big,
            metadata=None,
            extratags=[(274, 3, 1, orientation, True)],
            **more,
        )
        return np.array_equal(tifffile.imread(path), pixels)
    except Exception:
        return False


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS[:-1]),
    codec=st.sampled_from(CODECS),
    orientation=st.integers(1, 8),
    tiled=st.booleans(),
    order=st.sampled_from('<>'),
    big=st.booleans(),
    planar=st.booleans(),
    shape=st.tuples(st.integers(5, 40), st.integers(5, 50)),
    seed=st.integers(0, 99),
)
def test_one_picture_in_any_tiff(
    tmp_path_factory, dtype, kind, codec, orientation, tiled, order, big, planar, shape, seed
):
    path = tmp_path_factory.getbasetemp() / 'storage.tif'
    dtype = 'uint8' if kind == 'palette' else dtype
    im = seen(dtype, shape, seed)
    if not written(path, im, kind, codec, orientation, tiled, order, big, planar):
        return
    want = im.astype(np.uint8) * 255 if dtype == 'bool' else im.astype(np.float32) if dtype == 'float16' else im
    (frame,) = file_frames(path)
    read = grey(read_frame(frame))
    assert read.dtype == want.dtype == frame['dtype'] and (frame['height'], frame['width']) == shape
    close = dict(rtol=1e-6 if kind.startswith('RGB') and want.dtype.kind == 'f' else 0)
    np.testing.assert_allclose(read, want, **close)
    np.testing.assert_allclose(grey(read_pixels(path)), want, **close)
    np.testing.assert_allclose(read_image(path), to_grey8(want), atol=dtype.startswith('float'))


def test_most_storages_were_tried(tmp_path):
    "tifffile refuses some combinations; the others are no small part."
    im = seen('uint8', (20, 30), 0)
    done = {
        (kind, codec)
        for kind in KINDS[:-1]
        for codec in CODECS
        if written(tmp_path / 'a.tif', im, kind, codec, 1, False, '<', False, False)
    }
    assert {kind for kind, _ in done} == set(KINDS[:-1]) and {codec for _, codec in done} == set(CODECS)


PILLOW = dict(png='L 1 P RGB RGBA LA', bmp='L 1 P RGB RGBA', tif='L 1 P RGB RGBA LA CMYK')  # the modes that it writes


@pytest.mark.parametrize('ending, mode', [(ending, mode) for ending in PILLOW for mode in PILLOW[ending].split()])
def test_one_picture_by_pillow(tmp_path, mode, ending):
    im = (np.add.outer(np.arange(30), np.arange(40)) // 8 % 2 * 255).astype(np.uint8)
    path = tmp_path / f'a.{ending}'
    Image.fromarray(im).convert(mode).save(path)
    (frame,) = file_frames(path)
    assert (read_image(path) == im).all() and (to_8bit(grey(read_frame(frame))) == im).all()
    assert frame['dtype'] == 'uint8'


def test_few_bits_are_no_black_picture(tmp_path):
    "Four bits by hand: tifffile writes none."
    im = np.random.default_rng(0).integers(0, 16, (10, 20)).astype(np.uint8)
    for photometric in (0, 1):
        packed = np.packbits(np.unpackbits(im[..., None], axis=-1)[..., 4:].reshape(10, -1), axis=-1).tobytes()
        tags = [(256, 20), (257, 10), (258, 4), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 10), (279, 100)]
        f = io.BytesIO()
        f.write(b'II*\0' + (8 + len(packed)).to_bytes(4, 'little') + packed + len(tags).to_bytes(2, 'little'))
        for tag, value in tags:
            f.write(tag.to_bytes(2, 'little') + b'\4\0\1\0\0\0' + value.to_bytes(4, 'little'))
        f.write(bytes(4))
        (tmp_path / 'a.tif').write_bytes(f.getvalue())
        want = (im if photometric else 15 - im) * 17
        assert (read_pixels(tmp_path / 'a.tif') == want).all()
        (frame,) = file_frames(tmp_path / 'a.tif')
        assert (read_frame(frame) == want).all() and frame['dtype'] == 'uint8'


def test_sixteen_bit_colours_are_deep_frames(tmp_path):
    im = np.random.default_rng(0).integers(0, 60000, (30, 40, 3), np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), im[..., ::-1])
    df, failures, _ = list_frames(tmp_path)
    assert df.dtype.tolist() == ['uint16'] and not failures
    assert (read_frame(df.iloc[0].to_dict()) == im).all()


@pytest.mark.parametrize('codec', CODECS)
def test_half_a_tiff_is_no_picture(tmp_path, codec):
    im = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    tifffile.imwrite(tmp_path / 'whole.tif', im, compression=codec, rowsperstrip=8)
    data = (tmp_path / 'whole.tif').read_bytes()
    for share in (0.97, 0.6, 0.2):
        (tmp_path / 'cut.tif').write_bytes(data[: int(len(data) * share)])
        for read in (read_pixels, lambda f: read_frame(file_frames(f)[0])):
            with pytest.raises(InputError, match='cut.tif: found'):
                read(tmp_path / 'cut.tif')


@pytest.mark.parametrize('photometric', [8, 32803, 34892])
def test_unknown_colour_spaces_are_named(tmp_path, photometric):
    im = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / 'a.tif', im, photometric='rgb', metadata=None)
    with tifffile.TiffFile(tmp_path / 'a.tif', mode='r+') as tif:
        tif.pages[0].tags['PhotometricInterpretation'].overwrite(photometric)
    for read in (read_pixels, lambda f: read_frame(file_frames(f)[0])):
        with pytest.raises(InputError, match='pixels of the colour space'):
            read(tmp_path / 'a.tif')


def test_a_thumbnail_in_the_file_is_no_second_image(tmp_path):
    im = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    with tifffile.TiffWriter(tmp_path / 'a.tif') as tif:
        tif.write(im, metadata=None)
        tif.write(im[::4, ::4], subfiletype=1, metadata=None)
    assert len(file_frames(tmp_path / 'a.tif')) == 1 and (read_pixels(tmp_path / 'a.tif') == im).all()


def test_samples_that_are_channels_are_chosen(tmp_path):
    im = np.random.default_rng(0).integers(0, 256, (30, 40, 5), np.uint8)
    tifffile.imwrite(tmp_path / 'a.tif', im, photometric='minisblack', planarconfig='contig', metadata=None)
    with pytest.raises(InputError, match='found 5 channels; expected one. Choose one with --channel 0 … 4'):
        file_frames(tmp_path / 'a.tif')
    (frame,) = file_frames(tmp_path / 'a.tif', channel=3)
    assert (read_frame(frame) == im[..., 3]).all()


def test_formats_that_lose_numbers_are_known(tmp_path):
    im = np.zeros((64, 64), np.uint8)
    im[10:30, 10:30] = 3
    for codec, args, name in [
        ('jpeg', {}, 'JPEG'),
        ('jpeg', dict(lossless=True), ''),
        ('jpeg2000', {}, ''),
        ('jpeg2000', dict(level=30), 'JPEG2000'),
        ('zlib', {}, ''),
    ]:
        tifffile.imwrite(tmp_path / 'a.tif', im, compression=codec, compressionargs=args)
        assert lossy_format(tmp_path / 'a.tif') == name
