"What crosses modules: no test label, no hidden label, no test image may reach training."

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.numpy import load_file

from ipb_nb.compare import compare, notes
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError, read_json, seed_all, write_json, write_png
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import differs, train
from ipb_nb.ipb import ipb_learner
from ipb_nb.manifest import renew_manifest
from ipb_nb.model import create_model
from ipb_nb.patch import colony_dataloaders
from ipb_nb.report import write_report
from ipb_nb.run import plot_losses, read_run
from ipb_nb.split import SCORED_ON, Split, _digest, save_split
from ipb_nb.training import Training, run_loaders


@pytest.fixture
def copy(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / 'copy')


def same_weights(a, b):
    a, b = load_file(a / 'student.safetensors'), load_file(b / 'student.safetensors')
    return all((a[k] == b[k]).all() for k in a)


def test_same_seed_same_metrics(dataset, run, tiny, tmp_path):
    history = pd.read_csv(run / 'history.csv')
    assert (
        history[history.stage == 'student'].confident_share.min() > 0.5
    )  # (or what these tests look at would not be trained)
    again = train(ExperimentConfig(**tiny), dataset, tmp_path / 'again')
    assert (again / 'metrics.json').read_text() == (run / 'metrics.json').read_text()
    assert same_weights(run, again)


def permute_hidden_labels(copy):
    split = pd.read_csv(copy / 'splits' / 'default.csv', keep_default_na=False)
    hidden = (split.part == 'U') & ~split.label.isin(['', 'multi-label'])
    split.loc[hidden, 'label'] = split.label[hidden].sample(frac=1, random_state=0).values
    split.to_csv(copy / 'splits' / 'default.csv', index=False)
    labels = pd.read_csv(copy / 'colonies.csv', keep_default_na=False)
    u = labels.colony_id.isin(split.colony_id[(split.fold == 0) & hidden])
    labels.loc[u, 'label'] = labels.label[u].sample(frac=1, random_state=0).values
    labels.to_csv(copy / 'colonies.csv', index=False)


def make_noise_of(copy, parts):
    ds, noise = ColonyDataset(copy), np.random.default_rng(0)
    part = Split(ds).fold(0).part
    t = part.index[part.isin([*parts])]
    for i in t:
        write_png(noise.integers(0, 256, ds.pixels(i)[0].shape, dtype=np.uint8), copy / 'images' / f'{i}.png')
    renew_manifest(copy)
    return t


def test_hidden_labels_of_u_change_nothing(copy, run, tiny, tmp_path):
    permute_hidden_labels(copy)
    assert same_weights(run, train(ExperimentConfig(**tiny), copy, tmp_path / 'run'))


def test_labels_of_t_change_the_scores_alone(copy, run, tiny, tmp_path):
    split = pd.read_csv(copy / 'splits' / 'default.csv', keep_default_na=False)
    t = (split.part == 'T') & (split.fold == 0)
    split.loc[t, 'label'] = split.label[t].sample(frac=1, random_state=0).values
    split.to_csv(copy / 'splits' / 'default.csv', index=False)
    with pytest.raises(InputError, match=r'a test set \(T\) that was changed after it was drawn'):
        Split(ColonyDataset(copy))
    info = copy / 'splits' / 'default.json'
    write_json(read_json(info) | dict(test_sha256=_digest(split[split.part == 'T'])), info)
    new = train(ExperimentConfig(**tiny), copy, tmp_path / 'run')
    assert same_weights(run, new)
    assert (new / 'predictions.csv').read_text() != (run / 'predictions.csv').read_text()


def test_images_of_t_do_not_reach_the_student(copy, run, tiny, tmp_path):
    t = make_noise_of(copy, 'T')
    new = train(ExperimentConfig(**tiny), copy, tmp_path / 'run')
    assert same_weights(run, new)
    assert read_json(new / 'metrics.json')['n_test'] == len(t)


OPTIONS = dict(
    label='soft',
    threshold=0.0,
    student_labeled=True,
    student_from_teacher=True,
    labeled_in_u=True,
    pretrain_steps=30,
    test_patches=3,
    tta=True,
)


