"Predicting: raw frames and datasets, resumed and shared, and everything that can be wrong with them."

import os
import shutil
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from ipb_nb.answers import write_answers
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import CLASSES, InputError, read_json, write_json
from ipb_nb.crop import BOX
from ipb_nb.dataset import ColonyDataset
from ipb_nb.detect import detect_dataset
from ipb_nb.experiment import train
from ipb_nb.predict import against_truth, predict
from ipb_nb.simulate import Experiment, simulate_experiment
from ipb_nb.split import save_split
from ipb_nb.student import load_student
from ipb_nb.toy import toy_dataset

BIN = Path(sys.executable).parent
TABLES = ('colonies.csv', 'frames.csv', 'wells.csv', 'replicates.csv', 'tests.csv', 'corrected.csv')


@pytest.fixture(scope='module')
def run(once, simulated):
    cfg = dict(method='supervised', scales='32', epochs=2, steps=40, batch_size=16, threads=1)
    return once('student', lambda d: train(ExperimentConfig(**cfg), simulated, d / 'run')) / 'run'


@pytest.fixture(scope='module')
def exp(once):
    def make(d):
        simulate_experiment(d / 'exp', 'tiny', seed=2, wells=6, frames=2, size=640)

    return Experiment(once('frames', make) / 'exp')


@pytest.fixture(scope='module')
def answers(once, run, exp):
    def make(d):
        predict(run, exp.path / 'raw', d / 'out', conditions=exp.path / 'wells.csv')

    return once('answers', make) / 'out'


def same(a, b):
    for f in TABLES:
        pd.testing.assert_frame_equal(
            pd.read_csv(a / f), pd.read_csv(b / f), rtol=1e-4, atol=1e-6
        )  # (sums in another order differ in their last digits)
    for o in ('maps', 'overlays'):
        assert sorted(f.name for f in (a / o).iterdir()) == sorted(f.name for f in (b / o).iterdir())
        for f in (a / o).iterdir():
            assert f.read_bytes() == (b / o / f.name).read_bytes(), f


def test_every_row_names_its_source(answers, exp):
    colonies, frames, wells = (pd.read_csv(answers / f) for f in TABLES[:3])
    raw = {f.relative_to(exp.path / 'raw').as_posix() for f in (exp.path / 'raw').rglob('*.tif')}
    assert (
        set(frames.source) == raw
        and set(colonies.source) <= raw
        and set(wells.first_source) | set(wells.last_source) <= raw
    )
    assert len(frames) == 12 and len(wells) == 6  # the empty well, too
    for c in CLASSES:
        sums = colonies.groupby('source')[f'area_{c}'].sum().reindex(frames.source).fillna(0)
        assert np.allclose(sums, frames[f'area_{c}'])
    assert frames.colonies.sum() == len(colonies) == sum(frames[f'count_{c}'].sum() for c in CLASSES)


def test_maps_are_where_the_colonies_are(answers):
    colonies, ds = pd.read_csv(answers / 'colonies.csv'), ColonyDataset(answers / 'cells')
    for _, own in colonies.groupby('source'):
        found, labels = (
            np.array(Image.open(answers / own['map'].iloc[0])),
            tifffile.imread(ds.path / 'outlines' / 'labels' / f"{own.colony_id.iloc[0][:-5]}.tif"),
        )
        assert found.shape == labels.shape and ((found > 0) == (labels > 0)).all()


def test_two_workers_give_the_same(run, exp, answers, tmp_path):
    predict(run, exp.path / 'raw', tmp_path / 'out', conditions=exp.path / 'wells.csv', workers=2)
    same(answers, tmp_path / 'out')


@pytest.mark.long
def test_dask_gives_the_same(run, exp, answers, tmp_path):
    distributed = pytest.importorskip('distributed')
    raw, wells = exp.path / 'raw', exp.path / 'wells.csv'
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        predict(run, raw, tmp_path / 'out', conditions=wells, dask=cluster.scheduler_address)
    same(answers, tmp_path / 'out')


def test_killed_and_resumed_it_is_the_same(run, exp, answers, tmp_path):
    raw, out, conditions = exp.path / 'raw', tmp_path / 'out', exp.path / 'wells.csv'
    command = [BIN / 'ipb-predict', run, raw, '--out', out, '--conditions', conditions]
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not [*(out / '.predict').glob('*.json')]:
        time.sleep(0.01)
    p.kill()
    p.wait()
    assert not (out / 'colonies.csv').exists()
    said = 'found an unfinished prediction; expected a new or empty folder. '
    with pytest.raises(InputError, match=said + 'Choose another --out, or go on with it: --resume.'):
        predict(run, raw, out, conditions=conditions)
    subprocess.run([*command, '--resume'], check=True, capture_output=True)
    same(answers, out)


