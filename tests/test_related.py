"All methods as runs: each solves an easy task, none uses hidden labels, and a stopped run ends as if it had not been."

import copy
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ipb_nb.checkpoint import Checkpoints
from ipb_nb.compare import compare
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.figures import figure_8
from ipb_nb.method import METHODS, warmup_cosine
from ipb_nb.patch import more_keys, patch_views
from ipb_nb.pretraining import PairDL, SelfPretrained
from ipb_nb.run import plot_losses, read_run
from ipb_nb.simclr import Pretext, nt_xent, pretext_loaders, projection_head
from ipb_nb.split import Split, save_split
from ipb_nb.sweep import read_grid
from ipb_nb.toy import toy_dataset
from ipb_nb.training import Training, create_network, run_loaders

ROOT = Path(__file__).parent.parent
TOY = dict(
    scales='32',
    steps=102,
    epochs=6,
    pretrain_epochs=10,
    finetune=2,
    batch_size=16,
    pairs=48,
    mu=3,
    threads=1,
    threshold=0.8,
    lr=0.02,
    ema=0.9,
)
PRETEXT = [m for m in METHODS if 'pretext' in METHODS[m].stages]
SHORT = TOY | dict(steps=12, pairs=24, epochs=3, pretrain_epochs=3, generations=2)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp('toy') / 'colonies').path


@pytest.mark.parametrize('method', METHODS)
def test_a_balanced_toy_is_solved(method, toy, tmp_path):
    longer = dict(generations=2, steps=180) if method == 'crest' else {}  # (each begins anew)
    out = train(ExperimentConfig(method=method, **TOY | longer), toy, tmp_path / 'run')
    scores, run = read_json(out / 'metrics.json'), read_json(out / 'run.json')
    assert scores['student']['macro_tpr'] >= 0.95
    split, said = (
        pd.read_csv(f).set_index('colony_id') for f in (toy / 'splits' / 'default.csv', out / 'predictions.csv')
    )
    assert (said.actual == split.label[said.index]).all()  # (the classes are not in the alphabet's order)
    history = read_run(out).history
    plot_losses(history)
    if method != 'forest':
        assert run['flops'] > 1e9 and (history.stage == 'pretext').any() == (method in PRETEXT)
        assert (history[history.stage == 'student'].epoch.tolist() == list(range(6))) == (method != 'clustering')
    assert {'simclr': 'student_probe', 'simtriplet': 'student_probe', 'clustering_finetuned': 'student_clusters'}.get(
        method, 'student'
    ) in scores


@pytest.mark.parametrize(
    'method', ['logit_adjusted', 'simclr', 'clustering_finetuned', 'simtriplet', 'crest', 'forest']
)
def test_hidden_labels_change_nothing(method, toy, tmp_path):
    "U gets other labels: the student says what it said."
    twin = shutil.copytree(toy, tmp_path / 'copy')
    split = pd.read_csv(twin / 'splits' / 'default.csv', keep_default_na=False)
    hidden = split.part == 'U'
    split.loc[hidden, 'label'] = split.label[hidden].sample(frac=1, random_state=0).values
    split.to_csv(twin / 'splits' / 'default.csv', index=False)
    a, b = (
        train(ExperimentConfig(method=method, **SHORT), d, tmp_path / name) for d, name in ((toy, 'a'), (twin, 'b'))
    )
    assert (a / 'predictions.csv').read_text() == (b / 'predictions.csv').read_text()


@pytest.mark.parametrize(
    'method, states', [('simclr', 2), ('simclr', 3), ('simtriplet', 4), ('crest', 2), ('fixmatch', 1)]
)
def test_stopped_and_resumed(method, states, toy, tmp_path, monkeypatch):
    """Stopped after so many epochs.

    In learning without labels, after it, in the main training, and after CReST has picked."""
    check_resumed(lambda: ExperimentConfig(method=method, align=True, **SHORT), states, toy, tmp_path, monkeypatch)


