"""Detection: the paper's mask to the pixel, every file format, bad files, and the same files whoever did the work and
however often it was stopped."""

import errno
import filecmp
import html
import json
import os
import shlex
import shutil
import subprocess
import re
import sys
import tempfile
import time
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import binary_fill_holes
from skimage.filters import rank, threshold_otsu
from skimage.morphology import disk, opening, remove_small_objects

from ipb_nb import detect, preview
from ipb_nb.core import InputError, command_parser, read_image, read_json, run_command
from ipb_nb.crop import BOX
from ipb_nb.dataset import ColonyDataset
from ipb_nb.detect import detect_dataset
from ipb_nb.frames import check_frames, dataset_picture, list_frames, shows
from ipb_nb.reader import read_frame
from ipb_nb.preview import ipb_detect, parts_per_colony, write_preview
from ipb_nb.segment import colony_mask, find_colonies
from ipb_nb.simulate import colony_objects, simulate_experiment, true_labels
from starts import KILL

IPB_DETECT = Path(sys.executable).with_name('ipb-detect')


def files(d):
    return sorted(f.relative_to(d) for f in d.rglob('*') if f.is_file())


def same(a, b):
    assert files(a) == files(b)
    assert filecmp.cmpfiles(a, b, files(a), shallow=False)[1] == [Path('manifest.csv')]  # it has the files' times
    one, other = (pd.read_csv(o / 'manifest.csv').drop(columns='mtime_ns') for o in (a, b))
    pd.testing.assert_frame_equal(one, other)


def chain(image, min_area=2000):
    entropy = rank.entropy(cv2.GaussianBlur(image, (3, 3), 0), disk(3))
    return remove_small_objects(
        binary_fill_holes(opening(entropy > threshold_otsu(entropy), disk(3))), max_size=min_area - 1
    )


@pytest.fixture(scope='module')
def exp(tmp_path_factory):
    return simulate_experiment(
        tmp_path_factory.mktemp('detect') / 'exp', 'small', seed=5, wells=2, frames=5, size=1024, interval_h=3.0
    )


@pytest.fixture(scope='module')
def whole(exp, tmp_path_factory):
    return detect_dataset(
        exp.path / 'raw', tmp_path_factory.mktemp('detect') / 'whole', truth=exp.path / 'truth', contact_sheet=True
    )


@pytest.fixture(scope='module')
def frame(exp):
    return exp.frame('P1-A1', 2)[0]


def test_the_mask_is_the_papers_on_simulated_frames(exp):
    for t in range(0, 5, 2):
        image = exp.frame('P1-A2', t)[0]
        assert (colony_mask(image) == chain(image)).all()


@pytest.mark.parametrize('seed', range(20))
def test_the_mask_is_the_papers_on_random_images(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 260, 2)
    image = rng.integers(0, rng.choice([2, 3, 20, 256]), (h, w), np.uint8)
    if seed % 2:
        image = cv2.resize(image, None, fx=3, fy=3)
    assert (colony_mask(image, min_area=20) == chain(image, 20)).all()


def test_the_mask_is_the_papers_on_real_images(bccd):
    for f in sorted((bccd / 'JPEGImages').glob('*.jpg'))[::60]:
        image = read_image(f)
        assert (colony_mask(image) == chain(image)).all()


def test_constant_images_have_no_colony():
    for v in (0, 128, 255):
        assert not colony_mask(np.full((300, 200), v, np.uint8)).any()


def test_colonies_tables_and_crops(exp, tmp_path):
    whole = detect_dataset(
        exp.path / 'raw', tmp_path / 'ds', truth=exp.path / 'truth', preset='paper', contact_sheet=True
    )
    assert len(whole) >= 10
    frames = {key: exp.frame(*key) for key in whole.colonies.groupby(['group', 'frame']).groups}
    masks = {key: chain(image) for key, (image, _) in frames.items()}
    for r in whole.colonies.itertuples():
        (image, truth), mask = frames[r.group, r.frame], masks[r.group, r.frame]
        y, x = max(r.y0 - 112, 0), max(r.x0 - 112, 0)
        crop, inside, own = (
            read_image(whole.path / r.image),
            read_image(whole.path / r.mask) > 0,
            read_image(whole.path / 'truth' / f'{r.colony_id}.png'),
        )
        at = np.s_[y : y + crop.shape[0], x : x + crop.shape[1]]
        assert (
            (crop == image[at]).all()
            and (own == truth[at]).all()
            and mask[at][inside].all()
            and inside.sum() == r.area_px
        )
        ys, xs = np.nonzero(inside)
        assert (ys.min() + y, xs.min() + x, ys.max() + y + 1, xs.max() + x + 1) == (r.y0, r.x0, r.y1, r.x1)
        assert r.touches_border == (r.y0 == 0 or r.x0 == 0 or r.y1 == 1024 or r.x1 == 1024)
    assert true_labels(whole).to_dict() == whole.colonies.label.to_dict()
    assert (
        whole.info['pixel_size'] == 0.8
        and (whole.path / 'wells.csv').exists()
        and {f.stem for f in (whole.path / 'contact_sheets').iterdir()} == {'P1-A1', 'P1-A2', 'frames', 'index'}
    )
    assert not (whole.path / '.detect').exists()