def test_a_second_call_only_answers_anew(run, exp, answers, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(answers, out)
    info = read_json(out / 'prediction.json')
    write_json(
        info | dict(images=os.path.relpath(exp.path / 'raw', out), model=os.path.relpath(run, out)),
        out / 'prediction.json',
    )
    before = (out / 'colonies.csv').stat().st_mtime_ns
    wells = pd.read_csv(exp.path / 'wells.csv')
    wells[wells.replicate.lt(3)].to_csv(tmp_path / 'fewer.csv', index=False)
    predict(run, exp.path / 'raw', out, conditions=tmp_path / 'fewer.csv')
    assert (out / 'colonies.csv').stat().st_mtime_ns == before and pd.read_csv(out / 'tests.csv').p.isna().all()
    page = (out / 'report.html').read_text()
    assert (
        'No p-value where a condition has fewer than 3 biological replicates' in page
        and 'Not in the table of conditions' in page
    )
    with pytest.raises(InputError, match='stride None; expected stride 8'):
        predict(run, exp.path / 'raw', out, stride=8)


def test_wells_with_few_colonies_can_be_left_out(run, exp, answers, tmp_path):
    out, student = shutil.copytree(answers, tmp_path / 'out'), load_student(run)
    frames = pd.read_csv(out / 'frames.csv')
    frames.loc[frames.index[frames.colonies > 1][-1], 'colonies'] -= 1  # one well has fewer than another
    frames.to_csv(out / 'frames.csv', index=False)
    write_answers(student, out, exp.path / 'wells.csv')
    wells = pd.read_csv(out / 'wells.csv').sort_values('compared')
    fewest = wells[wells.compared > 0].iloc[0]
    enough = int(fewest.compared) + 1
    page = write_answers(student, out, exp.path / 'wells.csv', min_colonies=enough).read_text()
    assert f'fewer than {enough} colonies: {fewest.group} ({fewest.compared})' in page
    kept = (wells.compared >= enough).sum()
    corrected = pd.read_csv(out / 'corrected.csv').drop_duplicates('condition')
    assert pd.read_csv(out / 'replicates.csv').wells.sum() == kept == corrected.wells.sum() > 0


def test_frames_at_another_pixel_size(run, exp, tmp_path):
    "The same frames, drawn larger: nearly the same colonies, and it is said."
    import cv2

    for f in (exp.path / 'raw').glob('P1-A[12]/*.tif'):
        im = tifffile.imread(f)
        large = cv2.resize(im, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_CUBIC)
        to = tmp_path / 'large' / f.parent.name / f.name
        to.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            to,
            large,
            ome=True,
            metadata=dict(
                axes='YX',
                PhysicalSizeX=0.5,
                PhysicalSizeXUnit='µm',
                PhysicalSizeY=0.5,
                PhysicalSizeYUnit='µm',
                TimeIncrement=1,
            ),
        )
        (tmp_path / 'plain' / f.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(f, tmp_path / 'plain' / f.parent.name)
    predict(run, tmp_path / 'large', tmp_path / 'a')
    predict(run, tmp_path / 'plain', tmp_path / 'b')
    assert any(
        'The images have 0.5 µm per pixel, the model 0.8: frames are scaled by 0.625' in d
        for d in read_json(tmp_path / 'a' / 'prediction.json')['departures']
    )
    a, b = (pd.read_csv(tmp_path / o / 'colonies.csv') for o in 'ab')
    area = [o[[f'area_{c}' for c in CLASSES]].sum().sum() for o in (a, b)]
    assert abs(len(a) - len(b)) <= 2 and 0.9 < area[0] / area[1] < 1.1
    assert read_json(tmp_path / 'a' / 'cells' / 'dataset.json')['pixel_size'] == 0.8


def test_frames_are_read_as_in_detection(run, exp, tmp_path):
    "Two focal planes of each frame, in names by a rule: the sharper one is the frame of the other folder."
    import cv2

    for f in (exp.path / 'raw').glob('P1-A[12]/*.tif'):
        im, well = tifffile.imread(f), f.parent.name.partition('-')[2]
        for z, plane in enumerate((cv2.GaussianBlur(im, (0, 0), 2), im)):
            to = tmp_path / 'planes' / f'P_{well}_T{int(f.stem):04d}F001L01A01Z{z:02d}C01.tif'
            to.parent.mkdir(exist_ok=True)
            tifffile.imwrite(to, plane)
        (tmp_path / 'plain' / well).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / 'plain' / well / f.name, im)
    how = dict(pixel_size=0.8, interval_h=1)
    with pytest.raises(InputError, match='found 2 focal planes; expected one'):
        predict(run, tmp_path / 'planes', tmp_path / 'a', **how)
    with pytest.raises(InputError, match='layout: found nis, which fits none'):
        predict(run, tmp_path / 'planes', tmp_path / 'a', layout='nis', **how)
    predict(run, tmp_path / 'planes', tmp_path / 'a', z='focus', layout='cv8000', **how)
    predict(run, tmp_path / 'plain', tmp_path / 'b', **how)
    a, b = (pd.read_csv(tmp_path / o / 'colonies.csv') for o in 'ab')
    columns = ['group', 'frame', 'time_h', 'y0', 'x0', 'y1', 'x1', 'predicted', 'area_px']
    assert len(a) and a[columns].values.tolist() == b[columns].values.tolist()
    assert read_json(tmp_path / 'a' / 'prediction.json')['z'] == 'focus'