def check_resumed(cfg, states, toy, tmp_path, monkeypatch):
    "Stopped after so many states are saved, and resumed, a run ends as one that was never stopped."
    whole, save = train(cfg(), toy, tmp_path / 'whole'), Checkpoints.save

    def stop(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.n == states:
            raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Checkpoints, 'save', stop)
        train(cfg(), toy, tmp_path / 'run')
    assert read_json(tmp_path / 'run' / 'run.json')['state'] == 'stopped'
    run = train(cfg(), toy, tmp_path / 'run', resume=True)
    assert (run / 'metrics.json').read_text() == (whole / 'metrics.json').read_text()
    one, other = (load_file(o / 'student.safetensors') for o in (whole, run))
    assert all(torch.equal(one[k], other[k]) for k in one)
    one, other = (pd.read_csv(o / 'history.csv').drop(columns='seconds') for o in (whole, run))
    pd.testing.assert_frame_equal(one, other)


def test_own_images_first(toy, tmp_path, monkeypatch):
    "The stage is SimCLR's with pairs of patches, step by step, for every method that begins with labels."
    ds = ColonyDataset(toy)
    cfg = ExperimentConfig(method='supervised', init='self', amp=False, **SHORT)
    seed_all(0, 1)
    training = Training(cfg, ds, run_loaders(cfg, ds), tmp_path / 'run')
    training.method.after(training, 'pretext', training.fit('pretext'))
    seed_all(0, 1)
    loaders = run_loaders(cfg, ds)
    net, opt_lr = create_network(cfg, ds, 'cpu'), SHORT['lr'] * SHORT['pairs'] / SHORT['batch_size']
    start = copy.deepcopy(net.classifier.state_dict())
    model = Pretext(net, projection_head(512))
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1]  # (neither biases nor norms)
    plain = [p for n, p in model.named_parameters() if p.ndim < 2]
    opt = torch.optim.SGD([dict(params=decayed, weight_decay=1e-4), dict(params=plain)], momentum=0.9)
    views, dl, n = patch_views(loaders.labeled.train), pretext_loaders(loaders, SHORT['pairs'], PairDL).train, 0
    rate = warmup_cosine(opt_lr, cfg.warmup)
    for epoch in range(3):
        dl = dl.new(epoch=epoch)
        for x, keys, ids in dl:
            for group in opt.param_groups:
                group['lr'] = rate(n / 12)
            two = [views(x[:, k : k + 1].contiguous(), more_keys(keys, k), 'contrast') for k in range(2)]
            opt.zero_grad()
            nt_xent(*model(torch.cat(two)).chunk(2), ids=ids).backward()
            opt.step()
            n += 1
    assert n == 12 == cfg.steps
    learnt = training.live['student'].state_dict()
    assert all(torch.equal(learnt[f'classifier.{k}'], v) for k, v in start.items())
    for k, v in net.state_dict().items():
        torch.testing.assert_close(learnt[k], v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', [m for m in METHODS if METHODS[m].trains_network and m not in PRETEXT])
def test_every_network_begins_with_what_was_learnt(method, toy, tmp_path):
    cfg, ds = ExperimentConfig(method=method, init='self', **SHORT), ColonyDataset(toy)
    training = Training(cfg, ds, run_loaders(cfg, ds), tmp_path / 'run')
    before = {k: v.clone() for k, v in training.live['student'].state_dict().items()}
    training.method.after(training, 'pretext', training.fit('pretext'))
    nets = [net.state_dict() for name, net in training.live.items() if name != 'head']
    assert len(nets) == (2 if method == 'mpl' else 1)
    for net in nets:
        body = {k for k in net if not k.startswith('classifier')}
        assert all(torch.equal(net[k], nets[-1][k]) for k in body)
        assert any(not torch.equal(net[k], before[k]) for k in body)


@pytest.mark.parametrize('preset', ['best', 'best_gpu'])
def test_all_methods_learn_from_own_images_as_long(preset, toy):
    ds, steps = ColonyDataset(toy), {}
    for method in ('mpl', 'supervised', 'fixmatch'):
        small = dict(batch_size=8, pairs=8, pretrained=False, small='enlarge')
        cfg = ExperimentConfig(preset, method=method, init='self', **small)
        dls = SelfPretrained(METHODS[method]).loaders(cfg, run_loaders(cfg, ds))
        steps[method] = cfg.epochs * len(dls['pretext'].train)
    assert len(set(steps.values())) == 1, steps


@pytest.mark.parametrize('states', [2, 3, 5])
def test_own_images_first_stopped_and_resumed(states, toy, tmp_path, monkeypatch):
    "In learning without labels, after it, and in the pre-training of the teacher."
    check_resumed(lambda: ExperimentConfig(init='self', **SHORT), states, toy, tmp_path, monkeypatch)
    history = pd.read_csv(tmp_path / 'run' / 'history.csv')
    assert history.stage.tolist() == ['pretext'] * 3 + ['teacher'] * 3 + ['student'] * 3 + ['finetune'] * 2


def test_own_images_first_where_that_makes_no_sense(toy, tmp_path, monkeypatch):
    for method in PRETEXT:
        with pytest.raises(InputError, match=f'init: found self; expected a run or none, with method {method}'):
            ExperimentConfig(method=method, init='self')
    with pytest.raises(InputError, match='init: found self; expected none, with method forest'):
        ExperimentConfig(method='forest', init='self')
    with pytest.raises(InputError, match='init: found self; expected a run or none, with freeze'):
        ExperimentConfig('frozen', init='self')
    cfg = ExperimentConfig('best', init='self')
    assert cfg.pretrained and cfg.arch == 'tf_efficientnet_lite0'  # (after the photographs)
    monkeypatch.setattr('ipb_nb.experiment.n_ranks', lambda: 2)
    with pytest.raises(InputError, match='init: found self; expected a run or none, with 2 processes'):
        train(cfg, toy, tmp_path / 'run')
    (tmp_path / 'self').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='self: found no model.json'):
        ExperimentConfig(init='./self')  # (a folder of that name)


