"The simulated experiment: the same whoever draws it, whole frames only, and a truth that other tools confirm."

import errno
import filecmp
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage as ndi
from skimage.measure import label, regionprops

from ipb_nb import simulate
from ipb_nb.core import CLASSES, MULTI_LABEL, InputError, read_image
from ipb_nb.growth import DEBRIS, DIFF
from ipb_nb.optics import Sheet
from ipb_nb.simulate import (
    _MISTAKES,
    Experiment,
    crops_by_truth,
    simulate_annotators,
    simulate_dataset,
    simulate_experiment,
    true_labels,
    well_states,
)

SMALL = dict(seed=3, plates=1, wells=2, frames=3, size=512, pixel_size=0.8, interval_h=8.0, overlap=0.6, effect=1.0)


def files(d):
    return sorted(f.relative_to(d) for f in d.rglob('*') if f.is_file())


def same(a, b):
    assert files(a) == files(b)
    others = filecmp.cmpfiles(a, b, files(a), shallow=False)[1]
    assert others in ([], [Path('manifest.csv')])  # it has the files' times
    for name in others:
        one, other = (pd.read_csv(o / name).drop(columns='mtime_ns') for o in (a, b))
        pd.testing.assert_frame_equal(one, other)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return simulate_experiment(tmp_path_factory.mktemp('sim') / 'tiny', 'tiny', seed=1)


def test_any_number_of_workers_gives_the_same_files(tiny, tmp_path):
    same(tiny.path, simulate_experiment(tmp_path / 'two', 'tiny', seed=1, workers=2).path)


def test_another_seed_gives_other_colonies(tiny, tmp_path):
    other = simulate_experiment(tmp_path / 'other', 'tiny', seed=2, wells=1)
    assert (other.frame('P1-A1', 0)[1] != tiny.frame('P1-A1', 0)[1]).mean() > 0.05


def test_tiny_has_three_small_colonies_of_each_class(tiny):
    first = tiny.colonies[tiny.colonies.frame == 0]
    assert (first.label.value_counts()[CLASSES] >= 3).all()
    assert first.area_px.max() < 200**2


def test_a_full_disk_leaves_whole_frames_and_the_next_call_goes_on(tiny, tmp_path, monkeypatch):
    write, left = tifffile.imwrite, [4]

    def imwrite(path, im, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(path, im, **kwargs)

    monkeypatch.setattr(simulate.tifffile, 'imwrite', imwrite)
    with pytest.raises(OSError, match='No space left'):
        simulate_experiment(tmp_path / 'full', 'tiny', seed=1)
    done = [f for f in files(tmp_path / 'full') if f.parts[0] == 'raw']
    assert len(done) == 4 and all(filecmp.cmp(tmp_path / 'full' / f, tiny.path / f, shallow=False) for f in done)
    with pytest.raises(InputError, match='unfinished experiment'):
        Experiment(tmp_path / 'full')
    left[0] = 100
    same(tiny.path, simulate_experiment(tmp_path / 'full', 'tiny', seed=1).path)
    assert left[0] == 95  # only the missing frames


def test_other_parameters_do_not_mix(tiny):
    before = (tiny.path / 'truth' / 'colonies.csv').read_bytes()
    with pytest.raises(InputError, match='experiment.json: found seed 1; expected seed 2'):
        simulate_experiment(tiny.path, 'tiny', seed=2)
    with pytest.raises(InputError, match='found preset tiny; expected preset small'):
        simulate_experiment(tiny.path, 'small', seed=1)
    assert (tiny.path / 'truth' / 'colonies.csv').read_bytes() == before


def test_markers_change_neither_phase_contrast_nor_truth(tiny, tmp_path):
    marked = simulate_experiment(tmp_path / 'marked', 'tiny', seed=1, wells=1, markers=3)
    image, truth = marked.frame('P1-A1', 0)
    plain, same_truth = tiny.frame('P1-A1', 0)
    assert (image.shape, image.dtype) == ((512, 512, 4), np.uint16) and 2000 < image[..., 1:].max() < 4096
    assert (image[..., 0] == plain.astype(int) * 16).all() and (truth == same_truth).all()
    levels = [np.median(image[truth == k], axis=0)[1:] for k in (2, 3, 1)]  # Dense, Diff, Debris
    assert [int(v.argmax()) for v in levels] == [0, 1, 2]
    with tifffile.TiffFile(marked.path / 'raw/P1-A1/000.tif') as tif:
        pixels = ET.fromstring(tif.ome_metadata).find('.//{*}Pixels')
        assert tif.series[0].axes == 'CYX' and pixels.get('Type') == 'uint16'
    assert [c.get('Name') for c in pixels.findall('{*}Channel')] == ['phase', 'OCT4', 'TUJ1', 'PI']
    assert {p.get('DeltaT') for p in pixels.findall('{*}Plane')} == {'0.0'}
    for markers in (0, 2):
        with pytest.raises(InputError, match=f'found markers 3; expected markers {markers}'):
            simulate_experiment(marked.path, 'tiny', seed=1, wells=1, markers=markers)
    ds = crops_by_truth(marked, tmp_path / 'crops')
    assert (ds.channels, ds.depth) == (('phase', 'OCT4', 'TUJ1', 'PI'), 16)
    first = ds.colonies.iloc[0]
    inner = image[first.y0 : first.y1, first.x0 : first.x1]
    assert (ds.colony(first.name).image[112:-112, 112:-112] == inner).all()


def test_without_markers_they_are_not_asked_of_an_experiment(tiny):
    assert 'markers' not in tiny.info['parameters']
    with pytest.raises(InputError, match='found markers 0; expected markers 1'):
        simulate_experiment(tiny.path, 'tiny', seed=1, markers=1)


def test_what_is_done_is_not_done_again(tiny):
    stamp = (tiny.path / 'truth' / 'colonies.csv').stat().st_mtime_ns
    assert simulate_experiment(tiny.path, 'tiny', seed=1).path == tiny.path
    assert (tiny.path / 'truth' / 'colonies.csv').stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(wells=0), 'wells: found 0; expected 1 to 960'),
        (dict(frames=0), 'frames: found 0; expected 1 to 1000'),
        (dict(size=100), 'size: found 100; expected 256 to 8192'),
        (dict(size=100000), 'size: found 100000; expected 256 to 8192'),
        (dict(pixel_size=0.2), 'a field of 102 µm; expected at least 200 µm'),
        (dict(overlap=1.5), 'overlap: found 1.5; expected 0 to 1'),
        (dict(markers=9), 'markers: found 9; expected 0 to 4'),
        (dict(workers=0), 'workers: found 0; expected at least 1'),
        (dict(preset='huge'), 'preset: found huge; expected paper, small, tiny'),
        (dict(colour=1), 'parameters: found colour'),
    ],
)
def test_what_cannot_be(fields, message, tmp_path):
    with pytest.raises(InputError, match=message):
        simulate_experiment(**dict(dest=tmp_path / 'exp', preset='tiny') | fields)
    assert not (tmp_path / 'exp').exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(InputError, match='files that are no simulated experiment'):
        simulate_experiment(tmp_path, 'tiny')
    assert files(tmp_path) == [(tmp_path / 'notes.txt').relative_to(tmp_path)]


