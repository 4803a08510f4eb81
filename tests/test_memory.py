"What files of strangers take of the memory: at most four times what an image may have, however few bytes they are."

import ctypes
import io
import json
import multiprocessing
import os
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import roifile
import safetensors.numpy
import tifffile
import torch

from ipb_nb import core
from ipb_nb.channels import read_picture
from ipb_nb.core import InputError, read_image, read_json, read_table, to_grey8
from ipb_nb.masks import read_mask
from ipb_nb.outlines import read_labels, roi_entries
from ipb_nb.reader import file_frames, read_frame
from ipb_nb.weights import read_weights

SIDE = 2048
PIXELS, BUDGET = SIDE**2, 4 * SIDE**2  # that are allowed; bytes
Z = np.zeros((SIDE, SIDE), np.uint8)


def frame(path):
    return read_frame(file_frames(path, channel=0)[-1])


def one_part(compression, data, size=(48, 48), tile=None):
    "A TIFF of one strip or tile with these bytes."
    tags = {256: size[1], 257: size[0], 258: 8, 259: compression, 262: 1, 277: 1}
    tags |= {322: tile[1], 323: tile[0], 324: 0, 325: len(data)} if tile else {273: 0, 278: size[0], 279: len(data)}
    start = 8 + 2 + 12 * len(tags) + 4
    rows = [struct.pack('<HHII', k, 4, 1, start if k in (273, 324) else v) for k, v in sorted(tags.items())]
    return b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(rows) + bytes(4) + data


def tiff(im, **kwargs):
    out = io.BytesIO()
    tifffile.imwrite(out, im, **dict(compression='zlib') | kwargs)
    return out.getvalue()


def bz2_of_no_size():
    "A zip whose entry says that it has 100 bytes."
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_BZIP2) as z:
        z.writestr('1.roi', bytes(BUDGET * 6))
    data = bytearray(out.getvalue())
    for at in (data.find(b'PK\3\4') + 22, data.find(b'PK\1\2') + 24):
        data[at : at + 4] = struct.pack('<I', 100)
    return bytes(data)


def curves(n):
    "An ROI of `n` Bézier curves, each of 28 bytes."
    roi = roifile.ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]])
    roi.roitype, roi.n_coordinates, roi.integer_coordinates = roifile.ROI_TYPE.RECT, 0, None
    roi.multi_coordinates = np.array([0, 0, 0] + [3, 1, 1, 2, 2, 3, 3] * n, np.float32)
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi.tobytes()


def large_files():
    "Name: (function that reads it, content). Those with ! in their name are within the limits, and are read."
    big, many = np.zeros((4 * SIDE, 4 * SIDE), np.uint8), np.zeros((512, 512, 300), np.uint8)
    out = {f'!{d}.tif': (read_image, tiff(Z.astype(d))) for d in ('uint8', 'uint16', 'float32', 'int32')}
    out |= {f'{d}.tif': (read_image, tiff(Z.astype(d))) for d in ('float64', 'complex128')}
    out |= {f'colours {d}.tif': (read_image, tiff(np.dstack([Z] * 3).astype(d))) for d in ('uint16', 'float32')}
    out['!colours.png'] = read_image, cv2.imencode('.png', np.dstack([Z] * 4))[1].tobytes()
    out['deep colours.png'] = read_image, cv2.imencode('.png', np.dstack([Z] * 4).astype(np.uint16))[1].tobytes()
    out['!labels.tif'] = lambda f: read_labels(f, Z.shape), tiff(Z.astype(np.uint32))
    out['samples.tif'] = frame, tiff(many, photometric='minisblack', planarconfig='contig')
    out['planes.tif'] = frame, tiff(np.moveaxis(many, 2, 0), photometric='minisblack', planarconfig='separate')
    out['!in one.tif'] = (
        frame,
        tiff(np.moveaxis(many, 2, 0), metadata=dict(axes='TYX'), truncate=True, compression=None),
    )
    out['volume.tif'] = (
        frame,
        tiff(np.moveaxis(many[..., :288], 2, 0), volumetric=True, tile=(16, 256, 256), metadata=dict(axes='TYX')),
    )
    out['channels.tif'] = (
        lambda f: read_picture(f, [*map(str, range(32))], 16),
        tiff(np.moveaxis(many, 2, 0), photometric='minisblack'),
    )
    out['tile.tif'] = read_image, one_part(8, zlib.compress(bytes(6 * BUDGET), 9), tile=(4 * SIDE, 7 * SIDE))
    for name, code, data in [
        ('PNG', 34933, cv2.imencode('.png', big)[1].tobytes()),
        ('JPEG', 7, cv2.imencode('.jpg', big)[1].tobytes()),
        ('JPEG 2000', 33003, imagecodecs.jpeg2k_encode(big)),
        ('WebP', 50001, imagecodecs.webp_encode(np.dstack([big] * 3))),
    ]:
        out[f'{name} in.tif'] = read_image, one_part(code, data)
    out['radiance.png'] = read_image, b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9000 +X 9000\n' + bytes(100)
    out['map.txt'] = lambda f: read_mask(f, (600, 600)), b'0 ' * 6_000_000
    out['two.zip'] = roi_entries, bz2_of_no_size()
    out['curves.roi'] = roi_entries, curves(200_000)
    out['lists.json'] = read_json, b'[' + b'[],' * 1_000_000 + b'[]]'
    out['commas.csv'] = lambda f: read_table(f, ['a']), (b',' * 9000 + b'\n') * 500
    out['student.safetensors'] = (
        lambda f: read_weights(f.parent, dict(weight=torch.zeros(3))),
        safetensors.numpy.save(dict(weight=np.zeros(6 * BUDGET, np.uint8))),
    )
    return out


