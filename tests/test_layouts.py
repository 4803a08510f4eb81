"What the names of microscopes' files say, from files drawn by their rules; and one real ND2 file."

import importlib.util
import os
import re
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipb_nb.core import InputError, write_csv
from ipb_nb.dataset import ColonyDataset
from ipb_nb.detect import detect_dataset
from ipb_nb.preview import ipb_detect
from ipb_nb.layouts import PATTERN_FIELDS, by_pattern, by_table
from ipb_nb.frames import check_frames, dataset_picture, list_frames
from ipb_nb.reader import read_frame
from ipb_nb.importers import ipb_import

GUID = '{:08X}-AA11-4B0B-A55B-0123456789AB'.format


def drawn(root, names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / name, np.full((9, 9), k, np.uint8), metadata=None)


LAYOUTS = {
    'incucyte': lambda w, s, c, t: f'VID7_{w}_{s}_{t:02d}d00h30m.tif',
    'imagexpress': lambda w, s, c, t: (
        f'TimePoint_{t}/exp_{w}_s{s}_w{c}{GUID(ord(w[0]) + 99 * s + 999 * c + 9999 * t)}.tif'
    ),
    'metamorph': lambda w, s, c, t: f'{w}_w{c}BF_s{s}_t{t}.TIF',
    'operetta': lambda w, s, c, t: f'r{ord(w[0]) - 64:02d}c{w[1:]}f{s:02d}p01-ch{c}sk{t}fk1fl1.tiff',
    'cv8000': lambda w, s, c, t: f'AssayPlate_{w}_T{t:04d}F{s:03d}L01A01Z01C{c:02d}.tif',
    'micromanager': lambda w, s, c, t: f'{w}/img_channel{c:03d}_position{s:03d}_time{t:09d}_z000.tif',
    'nis': lambda w, s, c, t: f'{w}t{t:03d}xy{s}z1c{c}.tif',
    'zen': lambda w, s, c, t: f'{w}_s{s}_t{t:02d}_c{c}_ORG.tif',
    'keyence': lambda w, s, c, t: f'{w}/Image_T{t:04d}_XY{s:02d}_Z001_CH{c}.tif',
    'cytation': lambda w, s, c, t: f'{w}_01_{s}_1_{"Phase GFP".split()[c - 1]}_{t:03d}.tif',
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_wells_sites_channels_and_times(tmp_path, layout):
    name, channels = LAYOUTS[layout], (1,) if layout == 'incucyte' else (1, 2)
    names = [name(w, s, c, t) for w in ('B03', 'C04') for s in (1, 2) for c in channels for t in (1, 2, 3)]
    drawn(tmp_path, names)
    if len(channels) > 1:
        with pytest.raises(InputError, match='found 2 channels; expected one. Choose one with --channel 0 … 1'):
            list_frames(tmp_path)
    df, failures, bad = list_frames(tmp_path, channel=len(channels) - 1)
    assert not failures and not len(bad) and len(df) == 12
    assert df.groupby('group').size().tolist() == [3] * 4 and set(df.group_from) == {'layout'}
    assert {g.replace('B3', 'B03').replace('C4', 'C04')[:3] for g in df.group if layout != 'keyence'} <= {'B03', 'C04'}
    several = 's' * (len(channels) > 1)
    expected = f'{layout}: 2 wells × 2 sites × {len(channels)} channel{several} × 1 focal plane × 3 times'
    assert df.attrs['layout'] == expected
    if layout == 'incucyte':
        assert df.time_h.tolist() == [24.5, 48.5, 72.5] * 4 and df.frame.tolist() == [0, 1, 2] * 4
    else:
        assert df.frame.tolist() == [1, 2, 3] * 4
        pixels = [int(read_frame(r)[0, 0]) for r in df.to_dict('records')]
        assert [names[k] for k in pixels] == [f.as_posix() for f in df.file]
    assert len(list_frames(tmp_path, layout=layout, channel=0)[0]) == 12


def test_names_that_are_nobodys_rule(tmp_path):
    drawn(tmp_path, ['A1_t00.tif', 'A1_t01.tif', 'A2_t00.tif', 'w_s1.tif'])
    df, _, _ = list_frames(tmp_path)
    assert df.attrs['layout'] == '' and df.group_from.ne('layout').all()
    with pytest.raises(InputError, match='layout: found nis, which fits none of 4 files'):
        list_frames(tmp_path, layout='nis')
    with pytest.raises(InputError, match='layout: found vhs; expected incucyte'):
        list_frames(tmp_path, layout='vhs')


def test_a_cell_tracking_challenge(tmp_path):
    drawn(
        tmp_path,
        ['01/t000.tif', '01/t001.tif', '02/t000.tif', '01_GT/SEG/man_seg000.tif', '01_GT/TRA/man_track000.tif'],
    )
    df, failures, _ = list_frames(tmp_path, layout='ctc')
    assert df[['group', 'frame']].values.tolist() == [['01', 0], ['01', 1], ['02', 0]]
    assert len(failures) == 2 and all('does not fit the layout ctc' in f['reason'] for f in failures)


def test_plates_keep_their_folders(tmp_path):
    names = [f'{p}/TimePoint_{t}/e_A01_w1.tif' for p in ('plate1', 'plate2') for t in (1, 2)]
    drawn(tmp_path, names)
    df, failures, _ = list_frames(tmp_path)
    assert not failures and df.groupby('group').size().to_dict() == {'plate1-A01': 2, 'plate2-A01': 2}


@pytest.fixture
def nd2_file():
    "cluster.nd2 of the package pims-nd2, installed or named by IPB_ND2."
    spec = importlib.util.find_spec('pims_nd2')
    path = os.environ.get('IPB_ND2') or spec and Path(spec.origin).with_name('cluster.nd2')
    if not path or not Path(path).is_file():
        pytest.skip('no real ND2 file: install pims-nd2, or name its cluster.nd2 with IPB_ND2')
    return Path(path)


def test_a_real_nd2(nd2_file, tmp_path):
    nd2 = pytest.importorskip('nd2')
    for kwargs, says in ((dict(z=4), '2 channels'), (dict(channel=1), '10 focal planes')):
        with pytest.raises(InputError, match=f'found {says}; expected one'):
            list_frames(nd2_file, **kwargs)
    df, failures, _ = list_frames(nd2_file, channel=1, z=4)
    assert not failures and df.frame.tolist() == [0, 1, 2] and set(df.pixel_size) == {0.167809}
    assert df.time_h.is_monotonic_increasing and df.time_h[0] > 0
    whole = nd2.imread(nd2_file)
    assert all((read_frame(r) == whole[t, 4, 1]).all() for t, r in enumerate(df.to_dict('records')))
    for how, oracle in ORACLES.items():
        joined, _, _ = list_frames(nd2_file, channel=1, z=how)
        assert len(joined) == 3
        assert all((read_frame(r) == oracle(whole[t, :, 1])).all() for t, r in enumerate(joined.to_dict('records')))


def test_a_pattern_is_offered_where_every_frame_is_a_well(tmp_path, capsys):
    drawn(tmp_path, [f'w{w}day{t}pic.tif' for w in (1, 2) for t in (1, 2, 3)])
    ipb_detect(str(tmp_path), list=True, pixel_size=0)
    said = capsys.readouterr().out
    assert '6 frames of 6 wells' in said
    pattern = re.search("--pattern '(.*)'", said)[1]
    assert list_frames(tmp_path, pattern=pattern)[0].groupby('group').frame.agg(list).to_dict() == {
        'w1': [1, 2, 3],
        'w2': [1, 2, 3],
    }


CUSTOM = '{}+{}+{}+{}+{}.tif'.format
PATTERN = r'(?P<well>..)\+(?P<site>\d)\+(?P<channel>\w+)\+(?P<z>\d+)\+(?P<time>\d+)'


def test_a_pattern_gives_what_a_layout_gives(tmp_path):
    parts = [
        (w, s, c, z, t) for w in ('B3', 'C4') for s in (1, 2) for c in ('BF', 'GFP') for z in (9, 10) for t in (1, 2)
    ]
    drawn(tmp_path, [CUSTOM(*part) for part in parts] + ['notes.tif'])
    with pytest.raises(InputError, match=r'\(channel BF, GFP\): found 2 channels; expected one'):
        list_frames(tmp_path, pattern=PATTERN)
    with pytest.raises(InputError, match='found 2 focal planes; expected one. .* --z max or --z focus'):
        list_frames(tmp_path, pattern=PATTERN, channel=1)
    df, failures, _ = list_frames(tmp_path, pattern=PATTERN, channel=1, z='1')
    assert df.attrs['layout'] == 'pattern: 2 wells × 2 sites × 2 channels × 2 focal planes × 2 times'
    assert [f['source'] for f in failures] == ['notes.tif'] and not check_frames(df.assign(pixel_size=1), df[:0])
    asked = [(w, s, t) for w in ('B3', 'C4') for s in (1, 2) for t in (1, 2)]
    assert [f.as_posix() for f in df.file] == [CUSTOM(w, s, 'GFP', 10, t) for w, s, t in asked]
    assert df.group.tolist() == [f'{w}-s{s}' for w, s, _ in asked] and df.frame.tolist() == [t for *_, t in asked]
    assert [int(read_frame(r)[0, 0]) for r in df.to_dict('records')] == [
        parts.index((w, s, 'GFP', 10, t)) for w, s, t in asked
    ]


def test_elapsed_times_by_a_pattern(tmp_path):
    drawn(tmp_path, ['r02c3_1d06h.tif', 'r02c3_0d12h.tif', 'r01c3_0d00h.tif'])
    pattern = r'r(?P<row>\d+)c(?P<column>\d+)_(?P<d>\d+)d(?P<h>\d+)h'
    df, failures, _ = list_frames(tmp_path, pattern=pattern)
    assert not failures and df[['group', 'frame', 'time_h']].values.tolist()[1:] == [['B3', 0, 12], ['B3', 1, 30]]
    for bad, said in (('(?P<lens>.)', 'with the groups lens'), ('(?P<time>.)(?P<frame>.)', 'redefinition of group')):
        with pytest.raises(InputError, match=f'pattern: found .*{said}'):
            list_frames(tmp_path, pattern=bad)


MISREAD = {  # names that were a well each, or channels taken for times: what the pattern that is offered makes of them
    'A{:02d}_f{}.tif': (([1, 2], [1, 2]), '2 wells × 2 sites × 1 channel × 1 focal plane × 1 time'),
    'exp{}pic{}x.tif': (([1, 2], [1, 2, 3]), '2 wells × 1 site × 1 channel × 1 focal plane × 3 times'),
    'Image{}.tif': ((range(1, 41),), '1 well × 1 site × 1 channel × 1 focal plane × 40 times'),
    'p{}/{}_t{}s{}.tif': (
        ([1, 2], ['a', 'b'], [1, 2], [3, 4]),
        '4 wells × 2 sites × 1 channel × 1 focal plane × 2 times',
    ),
    'VID {} (ch{}).tif': (([5], [1, 2, 3, 4]), '1 well × 1 site × 4 channels × 1 focal plane × 1 time'),
    'x_t{}_ch{:03d}.tif': (([1, 2], [0, 1]), '1 well × 1 site × 2 channels × 1 focal plane × 2 times'),
    '{}f{:02d}.tif': ((['A01', 'B02'], [1, 2, 3]), '2 wells × 3 sites × 1 channel × 1 focal plane × 1 time'),
    'A{}_{}_{}.tif': (([1, 2], [1, 2], ['BF', 'gfp']), '2 wells × 1 site × 2 channels × 1 focal plane × 2 times'),
    'A1_{}_t{}.tif': ((['DAPI', 'Cy3'], [1, 2]), '1 well × 1 site × 2 channels × 1 focal plane × 2 times'),
    'drug_z{:03d}.tif': ((range(5),), '1 well × 1 site × 1 channel × 5 focal planes × 1 time'),
}


@pytest.mark.parametrize('name', MISREAD)
def test_names_that_were_misunderstood_stop_everything(tmp_path, name):
    parts, expected = MISREAD[name]
    names = [name.format(*o) for o in product(*parts)]
    drawn(tmp_path / 'raw', names)
    with pytest.raises(InputError, match='names: found .*; expected names that say which frames belong') as e:
        ipb_detect(str(tmp_path / 'raw'), str(tmp_path / 'ds'), pixel_size=0)
    assert not (tmp_path / 'ds').exists() and f'({expected})' in str(e.value)
    pattern = re.search("--pattern '(.*?)' ", str(e.value))[1]
    df, failures, bad = list_frames(tmp_path / 'raw', pattern=pattern, channel=0, z='max')
    assert not failures and df.attrs['layout'] == f'pattern: {expected}'
    assert not check_frames(df.assign(pixel_from='--pixel_size'), bad)
    plain = list_frames(tmp_path / 'raw', layout='plain')[0]
    assert len(plain) == len(names) and not any('names:' in text for text in check_frames(plain, bad))


@pytest.mark.parametrize(
    'names',
    [
        [f'{r}{c}.tif' for r in 'ABCD' for c in range(1, 11)],
        [f'plate_{r}{c:02d}_x{k}.tif' for k, (r, c) in enumerate(product('AB', (1, 2, 3)))],
        [f'sample {k}b.tif' for k in range(9)],
        ['ctrl.tif', 'drug.tif', 'wash.tif', 'none.tif'],
        [f'{c}_GFP_{t}.tif' for c in ('ctrl', 'drug') for t in (1, 2)],
        ['ctrl_GFP.tif', 'drug_DAPI.tif', 'wash_DAPI.tif', 'none_GFP.tif'],
        ['Image1.tif', 'Image2.tif', 'Image3.tif'],
        [f'ctrl_t{t:03d}.tif' for t in range(5)],
        [f'{w}_{t}.tif' for w in 'cs' for t in range(5)],
        [f'{w}/pic.tif' for w in ('w1', 'w2', 'w3', 'w4')],
    ],
    ids=lambda names: names[0],
)
def test_names_that_raise_no_question(tmp_path, names):
    drawn(tmp_path, names)
    df, _, bad = list_frames(tmp_path, pixel_size=0)
    assert len(df) == len(names) and not check_frames(df, bad)


def test_one_stray_name_does_not_hide_a_layout(tmp_path):
    names = [f'V_B{k}_1_00d0{t}h00m.tif' for k in (1, 2) for t in (0, 1)]
    drawn(tmp_path, [*names, 'overview.tif'])
    df, _, bad = list_frames(tmp_path, pixel_size=0)
    (said,) = check_frames(df, bad)
    assert 'Take --layout incucyte, which fits all but 1 of 5 names (not overview.tif)' in said
    df, failures, bad = list_frames(tmp_path, pixel_size=0, layout='incucyte')
    assert df.groupby('group').time_h.agg(list).to_dict() == {'B1': [0, 1], 'B2': [0, 1]}
    assert [f['source'] for f in failures] == ['overview.tif'] and not check_frames(df, bad)


RNG = np.random.default_rng(0)
FOCAL = RNG.integers(0, 200, (2, 4, 24, 24)).astype(np.uint8)  # times, focal planes
FOCAL[0, 2] += np.uint8(50) * (np.indices((24, 24)).sum(0) % 2).astype(np.uint8)
FOCAL[1, 3] += np.uint8(50) * (np.indices((24, 24)).sum(0) % 2).astype(np.uint8)


def sharpest(planes):
    "By hand: the 4-neighbour Laplacian with mirrored edges."
    p = np.pad(planes.astype(float), ((0, 0), (1, 1), (1, 1)), 'symmetric')
    laplacian = p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:] - 4 * p[:, 1:-1, 1:-1]
    return planes[laplacian.var(axis=(1, 2)).argmax()]