def test_predict_has_the_reading_options_of_detection():
    ours, theirs = (signature(f).parameters for f in (predict, detect_dataset))
    reading = ('pattern', 'layout', 'channel', 'z', 'interval_h', 'pixel_size')
    assert {k: ours[k].default for k in reading} == {k: theirs[k].default for k in reading}


def test_what_cannot_be_compared_is_refused(run, exp, few, tmp_path):
    with pytest.raises(InputError, match='no pixel size of the images'):
        predict(run, exp.path / 'raw', tmp_path / 'x', pixel_size=0)
    assert not (tmp_path / 'x').exists()
    predict(run, exp.path / 'raw', tmp_path / 'x', pixel_size=0, unscaled=True)
    shutil.copytree(run, tmp_path / 'run')
    write_json(read_json(run / 'model.json') | dict(pixel_size=None), tmp_path / 'run' / 'model.json')
    with pytest.raises(InputError, match='no pixel size of the model'):
        predict(tmp_path / 'run', exp.path / 'raw', tmp_path / 'y')
    other = few('other', 8)
    write_json(
        read_json(other.path / 'dataset.json') | dict(classes=[*CLASSES, 'Strange']), other.path / 'dataset.json'
    )
    with pytest.raises(InputError, match='found the classes .* Strange; expected those of the model'):
        predict(run, other.path, tmp_path / 'z')
    narrow = few('narrow', 8)
    write_json(read_json(run / 'model.json') | dict(scales=[512]), tmp_path / 'run' / 'model.json')
    with pytest.raises(InputError, match='found 512 px; expected at most'):
        predict(tmp_path / 'run', narrow.path, tmp_path / 'z')


@pytest.mark.parametrize(
    'rows, said',
    [
        ('P1-A1,treated,1\nP1-X9,treated,2', 'line 3: found well P1-X9; expected a well of the images'),
        ('P1-A1,treated,1\nP1-A1,treated,2', 'line 3: found well P1-A1 a second time; expected one row per well'),
        ('P1-A1,,1', 'line 2: found no condition'),
    ],
)
def test_conditions_that_cannot_be(run, exp, answers, tmp_path, rows, said):
    (tmp_path / 'wells.csv').write_text('well,condition,replicate\n' + rows)
    out = tmp_path / 'out'
    shutil.copytree(answers, out)
    write_json(
        read_json(out / 'prediction.json') | dict(images=os.path.relpath(exp.path / 'raw', out)),
        out / 'prediction.json',
    )
    with pytest.raises(InputError) as e:
        predict(run, exp.path / 'raw', out, conditions=tmp_path / 'wells.csv')
    assert said in str(e.value)
    assert (out / 'colonies.csv').read_bytes() == (answers / 'colonies.csv').read_bytes()


