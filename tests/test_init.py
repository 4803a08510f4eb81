"Runs that begin with a trained student: its rows for classes it knows, other classes, and what does not fit."

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from safetensors.torch import load_file

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import check_run, train
from ipb_nb.export import export_student
from ipb_nb.method import METHODS
from ipb_nb.model import create_model
from ipb_nb.patch import normalisation
from ipb_nb.split import Split, save_split
from ipb_nb.student import load_student
from ipb_nb.sweep import sweep
from ipb_nb.training import Training, run_loaders
from ipb_nb.worklist import add_class

CLASSES = ['middle', 'odd', 'fine', 'coarse']  # of the grown dataset: one is new, the others in another order
SHORT = dict(
    steps=2, epochs=1, pretrain_epochs=1, batch_size=8, finetune=0, ema=0.0, pairs=8, mu=1, generations=1, threads=1
)
GROWN = SHORT | dict(split='grown')


def change(folder, **fields):
    f = Path(folder) / 'dataset.json'
    write_json(json.loads(f.read_text(encoding='utf-8')) | fields, f)
    return folder


def named(folder, **names):
    "Give the classes of a dataset other names, in this order."
    table = pd.read_csv(folder / 'colonies.csv', dtype=str, keep_default_na=False)
    table.assign(label=table.label.replace(names)).to_csv(folder / 'colonies.csv', index=False)
    change(folder, classes=list(names.values()))
    shutil.rmtree(folder / 'splits')
    save_split(ColonyDataset(folder), labeled=0.25, test=0.25, folds=2)


@pytest.fixture(scope='module')
def more(dataset, tmp_path_factory):
    "The dataset with another class, which some colonies of L get; T stays as it was."
    folder = tmp_path_factory.mktemp('more') / 'cells'
    shutil.copytree(dataset, folder)
    ds = ColonyDataset(folder)
    add_class(ds, 'odd')
    parts = Split(ds).fold(0)
    for i in parts.index[parts.part == 'L'][::3]:
        ds.annotate(i, 'odd', 'ana')
    change(folder, classes=CLASSES)
    save_split(ColonyDataset(folder), 'grown', frozen='default', labeled=0.5, folds=2)
    return folder


def rows(state, hidden):
    "The last layer, found by its place and not by our own function."
    return [state[f"classifier.{'2.' if hidden else ''}{k}"] for k in ('weight', 'bias')]


@pytest.mark.parametrize('method', [m for m in METHODS if METHODS[m].trains_network and m != 'smoothed'])
def test_every_network_begins_with_the_student(method, run, more, tiny, tmp_path):
    "Byte for byte, in every network of every method that classifies; the new row is the mean of the old ones."
    start, old = run, load_student(run, 'cpu')
    if METHODS[method].hidden:  # such a student is made here, untrained
        start = tmp_path / 'hidden'
        start.mkdir()
        net = create_model('test_resnet', (32,), 3, hidden=METHODS[method].hidden)
        torch.manual_seed(0)
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, start / 'student.safetensors')
        write_json(old.info | dict(hidden=METHODS[method].hidden), start / 'model.json')
    pretrain = {} if METHODS[method].pretrains else dict(pretrain_epochs=0)
    cfg, ds = ExperimentConfig(method=method, init=str(start), **GROWN | pretrain), ColonyDataset(more)
    weights = load_file(start / 'student.safetensors')
    training = Training(cfg, ds, run_loaders(cfg, ds), tmp_path / 'run')
    nets = [net for net in training.live.values() if hasattr(net, 'classifier')]
    assert len(nets) == (2 if method == 'mpl' else 1)
    for net in nets:
        state = net.state_dict()
        for new, was in zip(rows(state, METHODS[method].hidden), rows(weights, METHODS[method].hidden)):
            for k, c in enumerate(CLASSES):
                expected = was.mean(0) if c == 'odd' else was[old.classes.index(c)]
                assert new[k].numpy().tobytes() == expected.numpy().tobytes()
        last = {id(t) for t in rows(state, METHODS[method].hidden)}
        rest = [k for k, v in state.items() if id(v) not in last]
        assert len(rest) == len(state) - 2 and all(state[k].equal(weights[k]) for k in rest)


