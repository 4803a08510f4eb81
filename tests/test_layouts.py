"What the names of microscopes' files say, from files drawn by their rules; and one real ND2 file."

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ipb_nb.core import InputError
from ipb_nb.detect import ipb_detect
from ipb_nb.frames import list_frames, read_frame

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
