"""Detection by texture: what a frame has been through (noise, blur, JPEG, another pixel size) hardly changes what is
found and nothing of what is said about it."""

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.morphology import disk

from ipb_nb.core import InputError
from ipb_nb.detect import detect_dataset
from ipb_nb.outlines import fill_holes
from ipb_nb.segment import find_colonies
from ipb_nb.simulate import Experiment, simulate_experiment


def noise(image, sd, sigma=0):
    "The picture with white noise, or noise that is alike over `sigma` px; `sd` in grey levels."
    x = np.random.default_rng(1).normal(0, 1, image.shape)
    x = cv2.GaussianBlur(x, (0, 0), sigma) if sigma else x
    return np.clip(np.round(image + sd * x / x.std()), 0, 255).astype(np.uint8)


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


CHANGES = {
    'blurred by 1 px': lambda o: cv2.GaussianBlur(o, (0, 0), 1),
    'blurred by 2 px': lambda o: cv2.GaussianBlur(o, (0, 0), 2),
    'JPEG 60': lambda o: jpeg(o, 60),
    'JPEG 100': lambda o: jpeg(o, 100),
    'median': lambda o: cv2.medianBlur(o, 3),
    'white noise': lambda o: noise(o, 4),
    'correlated noise': lambda o: noise(o, 1.5, 1),
    'half': lambda o: cv2.resize(o, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    'double': lambda o: cv2.resize(o, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR),
}


@pytest.fixture(scope='module')
def scenes(once):
    "Frames with their true class maps."

    def make(folder):
        simulate_experiment(folder / 'exp', 'small', seed=11, wells=3, frames=2, size=1454, interval_h=24.0, workers=1)

    exp = Experiment(once('scenes', make) / 'exp')
    return [exp.frame(*key) for key, _ in exp.colonies.groupby(['well', 'frame'])]


def confluent(image, truth, side):
    "A frame of mirrored copies of the inside of a colony."
    full = cv2.boxFilter((truth > 0).astype(np.float32), -1, (120, 120))[60:-60, 60:-60]
    assert full.max() == 1
    y, x = np.unravel_index(full.argmax(), full.shape)
    return np.pad(image[y : y + 120, x : x + 120], (0, side - 120), mode='symmetric')


def in_um(name):
    "Settings for a frame that was brought to another pixel size."
    size = dict(half=1.6, double=0.4).get(name, 0.8)
    return dict(pixel_size=size, radius='2.4um', open_radius='2.4um', min_area='1280um2')


def recalled(labels, truth):
    "The number of true colonies found at IoU 0.5, neighbours closer than 11 µm as one, and of all."

    def objects(mask):
        near = fill_holes(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disk(7)).view(bool))
        return cv2.connectedComponents(near.view(np.uint8))[1]

    found, true = objects(cv2.resize(labels.astype(np.uint8), truth.shape[::-1]) > 0), objects(truth > 0)
    hits = [k for k in range(1, true.max() + 1) if (true == k).sum() >= 2000]
    best = []
    for k in hits:
        own = true == k
        areas = np.bincount(found[own], minlength=found.max() + 1)[1:]
        whole = np.bincount(found.ravel(), minlength=found.max() + 1)[1:]
        best.append((areas / (whole + own.sum() - areas)).max(initial=0))
    return np.array([np.sum(np.array(best) >= 0.5), len(hits)])


@pytest.mark.parametrize('change', ['blurred by 2 px', 'JPEG 60', 'white noise', 'correlated noise', 'half'])
def test_what_a_frame_has_been_through_hardly_changes_what_is_found(scenes, change):
    def recall(name, changed):
        found = [find_colonies(changed(image), **in_um(name)) for image, _ in scenes]
        assert {quality['flag'] for *_, quality in found} == {''}
        hits, n = sum(recalled(labels > 0, truth) for (labels, *_), (_, truth) in zip(found, scenes))
        assert n > 50
        return hits / n

    assert recall(change, CHANGES[change]) > recall('as it was', lambda o: o) - 0.05 > 0.9


@pytest.mark.parametrize('change', CHANGES)
def test_flags_say_what_is_there_and_not_how_it_was_stored(scenes, change):
    image, truth = max(scenes, key=lambda o: (o[1] > 0).mean())
    cells = confluent(image, truth, 900)
    glass = noise(np.full(cells.shape, 120, np.uint8), 2)
    wound = np.where(np.arange(900) < 600, glass, cells)  # two thirds are empty
    found = [find_colonies(CHANGES[change](o), **in_um(change)) for o in (glass, cells, wound)]
    assert [quality['flag'] for *_, quality in found] == ['empty', 'confluent', '']
    assert [len(table) for _, table, _ in found] == [0, 1, 1]
    assert found[1][0].astype(bool).mean() > 0.9 and 0.2 < found[2][0].astype(bool).mean() < 0.4


def test_flagged_frames_are_kept_unless_told(scenes, tmp_path):
    (tmp_path / 'raw').mkdir()
    image, truth = max(scenes, key=lambda o: (o[1] > 0).mean())
    for name, picture in dict(a=image, b=confluent(image, truth, len(image))).items():
        tifffile.imwrite(tmp_path / 'raw' / f'{name}.tif', picture)
    counts = {}
    for skip in (None, 'empty, confluent'):
        ds = detect_dataset(tmp_path / 'raw', tmp_path / str(skip), pixel_size=0.8, skip=skip)
        quality = pd.read_csv(ds.path / 'qc.csv', keep_default_na=False)
        assert quality.flag.tolist() == ['', 'confluent']
        counts[skip] = quality.colonies.tolist()
    assert counts[None][0] == counts['empty, confluent'][0] > 0
    assert counts[None][1] == 1 and counts['empty, confluent'][1] == 0
    with pytest.raises(InputError, match='skip: found full; expected some of empty, confluent, scale bar'):
        detect_dataset(tmp_path / 'raw', tmp_path / 'x', pixel_size=0.8, skip='full')
    assert not (tmp_path / 'x').exists()
