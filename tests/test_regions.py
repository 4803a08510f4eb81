"""Painted parts of colonies: nothing is lost, several people do not overwrite each other, and training uses them."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import MULTI_LABEL, InputError, read_json, read_pixels, read_table
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import check_run, train
from ipb_nb.folders import append_csv, read_log
from ipb_nb.patch import colony_dataloaders
from ipb_nb.regions import Regions, class_map_png, painted_parts, region_class, stroke
from ipb_nb.split import Split


@given(
    points=st.lists(st.tuples(st.integers(-10, 40), st.integers(-10, 50)), min_size=1, max_size=4),
    radius=st.integers(1, 12),
)
@settings(max_examples=20, deadline=None)
def test_a_stroke_is_all_that_is_near_its_line(points, radius):
    found = stroke((30, 40), points, radius)
    pixels = np.argwhere(np.ones((30, 40), bool))
    dots = [np.array(points[:1], float)]
    for a, b in zip(points, points[1:]):
        dots.append(np.linspace(a, b, 200))
    away = np.hypot(*(pixels[:, None] - np.concatenate(dots)[None]).transpose(2, 0, 1)).min(1).reshape(30, 40)
    assert found[away <= radius].all() and not found[away > radius + 0.15].any()


def paint_many(folder, by, n):
    regions = Regions(ColonyDataset(folder))
    i = regions.ds.colonies.index[0]
    for k in range(n):
        regions.paint(i, by, regions.ds.classes[k % 2], [(112 + 4 * k, 0), (112 + 4 * k, 999)], 4)


def test_two_people_and_two_windows_at_once(few):
    ds = few('cells', 3)
    people = 'ana', 'ben', 'ana'  # (ana has two windows)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(paint_many, [ds.path] * 3, people, [12] * 3))
    regions, i = Regions(ds), ds.colonies.index[0]
    assert {by: len(regions.strokes(by)[i]) for by in ('ana', 'ben')} == dict(ana=24, ben=12)
    assert np.array_equal(read_pixels(ds.path / 'regions' / f'{i}.png', raw=True), regions.of(i))
    inside = ds.colony(i).inside > 0
    maps = [regions.own(i, by) for by in ('ana', 'ben')]
    vote = np.where(maps[0] == 0, maps[1], np.where((maps[1] == 0) | (maps[0] == maps[1]), maps[0], 0))
    assert np.array_equal(regions.of(i), vote * inside)


def test_a_new_log_appears_with_its_first_line(tmp_path, monkeypatch):
    log, there = tmp_path / 'ana.csv', []
    monkeypatch.setattr('ipb_nb.folders.os.fsync', lambda f: there.append(log.exists()))
    for k in 'ab':
        append_csv(log, dict(colony_id=k, label='Dense'))
    assert there == [False, True] and list(read_log(log, ['colony_id', 'label']).colony_id) == ['a', 'b']


def test_a_log_that_nobody_has_begun_is_empty(few):
    ds = few('cells', 3)
    (ds.path / 'regions').mkdir()
    (ds.path / 'regions' / 'ana.csv').touch()
    regions, i = Regions(ds), ds.colonies.index[0]
    assert not regions.ids()
    regions.fill(i, 'ana', ds.classes[0])
    regions.refresh()
    assert regions.ids() == [i]


def test_a_kill_between_log_and_picture_loses_nothing(few):
    ds = few('cells', 3)
    regions, i = Regions(ds), ds.colonies.index[1]
    regions.fill(i, 'ana', ds.classes[0])
    picture = ds.path / 'regions' / f'{i}.png'
    before = picture.read_bytes()
    row = read_table(ds.path / 'regions' / 'ana.csv', ['label']).iloc[0].to_dict()
    append_csv(ds.path / 'regions' / 'ana.csv', row | dict(action='undo', label=''))
    append_csv(ds.path / 'regions' / 'ana.csv', row | dict(label=ds.classes[1]))  # …and here it was killed
    assert picture.read_bytes() == before
    again = Regions(ds)
    assert set(np.unique(again.of(i))) == {0, 2}
    again.refresh()
    assert np.array_equal(read_pixels(picture, raw=True), again.of(i))
    again.undo(i, 'ana')
    assert again.of(i) is None and not picture.exists()


@pytest.mark.parametrize(
    'column, value, said',
    [
        ('colony_id', 'nobody', 'colony_id nobody'),
        ('action', 'smear', 'action smear'),
        ('label', 'Dens', 'label Dens'),
        ('radius', '0', 'radius 0'),
        ('points', '1,2', 'points 1,2'),
        ('action', 'undo', 'undo of'),
    ],
)
def test_a_damaged_log_names_its_line(few, column, value, said):
    ds = few('cells', 3)
    Regions(ds).paint(ds.colonies.index[0], 'ana', ds.classes[0], [(50, 50)], 5)
    log = ds.path / 'regions' / 'ana.csv'
    row = read_table(log, ['label']).iloc[0].to_dict() | {column: value}
    if value == 'undo':
        append_csv(log, row)  # a second one has nothing left to take back
    append_csv(log, row)
    with pytest.raises(InputError, match=f'ana.csv, line [34].*{said}'):
        Regions(ds).ids()


def test_a_full_disk_leaves_the_log_as_it_was(few, monkeypatch):
    ds = few('cells', 3)
    regions, i = Regions(ds), ds.colonies.index[0]
    regions.fill(i, 'ana', ds.classes[0])
    before = regions.of(i)

    def full(*args):
        raise OSError(28, 'No space left on device', 'ana.csv')

    monkeypatch.setattr('ipb_nb.core.os.fsync', full)
    with pytest.raises(OSError, match='No space'):
        regions.undo(i, 'ana')
    monkeypatch.undo()
    assert np.array_equal(Regions(ds).of(i), before)


@pytest.fixture(scope='module')
def painted(simulated, tmp_path_factory):
    "Simulated colonies; in the multi-label ones of U, the truth was painted."
    ds = ColonyDataset(shutil.copytree(simulated, tmp_path_factory.mktemp('painted') / 'cells'))
    one = Split(ds).fold(0)
    ids = one.index[one.part.eq('U') & one.label.eq(MULTI_LABEL)]
    assert len(ids)
    (ds.path / 'regions').mkdir()
    for i in ids:
        true = read_pixels(ds.path / 'truth' / f'{i}.png', raw=True)
        (ds.path / 'regions' / f'{i}.png').write_bytes(class_map_png(true, ds.classes))
    return ds


def test_patches_of_l_come_from_painted_parts(painted):
    parts = painted_parts(painted, 'default', 0, 48)
    plain = colony_dataloaders(painted, scales=(48,), device='cpu', bs=8)
    loaders = colony_dataloaders(painted, scales=(48,), device='cpu', bs=8, more=parts)
    dl, regions = loaders.labeled.train, Regions(painted)
    assert [*dl.items] == [*plain.labeled.train.items, *parts]
    assert loaders.labeled.train.n >= plain.labeled.train.n
    shown = 0
    for draw in range(3):
        for k, i in enumerate(dl.items):
            if '/' not in i:
                continue
            colony, y = dl.dataset[k]
            own = i.partition('/')[0]
            whole, drawn = painted.colony(own), regions.of(own)
            box = dl.box(colony, draw)
            assert painted.classes[region_class(whole, drawn, box) - 1] == painted.classes[int(y)] == parts[i][1]
            pixels = dl.make_item(k, draw, (0, draw))[0].numpy()[0]
            assert np.array_equal(pixels, whole.cut(box, 48))
            shown += 1
    assert shown == 3 * len(parts)


def test_runs_with_and_without_regions(painted, simulated, tmp_path, tiny):
    tiny = tiny | dict(method='supervised')
    plain, beside, used = (tmp_path / o for o in ('plain', 'beside', 'used'))
    train(ExperimentConfig(**tiny), simulated, plain)
    train(ExperimentConfig(**tiny), painted.path, beside)  # regions are there, but not asked for
    for name in ('student.safetensors', 'predictions.csv', 'metrics.json', 'model.json'):
        assert (plain / name).read_bytes() == (beside / name).read_bytes(), name
    with_them = ExperimentConfig(**tiny, regions=True)
    train(with_them, painted.path, used)
    assert (used / 'student.safetensors').read_bytes() != (plain / 'student.safetensors').read_bytes()
    assert read_json(used / 'run.json')['regions_sha256'] == Regions(painted).sha256
    assert 'regions_sha256' not in read_json(plain / 'run.json')
    run = read_json(used / 'run.json') | dict(state='stopped')
    (used / 'run.json').write_text(json.dumps(run), encoding='utf-8')
    i = Regions(painted).ids()[0]
    file = painted.path / 'regions' / f'{i}.png'
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match='regions painted since'):
        train(with_them, painted.path, used, resume=True)
    file.write_bytes(kept)
    with pytest.raises(InputError, match='ipb-annotate'):
        check_run(with_them, simulated, tmp_path / 'none')