def test_tracks_follow_the_true_ones(exp, whole):
    rows = []
    for (well, t), own in whole.colonies.groupby(['group', 'frame']):
        labels, true = colony_objects(exp.frame(well, t)[1], 0.8)
        ids = {
            int(i[-4:]): k
            for i, k in zip(exp.colonies.colony_id, exp.colonies.track_id)
            if i.startswith(f'{well}-{t:03d}')
        }
        for r in own.itertuples():
            y, x = max(r.y0 - 112, 0), max(r.x0 - 112, 0)
            inside = read_image(whole.path / r.mask) > 0
            n = np.bincount(labels[y : y + inside.shape[0], x : x + inside.shape[1]][inside])[1:]
            if n.any() and n.max() > 0.5 * n.sum():
                rows.append((well, t, r.track_id, ids.get(n.argmax() + 1)))
    df = pd.DataFrame(rows, columns=['well', 'frame', 'found', 'true']).dropna()
    pairs = df.merge(df.assign(frame=df.frame + 1), on=['well', 'frame'])
    assert len(pairs) > 10 and ((pairs.found_x == pairs.found_y) == (pairs.true_x == pairs.true_y)).mean() > 0.9


@pytest.fixture(scope='module')
def formats(frame, tmp_path_factory):
    "One frame in many formats: file name, and whether every pixel comes through."
    d = tmp_path_factory.mktemp('formats')
    deep = frame.astype(np.uint16) * 100 + 300
    rgb = np.repeat(frame[..., None], 3, axis=2)
    tifffile.imwrite(d / 'u8.tif', frame)
    tifffile.imwrite(d / 'u16.tiff', deep)
    tifffile.imwrite(d / 'float.tif', frame.astype(np.float32) / 255)
    tifffile.imwrite(d / 'rgb.tif', rgb, photometric='rgb')
    tifffile.imwrite(d / 'planar.tif', rgb.transpose(2, 0, 1), photometric='rgb', planarconfig='separate')
    tifffile.imwrite(d / 'big.tif', frame, bigtiff=True, tile=(256, 256), compression='zlib', byteorder='>')
    Image.fromarray(frame).save(d / 'lzw.tif', compression='tiff_lzw')
    Image.fromarray(frame).save(d / 'p.PNG')
    Image.fromarray(frame).save(d / 'b.bmp')
    Image.fromarray(rgb).save(d / 'q.jpg', quality=95)
    cv2.imwrite(str(d / 'p16.png'), deep)
    Image.fromarray(rgb).save(d / 'colour.png')
    return d


def test_every_format_gives_the_same_colonies(formats, frame, tmp_path):
    ds = detect_dataset(formats, tmp_path / 'ds', pixel_size=0.8, scale='image')
    expected = find_colonies(frame)[1][['y0', 'x0', 'y1', 'x1']].values
    assert len(ds.failures) == 0 and set(ds.colonies.source) == {f.name for f in formats.iterdir()}
    for name, own in ds.colonies.groupby('source'):
        box = own[['y0', 'x0', 'y1', 'x1']].values
        if name in ('u8.tif', 'rgb.tif', 'planar.tif', 'big.tif', 'lzw.tif', 'p.PNG', 'b.bmp', 'colour.png'):
            assert (box == expected).all()
        else:
            assert (
                len(box) == len(expected) and np.quantile(np.abs(box - expected), 0.9) < 4
            )  # stretched, or compressed with loss


def test_one_scale_of_grey_an_experiment(frame, tmp_path):
    (tmp_path / 'raw').mkdir()
    for k in (1, 2):
        tifffile.imwrite(
            tmp_path / 'raw' / f'w_t{k}.tif',
            frame.astype(np.uint16) * 50 * k,
            resolution=(1e4 / 0.8, 1e4 / 0.8),
            resolutionunit='CENTIMETER',
        )
    levels = {}
    for scale in ('experiment', 'image'):
        ds = detect_dataset(tmp_path / 'raw', tmp_path / scale, scale=scale)
        levels[scale] = pd.read_csv(ds.path / 'qc.csv').background
        assert 'deeper images' in ds.info['intensity']
        for older in (False, True):  # without the limits as numbers
            if older:
                ds.info.pop('grey_limits', None)
            for i, row in ds.colonies.iterrows():
                assert shows(dataset_picture(ds, row.source), ds.colony(i), row[BOX])
    assert levels['experiment'][1] > 2 * levels['experiment'][0] + 10 and levels['image'][1] == pytest.approx(
        levels['image'][0], abs=1
    )


def test_a_flat_field_levels_what_all_frames_share(exp, tmp_path):
    (tmp_path / 'raw').mkdir()
    lamp = np.linspace(0.6, 1.4, 1024)
    for k, f in enumerate(sorted((exp.path / 'raw').rglob('*.tif'))):
        cv2.imwrite(str(tmp_path / 'raw' / f'w_t{k}.png'), np.clip(read_image(f) * lamp, 0, 255).astype(np.uint8))
    flat, plain = (
        detect_dataset(tmp_path / 'raw', tmp_path / str(on), pixel_size=0.8, flat_field=on) for on in (True, False)
    )
    gain = np.array(flat.info['flat_field'][''])
    assert np.abs(gain.mean(0) / np.linspace(0.6, 1.4, 64) - 1).max() < 0.1 and plain.info['flat_field'] == {}

    def tilt(ds):
        return np.ptp([np.median(read_image(f)) for f in (ds.path / 'images').iterdir()])

    assert tilt(flat) < 0.5 * tilt(plain)