def test_the_frame_tells_its_scale_time_and_well(tiny):
    with tifffile.TiffFile(tiny.path / 'raw' / 'P1-A2' / '002.tif') as t:
        assert t.is_ome
        image = ET.fromstring(t.ome_metadata).find('.//{*}Image')
    pixels, plane = image.find('{*}Pixels'), image.find('.//{*}Plane')
    assert (
        image.get('Name') == 'P1-A2'
        and float(pixels.get('PhysicalSizeX')) == 0.8
        and pixels.get('PhysicalSizeXUnit') == 'µm'
    )
    assert float(plane.get('DeltaT')) == 2 and plane.get('DeltaTUnit') == 'h'


def test_colonies_are_the_connected_regions_of_the_truth(tiny):
    for (well, frame), rows in tiny.colonies.groupby(['well', 'frame']):
        truth = tiny.frame(well, frame)[1]
        found = {r.bbox: r for r in regionprops(label(truth > 0, connectivity=2)) if r.area >= 2000}
        assert set(found) == set(zip(rows.y0, rows.x0, rows.y1, rows.x1))
        for o in rows.itertuples():
            r = found[o.y0, o.x0, o.y1, o.x1]
            share = np.bincount(truth[r.slice][r.image], minlength=5)[1:] / r.area
            assert o.area_px == r.area and o.label == (CLASSES[share.argmax()] if share.max() >= 0.95 else MULTI_LABEL)


def test_tracks_keep_their_place(tiny):
    c = tiny.colonies.assign(y=(tiny.colonies.y0 + tiny.colonies.y1) / 2, x=(tiny.colonies.x0 + tiny.colonies.x1) / 2)
    for _, t in c[c.event != 'merge'].groupby('track_id'):
        assert (
            t.frame.is_unique and (np.hypot(t.y.diff(), t.x.diff()).dropna() < 90).all()
        )  # the stage comes back within some 12 px
    assert set(c.parent_ids[c.parent_ids != ''].str.split(';').explode()) <= set(c.track_id)
    assert c.groupby('track_id').frame.nunique().eq(3).sum() >= 6