def test_the_grown_network_says_what_the_student_says(run, more, tmp_path):
    "On the patches of T, normalised as the student knows them; the last layer is computed by plain torch as well."
    cfg, ds, old = ExperimentConfig(init=str(run), **GROWN), ColonyDataset(more), load_student(run, 'cpu')
    loaders = run_loaders(cfg, ds)
    for dl in (loaders.labeled.train, loaders.labeled.valid, loaders.test):
        assert normalisation(dl) == old.info['normalisation']
    net = Training(cfg, ds, loaders, tmp_path / 'run').live['student'].eval().double()  # (rounds alike on any CPU)
    x = torch.cat([x for x, *_ in loaders.test]).double()
    with torch.no_grad():
        before, after, f = old.net.double()(x), net(x), old.net.features(x)
    at = [CLASSES.index(c) for c in old.classes]
    torch.testing.assert_close(after[:, at], before, rtol=0, atol=1e-12)
    assert [CLASSES[k] for k in after.argmax(1)] == [old.classes[k] for k in before.argmax(1)]
    w, b = rows(load_file(run / 'student.safetensors'), 0)
    w, b = (torch.cat([o, o.mean(0)[None]]).double() for o in (w, b))
    order = [3 if c == 'odd' else old.classes.index(c) for c in CLASSES]
    torch.testing.assert_close(after, F.linear(f, w[order], b[order]), rtol=0, atol=1e-12)


class Cut(Callback):
    def after_step(self):
        if self.epoch == 1:
            raise RuntimeError('no power')


def test_a_stopped_run_goes_on_wherever_its_beginning_lies_now(run, more, tiny, tmp_path):
    start = tmp_path / 'start'
    shutil.copytree(run, start)
    cfg = ExperimentConfig(**tiny | dict(init=str(start), split='grown'))
    whole = train(cfg, more, tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='no power'):
        train(cfg, more, tmp_path / 'cut', cbs=[Cut()])
    start.rename(tmp_path / 'moved')
    moved = ExperimentConfig(**tiny | dict(init=str(tmp_path / 'moved'), split='grown'))
    weights = tmp_path / 'moved' / 'student.safetensors'
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b'\0\0\0\0')
    with pytest.raises(InputError, match='init: found [0-9a-f]{64}; expected [0-9a-f]{64}, as in .*run.json'):
        train(moved, more, tmp_path / 'cut', resume=True)
    weights.write_bytes(kept)
    train(moved, more, tmp_path / 'cut', resume=True)
    a, b = (load_file(out / 'student.safetensors') for out in (whole, tmp_path / 'cut'))
    assert all(a[k].equal(b[k]) for k in a)
    about = json.loads((whole / 'run.json').read_text())['init']
    assert (about['kept'], about['new'], about['left_out']) == (['middle', 'fine', 'coarse'], ['odd'], [])
    assert load_student(whole).classes == CLASSES


def test_a_class_that_the_dataset_lacks_is_left_out(run, dataset, tiny, tmp_path):
    copy = tmp_path / 'cells'
    shutil.copytree(dataset, copy)
    named(copy, coarse='other', fine='fine', middle='middle')
    cfg = ExperimentConfig(method='supervised', init=str(run), **SHORT)
    out = train(cfg, copy, tmp_path / 'run')
    about = json.loads((out / 'run.json').read_text())['init']
    assert (about['kept'], about['new'], about['left_out']) == (['fine', 'middle'], ['other'], ['coarse'])


