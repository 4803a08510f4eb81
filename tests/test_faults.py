"Names from strangers, two commands at once, a full disk, and what killed commands leave."

import csv
import itertools
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from ipb_nb import detect
from ipb_nb.checkpoint import Checkpoints
from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.crop import colony_row
from ipb_nb.dataset import ColonyDataset, write_dataset
from ipb_nb.detect import detect_dataset
from ipb_nb.folders import _holder, file_name, hold, leads_out
from ipb_nb.importers import import_csv, import_folders
from ipb_nb.simulate import simulate_experiment
from ipb_nb.split import Split, save_split
from ipb_nb.sweep import state_of
from ipb_nb.worklist import assign
from starts import copying

WINDOWS = r'(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?'
ANY = st.text(st.characters(codec=None), max_size=400) | st.sampled_from(
    ['..', '.', '', 'nul', 'COM1.tif', 'a/../../b', '/etc/passwd', 'C:\\x', 'x.', 'x ', '\ud800', 'é', 'e\u0301']
)


@given(ANY, st.integers(40, 200))
def test_any_text_becomes_the_name_of_a_file(text, most):
    name = file_name(text, most=most)
    assert name and len(name.encode()) <= most and name.isprintable()
    assert not re.search(r'[/\\:*?"<>|;]', name) and name == name.strip(' .') and not re.fullmatch(WINDOWS, name)
    assert file_name(name, most=most) == name


@given(st.lists(ANY, max_size=30, unique=True))
def test_names_that_are_taken_differ_by_more_than_capitals(texts):
    taken = set()
    assert len({file_name(text, taken).casefold() for text in texts}) == len(texts)


@given(ANY)
def test_no_path_leads_out_of_its_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / 'below'
    assert leads_out(name) or os.path.commonpath([os.path.abspath(folder / name), folder]) == str(folder)


@given(st.lists(st.sampled_from(['..', '.', 'a', '/', '\\', 'C:', '...']), min_size=1, max_size=6))
def test_no_joined_path_leads_out_either(parts):
    for sep in ('/', '\\'):
        path = sep.join(parts)
        steps = re.split(r'[/\\]', path)
        assert leads_out(path) or (steps[0] and '..' not in steps)


def content(f):
    "The bytes of a file, without the times in manifest.csv."
    return re.sub(rb',\d+$', b'', f.read_bytes(), flags=re.M) if f.name == 'manifest.csv' else f.read_bytes()


def below(folder):
    return {f.relative_to(folder): content(f) for f in folder.rglob('*') if f.is_file()}


def copied(dataset, tmp_path):
    return ColonyDataset(shutil.copytree(dataset, tmp_path / 'ds'))