def memory(field):
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field)) * 1024


def read_all(folder, said):
    "Name: (bytes that reading it took at most, what was found)."
    os.environ['IPB_MAX_PIXELS'] = str(PIXELS)
    core._MOST_VALUES = 1 << 20  # (in proportion)
    cv2.setNumThreads(1)
    libc = ctypes.CDLL(None)
    for of_what in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: arrays are given back, as those of large images are
        assert libc.mallopt(of_what, 1 << 17)
    for name, (read, _) in large_files().items():
        libc.malloc_trim(0)  # (what was taken before and is free would be taken again)
        Path('/proc/self/clear_refs').write_text('5')
        before = memory('VmRSS')
        try:
            found = type(read(folder / name.lstrip('!'))).__name__
        except InputError as e:
            found = f'{e}'
        said[name] = memory('VmHWM') - before, found


MEASURED = os.access('/proc/self/clear_refs', os.W_OK) and hasattr(ctypes.CDLL(None), 'malloc_trim')


@pytest.mark.skipif(not MEASURED, reason='only Linux with the GNU C library says how much is taken')
def test_memory_is_bounded_whatever_a_file_says(tmp_path, monkeypatch):
    for name in [k for k in os.environ if k.startswith('MALLOC_')]:
        monkeypatch.delenv(name)  # (with them, what is free is kept)
    files, afresh = large_files(), multiprocessing.get_context('spawn')
    for name, (_, content) in files.items():
        (tmp_path / name.lstrip('!')).write_bytes(content)
    said = afresh.Manager().dict()
    p = afresh.Process(target=read_all, args=(tmp_path, said))
    p.start()
    p.join()
    said = dict(said)
    assert p.exitcode == 0 and [*said] == [*files]
    print(json.dumps({k: round(n / BUDGET, 1) for k, (n, _) in said.items()}))  # (shown where the test fails)
    assert not {k: found for k, (_, found) in said.items() if ('found' in found) == k.startswith('!')}
    assert not {k: n / BUDGET for k, (n, _) in said.items() if n > 4.2 * BUDGET}


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'int32', 'uint16'])
def test_grey_in_parts_is_the_same(dtype):
    im = np.random.default_rng(0).normal(3e4, 5e3, (2100, 4100)).astype(dtype)
    whole = im.astype(np.float64)
    whole = (whole - whole.min()) / (whole.max() - whole.min()) * 255
    assert (to_grey8(im) == np.round(whole).astype(np.uint8)).all()
    colours = np.random.default_rng(1).normal(3e4, 5e3, (1100, 4100, 3)).astype(dtype)
    luma = colours.astype(np.float64) @ [0.299, 0.587, 0.114]
    own = core.one_channel(colours)
    assert own.dtype == dtype and (
        dtype == 'uint16' or (own == (luma if dtype[0] == 'f' else np.rint(luma)).astype(dtype)).all()
    )