ORACLES = dict(max=lambda planes: planes.max(0), focus=sharpest)


def as_files(root):
    for t, z in np.ndindex(2, 4):
        tifffile.imwrite(root / f'P_B03_T{t + 1:04d}F001L01A01Z{z + 7:02d}C01.tif', FOCAL[t, z])


def as_many_files(root):
    for t, z in np.ndindex(2, 4):
        tifffile.imwrite(root / f'exp_t{t}_z{z + 8}.tif', FOCAL[t, z], metadata=None)


def as_imagej(root):
    tifffile.imwrite(root / 'a.tif', FOCAL, imagej=True, metadata=dict(axes='TZYX'))


def as_ome(root):
    tifffile.imwrite(root / 'a.ome.tif', FOCAL, metadata=dict(axes='TZYX'))


def as_ome_of_two_channels(root):
    planes = np.stack([255 - FOCAL, FOCAL], 2)
    tifffile.imwrite(root / 'a.ome.tif', planes, metadata=dict(axes='TZCYX'))


STACKS = {f.__name__: f for f in (as_files, as_many_files, as_imagej, as_ome, as_ome_of_two_channels)}


@pytest.mark.parametrize('how', ORACLES)
@pytest.mark.parametrize('kind', STACKS)
def test_focal_planes_are_joined(tmp_path, kind, how):
    STACKS[kind](tmp_path)
    reading = dict(as_many_files=dict(pattern=r'(?P<well>exp)_t(?P<time>\d)_z(?P<z>\d+)')).get(kind, {})
    reading |= dict(channel=1) if kind == 'as_ome_of_two_channels' else {}
    df, failures, _ = list_frames(tmp_path, z=how, **reading)
    assert not failures and len(df) == 2 and df.group.nunique() == 1
    for t, r in enumerate(df.to_dict('records')):
        assert (read_frame(r) == ORACLES[how](FOCAL[t])).all()
    one = list_frames(tmp_path, z=2, **reading)[0]
    assert all((read_frame(r) == FOCAL[t, 2]).all() for t, r in enumerate(one.to_dict('records')))
    with pytest.raises(InputError, match='4 focal planes; expected one. Choose one with --z 0 … 3, or join them'):
        list_frames(tmp_path, **reading)


