"""Detection learnt from marks: strokes, masks and ROIs; it travels with the dataset and in a model.json, and finds
the same whoever does the work."""

import cv2
import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
from types import SimpleNamespace

from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.detect import detect_dataset
from ipb_nb.predict import _settings
from ipb_nb.strokes import Segmentation, _packed, read_marks, trained_mask

SIDE = 320
CENTERS = [(80, 90), (235, 110), (150, 240)]


def disc_frame(seed):
    "Smooth discs on a grainy ground, which texture takes for cells; the true mask."
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for y, x in CENTERS:
        cv2.circle(mask, (x, y + int(rng.integers(-9, 9))), 38, 1, -1)
    grain = cv2.GaussianBlur(rng.normal(0, 24, mask.shape), (0, 0), 1.5) * (mask == 0)
    image = 110 + 24 * cv2.GaussianBlur(mask.astype(float), (0, 0), 3) + grain + rng.normal(0, 1, mask.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask.view(bool)


def line(colony, *points):
    return dict(colony=colony, width=9, points=points)


STROKES = [line(True, (60, 80), (120, 80)), line(True, (215, 150), (265, 150))]
STROKES += [line(False, (5, 10), (5, 310), (310, 310)), line(False, (165, 10), (165, 310))]


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp('strokes') / 'raw'
    folder.mkdir()
    for k in range(3):
        tifffile.imwrite(folder / f'A1_{k:03d}.tif', disc_frame(k)[0])
    write_json({'A1_000.tif': STROKES}, folder.parent / 'strokes.json')
    return folder


@pytest.fixture(scope='module')
def cells(raw):
    return detect_dataset(raw, raw.parent / 'cells', pixel_size=0.8, segmentation=raw.parent / 'strokes.json')


def found(ds):
    return ds.colonies[['y0', 'x0', 'y1', 'x1', 'area_px']]


def test_strokes_find_what_texture_cannot(cells, raw):
    for k in range(3):
        labels = tifffile.imread(cells.path / 'outlines' / 'labels' / f'{cells.colonies.index[3 * k][:-5]}.tif') > 0
        true = disc_frame(k)[1]
        assert (labels & true).sum() / (labels | true).sum() > 0.7
    assert cells.colonies.groupby('source').size().tolist() == [3, 3, 3]
    by_texture = found(detect_dataset(raw, raw.parent / 'texture', pixel_size=0.8))
    assert by_texture.area_px.max() > 2 * found(cells).area_px.max()  # the ground, not the discs


@pytest.mark.parametrize('how', [dict(workers=2), dict(dask='local', workers=2)], ids=['processes', 'dask'])
def test_whoever_does_the_work_finds_the_same(cells, raw, tmp_path, how):
    model = cells.path / 'segmentation.json'
    ds = detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, segmentation=model, **how)
    pd.testing.assert_frame_equal(found(ds), found(cells))
    assert (ds.path / 'segmentation.json').read_bytes() == model.read_bytes()


def test_a_model_of_the_first_version_finds_what_it_found():
    trees = dict(
        feature=np.full((16, 255), 13), level=np.full((16, 255), 1.0), share=np.tile(np.arange(256) < 128, (16, 1))
    )
    numbers = {k: _packed(v, kind) for (k, v), kind in zip(trees.items(), ('u1', '<f4', '<f8'))}
    info = dict(format_version=1, pixel_size=None, channel=None, threshold=0.5) | numbers  # smooth is colony
    now, then = (trained_mask(disc_frame(1)[0], Segmentation(info | dict(format_version=v))) for v in (2, 1))
    assert abs(int(then.sum()) - 55675) < 60  # as it was before there was a second version
    assert abs(int(now.sum()) - 55675) > 500  # whose shares are smoothed more


def test_it_travels_with_the_dataset_and_the_student(cells, raw, tmp_path):
    info = dict(detection=read_json(cells.path / 'dataset.json')['detection'])  # as in model.json
    settings = _settings(SimpleNamespace(info=info), {})
    again = detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, **settings)
    pd.testing.assert_frame_equal(found(again), found(cells))
    for other in (dict(preset='paper'), dict(outlines='edited')):
        assert 'segmentation' not in _settings(SimpleNamespace(info=info), other)


def test_resumed_only_with_the_same_marks(cells, raw, tmp_path):
    how = dict(pixel_size=0.8, resume=True)
    assert len(detect_dataset(raw, cells.path, segmentation=raw.parent / 'strokes.json', **how)) == 9
    write_json({'A1_001.tif': STROKES}, tmp_path / 'others.json')
    for other in (tmp_path / 'others.json', None):
        with pytest.raises(InputError, match='found segmentation '):
            detect_dataset(raw, cells.path, segmentation=other, **how)


def test_marks_from_masks_and_rois(raw, cells, tmp_path):
    (tmp_path / 'masks').mkdir()
    true = disc_frame(1)[1]
    cv2.imwrite(str(tmp_path / 'masks' / 'A1_001.png'), true.astype(np.uint8) * 255)
    ds = detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, segmentation=tmp_path / 'masks')
    assert len(ds) == 9 and ds.colonies.area_px.between(0.8 * np.pi * 38**2, 1.2 * np.pi * 38**2).all()

    def roi(name, y0, x0, y1, x1):
        own = roifile.ImagejRoi.frompoints([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        own.name = name
        return own

    roifile.roiwrite(tmp_path / 'a.zip', [roi('cell', 10, 10, 30, 20), roi('background', 40, 0, 50, 50)], mode='w')
    assert np.bincount(read_marks(tmp_path / 'a.zip', (60, 60)).ravel()).tolist() == [3600 - 700, 500, 200]
    roifile.roiwrite(tmp_path / 'b.zip', [roi('cell', 10, 10, 30, 20)], mode='w')
    assert np.bincount(read_marks(tmp_path / 'b.zip', (60, 60)).ravel()).tolist() == [0, 3400, 200]


@pytest.mark.parametrize(
    'strokes, why',
    [
        ({'A1_000.tif': STROKES[:2]}, '0 marked pixels of background'),
        ({'A1_000.tif': STROKES[2:]}, '0 marked pixels of colony'),
        ({'A1_000.tif': [line(True, (900, 900))]}, 'stroke 1 outside of the image'),
        ({'A1_000.tif': [line(True, (1e300, 0))]}, 'beyond a million px'),
        ({'B9.tif': STROKES}, 'no marks of any of these frames'),
        ([], 'for each image a list of strokes'),
        ({'A1_000.tif': [5]}, 'a stroke: colony, width and points'),
    ],
)
def test_marks_that_cannot_be_learnt_from(raw, tmp_path, strokes, why):
    write_json(strokes, tmp_path / 'strokes.json')
    with pytest.raises(InputError, match=why):
        detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, segmentation=tmp_path / 'strokes.json')
    assert not (tmp_path / 'ds').exists()  # and so the name is free for another try


def test_models_that_do_not_fit(raw, cells, tmp_path):
    model = cells.path / 'segmentation.json'
    with pytest.raises(InputError, match=r'images of 1.6 µm per pixel; expected 0.8 µm'):
        detect_dataset(raw, tmp_path / 'ds', pixel_size=1.6, segmentation=model)
    write_json(read_json(model) | dict(level='AAAA'), tmp_path / 'broken.json')
    with pytest.raises(InputError, match='broken.json: found another level'):
        detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, segmentation=tmp_path / 'broken.json')
    with pytest.raises(InputError, match='refine'):
        detect_dataset(raw, tmp_path / 'ds', pixel_size=0.8, segmentation=model, preset='paper', refine=True)