def test_a_multi_file_ome_set_is_read_once(frame, tmp_path):
    names = ['z_first.ome.tif', 'a_second.ome.tif']
    uuids = [f'urn:uuid:0000000{k}-0000-0000-0000-000000000000' for k in range(2)]
    blocks = ''.join(
        f'<TiffData FirstT="{k}" IFD="0" PlaneCount="1"><UUID FileName="{names[k]}">{uuids[k]}</UUID></TiffData>'
        for k in range(2)
    )
    h, w = frame.shape
    for k in range(2):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[k]}"><Image '
            f'ID="Image:0" Name="C3"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
            f'SizeX="{w}" SizeY="{h}" SizeZ="1" SizeC="1" SizeT="2" '
            f'PhysicalSizeX="0.8" TimeIncrement="2" TimeIncrementUnit="h"><Channel ID="Channel:0:0" '
            f'SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / names[k], frame if k == 0 else frame[::-1], description=xml, metadata=None)
    df, failures, _ = list_frames(tmp_path)
    assert (
        len(df) == 2
        and not failures
        and list(df.group) == ['C3', 'C3']
        and list(df.time_h) == [0, 2]
        and list(df.pixel_size) == [0.8, 0.8]
    )
    assert (
        list(df.source) == names
        and (read_frame(df.iloc[0].to_dict()) == frame).all()
        and (read_frame(df.iloc[1].to_dict()) == frame[::-1]).all()
    )


def test_time_lapses_in_one_file(exp, tmp_path):
    (tmp_path / 'raw').mkdir()
    stack = np.stack([exp.frame('P1-A1', t)[0] for t in range(5)])
    tifffile.imwrite(
        tmp_path / 'raw' / 'well.tif',
        stack,
        imagej=True,
        resolution=(1 / 0.8, 1 / 0.8),
        metadata=dict(axes='TYX', unit='um', finterval=3 * 3600),
    )
    ds, apart = (
        detect_dataset(tmp_path / 'raw', tmp_path / 'ds'),
        detect_dataset(exp.path / 'raw' / 'P1-A1', tmp_path / 'apart'),
    )
    columns = ['frame', 'time_h', 'y0', 'x0', 'y1', 'x1', 'area_px', 'event']
    assert ds.colonies[columns].values.tolist() == apart.colonies[columns].values.tolist()
    assert ds.colonies.source.iloc[-1] == 'well.tif#4' and ds.colonies.group.unique() == ['well']