def test_a_dataset_of_joined_focal_planes(tmp_path):
    "Detection joins as reading does, in processes of its own; a frame within a file is found again."
    sharp = 110 + 40 * RNG.standard_normal((200, 200)) * (np.hypot(*(np.indices((200, 200)) - 100)) < 60)
    sharp = np.clip(sharp, 0, 255).astype(np.uint8)
    planes = [cv2.GaussianBlur(sharp, (0, 0), 3), sharp, cv2.GaussianBlur(sharp, (0, 0), 1)]
    folders = {name: tmp_path / name for name in ('alone', 'files', 'stack')}
    for folder in folders.values():
        folder.mkdir()
    tifffile.imwrite(folders['alone'] / 'exp_t1.tif', sharp)
    tifffile.imwrite(folders['stack'] / 'exp.tif', np.stack(planes), imagej=True, metadata=dict(axes='ZYX'))
    for z, im in enumerate(planes):
        tifffile.imwrite(folders['files'] / f'exp_t1_z{z}.tif', im)
    pattern = r'(?P<well>exp)_t(?P<frame>\d)_z(?P<z>\d)'
    reading = dict(alone={}, files=dict(z='focus', pattern=pattern, workers=2), stack=dict(z='focus'))
    made = {k: detect_dataset(folders[k], tmp_path / f'ds-{k}', pixel_size=0, **o) for k, o in reading.items()}
    rows = [ds.colonies[['y0', 'x0', 'y1', 'x1', 'area_px']].values.tolist() for ds in made.values()]
    assert len(rows[0]) == 1 and rows[0] == rows[1] == rows[2]
    assert (dataset_picture(made['stack'], 'exp.tif') == sharp).all()
    assert made['files'].info['detection']['z'] == 'focus'
    with pytest.raises(InputError, match='z: found sharp; expected the number of a focal plane from 0, max or focus'):
        detect_dataset(folders['stack'], tmp_path / 'other', z='sharp')