def test_weights_that_are_none(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    f, whole = tmp_path / 'run' / 'student.safetensors', (run / 'student.safetensors').read_bytes()
    for data, said in (
        (whole[: len(whole) // 2], 'a file that is damaged or not in the safetensors format'),
        (b'\x80\x04\x95pickle', 'a file that is damaged or not in the safetensors format'),
    ):
        f.write_bytes(data)
        with pytest.raises(InputError, match=said):
            load_student(tmp_path / 'run')
    f.unlink()
    with pytest.raises(InputError, match='found no such file; expected the weights of a student'):
        load_student(tmp_path / 'run')
    f.write_bytes(whole)
    model = read_json(run / 'model.json')
    write_json(model | dict(classes=CLASSES[:3]), tmp_path / 'run' / 'model.json')
    with pytest.raises(InputError, match='found another confusion; expected 3 rows of 3 numbers'):
        load_student(tmp_path / 'run')
    trust = {k: v for k, v in model['trust'].items() if k != 'bias'}
    three = dict(classes=CLASSES[:3], confusion=[[1, 0, 0]] * 3, trust=trust)
    write_json(model | three, tmp_path / 'run' / 'model.json')
    with pytest.raises(InputError, match=r'found \(4,\) as classifier.bias; expected \(3,\)'):
        load_student(tmp_path / 'run')


def test_a_bad_frame_is_passed_over(run, exp, tmp_path):
    empty = read_json(exp.path / 'experiment.json')['empty'][
        0
    ]  # a well without colonies: nothing is found, and still it is said
    for w in (empty, next(w for w in exp.wells.well if w != empty)):
        shutil.copytree(exp.path / 'raw' / w, tmp_path / 'raw' / 'P1-A1', dirs_exist_ok=True)
        check_bad_frame(run, tmp_path / 'raw', tmp_path / f'out-{w}')


def check_bad_frame(run, raw, out):
    f = raw / 'P1-A1' / '001.tif'
    shutil.copy(f, f.with_name('002.tif'))
    f.write_bytes(f.read_bytes()[:3000])
    with pytest.raises(InputError, match='P1-A1/001.tif: found no pixel size'):
        predict(run, raw, out)  # (which it has lost, too)
    predict(run, raw, out, pixel_size=0.8)
    assert (
        pd.read_csv(out / 'failures.csv').source.tolist() == ['P1-A1/001.tif']
        and 'P1-A1/001.tif' in (out / 'report.html').read_text()
    )
    assert set(pd.read_csv(out / 'frames.csv').frame) == {0, 2}


def test_a_damaged_colony_is_passed_over(run, few, tmp_path):
    ds = few('cells', 12)
    (ds.path / ds.colonies.image.iloc[3]).write_bytes(b'no picture')
    predict(run, ds.path, tmp_path / 'out')
    assert len(pd.read_csv(tmp_path / 'out' / 'colonies.csv')) == 11 and pd.read_csv(
        tmp_path / 'out' / 'failures.csv'
    ).item.tolist() == [ds.colonies.index[3]]


def test_what_looks_strange_is_flagged(run, few, tmp_path):
    "Colonies in negative: the classes are still named, but with a flag."
    ds = few('cells', 20)
    predict(run, ds.path, tmp_path / 'plain')
    for f in ds.colonies.image:
        Image.fromarray(255 - np.array(Image.open(ds.path / f))).save(ds.path / f)
    predict(run, ds.path, tmp_path / 'negative')
    plain, negative = (pd.read_csv(tmp_path / o / 'colonies.csv') for o in ('plain', 'negative'))
    assert negative.distance.mean() > plain.distance.mean()
    assert any(
        d.startswith('Grey levels inside colonies')
        for d in read_json(tmp_path / 'negative' / 'prediction.json')['departures']
    )
    assert not any(
        d.startswith('Grey levels inside colonies')
        for d in read_json(tmp_path / 'plain' / 'prediction.json')['departures']
    )


def test_the_audit_is_blind(run, exp, answers, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(answers, out)
    write_json(
        read_json(out / 'prediction.json') | dict(images=os.path.relpath(exp.path / 'raw', out)),
        out / 'prediction.json',
    )
    predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv', audit=4)
    labels, key = pd.read_csv(out / 'audit' / 'labels.csv'), pd.read_csv(out / 'audit' / '.key.csv')
    assert list(labels) == ['picture', 'label'] and list(key) == ['picture', 'colony_id', 'predicted'] and len(key) <= 8
    for r in key.itertuples():
        shown, pixels = (
            np.array(Image.open(out / 'audit' / r.picture)),
            ColonyDataset(out / 'cells').pixels(r.colony_id)[0],
        )
        assert (
            shown.shape[:2] == pixels.shape and (shown == pixels[..., None]).all(2).mean() > 0.8
        )  # all but the outline
    labels['label'] = key.predicted
    labels.to_csv(out / 'audit' / 'labels.csv', index=False)
    predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv', audit=4)
    assert pd.read_csv(out / 'audit.csv').errors.sum() == 0
    (out / 'audit' / 'labels.csv').write_text('picture,label\n0001.png,Strange\n')
    with pytest.raises(InputError, match='labels.csv, line 2: found label Strange'):
        predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv')


def test_questions_that_cannot_be_answered(run, exp, tmp_path):
    wells, raw = exp.path / 'wells.csv', exp.path / 'raw'
    with pytest.raises(InputError, match='within the images; expected a folder elsewhere'):
        predict(run, raw, raw / 'answers')
    with pytest.raises(InputError, match='control: found drug; expected treated, untreated'):
        predict(run, raw, tmp_path / 'x', conditions=wells, control='drug')
    with pytest.raises(InputError, match='nowhere: found no such file or folder'):
        predict(run, tmp_path / 'nowhere', tmp_path / 'x')
    said = 'audit: found no table of conditions; expected one, as an audit compares conditions'
    with pytest.raises(InputError, match=said):
        predict(run, raw, tmp_path / 'x', audit=5)
    with pytest.raises(InputError, match='control: found no table of conditions; expected one'):
        predict(run, raw, tmp_path / 'x', control='untreated')
    assert not (tmp_path / 'x').exists()


def test_shares_of_the_classes(run, answers):
    shares, colonies = pd.read_csv(answers / 'shares.csv', index_col='class'), pd.read_csv(answers / 'colonies.csv')
    p = colonies[[f'p_{c}' for c in shares.index]].to_numpy()
    q = p * shares.expected.to_numpy()
    assert np.allclose((q / q.sum(1, keepdims=True)).mean(0), shares.expected, atol=1e-4)  # they agree with themselves
    assert np.allclose(shares.predicted, [(colonies.predicted == c).mean() for c in shares.index])
    assert 'How common each class is' in (answers / 'report.html').read_text()
    assert read_json(run / 'model.json')['prior'] == dict.fromkeys(shares.index, 1 / len(shares))


def test_against_the_truth(answers, exp):
    table, errors = against_truth(answers, exp.path / 'truth')
    assert table.iou.between(0, 1).all() and table.true_area.sum() == pytest.approx(1) and errors.between(0, 1).all()


def test_what_could_not_be_classified_is_missing_and_not_zero(run, exp, answers, tmp_path, monkeypatch):
    "A process that dies over its task, three times; afterwards there is memory enough."
    import ipb_nb.predict as module

    whole, out = module.in_processes, tmp_path / 'out'

    def one_dies(work, jobs, workers):
        yield jobs[0], None
        yield from whole(work, jobs[1:], workers)

    monkeypatch.setattr(module, 'in_processes', one_dies)
    predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv')
    frames, failures = pd.read_csv(out / 'frames.csv'), pd.read_csv(out / 'failures.csv')
    assert (
        len(failures)
        and not set(failures.source) & set(frames.source)
        and 'the process was killed' in failures.reason[0]
    )
    assert (
        'could not be classified and are in no table' in (out / 'report.html').read_text()
        and read_json(out / 'prediction.json')['state'] == 'unfinished'
    )
    monkeypatch.undo()
    with pytest.raises(InputError, match='an unfinished prediction'):
        predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv')
    predict(run, exp.path / 'raw', out, conditions=exp.path / 'wells.csv', resume=True)
    same(answers, out)


def test_areas_are_in_the_pixel_size_that_is_given(run, few, tmp_path):
    ds = few('cells', 10)
    write_json(read_json(ds.path / 'dataset.json') | dict(pixel_size=None), ds.path / 'dataset.json')
    predict(run, ds.path, tmp_path / 'out', pixel_size=0.8)
    df = pd.read_csv(tmp_path / 'out' / 'colonies.csv')
    assert np.allclose(df[[f'area_{c}' for c in CLASSES]].sum(axis=1), df.area_px * 0.64)
    predict(run, ds.path, tmp_path / 'px', unscaled=True)
    assert any('Areas are in px²' in d for d in read_json(tmp_path / 'px' / 'prediction.json')['departures'])


def test_weights_of_a_training_that_broke_down(run, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(run, tmp_path / 'run')
    state = load_file(run / 'student.safetensors')
    state['classifier.bias'][0] = float('nan')
    save_file(state, tmp_path / 'run' / 'student.safetensors')
    with pytest.raises(InputError, match='numbers in classifier.bias that are NaN or infinite'):
        load_student(tmp_path / 'run')
    shutil.copy(run / 'student.safetensors', tmp_path / 'run')
    save_file(
        dict(seen=load_file(run / 'reference.safetensors')['seen'][:, :8].contiguous()),
        tmp_path / 'run' / 'reference.safetensors',
    )
    with pytest.raises(InputError, match='8 features instead of'):
        load_student(tmp_path / 'run')


def test_new_images_are_not_mistaken_for_the_old(run, exp, tmp_path):
    shutil.copytree(exp.path / 'raw' / 'P1-A1', tmp_path / 'raw' / 'P1-A1')
    predict(run, tmp_path / 'raw', tmp_path / 'out')
    shutil.copytree(exp.path / 'raw' / 'P1-A2', tmp_path / 'raw' / 'P1-A2')
    with pytest.raises(InputError, match='found images_sha256'):
        predict(run, tmp_path / 'raw', tmp_path / 'out')


def test_probabilities_are_calibrated_where_there_is_a_v(tmp_path):
    "Labels that have nothing to do with the pictures: an honest network is hardly sure of anything."
    ds = toy_dataset(tmp_path / 'cells', (40, 40, 40))
    df = pd.read_csv(ds.table, keep_default_na=False)
    df['label'] = [ds.classes[k % 3] for k in range(len(df))]
    df.to_csv(ds.table, index=False)
    save_split(ColonyDataset(ds.path), 'random', labeled='rest', test=0.1, valid=0.4, folds=1)
    cfg = dict(method='supervised', split='random', scales='32', epochs=2, steps=200, batch_size=16, lr=0.05, threads=1)
    run = train(ExperimentConfig(**cfg), ds.path, tmp_path / 'run')
    trust = read_json(run / 'model.json')['trust']
    assert trust['calibrated_on'] == 'V' and trust['n'] >= 20
    assert trust['temperature'] > 1 and trust['ece']['after'] <= trust['ece']['before']
    predict(run, ds.path, tmp_path / 'out', unscaled=True)
    assert (tmp_path / 'out' / 'figures' / 'reliability.png').exists()
    departures = read_json(tmp_path / 'out' / 'prediction.json')['departures']
    assert not any('temperature' in d for d in departures)
    student = load_student(run)
    raw, student.trust['temperature'] = load_student(run), 1.0
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8)
    logits = np.log(student.look(x)[0]) / trust['temperature']
    assert np.allclose(raw.look(x)[0], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


def test_probabilities_for_the_shares_of_the_experiment(run, answers, exp, tmp_path):
    cells = answers / 'cells'
    predict(run, cells, tmp_path / 'equal', stride=0)
    predict(run, cells, tmp_path / 'own', stride=0, prior='own', conditions=exp.path / 'wells.csv')
    equal, own = (pd.read_csv(tmp_path / k / 'colonies.csv') for k in ('equal', 'own'))
    columns = [f'p_{c}' for c in CLASSES]
    shares = read_json(tmp_path / 'own' / 'prediction.json')['prior_shares']
    assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(1)
    longhand = equal[columns].to_numpy() * [shares[c] for c in CLASSES]
    assert np.allclose(own[columns], longhand / longhand.sum(1, keepdims=True), atol=1e-5)
    for k in ('equal', 'own'):  # one patch per colony: the estimate from the page is the one that was used
        found = pd.read_csv(tmp_path / k / 'shares.csv', index_col=0).expected
        assert np.allclose(found, [shares[c] for c in CLASSES], atol=1e-3)
    assert (tmp_path / 'own' / 'tests.csv').exists() and not (tmp_path / 'own' / 'corrected.csv').exists()
    with pytest.raises(InputError, match='prior own.*prior equal, as asked for'):
        predict(run, cells, tmp_path / 'own', stride=0)
    with pytest.raises(InputError, match='equal or own'):
        predict(run, cells, tmp_path / 'third', prior='uniform')


def test_an_older_model_has_no_bias(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    info = read_json(run / 'model.json')
    patches = np.random.default_rng(0).integers(0, 256, (8, 32, 32), np.uint8)
    before = load_student(run).look(patches)[0]
    info['trust'].pop('bias', None)
    write_json(info, tmp_path / 'run' / 'model.json')
    assert np.allclose(load_student(tmp_path / 'run').look(patches)[0], before)
    info['trust']['bias'] = [2.0] + [0.0] * (len(info['classes']) - 1)
    write_json(info, tmp_path / 'run' / 'model.json')
    longhand = before * np.exp(info['trust']['bias'])
    expected = longhand / longhand.sum(1, keepdims=True)
    assert np.allclose(load_student(tmp_path / 'run').look(patches)[0], expected, atol=1e-5)


def changed(run, to, **fields):
    "A copy of a run whose model.json says something else."
    shutil.copytree(run, to)
    write_json(read_json(to / 'model.json') | fields, to / 'model.json')
    return to


def departures(out):
    return ' '.join(read_json(out / 'prediction.json')['departures'])


def test_colonies_can_be_found_otherwise_than_in_training(run, exp, answers, tmp_path):
    raw, model = exp.path / 'raw', changed(run, tmp_path / 'model', colonies_per_frame=200)
    assert 'Others can be given with --detect_preset' in departures(answers)
    predict(model, raw, tmp_path / 'out', detect_preset='paper', min_area='2560um2')
    info = read_json(tmp_path / 'out' / 'cells' / 'dataset.json')
    assert (info['detection']['preset'], info['detection']['min_area']) == ('paper', 4000)
    n = len(pd.read_csv(tmp_path / 'out' / 'colonies.csv'))
    assert f'{n / 12:.2g} colonies per frame were found ({n} in 12), in training 200' in departures(tmp_path / 'out')
    assert 'colonies per frame' not in departures(answers)  # (that model does not differ)
    with pytest.raises(InputError, match='found min_area 2560um2; expected min_area 4000um2'):
        predict(model, raw, tmp_path / 'out', detect_preset='paper', min_area='4000um2')


def test_what_training_detected_with_is_kept_but_for_what_is_asked(run, exp, tmp_path):
    trained = dict(preset='standard', refine=True, min_area=3000, blur=5)
    model = changed(run, tmp_path / 'model', detection=trained)
    predict(model, exp.path / 'raw', tmp_path / 'out', detect_preset='texture')
    found = read_json(tmp_path / 'out' / 'cells' / 'dataset.json')['detection']
    assert [found[k] for k in ('preset', 'refine', 'min_area', 'blur')] == ['texture', False, 3000, 5]
    assert found['fill_holes'] == 'small'


def test_regions_excluded_in_training_are_not_those_of_new_images(run, exp, tmp_path):
    raw, mask = exp.path / 'raw', np.zeros((640, 640), np.uint8)
    trained = dict(preset='texture', fill_holes='none', exclude=dict(all='0' * 64))
    model = changed(run, tmp_path / 'model', detection=trained)
    mask[:, 200:300] = 255
    Image.fromarray(mask).save(tmp_path / 'wall.png')
    predict(model, raw, tmp_path / 'out', exclude=tmp_path / 'wall.png')
    found = read_json(tmp_path / 'out' / 'cells' / 'dataset.json')['detection']
    assert found['fill_holes'] == 'none' and found['exclude']['all'] not in ('', '0' * 64)
    assert 'regions were excluded' not in departures(tmp_path / 'out')
    for f in (tmp_path / 'out' / 'maps').iterdir():
        assert not np.array(Image.open(f))[:, 200:300].any()
    Image.fromarray(mask[::-1, ::-1]).save(tmp_path / 'wall.png')
    with pytest.raises(InputError, match='found exclude .* as asked for'):
        predict(model, raw, tmp_path / 'out', exclude=tmp_path / 'wall.png')
    Image.fromarray(mask[:99]).save(tmp_path / 'wall.png')
    with pytest.raises(InputError, match=r"a mask of 99×640 px; expected its image's size, 640×640 px"):
        predict(model, raw, tmp_path / 'small', exclude=tmp_path / 'wall.png')
    assert not (tmp_path / 'small').exists()
    predict(model, raw, tmp_path / 'none')
    assert 'In training, regions were excluded from the frames' in departures(tmp_path / 'none')


@pytest.fixture
def marks(exp, tmp_path):
    "Masks of two frames."
    (tmp_path / 'marks').mkdir()
    for well in exp.wells.well[:2]:
        Image.fromarray((exp.frame(well, 0)[1] > 0).astype(np.uint8)).save(tmp_path / 'marks' / f'{well}-000.png')
    return tmp_path / 'marks'


def test_a_trained_segmentation_goes_with_the_student(run, exp, marks, tmp_path):
    raw = exp.path / 'raw'
    ds = detect_dataset(raw, tmp_path / 'cells', segmentation=marks)
    model = changed(run, tmp_path / 'model', detection=ds.info['detection'])
    predict(model, raw, tmp_path / 'out')
    found = ColonyDataset(tmp_path / 'out' / 'cells')
    pd.testing.assert_frame_equal(found.colonies[[*BOX, 'area_px']], ds.colonies[[*BOX, 'area_px']])
    assert (found.path / 'segmentation.json').read_bytes() == (ds.path / 'segmentation.json').read_bytes()
    predict(model, raw, tmp_path / 'texture', detect_preset='texture')
    assert not (tmp_path / 'texture' / 'cells' / 'segmentation.json').exists()


def test_a_trained_segmentation_for_a_student_without_detection(run, exp, marks, tmp_path):
    raw = exp.path / 'raw'
    ds = detect_dataset(raw, tmp_path / 'cells', segmentation=marks)
    given = dict(segmentation=ds.path / 'segmentation.json')
    model = changed(run, tmp_path / 'model', detection=None)
    with pytest.raises(InputError, match='detect_preset: found texture, with a segmentation; expected one of both'):
        predict(model, raw, tmp_path / 'out', detect_preset='texture', **given)
    with pytest.raises(InputError, match='segmentation: found it with .*cells, a dataset; expected raw images'):
        predict(model, ds.path, tmp_path / 'out', **given)
    predict(model, raw, tmp_path / 'out', **given)
    found = ColonyDataset(tmp_path / 'out' / 'cells')
    pd.testing.assert_frame_equal(found.colonies[[*BOX, 'area_px']], ds.colonies[[*BOX, 'area_px']])
    assert 'imported, not detected' not in str(read_json(tmp_path / 'out' / 'prediction.json')['departures'])
    with pytest.raises(InputError, match='segmentation'):  # it was another one
        predict(model, raw, tmp_path / 'out', segmentation=marks)


def test_along_given_outlines(run, exp, answers, tmp_path):
    labels = answers / 'cells' / 'outlines' / 'labels'
    predict(run, exp.path / 'raw', tmp_path / 'out', outlines=labels)
    ours, theirs = (pd.read_csv(d / 'colonies.csv').set_index('colony_id') for d in (tmp_path / 'out', answers))
    assert sorted(ours.index) == sorted(theirs.index)
    assert (ours.predicted == theirs.predicted[ours.index]).all()


def test_a_dataset_without_labels_may_have_other_classes(run, few, tmp_path):
    ds = few('cells', 12)
    write_json(read_json(ds.path / 'dataset.json') | dict(classes=['one', 'other']), ds.path / 'dataset.json')
    table = pd.read_csv(ds.table, dtype=str, keep_default_na=False)
    table.assign(label='').to_csv(ds.table, index=False)
    predict(run, ds.path, tmp_path / 'out')
    assert set(pd.read_csv(tmp_path / 'out' / 'colonies.csv').predicted) <= set(CLASSES)
    with pytest.raises(InputError, match='min_area: found it with .*cells, a dataset; expected raw images'):
        predict(run, ds.path, tmp_path / 'again', min_area=100)


def test_grey_pictures_of_another_channel_are_refused(run, tmp_path):
    own, raw = shutil.copytree(run, tmp_path / 'run'), tmp_path / 'raw'
    info = read_json(own / 'model.json')
    write_json(info | dict(detection=(info['detection'] or {}) | dict(searched='phase', channel=0)), own / 'model.json')
    raw.mkdir()
    size = dict(PhysicalSizeX=0.8, PhysicalSizeXUnit='µm', PhysicalSizeY=0.8, PhysicalSizeYUnit='µm')
    planes = np.zeros((2, 400, 400), np.uint8)
    how = dict(axes='CYX', Channel=dict(Name=['DAPI', 'Phase']), **size)
    tifffile.imwrite(raw / 'a.ome.tif', planes, photometric='minisblack', metadata=how)
    with pytest.raises(InputError, match='found channel DAPI; expected channel phase, which the model was trained on'):
        predict(own, raw, tmp_path / 'out', channel=0)
    assert not (tmp_path / 'out').exists()
    predict(own, raw, tmp_path / 'out', channel=1)  # the same name at another place
    said = read_json(tmp_path / 'out' / 'prediction.json')['departures']
    assert not any('in training in' in o for o in said)
    predict(own, raw, tmp_path / 'renamed', channels='DAPI=phase')  # if it is only called so
    assert pd.read_csv(tmp_path / 'renamed' / 'frames.csv').colonies.tolist() == [0]