@pytest.mark.parametrize(
    'how', [dict(student_labeled=True, label='soft'), dict(method='fixmatch'), dict(method='supervised')]
)
def test_blended_stopped_and_resumed(how, toy, tmp_path, monkeypatch):
    "In the main training; and the blends change what is learnt."
    cfg = lambda: ExperimentConfig(mixup=0.75, **SHORT | how)
    states = 5 if cfg().method == 'mpl' else 2
    check_resumed(cfg, states, toy, tmp_path, monkeypatch)
    plain = train(ExperimentConfig(**SHORT | how), toy, tmp_path / 'plain')
    one, other = (load_file(o / 'student.safetensors') for o in (plain, tmp_path / 'run'))
    assert any(not torch.equal(one[k], other[k]) for k in one)
    assert read_json(tmp_path / 'run' / 'run.json')['name'].endswith(', mixup')


MEAN = dict(feedback='ema', student_from_teacher=True, student_labeled=True)


def test_a_teacher_that_follows_stopped_and_resumed(toy, tmp_path, monkeypatch):
    "In the main training: the teacher is in no checkpoint twice, and no mean begins anew."
    check_resumed(lambda: ExperimentConfig(**SHORT | MEAN), 5, toy, tmp_path, monkeypatch)
    run, whole = (load_file(tmp_path / o / 'teacher.safetensors') for o in ('run', 'whole'))
    assert all(torch.equal(run[k], whole[k]) for k in run)
    assert read_json(tmp_path / 'run' / 'run.json')['name'] == 'IPB, mean teacher'


def test_what_a_teacher_needs_to_follow():
    for field, value, says in (
        ('student_from_teacher', False, 'found False; expected yes'),
        ('teacher_frozen', True, 'found True; expected no'),
        ('ema', 0.0, 'found 0.0; expected a decay above 0'),
    ):
        with pytest.raises(InputError, match=f'{field}: {says}, with feedback ema'):
            ExperimentConfig(**MEAN | {field: value})


def test_what_cannot_be_blended():
    for method in ('clustering', 'forest'):
        with pytest.raises(InputError, match=f'mixup: found 0.5; expected 0, with method {method}'):
            ExperimentConfig(method=method, mixup=0.5)
    with pytest.raises(InputError, match='mixup: found 0.5; expected 0, with feedback reference'):
        ExperimentConfig(feedback='reference', mixup=0.5)
    with pytest.raises(InputError, match='mixup: found -1.0; expected a number of at least 0'):
        ExperimentConfig(mixup=-1.0)
    assert ExperimentConfig('frozen', mixup=0.5).name == 'Soft IPB, mixup'