def test_nd2_by_a_stand_in(frame, tmp_path, monkeypatch):
    "No real file is at hand: this has the attributes of nd2.ND2File that are used."
    nd2 = pytest.importorskip('nd2')

    class ND2File:
        sizes, dtype = dict(T=2, P=2, C=2, Y=frame.shape[0], X=frame.shape[1]), np.dtype('uint16')
        experiment = [
            SimpleNamespace(type='TimeLoop'),
            SimpleNamespace(
                type='XYPosLoop',
                parameters=SimpleNamespace(points=[SimpleNamespace(name='B2'), SimpleNamespace(name=None)]),
            ),
        ]

        def __init__(self, path):
            assert Path(path).name == 'plate.nd2'

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def voxel_size(self):
            return SimpleNamespace(x=0.65)

        def frame_metadata(self, k):
            return SimpleNamespace(channels=[SimpleNamespace(time=SimpleNamespace(relativeTimeMs=k // 2 * 1.8e6))])

        def read_frame(self, k):
            return np.stack([np.zeros_like(frame, np.uint16), frame.astype(np.uint16) + k])

    monkeypatch.setattr(nd2, 'ND2File', ND2File)
    (tmp_path / 'plate.nd2').write_bytes(b'stand-in')
    with pytest.raises(InputError, match='found 2 channels; expected one. Choose one with --channel 0 … 1'):
        list_frames(tmp_path)
    df, failures, _ = list_frames(tmp_path, channel=1)
    assert (
        not failures
        and df.group.tolist() == ['1', '1', 'B2', 'B2']
        and df.frame.tolist() == [0, 1, 0, 1]
        and df.time_h.tolist() == [0, 0.5, 0, 0.5]
        and set(df.pixel_size) == {0.65}
    )
    assert (read_frame(df.iloc[3].to_dict()) == frame.astype(np.uint16) + 2).all()


def test_names_and_patterns(frame, tmp_path):
    for n in ('plate 1/A1_t00.tif', 'plate 1/A1_t01.tif', 'plate 1/Ä2_t00.tif', 'B1/img001.tif', 'B1/img002.tif'):
        (tmp_path / n).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / n, frame[:64, :64])
    df, _, _ = list_frames(tmp_path)
    assert df[['group', 'frame']].values.tolist() == [
        ['B1', 1],
        ['B1', 2],
        ['plate 1-A1', 0],
        ['plate 1-A1', 1],
        ['plate 1-Ä2', 0],
    ]
    df, failures, _ = list_frames(tmp_path, pattern=r'/(?P<group>\w+)_t(?P<frame>\d+)')
    assert (
        df.group.tolist() == ['A1', 'A1', 'Ä2']
        and len(failures) == 2
        and 'does not fit the pattern' in failures[0]['reason']
    )
    assert list_frames(tmp_path, interval_h=0.5)[0].time_h.tolist() == [0.5, 1, 0, 0.5, 0]
    with pytest.raises(InputError, match='which fits none of 5 files.*The first is B1/img001.tif'):
        list_frames(tmp_path, pattern=r'(?P<group>Q\d)')
    for bad in ('(?P<lens>x)', '(', 'x'):
        with pytest.raises(InputError, match='pattern: found'):
            list_frames(tmp_path, pattern=bad)


def test_what_stops_before_anything_runs(frame, tmp_path, monkeypatch):
    raw = tmp_path / 'raw'
    client = pytest.importorskip('distributed').Client
    monkeypatch.setattr('dask.distributed.Client', lambda at, timeout: client(at, timeout='1s'))  # (nobody answers)
    raw.mkdir()

    def save(name, size):
        tifffile.imwrite(
            raw / name, frame[:200, :200], resolution=(1e4 / size, 1e4 / size), resolutionunit='CENTIMETER'
        )

    for k in (0, 1, 3, 4):
        save(f'w_{k}.tif', 0.8)
    with pytest.raises(InputError, match='well w: found 4 frames, without 2; expected all from 0 to 4.*--allow_gaps'):
        detect_dataset(raw, tmp_path / 'ds')
    save('w_2.tif', 0.4)
    with pytest.raises(
        InputError, match=r'found 0.8 µm \(4 frames\), 0.4 µm \(1 frames\); expected one physical scale'
    ):
        detect_dataset(raw, tmp_path / 'ds')
    tifffile.imwrite(raw / 'w_2.tif', frame[:200, :200])
    with pytest.raises(InputError, match='w_2.tif: found no pixel size'):
        detect_dataset(raw, tmp_path / 'ds')
    assert not check_frames(*list_frames(raw, pixel_size=0)[::2])
    for kw, message in (
        (dict(workers=0), 'workers: found 0'),
        (dict(pixel_size=0.8, blur=2), 'blur: found 2'),
        (dict(pixel_size=0.8, min_area='9 miles'), 'size: found 9 miles'),
        (dict(pixel_size=0.8, preset='mine'), 'preset: found mine'),
        (dict(pixel_size=0.8, truth=tmp_path / 'none'), 'no such folder'),
        (dict(pixel_size=0.8, scale='x'), 'scale: found x'),
        (dict(pixel_size=0.8, margin=-1), 'margin: found -1'),
        (dict(pixel_size=0.8, dask='tcp://127.0.0.1:1'), 'dask: found tcp'),
    ):
        with pytest.raises(InputError, match=message):
            detect_dataset(raw, tmp_path / 'never', **kw)
        shutil.rmtree(tmp_path / 'never', ignore_errors=True)
    with pytest.raises(InputError, match='no such file or folder'):
        detect_dataset(tmp_path / 'nowhere', tmp_path / 'ds')
    assert not (tmp_path / 'ds').exists()
    said = subprocess.run([IPB_DETECT, raw, '--list'], capture_output=True, text=True)
    assert (
        said.returncode == 0
        and 'w (file name)' in said.stdout
        and '0.8 (TIFF)' in said.stdout
        and 'w_2.tif: found no pixel size' in said.stdout
    )


@pytest.fixture
def bad(frame, tmp_path):
    "Good frames between all kinds of bad ones."
    raw, rng = tmp_path / 'raw', np.random.default_rng(0)
    raw.mkdir()
    tifffile.imwrite(raw / 'good one.tif', frame)
    tifffile.imwrite(raw / 'größe.tif', frame)
    tifffile.imwrite(raw / 'same.tif', frame)
    cv2.imwrite(str(raw / 'same.png'), frame)
    Image.fromarray(frame).save(raw / 'really png.png')
    os.replace(raw / 'really png.png', raw / 'really png.tif')
    (raw / 'short.tif').write_bytes((raw / 'good one.tif').read_bytes()[:200_000])
    (raw / 'cut.png').write_bytes((raw / 'same.png').read_bytes()[:1000])
    (raw / 'empty.tif').write_bytes(b'')
    (raw / 'text.png').write_text('not an image')
    (raw / 'notes.txt').write_text('mine')
    (raw / 'zeiss.czi').write_bytes(b'x')
    for name, im in dict(
        constant=np.full_like(frame, 90),
        glass=np.clip(rng.normal(110, 2, frame.shape), 0, 255).astype(np.uint8),
        one=frame[:1, :1],
    ).items():
        tifffile.imwrite(raw / f'{name}.tif', im)
    for name, v in dict(nan=np.nan, inf=np.inf).items():
        f = frame.astype(np.float32)
        f[5, 5] = v
        tifffile.imwrite(raw / f'{name}.tif', f)
    return raw


def test_bad_files_are_listed_and_the_rest_is_done(bad, frame, tmp_path):
    said = subprocess.run([IPB_DETECT, bad, tmp_path / 'ds', '--pixel_size', '0.8'], capture_output=True, text=True)
    assert said.returncode == 1, said.stdout + said.stderr
    ds = ColonyDataset(tmp_path / 'ds')
    n = len(find_colonies(frame)[1])
    assert ds.colonies.source.value_counts().to_dict() == {
        f: n for f in ('good one.tif', 'größe.tif', 'same.png', 'really png.tif')
    }
    why = ds.failures.set_index('source').reason
    assert set(why.index) == {
        'short.tif',
        'cut.png',
        'empty.tif',
        'text.png',
        'nan.tif',
        'inf.tif',
        'same.tif',
        'zeiss.czi',
    }
    for f, text in {
        'short.tif': 'pixels that cannot be read',
        'empty.tif': 'an empty file',
        'text.png': '12 bytes that are no image',
        'nan.tif': '1 pixels that are NaN',
        'same.tif': 'would give the same colony ids as same.png',
        'zeiss.czi': 'is not read here',
    }.items():
        assert text in why[f] and text in said.stdout
    assert (
        f'{len(why) - 1} files that could not be used' in said.stderr
        and not why.str.contains(str(tmp_path), regex=False).any()
    )
    quality = pd.read_csv(ds.path / 'qc.csv').set_index('source')
    assert (
        quality.flag.reindex(['constant.tif', 'glass.tif', 'one.tif']).tolist() == ['empty'] * 3
        and quality.colonies['glass.tif'] == 0
    )


def test_a_file_that_vanishes_during_the_run(bad, tmp_path, monkeypatch):
    original = detect.detect_frame

    def vanish(job):
        if job['frame']['source'] == 'größe.tif':
            job['frame']['path'].unlink()
        return original(job)

    monkeypatch.setattr(detect, 'detect_frame', vanish)
    ds = detect_dataset(bad, tmp_path / 'ds', pixel_size=0.8)
    assert 'größe.tif' in ds.failures.source.tolist() and 'good one.tif' in ds.colonies.source.tolist()


def test_nothing_found_is_said_and_the_quality_is_kept(tmp_path):
    (tmp_path / 'raw').mkdir()
    tifffile.imwrite(
        tmp_path / 'raw' / 'a.tif',
        np.clip(np.random.default_rng(0).normal(110, 2, (300, 300)), 0, 255).astype(np.uint8),
    )
    with pytest.raises(InputError, match=r'no colonies in 1 frames \(empty: 1\)'):
        detect_dataset(tmp_path / 'raw', tmp_path / 'ds', pixel_size=0.8)
    assert pd.read_csv(tmp_path / 'ds' / 'qc.csv').flag.tolist() == ['empty']


def test_the_papers_preset_cuts_what_it_segments():
    rng = np.random.default_rng(0)
    image = rng.normal(110, 2, (800, 800))
    image[100:300, 100:300] += rng.normal(0, 25, (200, 200))  # a colony
    image = np.clip(image, 0, 255).astype(np.uint8)
    cv2.rectangle(image, (450, 700), (750, 715), 255, -1)
    cv2.putText(image, '200 um', (480, 690), cv2.FONT_HERSHEY_SIMPLEX, 2, 255, 5, cv2.LINE_AA)
    image = cv2.imdecode(
        cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], 0
    )  # ringing around the letters
    ours, papers = find_colonies(image), find_colonies(image, preset='paper')
    assert ours[2]['flag'] == 'scale bar' and len(ours[1]) == 1 and ours[1].y1[0] < 320
    assert papers[2]['flag'] == '' and len(papers[1]) == 2 and papers[1].y1[1] > 640


def test_any_number_of_workers_gives_the_same_files(exp, tmp_path):
    a, b = (
        detect_dataset(exp.path / 'raw', tmp_path / 'one', truth=exp.path / 'truth'),
        detect_dataset(exp.path / 'raw', tmp_path / 'two', truth=exp.path / 'truth', workers=2),
    )
    same(a.path, b.path)


def test_killed_and_resumed_it_is_the_same(exp, tmp_path):
    def command(name, *more):
        return [
            IPB_DETECT,
            exp.path / 'raw',
            tmp_path / name / 'cells',
            '--truth',
            exp.path / 'truth',
            '--contact_sheet',
            *more,
        ]

    subprocess.run(command('through'), check=True, capture_output=True)
    run = subprocess.Popen(command('killed'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / 'killed' / 'cells' / '.detect'
    while run.poll() is None and len([*records.glob('P1*.json')]) < 3:
        time.sleep(0.01)
    run.send_signal(KILL)
    run.wait()
    assert 3 <= len([*records.glob('P1*.json')]) < 10 and not (tmp_path / 'killed' / 'cells' / 'colonies.csv').exists()
    said = subprocess.run(command('killed'), capture_output=True, text=True)
    assert (
        said.returncode == 1
        and 'found an unfinished detection; expected a new or empty folder. Choose another name, or go on with '
        'it: --resume.'
        in said.stderr
    )
    said = subprocess.run(command('killed', '--resume', '--split', '3'), capture_output=True, text=True)
    assert said.returncode == 1 and 'found split 0; expected split 3' in said.stderr
    subprocess.run(command('killed', '--resume'), check=True, capture_output=True)
    same(tmp_path / 'through' / 'cells', tmp_path / 'killed' / 'cells')


def test_a_worker_that_is_killed_loses_nothing(exp, whole, tmp_path):
    import psutil

    run = subprocess.Popen(
        [IPB_DETECT, exp.path / 'raw', tmp_path / 'ds', '--workers', '2'],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and not [*(tmp_path / 'ds' / '.detect').glob('P1*.json')]:
        time.sleep(0.01)
    victims = [p for p in psutil.Process(run.pid).children(recursive=True) if 'popen_loky' in ' '.join(p.cmdline())]
    assert victims
    victims[0].kill()
    assert run.wait() == 0
    assert ColonyDataset(tmp_path / 'ds').colonies.drop(columns='label').equals(whole.colonies.drop(columns='label'))


def test_on_dask_with_two_workers_one_killed(exp, tmp_path):
    distributed = pytest.importorskip('distributed')
    alone = detect_dataset(exp.path / 'raw', tmp_path / 'alone', truth=exp.path / 'truth')
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        assert len(set(pids)) == 2
        run = subprocess.Popen(
            [
                IPB_DETECT,
                exp.path / 'raw',
                tmp_path / 'dask',
                '--truth',
                exp.path / 'truth',
                '--dask',
                cluster.scheduler_address,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while run.poll() is None and not [*(tmp_path / 'dask' / '.detect').glob('P1*.json')]:
            time.sleep(0.01)
        os.kill(pids[0], KILL)
        out = run.communicate(timeout=120)[0]
        assert run.returncode == 0, out
        assert pids[0] not in client.run(os.getpid).values()
    same(alone.path, tmp_path / 'dask')


def test_a_full_disk_leaves_whole_frames_and_the_next_call_goes_on(exp, tmp_path, monkeypatch):
    alone = detect_dataset(exp.path / 'raw', tmp_path / 'alone')
    write, left = Path.write_bytes, [30]

    def write_bytes(self, data):
        left[0] -= 1
        if left[0] < 0:
            write(self, data[:10])
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(self, data)

    monkeypatch.setattr(Path, 'write_bytes', write_bytes)
    with pytest.raises(OSError, match='No space left'):
        detect_dataset(exp.path / 'raw', tmp_path / 'full')
    assert not [f for f in files(tmp_path / 'full') if '.partial' in f.name] and [
        *(tmp_path / 'full' / '.detect').glob('P1*.json')
    ]
    monkeypatch.undo()
    same(alone.path, detect_dataset(exp.path / 'raw', tmp_path / 'full', resume=True).path)


def test_annotators_and_a_dropped_frame_that_is_known(exp, tmp_path):
    shutil.copytree(exp.path, tmp_path / 'exp')
    (tmp_path / 'exp' / 'raw' / 'P1-A1' / '002.tif').unlink()
    f = tmp_path / 'exp' / 'experiment.json'
    f.write_text(json.dumps(read_json(f) | dict(dropped=[['P1-A1', 2]])))
    ds = detect_dataset(tmp_path / 'exp' / 'raw', tmp_path / 'ds', truth=tmp_path / 'exp' / 'truth', annotators=3)
    assert (
        set(ds.colonies.label) == {''}
        and ds.votes().shape[1] == 3
        and (ds.labels().label == true_labels(ds)[ds.colonies.index]).mean() > 0.7
    )
    crossing = ds.colonies[ds.colonies.group.eq('P1-A1')].groupby('track_id').frame.agg(set)
    assert any({1, 3} <= s for s in crossing)
    with pytest.raises(InputError, match='without 2'):
        detect_dataset(tmp_path / 'exp' / 'raw', tmp_path / 'other')


def test_edited_label_images_keep_the_labels_of_untouched_colonies(exp, whole, tmp_path):
    shutil.copytree(whole.path / 'outlines' / 'labels', tmp_path / 'edited')
    f = tmp_path / 'edited' / 'P1-A1-002.tif'
    labels = tifffile.imread(f)
    labels[labels == 1] = 0  # not a colony
    labels[10:90, 900:1000][labels[10:90, 900:1000] == 0] = 50  # one that was missed
    tifffile.imwrite(f, labels)
    (tmp_path / 'edited' / 'P1-A2-004.tif').unlink()
    ds = detect_dataset(exp.path / 'raw', tmp_path / 'ds', outlines=tmp_path / 'edited', labels=whole.path)
    kept = whole.colonies[~whole.colonies.source.eq('P1-A2/004.tif')].index.drop('P1-A1-002-0001')
    assert set(kept) <= set(ds.colonies.index) and (ds.colonies.label[kept] == whole.colonies.label[kept]).all()
    assert 'P1-A1-002-0001' not in ds.colonies.index and ds.colonies.label['P1-A1-002-0050'] == ''
    assert ds.failures.source.tolist() == ['P1-A2/004.tif']


def test_outlines_of_nothing_and_of_everything_are_named(frame, tmp_path, capsys):
    labels = np.zeros((3, 200, 200), np.uint8)
    labels[1] = 1
    labels[2, 50:120, 50:120] = 1
    for folder in ('raw', 'drawn'):
        (tmp_path / folder).mkdir()
    for name, own in zip('abc', labels):
        tifffile.imwrite(tmp_path / 'raw' / f'{name}.tif', frame[:200, :200])
        tifffile.imwrite(tmp_path / 'drawn' / f'{name}.tif', own)
    folders = [str(tmp_path / o) for o in ('raw', 'ds')]
    ipb_detect(*folders, outlines=str(tmp_path / 'drawn'), pixel_size=0)
    said = capsys.readouterr().out
    for line in ('no outline: 1 frames (a.tif)', 'outlines cover all of it: 1 frames (b.tif)'):
        assert line in said
    failures = pd.read_csv(tmp_path / 'ds' / 'failures.csv')
    assert failures[['source', 'reason']].values.tolist() == [['a.tif', 'a.tif: its outlines hold no object']]


def test_the_command_has_the_options_of_the_function():
    options = {action.dest for action in command_parser(ipb_detect)._actions}
    assert set(signature(detect_dataset).parameters) - {'resample'} == options - {
        'help',
        'list',
        'max_pixels',
        'preview',
        'pdb',
        'xtra',
    }
    args = command_parser(ipb_detect).parse_args(['raw', '--min_area', '1280um2', '--split', '5'])
    assert (args.dest, args.min_area, args.split, args.radius, args.margin) == (None, '1280um2', 5, 3, 112)


def names_of(raw, **kwargs):
    df, failures, _ = list_frames(raw, **kwargs)
    return sorted(zip(df.source, df.group, df.frame)), failures


def test_links_do_not_change_wells(tmp_path):
    store = tmp_path / 'store'
    for k, name in enumerate(('A1/t0.tif', 'A1/t1.tif', 'A2/t0.tif', 'A2/t1.tif')):
        (store / name).parent.mkdir(exist_ok=True, parents=True)
        tifffile.imwrite(store / name, np.full((9, 9), k, np.uint8))
    want, _ = names_of(store)
    os.symlink(store, tmp_path / 'linked folder')
    (tmp_path / 'linked wells').mkdir()
    for well in ('A1', 'A2'):
        os.symlink(store / well, tmp_path / 'linked wells' / well)
        os.symlink('..', store / well / 'up')
        (tmp_path / 'linked files' / well).mkdir(parents=True)
        for t in (0, 1):
            os.symlink(store / well / f't{t}.tif', tmp_path / 'linked files' / well / f't{t}.tif')
    os.symlink(tmp_path, store / 'A1' / 'far up')
    for way in ('store', 'linked folder', 'linked wells', 'linked files'):
        assert names_of(tmp_path / way) == (want, []), way


def test_masks_and_thumbnails_are_no_frames(tmp_path):
    im = np.zeros((9, 9), np.uint8)
    for name in (
        *('a.tif', 'a_cp_masks.tif', 'a_labels.tif', 'b_mask.png', 'no_label.tif', '@eaDir/a.tif/S.jpg'),
        'c_thumb4D1E7C4E-AA11-4B0B-A55B-0123456789AB.tif',
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / name), im)
    frames, failures = names_of(tmp_path)
    assert [source for source, *_ in frames] == ['a.tif', 'no_label.tif']
    assert {f['source'] for f in failures} == {'a_cp_masks.tif', 'a_labels.tif', 'b_mask.png'}
    assert all('no frame' in f['reason'] for f in failures)


def test_the_list_of_a_folder_in_which_all_is_bad(tmp_path):
    (tmp_path / 'a.tif').write_bytes(b'not a tiff' * 20)
    said = subprocess.run([IPB_DETECT, tmp_path, '--list'], capture_output=True, text=True)
    assert said.returncode == 1 and 'bad file: a.tif: found 200 bytes' in said.stdout
    assert 'no frame that can be read; the first: a.tif' in said.stderr and 'Traceback' not in said.stderr


def test_a_frame_that_fits_nowhere_is_named(frame, tmp_path, capsys):
    "The stage has moved too far: the error of the registration is 1, and the shift is not believed."
    moved = [frame, np.roll(frame, (2, -3), (0, 1)), np.roll(frame, (340, 420), (0, 1))]
    (tmp_path / 'raw' / 'A1').mkdir(parents=True)
    for t, image in enumerate(moved):
        tifffile.imwrite(tmp_path / 'raw' / 'A1' / f'{t:03d}.tif', image)
    ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'cells'), pixel_size=0.8, interval_h=1)
    qc = pd.read_csv(tmp_path / 'cells' / 'qc.csv')
    assert np.isnan(qc.shift_error[0]) and qc.shift_error[1] < 0.2 and qc.shift_error[2] == 1
    assert np.abs(qc[['shift_y_px', 'shift_x_px']].values[1:] - [2, -3]).max() < 1
    assert 'fits nowhere on the frame before: 1 frames (A1/002.tif)' in capsys.readouterr().out


def test_the_page_of_all_frames_links_a_large_picture_of_each(whole):
    folder = whole.path / 'contact_sheets'
    page = (folder / 'index.html').read_text(encoding='utf-8')
    links = re.findall('<a href="([^"]+)"', page)
    quality = pd.read_csv(whole.path / 'qc.csv', keep_default_na=False)
    assert len(links) == len(quality) and 'http' not in page
    for link in links:
        assert 1200 <= max(cv2.imread(str(folder / link)).shape) <= 1600
    for n in quality.colonies:
        assert f'· {n} colon' in page


def test_fields_of_a_well_are_not_one_track(frame, tmp_path, capsys):
    "Names that count fields, without a word: the pictures do not fit on each other."
    (tmp_path / 'raw').mkdir()
    for field, image in enumerate((frame, np.roll(frame, (340, 420), (0, 1)), frame)):
        tifffile.imwrite(tmp_path / 'raw' / f'A1_{field}.tif', image)
    ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'cells'), pixel_size=0.8)
    colonies = ColonyDataset(tmp_path / 'cells').colonies
    assert colonies.frame.nunique() == 3 and (colonies.groupby('track_id').frame.nunique() == 1).all()
    assert '1 wells whose frames are probably fields, not times (A1)' in capsys.readouterr().out


@pytest.mark.parametrize('how', [dict(flat_field=True), dict(preset='paper', min_area='900um2', split=5), 'marks'])
def test_a_preview_shows_what_its_command_line_finds(exp, frame, tmp_path, how):
    if how == 'marks':
        found = find_colonies(frame)[0] > 0
        (tmp_path / 'marks').mkdir()
        cv2.imwrite(str(tmp_path / 'marks' / 'P1-A1-002.png'), found * np.uint8(255))
        how = dict(segmentation=str(tmp_path / 'marks'))
    page = write_preview(exp.path / 'raw', tmp_path / 'cells', 3, **how)
    assert page == tmp_path / 'cells-preview.html' and [page] == [f for f in tmp_path.iterdir() if f.is_file()]
    line = shlex.split(html.unescape(re.search('<pre>(.*)</pre>', page.read_text())[1]))
    assert line[0] == 'ipb-detect'
    run_command(ipb_detect, [*line[1:], '--contact_sheet'])
    with tempfile.TemporaryDirectory() as d:
        done = [detect.detect_frame(job) for job in detect.sample_jobs(exp.path / 'raw', 3, d, **how)[0]]
    assert len(done) == 3 and sum(len(o['rows']) for o in done) > 3
    for o in done:
        name = f'outlines/labels/{o["stem"]}.tif'
        assert (tmp_path / 'cells' / name).read_bytes() == o['files'][name]
    counts = [int(n) for n in re.findall(r'· (\d+) colon', page.read_text())]
    assert counts == [len(o['rows']) for o in done]


def test_a_preview_needs_frames_and_a_free_name(exp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'A1_0.tif').write_bytes(b'II*')
    for n, said in ((0, 'found 0 frames; expected 1 to 48'), (4, 'A1_0.tif')):
        with pytest.raises(InputError, match=said):
            write_preview('raw', n=n)
    (tmp_path / 'preview.html').mkdir()
    with pytest.raises(InputError, match='something that is no preview'):
        write_preview(exp.path / 'raw', n=1)
    assert {f.name for f in tmp_path.iterdir()} == {'raw', 'preview.html'}


def test_a_preview_does_not_stop_where_frames_are_missing(frame, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('raw').mkdir()
    for k in (0, 1, 3):
        cv2.imwrite(f'raw/A1_{k}.png', frame[:300, :300])
    how = dict(pixel_size=0.8, interval_h=1)
    ipb_detect('raw', preview=3, **how)
    gap = 'well A1: found 3 frames, without 2'
    assert gap in capsys.readouterr().out and gap in Path('preview.html').read_text()
    with pytest.raises(InputError, match=gap):
        ipb_detect('raw', 'cells', **how)
    ipb_detect('raw', preview=3, allow_gaps=True, **how)
    assert gap not in capsys.readouterr().out and '--allow_gaps' in Path('preview.html').read_text()


def test_a_preview_counts_its_frames_and_names_what_cannot_be_read(frame, tmp_path, monkeypatch, capsys):
    (tmp_path / 'work' / 'raw').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'work')
    cv2.imwrite('raw/A1_0.png', frame)
    Path('raw/B1_0.png').write_bytes(b'xx')
    ipb_detect('raw', '.', preview=2, pixel_size=0)
    said, page = capsys.readouterr().out, tmp_path / 'work-preview.html'
    assert 'B1_0.png' in said and f'1 frame with its outlines, and no dataset: {page}' in said
    assert 'B1_0.png' in page.read_text() and [f.name for f in Path().iterdir()] == ['raw']


def test_masks_too_large_to_be_cut_quickly_are_left_out(whole, monkeypatch):
    looked, cut = [], preview.split_touching
    monkeypatch.setattr(preview, 'split_touching', lambda mask, px: looked.append(mask.size) or cut(mask, px))
    every = parts_per_colony(whole)
    sizes = (whole.colonies.y1 - whole.colonies.y0) * (whole.colonies.x1 - whole.colonies.x0)
    n, most = len(looked), int(sizes.median()) * 3
    looked.clear()
    monkeypatch.setattr(preview, '_PIXELS', most)
    assert parts_per_colony(whole) == parts_per_colony(whole) and 1 <= every < 2
    assert 2 <= len(looked) < 2 * n and len(looked) % 2 == 0
    monkeypatch.setattr(preview, '_PIXELS', int(sizes.min()) - 1)
    assert np.isnan(parts_per_colony(whole)) and preview._cells_text(whole) == ''


def test_simulated_colonies_are_not_taken_for_single_cells(whole, exp, tmp_path, capsys):
    assert 1 <= parts_per_colony(whole) < 2
    ipb_detect(str(exp.path / 'raw'), str(tmp_path / 'cells'))
    assert 'colonies' in (said := capsys.readouterr().out) and 'single cells' not in said


def test_blood_cells_that_touch_are_noticed(bccd, tmp_path, capsys):
    (tmp_path / 'raw').mkdir()
    for k, f in enumerate(sorted((bccd / 'JPEGImages').glob('*.jpg'))[::60], 1):
        shutil.copy(f, tmp_path / 'raw' / f'A{k}.jpg')
    ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'cells'), pixel_size=0)
    said = capsys.readouterr().out
    assert said.count('single cells that touch') == 1 and 'Cellpose' in said and '--split is for' in said