def change(ds, **cells):
    "Write other cells into the first row of colonies.csv."
    with open(ds / 'colonies.csv', encoding='utf-8', newline='') as f:
        head, first, *rows = csv.reader(f)
    with open(ds / 'colonies.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows([head, [cells.get(c, v) for c, v in zip(head, first)], *rows])


@pytest.mark.parametrize(
    'cells, says',
    [
        (dict(colony_id='../../x'), "colony_id '../../x'; expected an id that can name a file"),
        (dict(colony_id='/tmp/x'), "colony_id '/tmp/x'"),
        (dict(colony_id='aux'), "colony_id 'aux'"),
        (dict(colony_id='x' * 400), "colony_id 'xxx"),
        (dict(image='../x.png'), r"'\.\./x\.png' as image; expected a path below"),
        (dict(mask='/etc/passwd'), "'/etc/passwd' as mask"),
        (dict(mask='masks/../../x.png'), r"'masks/\.\./\.\./x\.png' as mask"),
    ],
)
def test_names_in_the_dataset_of_a_stranger(dataset, tmp_path, cells, says):
    shutil.copytree(dataset, tmp_path / 'ds')
    change(tmp_path / 'ds', **cells)
    with pytest.raises(InputError, match='colonies.csv, line 2: found ' + says):
        ColonyDataset(tmp_path / 'ds')


@pytest.mark.parametrize('name', ['../../x', '/tmp/x', 'a/b', 'x' * 400, 'nul', '.x', ''])
def test_names_of_splits(dataset, name):
    ds = ColonyDataset(dataset)
    for call in (
        lambda: Split(ds, name),
        lambda: save_split(ds, name, folds=1),
        lambda: save_split(ds, frozen=name or '/'),
    ):
        with pytest.raises(InputError, match='name: found .*; expected letters, digits, dots and dashes'):
            call()


def frame(seed):
    "A field with one rough colony."
    rng = np.random.default_rng(seed)
    inside = np.hypot(*np.mgrid[-110:110, -110:110]) < 60
    return (128 + rng.normal(0, 1, (220, 220)) + inside * rng.normal(0, 30, (220, 220))).clip(0, 255).astype(np.uint8)


SIZE = dict(PhysicalSizeX=0.8, PhysicalSizeXUnit='µm', PhysicalSizeY=0.8, PhysicalSizeYUnit='µm')


@pytest.fixture(scope='module')
def fields(tmp_path_factory):
    "Four images whose names, and those that the microscope gave, are meant to do harm."
    folder = tmp_path_factory.mktemp('fields') / 'raw'
    folder.mkdir()
    for k, (file, name) in enumerate(
        dict(parameters='../../x', wells='/tmp/x', scales='W' * 400, colonies='aux').items()
    ):
        tifffile.imwrite(folder / f'{file}.ome.tif', frame(k), metadata=dict(axes='YX', Name=name) | SIZE)
    return folder


def test_no_name_of_an_image_leads_out(fields, tmp_path):
    out = tmp_path / 'deep' / 'down' / 'ds'
    ds = detect_dataset(fields, out, contact_sheet=True)
    assert len(ds) == 4 and {'../../x', '/tmp/x', 'aux'} < set(ds.colonies.group)
    assert {f.relative_to(tmp_path).parts[:3] for f in tmp_path.rglob('*') if f.is_file()} == {('deep', 'down', 'ds')}
    assert len(list((out / 'contact_sheets').glob('*.png'))) == 4 and not Path('/tmp/x.png').exists()


def test_a_source_leads_predictions_nowhere(fields, tmp_path):
    from ipb_nb.predict import _stems

    ds = detect_dataset(fields, tmp_path / 'ds')
    shutil.rmtree(ds.path / 'outlines')
    change(ds.path, source='/../../' + 's' * 400)
    ds = ColonyDataset(ds.path)
    names = _stems(ds, ds.colonies.groupby('source', sort=False).groups)
    assert len(set(names.values())) == 4 and all(name == file_name(name, most=200) for name in names.values())


def test_a_long_id_is_the_error_of_its_row(class_folders, tmp_path):
    rows = [f'fine/{k:02d}.png,fine,{name}' for k, name in enumerate(['a', 'b' * 400, '../c', 'nul', 'e'])]
    shutil.copytree(class_folders, tmp_path / 'raw')
    (tmp_path / 'raw' / 'list.csv').write_text('\n'.join(['image,label,colony_id', *rows]))
    ds = import_csv(tmp_path / 'raw' / 'list.csv', tmp_path / 'ds')
    assert list(ds.colonies.index) == ['a', 'e'] and list(ds.failures.kind) == ['bad file'] * 3
    assert list(ds.failures.source) == ['fine/01.png', 'fine/02.png', 'fine/03.png']


def test_long_and_odd_file_names_are_imported(class_folders, tmp_path):
    for k, name in enumerate(['n' * 250, 'a:b', 'a?b', 'con', 'x.', 'ü' * 120]):
        (tmp_path / 'raw' / 'fine').mkdir(parents=True, exist_ok=True)
        shutil.copy(class_folders / 'fine' / f'{k:02d}.png', tmp_path / 'raw' / 'fine' / f'{name}.png')
    ds = import_folders(tmp_path / 'raw', tmp_path / 'ds')
    assert len(ds) == 6 and not len(ds.failures)
    assert len(ColonyDataset(tmp_path / 'ds').colony(ds.colonies.index[0]).pixels)


def outcome(work, args, start, said):
    start.wait()
    try:
        work(*args)
        said.put('done')
    except Exception as e:
        said.put(f'{type(e).__name__}: {e}')


def at_once(work, *args, n=2):
    "What several processes say that do the same at the same time."
    copies = copying()
    start, said = copies.Barrier(n), copies.Queue()
    all_of_them = [copies.Process(target=outcome, args=(work, args, start, said)) for _ in range(n)]
    for p in all_of_them:
        p.start()
    out = sorted(said.get(timeout=60) for _ in all_of_them)
    for p in all_of_them:
        p.join()
    return out


def test_two_imports_at_once(class_folders, tmp_path):
    said = at_once(import_folders, class_folders, tmp_path / 'ds')
    assert said[1] == 'done' and re.search('a command that is going on|an existing file or folder', said[0])
    assert len(ColonyDataset(tmp_path / 'ds')) == 86 and os.listdir(tmp_path) == ['ds']


def add(raw, dest):
    import_folders(raw, dest, add=True)


def test_two_additions_at_once(class_folders, tmp_path):
    one = import_folders(class_folders / 'fine', tmp_path / 'ds', classes=['fine'])
    for k in range(2):
        shutil.copytree(class_folders / 'coarse', tmp_path / f'raw{k}' / 'coarse')
    said = at_once(add, tmp_path / 'raw0', tmp_path / 'ds')
    assert said[-1] == 'done'
    assert said[0] == 'done' or 'an import or a detection that is going on' in said[0]
    assert len(ColonyDataset(tmp_path / 'ds')) == len(one) + 24


def cut(step, work, *args):
    "Do some work in a process that ends, as by a kill, before the given change of a file; True if it got to its end."

    changes = itertools.count()

    def counted(own):
        def change(path, *args, **kwargs):
            if '.lock' not in str(path) and next(changes) == step:  # (the lock goes when all is done)
                os._exit(9)
            return own(path, *args, **kwargs)

        return change

    def work_until():
        for name in ('replace', 'unlink', 'rmdir'):
            setattr(os, name, counted(getattr(os, name)))
        work(*args)

    p = copying().Process(target=work_until)
    p.start()
    p.join()
    return p.exitcode == 0


def test_an_addition_that_is_cut_at_any_step_ends_the_same(tmp_path):
    def rows(ids):
        for i in ids:
            im = np.random.default_rng(ord(i)).integers(0, 255, (9, 9), dtype=np.uint8)
            yield colony_row(im, (0, 0, 9, 9), im > 99, colony_id=i, source=i, group='w', label='x', sha256=i)

    def addition(dest):
        write_dataset(dest, rows('bcd'), ['x', 'y'], importer='by hand', counts=dict(boxes=3), add=True)

    base, said = write_dataset(tmp_path / 'base', rows('ab'), ['x']).path, []
    addition(alone := Path(shutil.copytree(base, tmp_path / 'alone')))
    whole = {f: o for f, o in below(alone).items() if '.lock' not in f.name}
    for step in itertools.count():
        dest = Path(shutil.copytree(base, tmp_path / f'{step}'))
        done = cut(step, addition, dest)
        ColonyDataset(dest)
        done or cut(7 * step % 23, addition, dest) or addition(dest)
        said.append({f for f, o in below(dest).items() if '.lock' not in f.name and o != whole.get(f)})
        if done:
            break
    assert step > 20 and not any(said), said
    addition(dest)  # repeated after its end, it is another entry
    assert len(ColonyDataset(dest).info['imports']) == 3


def test_of_many_splits_with_one_name_one_is_drawn(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / 'ds')
    ds = ColonyDataset(tmp_path / 'ds')
    said = at_once(save_split, ds, 'twice', n=4)
    assert said[-1] == 'done' and all('found an existing split' in o for o in said[:-1])
    assert Split(ds, 'twice').folds == 10


def test_two_detections_at_once(fields, tmp_path):
    said = at_once(detect_dataset, fields, tmp_path / 'ds')
    assert said[1] == 'done' and re.search(
        r'a detection that is going on \(Python.*since 2|a finished dataset', said[0]
    )
    assert len(ColonyDataset(tmp_path / 'ds')) == 4


def test_who_holds_a_lock_is_read_as_soon_as_it_is_written(tmp_path):
    lock = tmp_path / 'x.lock'
    lock.touch()
    threading.Timer(0.2, lambda: lock.write_text('Python of ana')).start()
    assert _holder(lock) == ' (Python of ana)' and _holder(tmp_path / 'none') == ''


def test_the_second_command_says_who_was_first(dataset, tmp_path):
    ds = copied(dataset, tmp_path)
    for folder, command in {
        tmp_path / 'exp': lambda: simulate_experiment(tmp_path / 'exp', 'tiny'),
        ds.path: lambda: add(tmp_path, ds.path),
    }.items():
        with hold(folder), pytest.raises(InputError, match=f'that is going on .*process {os.getpid()}, since'):
            command()


def test_a_frame_without_a_result_and_without_a_reason(fields, tmp_path, monkeypatch):
    monkeypatch.setattr('ipb_nb.detect._detect_and_store', lambda dest, job: dict(colonies=1))
    with pytest.raises(InputError, match='neither colonies nor a reason for 4 frames, the first'):
        detect_dataset(fields, tmp_path / 'ds')


def test_what_lies_in_the_place_of_a_record_is_none(fields, tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as m:
        m.setattr('ipb_nb.detect._detect_all', lambda *args: 1 / 0)
        detect_dataset(fields, tmp_path / 'ds')
    for text, stem in {'{"camera": "Zyla"}': 'wells.ome', '[]': 'colonies.ome', 'no JSON': 'scales.ome'}.items():
        (tmp_path / 'ds' / '.detect' / f'{stem}.json').write_text(text)
    assert len(detect_dataset(fields, tmp_path / 'ds', resume=True)) == 4


def test_what_a_newer_version_noted_is_refused_and_stays(fields, tmp_path, monkeypatch):
    detect_all = detect._detect_all
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as m:
        m.setattr(detect, '_detect_all', lambda *args: [detect_all(*args), 1 / 0])
        detect_dataset(fields, tmp_path / 'ds')
    notes = sorted((tmp_path / 'ds' / '.detect').glob('*.json'))
    assert {'.parameters', '.scales'} < {f.stem for f in notes} and len(notes) == 6
    for f in notes:
        before = read_json(f)
        assert before['format_version'] == 1
        write_json(before | dict(format_version=2), f)
        with pytest.raises(InputError, match=rf'{re.escape(f.name)}, format_version: found 2.*update ipb_nb'):
            detect_dataset(fields, tmp_path / 'ds', resume=True)
        assert read_json(f)['format_version'] == 2
        del before['format_version']  # as an older version wrote it
        write_json(before, f)
    assert len(detect_dataset(fields, tmp_path / 'ds', resume=True)) == 4


def test_states_and_runs_of_a_newer_version_are_not_made_again(tmp_path):
    for name, read in {
        '00001.json': lambda: Checkpoints(tmp_path).load(),
        'run.json': lambda: state_of(tmp_path),
    }.items():
        write_json(dict(format_version=2), tmp_path / name)
        with pytest.raises(InputError, match=f'{name}, format_version: found 2.*update ipb_nb'):
            read()
        (tmp_path / name).unlink()


def with_little_room(size, work, args, said):
    "Do some work where no file can be larger than `size` bytes."
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        work(*args)
        said.put('done')
    except Exception as e:
        said.put(f'{type(e).__name__}: {e}')


def full(size, work, *args):
    copies = copying()
    said = copies.Queue()
    p = copies.Process(target=with_little_room, args=(size, work, args, said))
    p.start()
    out = said.get(timeout=60)
    p.join()
    return out


def test_a_full_disk_at_the_first_verdict(dataset, tmp_path):
    ds = copied(dataset, tmp_path)
    i = ds.colonies.index[0]
    assert re.search('OSError.*(too large|No space)', full(20, ds.annotate, i, ds.classes[0], 'ana'))
    assert not list((ds.path / 'annotations').glob('*.csv')) and not len(ds.annotations())
    ds.annotate(i, ds.classes[0], by='ana')
    assert len(ds.annotations()) == 1


def test_an_empty_log_is_no_verdicts(dataset, tmp_path):
    ds = copied(dataset, tmp_path)
    (ds.path / 'annotations').mkdir(exist_ok=True)
    (ds.path / 'annotations' / 'ana.csv').touch()
    assert not len(ds.annotations()) and len(ds.labels()) == 86
    ds.annotate(ds.colonies.index[0], ds.classes[0], by='ana')
    assert list(ds.annotations().annotator) == ['ana']


def test_commands_on_a_full_disk_go_on_afterwards(class_folders, fields, tmp_path):
    resumed = lambda raw, dest: detect_dataset(raw, dest, resume=True)
    for k, (command, again, *args) in enumerate(
        [
            (import_folders, import_folders, class_folders),
            (detect_dataset, resumed, fields),
        ]
    ):
        dest, alone = tmp_path / f'full{k}' / 'ds', tmp_path / f'alone{k}' / 'ds'
        command(*args, alone)
        largest = max(f.stat().st_size for f in alone.rglob('*') if f.is_file())
        assert re.search('OSError.*(too large|No space)', full(largest // 2, command, *args, dest))
        assert not [f for f in dest.parent.rglob('*') if '.partial' in f.name]
        again(*args, dest)
        assert below(dest) == below(alone)


def slow(raw, dest):
    "Import, and wait before each row."
    from ipb_nb import importers

    rows = importers._folder_colonies

    def wait(*args):
        for row in rows(*args):
            time.sleep(0.02)
            yield row

    importers._folder_colonies = wait
    import_folders(raw, dest)


def test_a_killed_import_leaves_nothing_to_the_next(class_folders, tmp_path):
    p = copying().Process(target=slow, args=(class_folders, tmp_path / 'ds'))
    p.start()
    while not list(tmp_path.glob('.ds.*.partial/images/*.png')):
        time.sleep(0.01)
    p.kill()
    p.join()
    assert list(tmp_path.glob('.ds.*.partial')) and not (tmp_path / 'ds').exists()
    import_folders(class_folders, tmp_path / 'ds')
    import_folders(class_folders, tmp_path / 'alone')
    assert sorted(os.listdir(tmp_path)) == ['alone', 'ds'] and below(tmp_path / 'ds') == below(tmp_path / 'alone')


def draw(dest):
    save_split(ColonyDataset(dest), 'one', labeled=0.5, test=0.2, folds=2)


def hand_out(dest):
    assign(ColonyDataset(dest), ['ana', 'ben'], n=30, among='all')


@pytest.mark.parametrize('work', [draw, hand_out])
def test_splits_and_work_lists_that_are_cut_at_any_step_end_the_same(work, dataset, tmp_path):
    said = lambda dest: {f: re.sub(rb'20\d\d-[\dT:-]+', b'', o) for f, o in below(dest).items() if f.name != '.lock'}
    work(alone := copied(dataset, tmp_path / 'alone').path)
    for step in itertools.count():
        dest = copied(dataset, tmp_path / f'{step}').path
        done = cut(step, work, dest)
        done or said(dest) == said(alone) or work(dest)
        assert said(dest) == said(alone)
        if done:
            break
    assert step