def test_an_exported_student_begins_a_sweep(run, more, tmp_path):
    student = export_student(str(run), str(tmp_path / 'student'))
    grid = tmp_path / 'grid.yaml'
    defaults = json.dumps(GROWN | dict(method='supervised'))
    grid.write_text(f'defaults: {defaults}\nrows: {{a: {{init: {student}}}, b: {{scales: 32}}}}')
    done = sweep(grid, more, tmp_path / 'runs', workers=1)
    rows = {name: json.loads((tmp_path / 'runs' / name / 'run.json').read_text()) for name in done.index}
    assert [r['state'] for r in rows.values()] == ['done', 'done']
    assert rows['a']['init']['new'] == ['odd'] and rows['a']['config']['init'] == str(student.resolve())
    assert [r['name'] for r in rows.values()] == ['Supervised, from a student', 'Supervised'] and 'init' not in rows[
        'b'
    ]
    sweep(grid, more, tmp_path / 'runs', workers=1)  # (all is done)


def test_the_preset_is_the_student_s(run, tmp_path):
    assert ExperimentConfig(init=str(run)).preset == 'quick' == ExperimentConfig().preset
    frozen = tmp_path / 'frozen'
    shutil.copytree(run, frozen)
    old = json.loads((frozen / 'run.json').read_text())
    write_json(old | dict(config=old['config'] | dict(preset='frozen')), frozen / 'run.json')
    cfg = ExperimentConfig(init=str(frozen))
    assert (cfg.preset, cfg.freeze, cfg.test_patches, cfg.arch) == ('frozen', True, 10, 'test_resnet')
    assert ExperimentConfig('quick', init=str(frozen)).preset == 'quick'


def test_what_does_not_fit_is_said(run, dataset, few, tmp_path):
    def check(says, data=dataset, **fields):
        with pytest.raises(InputError, match=says):
            check_run(ExperimentConfig(**SHORT | dict(init=str(run)) | fields), data, tmp_path / 'out')

    check_run(ExperimentConfig(**SHORT, init=str(run)), dataset, tmp_path / 'out')
    check_run(ExperimentConfig(**SHORT, init=str(run / 'model.json')), dataset, tmp_path / 'out')  # a file in it
    check('nowhere: found no such folder; expected a finished run', init=str(tmp_path / 'nowhere'))
    check('found no model.json; expected a finished run', init=str(dataset))
    check('arch: found resnet10t; expected test_resnet, as in .* Leave out --arch', arch='resnet10t')
    check(r'scales: found \[64\]; expected \[32\], as in', scales='64')
    check('method: found clustering; expected .*supervised.* has no hidden units', method='clustering')
    check('init: found .*; expected none, with method forest', method='forest')
    check('pretrained: found True; expected no, with init', pretrained=True)
    shutil.copytree(dataset, tmp_path / 'cells')
    own = tmp_path / 'cells'
    check('found 0.65 µm per pixel; expected no pixel size', change(own, pixel_size=0.65))
    named(change(own, pixel_size=None), fine='a', middle='b', coarse='c')
    check('found the classes a, b, c; expected at least one of', own)
    save_split(ColonyDataset(dataset), 'again', labeled=0.3, test=0.25, seed=3, folds=1)
    check('split again: found .* colonies in T that .* learnt from', split='again')
    second = tmp_path / 'second'  # a run of other colonies that began with the first one
    shutil.copytree(run, second)
    old = json.loads((second / 'run.json').read_text())
    write_json(old | dict(config=old['config'] | dict(init=str(run))), second / 'run.json')
    with safe_open(second / 'features.safetensors', 'pt') as f:
        kept, facts = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    save_file(kept, second / 'features.safetensors', facts | dict(L='[]'))
    check('split again: found .* colonies in T', split='again', init=str(second))
    (dataset / 'splits' / 'again.csv').unlink()
    (dataset / 'splits' / 'again.json').unlink()
    wide = tmp_path / 'wide'
    shutil.copytree(run, wide)
    info = json.loads((wide / 'model.json').read_text())
    write_json(info | dict(width=0.5), wide / 'model.json')
    check('width: found 1.0; expected 0.5', init=str(wide))
    write_json(info, wide / 'model.json')
    write_json(json.loads((wide / 'run.json').read_text()) | dict(state='stopped'), wide / 'run.json')
    check('found a run that is stopped; expected a finished one', init=str(wide))
    (wide / 'run.json').unlink()
    (wide / 'student.safetensors').unlink()
    check('student.safetensors: found no such file', init=str(wide))