def test_nor_do_they_where_a_run_begins_with_its_own_images(dataset, copy, tiny, tmp_path):
    "What is learnt without labels comes from U, and from L without its labels; images of V and T change nothing."

    def learnt(folder, **how):
        cfg = ExperimentConfig(**tiny | dict(init='self', pairs=8, labeled_in_u=True) | how)
        seed_all(cfg.seed, cfg.threads)
        training = Training(cfg, ds := ColonyDataset(folder), run_loaders(cfg, ds), tmp_path / 'run')
        training.method.after(training, 'pretext', training.fit('pretext'))
        return {name: dict(net.state_dict()) for name, net in training.live.items()}

    before = learnt(dataset)
    permute_hidden_labels(copy)
    make_noise_of(copy, 'TV')
    after = learnt(copy)
    assert {*before} == {'teacher', 'student', 'head'}
    assert all(torch.equal(v, after[name][k]) for name in before for k, v in before[name].items())
    part = Split(ColonyDataset(dataset)).fold(0).part
    for method, of_l in (('supervised', False), ('supervised', True), ('mpl', True)):
        cfg = ExperimentConfig(**tiny | dict(method=method, init='self', labeled_in_u=of_l))
        training = Training(cfg, ds := ColonyDataset(dataset), run_loaders(cfg, ds), tmp_path / 'shown')
        assert {*training.dls['pretext'].train.items} == {*part.index[part.isin(['U', 'L'][: 1 + of_l])]}


def test_nor_do_they_with_the_options(dataset, copy, tiny, tmp_path):
    "Neither the hidden labels of U nor the images of T, where L belongs to U and V is scored colony by colony."
    cfg = ExperimentConfig(**tiny | OPTIONS)
    before = train(cfg, dataset, tmp_path / 'before')
    permute_hidden_labels(copy)
    make_noise_of(copy, 'T')
    assert same_weights(before, train(cfg, copy, tmp_path / 'after'))


def test_the_student_is_shown_the_patches_that_were_labelled(dataset):
    "Byte for byte, before augmentation, in every epoch and however often a colony is drawn."
    ds = ColonyDataset(dataset)
    loaders = colony_dataloaders(ds, scales='32', bs=8, steps=12, device='cpu')
    teacher, student = (create_model('test_resnet', '32', len(ds.classes)) for _ in range(2))
    seen = []

    class Look(Callback):
        order = 15  # before the teacher makes views of them

        def before_batch(self):
            if self.training:
                seen.append(
                    (
                        self.learn.pseudo_balance.drawn[self.iter * 8 : (self.iter + 1) * 8],
                        self.xb[0].clone(),
                        labelled[self.epoch],
                    )
                )

    labelled, ask = [], loaders.unlabeled.train.new

    def new(*args, **kwargs):  # the labelling pass asks for the loader in order
        dl = ask(*args, **kwargs)
        labelled.append(torch.cat([x for x, _ in ask(*args, **kwargs)]))
        return dl

    loaders.unlabeled.train.new = new
    learn = ipb_learner(loaders, teacher, student, ds.classes, cbs=[Look()])
    learn.remove_cb(learn.recorder)
    with learn.no_bar():
        learn.fit(2, 0.01)
    assert len(seen) == 24 and len(labelled) == 2
    assert all(torch.equal(x, of[drawn]) for drawn, x, of in seen)
    assert max(np.bincount(drawn).max() for drawn, *_ in seen) > 1 and not torch.equal(labelled[0], labelled[1])


