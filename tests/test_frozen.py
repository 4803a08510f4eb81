"Runs with frozen layers: what is remembered is what would be computed, and no run learns from another's files."

import shutil

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from ipb_nb.checkpoint import Checkpoints
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.frozen import FrozenFeatures
from ipb_nb.manifest import renew_manifest
from ipb_nb.method import EMA, fit_schedule, supervised_learner, warmed_up
from ipb_nb.model import create_model
from ipb_nb.patch import PatchViews, colony_dataloaders, views
from ipb_nb.toy import toy_dataset

SHORT = dict(
    preset='frozen', scales='32', pretrain_steps=24, steps=24, epochs=3, batch_size=16, threads=1, test_patches=3
)


@pytest.fixture
def toy(tmp_path):
    return toy_dataset(tmp_path / 'colonies', (30, 30, 30)).path


def config(**changes):
    return ExperimentConfig(**SHORT | changes)


def same(a, b):
    one, other = (load_file(o / 'student.safetensors') for o in (a, b))
    return all(torch.equal(one[k], other[k]) for k in one)


class EachTime:
    "The features of the views, computed whenever they are asked for."

    def __init__(self, net):
        self.net = net

    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        return self.net.backbones(views(*args, **kwargs)).half().float()


def test_remembering_changes_nothing(toy):
    states = []
    for kind in (EachTime, FrozenFeatures):
        torch.manual_seed(0)
        net = create_model('tf_efficientnet_lite0', '32', 3, pretrained=True, freeze=True)
        loaders = colony_dataloaders(ColonyDataset(toy), scales='32', bs=16, device='cpu').labeled
        loaders.train.variants, make, before = 3, kind(net), net.classifier.weight.detach().clone()
        for dl in loaders:
            for transform in dl.after_batch.fs:
                if isinstance(transform, PatchViews):
                    transform.make = make
        learn = supervised_learner(loaders, net)
        with learn.no_bar(), learn.no_logging():
            fit_schedule(learn, 4, 0.01)
        assert not torch.equal(before, net.classifier.weight)
        states.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(o.values() for o in states)))


def test_variants_are_as_many_as_asked_for(toy):
    "Over the epochs; U shows one of them in an epoch however often a colony is drawn."
    loaders = colony_dataloaders(ColonyDataset(toy), scales='32', bs=16, steps=30, device='cpu')
    for dl, in_an_epoch in ((loaders.labeled.train, 3), (loaders.unlabeled.train, 1)):
        dl.variants, seen, most = 3, {}, 0
        for dl.epoch in range(8):
            now = {}
            for s in dl.get_idxs():
                pixels, key, *_ = dl.create_item(s)
                for of in (seen, now):
                    of.setdefault(s % dl.n_colonies, set()).add((pixels.numpy().tobytes(), key))
            most = max(most, *map(len, now.values()))
        assert max(map(len, seen.values())) == 3 and most == in_an_epoch


def test_the_next_run_computes_nothing_and_ends_alike(toy, tmp_path, monkeypatch):
    first = train(config(), toy, tmp_path / 'first')
    with monkeypatch.context() as m:
        m.setattr(FrozenFeatures, 'compute', None)
        second = train(config(), toy, tmp_path / 'second')
    assert (first / 'metrics.json').read_text() == (second / 'metrics.json').read_text() and same(first, second)
    (kept,) = (toy / '.cache').glob('features-*.safetensors')
    kept.write_bytes(kept.read_bytes()[:1000])  # cut off
    assert same(first, train(config(), toy, tmp_path / 'third'))
    assert same(first, train(config(), shutil.copytree(toy, tmp_path / 'copy'), tmp_path / 'fourth'))


@pytest.mark.parametrize('method', ['mpl', 'fixmatch_balanced'])
def test_nothing_of_t_and_no_hidden_label_arrives(method, toy, tmp_path):
    before = train(config(method=method), toy, tmp_path / 'before')
    split = pd.read_csv(toy / 'splits' / 'default.csv', keep_default_na=False)
    hidden = split.part == 'U'
    split.loc[hidden, 'label'] = split.label[hidden].sample(frac=1, random_state=0).values
    split.to_csv(toy / 'splits' / 'default.csv', index=False)
    of_t = split.colony_id[split.part == 'T']
    for i, other in zip(of_t, reversed([*of_t])):  # pictures of other colonies, with what the first run remembered
        shutil.copy(toy / 'images' / f'{other}.png', tmp_path / f'{i}.png')
    for i in of_t:
        shutil.copy(tmp_path / f'{i}.png', toy / 'images' / f'{i}.png')
    renew_manifest(toy)
    after = train(config(method=method), toy, tmp_path / 'after')
    assert same(before, after)
    assert (before / 'predictions.csv').read_text() != (after / 'predictions.csv').read_text()


def test_stopped_and_resumed(toy, tmp_path, monkeypatch):
    whole, save = train(config(), toy, tmp_path / 'whole'), Checkpoints.save
    shutil.rmtree(toy / '.cache')

    def stop(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.n == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Checkpoints, 'save', stop)
        train(config(), toy, tmp_path / 'run')
    run = train(config(), toy, tmp_path / 'run', resume=True)
    assert (run / 'metrics.json').read_text() == (whole / 'metrics.json').read_text() and same(run, whole)
    assert read_json(run / 'metrics.json')['student']['macro_tpr'] > 0.8


def test_a_mean_teacher_has_the_frozen_layers_too(toy, tmp_path):
    run = train(
        config(feedback='ema', teacher_frozen=False, student_from_teacher=True, finetune=0), toy, tmp_path / 'run'
    )
    student, teacher = (load_file(run / f'{name}.safetensors') for name in ('student', 'teacher'))
    unlike = {k.split('.')[0] for k in student if not torch.equal(student[k], teacher[k])}
    assert 'classifier' in unlike and 'backbones' not in unlike


def test_the_average_of_the_trained_part_is_that_of_all(toy):
    net = create_model('tf_efficientnet_lite0', '32', 3, pretrained=True, freeze=True)
    loaders = colony_dataloaders(ColonyDataset(toy), scales='32', bs=16, device='cpu').labeled
    whole = AveragedModel(net, multi_avg_fn=warmed_up(0.9), use_buffers=True)

    class Whole(Callback):
        def after_batch(self):
            if self.training:
                whole.update_parameters(self.model)

    learn = supervised_learner(loaders, net, cbs=[EMA(0.9), Whole()])
    with learn.no_bar(), learn.no_logging():
        fit_schedule(learn, 4, 0.01)
    ours, all_of_it = learn.ema.average.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[k], all_of_it[k]) for k in all_of_it)
    assert ours['n_averaged'] == 4 * len(loaders.train)


@pytest.mark.parametrize(
    'method, expected', [('supervised', {'plain', 'strong'}), ('mpl', {'plain', 'weak', 'strong'})]
)
def test_only_what_is_shown_is_computed(method, expected, toy, tmp_path, monkeypatch):
    "Few patches, so that the run computes all of them beforehand; weak views are those of U."
    kinds, compute = set(), FrozenFeatures.compute

    def noted(self, x, keys, kind, **kwargs):
        kinds.add(kind)
        return compute(self, x, keys, kind, **kwargs)

    monkeypatch.setattr(FrozenFeatures, 'compute', noted)
    monkeypatch.setattr('ipb_nb.frozen._DISTINCT', 60)
    train(config(method=method), toy, tmp_path / 'run')
    assert kinds == expected
