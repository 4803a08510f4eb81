"""Detection by texture: what a frame has been through (noise, blur, JPEG, another pixel size) hardly changes what is
found and nothing of what is said about it."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import roifile
import tifffile
from skimage.morphology import disk

from ipb_nb.core import InputError, counter_rng
from ipb_nb.detect import detect_dataset
from ipb_nb.growth import OVERLAP, _found, _settle
from ipb_nb.optics import Sheet, expose, paint
from ipb_nb.outlines import fill_holes
from ipb_nb.segment import colony_mask, find_colonies
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


def closed_layer(kind, seed, side=400):
    "A frame within one large colony, from its cells: no glass is left."
    rng, um = counter_rng(seed, 5), side * 0.8
    cells = _found(rng, kind, um / 2, um / 2, 2.2 * um, OVERLAP, 0, 0)[1]
    _settle(cells, 12)
    near = np.maximum(np.abs(cells['x'] - um / 2), np.abs(cells['y'] - um / 2)) < um / 2 + 120
    light = paint(Sheet(cells[near], side, 0.8, rng), rng)
    return expose(light, rng, 0.8)


@pytest.mark.parametrize('kind, seed', [('Dense', 1), ('Spread', 1), ('mixed', 2), ('Diff', 1), ('Diff', 2)])
def test_a_closed_layer_of_cells_is_confluent(kind, seed):
    labels, table, quality = find_colonies(closed_layer(kind, seed), 0.8)
    assert quality['flag'] == 'confluent' and len(table) == 1 and (labels > 0).mean() > 0.9
    _, table, quality = find_colonies(closed_layer(kind, seed), 0.8, skip='confluent')
    assert quality['flag'] == 'confluent' and len(table) == 0


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


@pytest.fixture(scope='module')
def ring(scenes):
    "A ring of cells, 60 px wide, around glass of 240 px; and where its bare middle is."
    y, x = np.mgrid[:600, :600]
    r = np.hypot(y - 300, x - 300)
    image, truth = max(scenes, key=lambda o: (o[1] > 0).mean())
    glass = noise(np.full((600, 600), 120, np.uint8), 2)
    return np.where((r > 120) & (r < 180), confluent(image, truth, 600), glass), r


@pytest.mark.parametrize('preset', ['texture', 'standard', 'paper'])
def test_a_ring_of_cells_is_filled_only_if_asked(ring, preset):
    image, r = ring
    found = {
        which: find_colonies(image, preset=preset, refine=preset == 'standard', fill_holes=which)[0] > 0
        for which in (None, 'none', 'small', 'all')
    }
    middle, cells = r < 100, (r > 135) & (r < 165)
    assert all(mask[cells].mean() > 0.9 for mask in found.values())
    assert not found['none'][middle].any() and not found['small'][middle].any() and found['all'][middle].all()
    assert (found[None] == found['small' if preset == 'texture' else 'all']).all()
    with pytest.raises(InputError, match='fill_holes: found some; expected none, small, all'):
        find_colonies(image, fill_holes='some')


def test_what_is_excluded_has_no_colony_and_hides_no_glass(scenes):
    image, truth = max(scenes, key=lambda o: (o[1] > 0).mean())
    labels, table, plain = find_colonies(image)
    whole = table[~table.touches_border]
    o = whole.loc[whole.area_px.idxmax()]
    wall = np.zeros(image.shape, bool)
    wall[:, (o.x0 + o.x1) // 2 - 20 : (o.x0 + o.x1) // 2 + 20] = True
    walled = np.where(wall, confluent(image, truth, len(image)), image)
    parts, cut, quality = find_colonies(walled, excluded=wall)
    assert not parts[wall].any() and quality['flag'] == ''
    near = cv2.dilate(wall.astype(np.uint8), np.ones((41, 41))) > 0
    assert (((parts > 0) != (labels > 0)) & ~near).sum() < 0.02 * (labels > 0).sum()
    beside = np.unique(parts[cv2.dilate(wall.astype(np.uint8), np.ones((3, 3))) > 0])
    assert cut.touches_border[cut.number.isin(beside)].all() and (beside > 0).any()
    assert quality['excluded'] == round(wall.mean(), 4) and plain['background'] == quality['background']
    # (a wall that is excluded in vain: nothing but the wall is taken away from what the paper's mask finds)
    mask = colony_mask(walled)
    assert (colony_mask(walled, min_area=1, excluded=wall) <= (colony_mask(walled, min_area=1) & ~wall)).all()
    assert (mask & wall).any()


def test_a_ring_of_wall_is_not_filled():
    y, x = np.mgrid[:600, :600]
    r = np.hypot(y - 300, x - 300)
    edge = (r > 270) & (r < 290)
    image = np.where(edge, noise(np.full(r.shape, 120, np.uint8), 30), noise(np.full(r.shape, 120, np.uint8), 2))
    for preset in ('texture', 'paper'):
        found = find_colonies(image, preset=preset, fill_holes='all')[0] > 0
        assert found[r < 250].all()
        assert find_colonies(image, preset=preset, fill_holes='all', excluded=edge)[0][r < 250].mean() < 0.2


@pytest.fixture
def two_wells(scenes, tmp_path):
    "Two wells of one frame each, and a wall as a mask."
    (tmp_path / 'raw').mkdir()
    for name, (image, _) in zip('ab', scenes):
        tifffile.imwrite(tmp_path / 'raw' / f'{name}.tif', image)
    wall = np.zeros(image.shape, np.uint8)
    wall[:, 600:800] = 255
    (tmp_path / 'exclude').mkdir()
    tifffile.imwrite(tmp_path / 'exclude' / 'A.tif', wall)
    return tmp_path, wall > 0


def test_regions_are_excluded_by_well_and_recorded(two_wells):
    folder, wall = two_wells
    for name, more in (('one', {}), ('small', dict(resample=1.6, min_area=500)), ('two', dict(workers=2))):
        ds = detect_dataset(folder / 'raw', folder / name, exclude=folder / 'exclude', pixel_size=0.8, **more)
        first, second = (tifffile.imread(ds.path / 'outlines' / 'labels' / f'{o}.tif') for o in 'ab')
        own = cv2.resize(wall.astype(np.uint8), first.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        assert not first[own].any() and second[own].any()
        quality = pd.read_csv(ds.path / 'qc.csv')
        assert quality.excluded.fillna(0).tolist() == pytest.approx([wall.mean(), 0], abs=1e-3)
        assert list(ds.info['detection']['exclude']) == ['A'] and len(ds.info['detection']['exclude']['A']) == 64
    roifile.ImagejRoi.frompoints([[600, 0], [800, 0], [800, 1454], [600, 1454]]).tofile(folder / 'wall.roi')
    rois = detect_dataset(folder / 'raw', folder / 'rois', exclude=folder / 'wall.roi', pixel_size=0.8)
    same = tifffile.imread(rois.path / 'outlines' / 'labels' / 'a.tif')
    assert (same == tifffile.imread(folder / 'one' / 'outlines' / 'labels' / 'a.tif')).all()


@pytest.mark.parametrize(
    ('name', 'content', 'says'),
    [
        ('a.png', np.ones((30, 40), np.uint8), r"a.png: found a mask of 30×40 px; expected its image's size"),
        ('all.tif', b'II*', 'all.tif: found 3 bytes that cannot be read'),
        ('b.zip', b'PK\x03\x04', 'b.zip: found a file that cannot be read as Fiji ROIs'),
        (
            'c.png',
            np.zeros((30, 40), np.uint8),
            r'c.png: found the name of no frame; expected all, .* a well such as a',
        ),
        ('b.png', np.ones((1454, 1454), np.uint8), 'b.png: found a mask that excludes all of the frame'),
    ],
)
def test_masks_that_cannot_exclude_stop_before_anything_runs(two_wells, name, content, says):
    folder, _ = two_wells
    (folder / 'exclude' / 'A.tif').unlink()
    if isinstance(content, bytes):
        (folder / 'exclude' / name).write_bytes(content)
    else:
        cv2.imwrite(str(folder / 'exclude' / name), content)
    with pytest.raises(InputError, match=says):
        detect_dataset(folder / 'raw', folder / 'out', exclude=folder / 'exclude', pixel_size=0.8)
    assert not (folder / 'out').exists()


def test_excluding_has_no_part_in_given_outlines(two_wells):
    folder, _ = two_wells
    with pytest.raises(InputError, match='exclude: found it with outlines'):
        detect_dataset(folder / 'raw', folder / 'out', exclude=folder / 'exclude', outlines=folder / 'raw')
    with pytest.raises(InputError, match='gone: found no such file or folder; expected masks or Fiji ROIs'):
        detect_dataset(folder / 'raw', folder / 'out', exclude=folder / 'gone', pixel_size=0.8)
    shutil.copy(folder / 'exclude' / 'A.tif', folder / 'raw' / 'c.tif')
    with pytest.raises(InputError, match='c.tif: found a mask among the frames'):
        detect_dataset(folder / 'raw', folder / 'out', exclude=folder / 'raw' / 'c.tif', pixel_size=0.8)