def test_territories_are_nearest_ellipses():
    cells = well_states(SMALL, 'P1', 'P1-A1', False)['cells_000']
    sheet = Sheet(cells, 512, 0.8, np.random.default_rng(0))
    own = sheet.owner >= 0
    seeds = np.zeros((512, 512), int)
    for i in sheet.flat:
        long = (1.12 + 0.75 * sheet.width[i] * sheet.dice[i, 0]) ** 0.5
        one = np.zeros((512, 512), np.uint8)
        cv2.ellipse(
            one,
            (int(sheet.x[i]), int(sheet.y[i])),
            (max(int(0.6 * sheet.radius[i] * long), 1), max(int(0.6 * sheet.radius[i] / long), 1)),
            np.degrees(cells['angle'][i]),
            0,
            360,
            1,
            -1,
        )
        seeds[one > 0] = i + 1
    where = ndi.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    exact = seeds[tuple(where)] - 1
    assert (sheet.owner[own] == exact[own]).mean() > 0.98  # cv2's distance is approximate at the borders


def test_without_effect_the_treatment_does_nothing_and_with_it_more_cells_differentiate():
    def diff_share(effect, treated):
        n = d = 0
        for k in range(4):
            cells = well_states(
                SMALL | dict(size=1024, effect=effect, frames=2, interval_h=40.0, seed=k), 'P1', 'P1-A1', treated
            )['cells_001']
            n, d = n + (cells['kind'] != DEBRIS).sum(), d + (cells['kind'] == DIFF).sum()
        return d / n

    assert diff_share(0, True) == diff_share(0, False) == diff_share(2, False)
    assert diff_share(4, True) > 1.2 * diff_share(4, False)


def test_an_empty_well_a_lost_frame_and_the_tracks_across_it(tmp_path):
    exp = simulate_experiment(tmp_path / 'exp', 'tiny', wells=6, frames=12)
    (empty,), ((well, lost),) = exp.info['empty'], exp.info['dropped']
    there = {(f.parent.name, int(f.stem)) for f in (exp.path / 'raw').rglob('*.tif')}
    assert there == {(w, t) for w in exp.wells.well for t in range(12)} - {(well, lost)}
    n = exp.colonies.well.value_counts()
    assert empty not in n and (n.reindex(exp.wells.well[exp.wells.well != empty]) > 20).all()
    own = exp.colonies[exp.colonies.well == well]
    assert set(own.track_id[own.frame == lost - 1]) & set(own.track_id[own.frame == lost + 1])


def test_crops_by_truth(tiny, tmp_path):
    ds = crops_by_truth(tiny, tmp_path / 'crops')
    assert (
        len(ds) == len(tiny.colonies)
        and (ds.colonies.label == tiny.colonies.set_index('colony_id').label[ds.colonies.index]).all()
    )
    assert (ds.path / 'wells.csv').exists() and ds.info['pixel_size'] == 0.8
    for i in ds.colonies.index[:6]:
        r = ds.colonies.loc[i]
        image, truth = tiny.frame(r.group, r.frame)
        crop, own = read_image(ds.path / r['image']), read_image(ds.path / 'truth' / f'{i}.png')
        y, x = max(r.y0 - 112, 0), max(r.x0 - 112, 0)
        assert (crop == image[y : y + crop.shape[0], x : x + crop.shape[1]]).all() and (
            own == truth[y : y + crop.shape[0], x : x + crop.shape[1]]
        ).all()
        inside = read_image(ds.path / r['mask']) > 0
        assert (own[inside] > 0).all() and inside.sum() == r.area_px


def test_annotators_err_towards_neighbours_and_the_truth_stays_apart(tmp_path):
    ds = simulate_dataset(tmp_path / 'ds', 60, seed=5, annotators=3)
    truth, votes = true_labels(ds), ds.votes()
    assert set(ds.colonies.label) == {''} and votes.shape[1] == 3
    for who in votes:
        wrong = votes[who] != truth[votes.index]
        assert 0 < wrong.sum() < 21
        assert all(v in _MISTAKES[t] for v, t in zip(votes[who][wrong], truth[votes.index][wrong]))
    assert (ds.labels().label == truth[ds.colonies.index]).mean() > 0.9
    simulate_annotators(ds, {ds.colonies.index[0]: 'Diff'}, n=1, seed=9)  # any mapping, again: the last verdict counts
    assert len(ds.votes()) == 60


def test_a_dataset_of_crops_is_the_same_for_any_number_of_workers(tmp_path):
    for n in (1, 2):
        simulate_dataset(tmp_path / str(n), 20, seed=2, workers=n)
    same(tmp_path / '1', tmp_path / '2')
    with pytest.raises(InputError, match='existing'):
        simulate_dataset(tmp_path / '1', 40)
    with pytest.raises(InputError, match='colonies: found 0'):
        simulate_dataset(tmp_path / '3', 0)
    with pytest.raises(InputError, match='annotators: found 9; expected 1 to 5'):
        simulate_dataset(tmp_path / '4', 40, annotators=9)
    assert not (tmp_path / '4').exists()