@pytest.mark.parametrize(
    'kwargs, name, networks',
    [
        (dict(teacher_frozen=True), 'Frozen teacher, balanced', {'student', 'teacher_pretrained'}),
        (dict(balance=False), 'MPL (imbalanced)', {'student', 'teacher', 'teacher_pretrained'}),
        (dict(teacher_frozen=True, balance=False), 'Frozen teacher', {'student', 'teacher_pretrained'}),
        (
            dict(feedback='taylor', label='sample', balance_on='confident', max_repeat=3, threshold=0.4),
            'IPB',
            {'student', 'teacher', 'teacher_pretrained'},
        ),
        (dict(feedback='reference', select='test'), 'IPB', {'student', 'teacher', 'teacher_pretrained'}),
        (dict(amp=True, finetune=2), 'IPB', {'student', 'student_selected', 'teacher', 'teacher_pretrained'}),
        (dict(select='last'), 'IPB', {'student', 'teacher', 'teacher_pretrained'}),
        (OPTIONS, 'IPB, soft labels', {'student', 'student_patch', 'teacher', 'teacher_pretrained'}),
    ],
)
def test_each_part_can_be_had_alone(dataset, tiny, tmp_path, kwargs, name, networks):
    out = train(ExperimentConfig(**tiny | kwargs), dataset, tmp_path / 'run')
    m, history = read_json(out / 'metrics.json'), pd.read_csv(out / 'history.csv')
    assert read_json(out / 'run.json')['name'] == name and networks <= {n for n in m if isinstance(m[n], dict)}
    assert m['selected_on'] == {'test': 'T', 'last': 'last'}.get(kwargs.get('select'), m['selected_on'])
    student = history[history.stage == 'student']
    assert ('h' in history) == (not kwargs.get('teacher_frozen', False)) and student.confident_share.between(0, 1).all()
    assert (out / 'balance.csv').exists() == kwargs.get('balance', True) == ('relabelled' in history)
    if kwargs.get('max_repeat'):
        assert pd.read_csv(out / 'balance.csv').largest_repeat.max() <= 3


@pytest.mark.parametrize('select, scored_on', [('valid', 'V'), ('last', 'V'), ('test', 'T')])
def test_the_test_set_chooses_the_student_alone_and_the_report_says_so(dataset, tiny, tmp_path, select, scored_on):
    copy = shutil.copytree(dataset, tmp_path / 'colonies')
    save_split(ColonyDataset(copy), name='with_v', labeled=0.5, valid=0.5, test=0.25, folds=2)
    cfg = ExperimentConfig(**tiny | dict(method='supervised', split='with_v', select=select))
    run = read_run(train(cfg, copy, tmp_path / 'run'))
    on_test = select == 'test'
    assert run.info['parts']['V'] and run.valid_is == scored_on
    assert read_json(run.path / 'model.json')['trust']['calibrated_on'] == (None if on_test else 'V')
    assert any('chosen on the test set' in note for note in notes(compare(run.path))) == on_test
    assert (SCORED_ON[scored_on] in plot_losses(run.history, valid_is=run.valid_is)[1, 0].get_ylabel()) and (
        'too good to be trusted' in write_report(run.path).read_text()
    ) == on_test


def test_labels_that_changed_after_the_split_are_told(dataset, tiny, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / 'colonies')
    ds = ColonyDataset(copy)
    one = save_split(ds, 'once', labeled=0.25, test=0.25, folds=1).fold(0)
    run = train(ExperimentConfig(**tiny | dict(method='supervised', split='once')), copy, tmp_path / 'run')
    assert not any('labels' in note.lower() for note in notes(compare(run)))
    ds.annotate(one.index[one.part == 'U'][0], exclude='unsure', by='ana')
    assert any('but none of the labelled' in note for note in notes(compare(run)))
    ds.annotate(one.index[one.part == 'T'][0], exclude='unsure', by='ana')
    assert any('1 of its colonies have changed (1 in the test set' in note for note in notes(compare(run)))
    (copy / 'splits' / 'once.csv').unlink()
    assert any('cannot be told: once.csv: no such split' in note for note in notes(compare(run)))
    assert write_report(run).exists()


def test_a_run_of_an_older_version_lacks_fields(tiny):
    cfg = ExperimentConfig(**tiny)
    older = {k: v for k, v in cfg.dict().items() if k != 'finetune_lr'}
    assert differs(dict(config=older), cfg) is None
    assert differs(dict(config=older), ExperimentConfig(**tiny | dict(finetune_lr=0.1))) == ('finetune_lr', 0.0, 0.1)