def test_focal_planes_that_are_not_all_there(tmp_path):
    as_files(tmp_path)
    names = sorted(f.name for f in tmp_path.iterdir())
    (tmp_path / names[0]).write_bytes(b'broken')
    tifffile.imwrite(tmp_path / names[1], FOCAL[0, 1, :9])
    df, failures, bad = list_frames(tmp_path, z='max')
    assert len(df) == 2 and not len(bad) and len(failures) == 3
    assert 'it is not like the other focal planes' in failures[1]['reason']
    assert '2 of 4 focal planes can be joined' in failures[2]['reason']


def write_bad(path, kind):
    "Ten kinds of files that are no image."
    png = cv2.imencode('.png', FOCAL[0, 0])[1].tobytes()
    contents = [b'', b'text ' * 30, png[:40], b'II*\0\xff\xff\xff\x7f', b'II*\0', RNG.bytes(200)]
    contents += [b'MM\0*\0\0\0\x08' + b'\xff' * 40, b'PK\x03\x04' + b'\0' * 60, b'<html>' * 20, b'\xff\xd8\xff\xe0']
    path.write_bytes(contents[kind])


def test_a_bad_file_in_ten_is_a_line_each(tmp_path, capsys):
    (tmp_path / 'raw').mkdir()
    for k in range(300):
        path = tmp_path / 'raw' / f'w{k // 50}_t{k % 50:02d}.tif'
        if k % 10 == 5:
            write_bad(path, k // 10 % 10)
        else:
            tifffile.imwrite(path, np.roll(FOCAL[0, 0], k))
    df, failures, bad = list_frames(tmp_path / 'raw')
    assert (len(df), len(bad), len(failures)) == (270, 30, 30) and {f['kind'] for f in failures} == {'bad file'}
    ipb_detect(str(tmp_path / 'raw'), list=True, pixel_size=0)
    said = capsys.readouterr().out.splitlines()
    assert '270 frames of 6 wells' in said and sum(line.startswith('bad file: w') for line in said) == 30
    with pytest.raises(InputError, match='30 files that could not be read'):
        ipb_import(str(tmp_path / 'raw'), str(tmp_path / 'ds'), classes='A', margin=4)
    ds = ColonyDataset(tmp_path / 'ds')
    assert len(ds) == 270 and sorted(ds.failures.source) == sorted(f['source'] for f in failures)


TEXT = st.text('0123456789-.eA²', min_size=1, max_size=40)
CELLS = st.dictionaries(st.sampled_from(PATTERN_FIELDS), TEXT, min_size=1)


@settings(max_examples=200, deadline=None)
@given(CELLS)
@example(dict(year='9' * 30, row='9' * 30))
@example(dict(d='9' * 400, m='1'))
def test_odd_fields_of_a_file(tmp_path_factory, row):
    "From a table or a name: fields with numbers of a bounded size, or an InputError."
    table = tmp_path_factory.getbasetemp() / 'odd.csv'
    write_csv(pd.DataFrame([dict(file='a.png') | row]), table)
    name = '_'.join(row.values())
    pattern = '_'.join(f'(?P<{k}>.+)' for k in row)
    for read in (lambda: by_table(['a.png'], table, [])[0]['a.png'], lambda: by_pattern([name], pattern, [])[0][name]):
        try:
            got = read()
        except InputError:
            continue
        assert (got.get('frame') or 0) < 10**9