def test_same_budget(toy, tmp_path):
    "The student takes as many steps in the main training on U, and is scored on V as often."
    cfgs = {m: ExperimentConfig(method=m, **TOY) for m in METHODS if METHODS[m].trains_network}
    ds = ColonyDataset(toy)
    dls = {m: Training(c, ds, run_loaders(c, ds), tmp_path / m).dls for m, c in cfgs.items()}
    main = {m: 'pretext' if m in PRETEXT else 'student' for m in cfgs}
    assert {len(dls[m][main[m]].train) * c.epochs for m, c in cfgs.items()} == {102}
    assert {c.stage_epochs['student'] for m, c in cfgs.items() if m != 'clustering'} == {6}
    assert [dls[m]['pretext'].train.bs for m in PRETEXT] == [48] * 4
    assert dls['fixmatch']['student'].train.bs == 3 * 16
    per_epoch = len(dls['simclr']['finetune'].train)
    # as many batches of L as IPB's teacher, rounded up to whole epochs
    assert len(dls['simclr']['student'].train) * 6 == -(-10 * per_epoch // 6) * 6


def test_the_preset_for_a_gpu_is_for_every_method(toy, tmp_path):
    "Equal steps, as stated; a small part of it trains anywhere."
    ds, tiny, steps = ColonyDataset(toy), dict(width=0.1, scales='32,16', pairs=4, threads=1), {}
    for name, method in METHODS.items():
        cfg = ExperimentConfig('best_gpu', name, **tiny)
        if method.trains_network:
            dls = Training(cfg, ds, run_loaders(cfg, ds), tmp_path / name).dls
            steps[name] = sum(cfg.stage_epochs[stage] * len(dls[stage].train) for stage in dls)
    assert len(steps) == len(METHODS) - 1 and set(steps.values()) == {20_000}
    few = tiny | dict(steps=4, pretrain_steps=2, epochs=2, pretrain_epochs=1, batch_size=8, test_patches=2)
    cfg = ExperimentConfig('best_gpu', amp=False, **few)
    assert (cfg.arch, cfg.pretrained, cfg.label, cfg.balance_by) == ('hrnet', False, 'soft', 'logits')
    run = read_run(train(cfg, toy, tmp_path / 'run'))
    assert run.history.stage.tolist() == ['teacher', 'student', 'student']


def test_u_is_needed(toy, tmp_path):
    twin = shutil.copytree(toy, tmp_path / 'copy')
    split = pd.read_csv(twin / 'splits' / 'default.csv', keep_default_na=False)
    split[split.part != 'U'].to_csv(twin / 'splits' / 'default.csv', index=False)
    with pytest.raises(
        InputError, match='no colony in the unlabelled set .U.; expected unlabelled colonies for method simtriplet'
    ):
        train(ExperimentConfig(method='simtriplet', **SHORT), twin, tmp_path / 'run')


def test_recall_against_labels(toy, tmp_path):
    "The splits that configs/label_fraction.yaml asks for, and its methods in Fig. 8."
    grid = read_grid(ROOT / 'configs' / 'label_fraction.yaml')
    ds = ColonyDataset(shutil.copytree(toy, tmp_path / 'colonies'))
    names = {c.split for c in grid.values()}
    for name in names:
        kind, share = name.split('-')
        save_split(ds, name, labeled=float(share), test=0.1, folds=5, fixed_u=0.8 if kind == 'fixed' else None)
    part = {n: Split(ds, n).fold(0).part for n in names}
    u = {n: frozenset(p.index[p == 'U']) for n, p in part.items()}
    assert len({u[n] for n in names if 'fixed' in n}) == 1 and len({u[n] for n in names if 'rest' in n}) == 6
    for split in ('rest-0.2', 'rest-0.4'):
        for name in ('IPB', 'SimCLR'):
            cfg = grid[f'{name}-split{split}-fold0'].dict() | SHORT | dict(split=split, pretrain_steps=24)
            train(ExperimentConfig(**cfg), ds.path, tmp_path / 'runs' / f'{name}-split{split}-fold0')
    drawn = figure_8(compare(tmp_path / 'runs')).data
    assert sorted(zip(drawn.row.str.split('-').str[0], drawn.labelled)) == [
        (m, (part[f'rest-{s}'].isin(['L', 'V'])).sum()) for m in ('IPB', 'SimCLR') for s in (0.2, 0.4)
    ]
