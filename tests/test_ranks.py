"Several processes train together: what they do is what one does."

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ipb_nb.core import InputError
from ipb_nb.dataset import ColonyDataset
from ipb_nb.distributed import check_batch
from ipb_nb.patch import colony_dataloaders

BIN = Path(sys.executable).parent
LAUNCH = dict(
    torchrun=[BIN / 'torchrun', '--standalone', '--nproc_per_node', '2'],
    accelerate=[
        BIN / 'accelerate',
        'launch',
        '--multi_gpu',
        '--num_machines',
        '1',
        '--num_processes',
        '2',
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--main_process_port',
        '0',
    ],
)


def options(fields):
    return [str(o) for k, v in fields.items() for o in (f'--{k}', v)]


def two(launcher, *args, ok=True):
    r = subprocess.run([*LAUNCH[launcher], *map(str, args)], capture_output=True, text=True, timeout=300)
    assert (r.returncode == 0) == ok, r.stdout + r.stderr
    return r.stdout if ok else r.stderr


STEPS = '''
"Six steps of teacher and student, with feedback and balancing; weights and what was logged go to a file."
import sys
import torch
from fastai.learner import Recorder
from safetensors.torch import save_file
from ipb_nb.core import seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.ipb import ipb_learner
from ipb_nb.patch import colony_dataloaders
from ipb_nb.distributed import launched, n_ranks, rank
from ipb_nb.model import create_model
from ipb_nb.method import EMA, fit_schedule, Ranks, supervised_learner


def frozen(net):
    "Batch norm with running statistics that stay as they are."
    for m in net.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval(); m.train = lambda mode=True, m=m: m
    return net.double()


def doubled(net):
    "Takes float32 patches."
    forward = net.forward
    net.forward = lambda x, **kwargs: forward(x.double(), **kwargs)
    return net


def six_steps(dataset, out, feedback):
    seed_all(0, 1)
    ds = ColonyDataset(dataset)
    loaders = colony_dataloaders(ds, scales=(32,), bs=8, steps=3)
    teacher, student = (doubled(frozen(create_model('test_resnet', (32,), len(ds.classes)))) for _ in range(2))
    shared = lambda: [Ranks()] if n_ranks() > 1 else []
    learn = supervised_learner(loaders.labeled, teacher, cbs=shared())
    learn.remove_cb(Recorder)                          # (its averages are single precision)
    with learn.no_bar(), learn.no_logging(): fit_schedule(learn, 4, .02)
    options = dict(lr=.004, threshold=.34, lambda_u=2., feedback=feedback)
    learn = ipb_learner(loaders, teacher, student, ds.classes, **options, cbs=[*shared(), EMA(.5)])
    learn.remove_cb(Recorder)
    with learn.no_bar(), learn.no_logging(): fit_schedule(learn, 2, .004)
    log = learn.meta_pseudo_labels.epoch_log | learn.pseudo_balance.epoch_log
    b = learn.pseudo_balance.table
    columns = ('share', 'weight', 'draws', 'distinct', 'largest_repeat', 'confident', 'taught')
    balance = torch.tensor([[r[k] for k in columns] for r in b], dtype=torch.double)
    found = dict(balance=balance, h=torch.tensor(log['h']), relabelled=torch.tensor(log['relabelled']))
    for n, net in dict(t=teacher, s=student, a=learn.ema.average.module).items():
        found |= {f'{n}.{k}': v.contiguous() for k, v in net.state_dict().items()}
    if rank() == 0: save_file(found, f'{out}-{feedback}.safetensors')


dataset, out, *modes = sys.argv[1:]
with launched():
    for feedback in modes: six_steps(dataset, out, feedback)
'''


FEEDBACK = 'exact', 'taylor', 'cosine', 'reference'


@pytest.fixture(scope='module')
def steps(dataset, once):
    "A folder with the state of one process after six steps, and of two, for every kind of feedback."

    def make(out):
        (out / 'steps.py').write_text(STEPS)
        subprocess.run([sys.executable, out / 'steps.py', dataset, out / 'one', *FEEDBACK], check=True)
        two('torchrun', out / 'steps.py', dataset, out / 'two', *FEEDBACK)

    return once('steps', make)


@pytest.mark.parametrize('feedback', FEEDBACK)
def test_two_ranks_of_half_a_batch_are_one_of_a_whole(feedback, steps):
    one, both = (load_file(steps / f'{n}-{feedback}.safetensors') for n in ('one', 'two'))
    assert one['h'].abs() > 1e-6 and len(one['balance'].unique()) > 5  # there was something to compare
    for k, v in one.items():
        torch.testing.assert_close(both[k], v, rtol=1e-6, atol=1e-6, msg=lambda m: f'{k}: {m}')


def test_draws_are_shared_out_without_overlap(dataset):
    ds = ColonyDataset(dataset)
    dl = colony_dataloaders(ds, scales=(32,), bs=8, steps=3).unlabeled.train
    parts = [dl.new(bs=4, n_draws=24, rank=r, ranks=2) for r in range(2)]
    got = [[k.tolist() for x, k in p] for p in parts]
    assert [a + b for a, b in zip(*got)] == [k.tolist() for x, k in dl]  # batch by batch what one rank sees
    look = [p.new(shuffle=False, weights=None, n_draws=None, drop_last=False) for p in parts]
    ids = [sum((k.tolist() for x, k in p), []) for p in look]
    assert len(set(ids[0]) | set(ids[1])) == len(ids[0]) + len(ids[1]) == dl.n_colonies


@pytest.mark.parametrize('launcher', ['torchrun', pytest.param('accelerate', marks=pytest.mark.long)])
def test_a_run_by_two(launcher, dataset, tiny, tmp_path):
    out = tmp_path / 'run'
    fields = tiny | dict(finetune=1, ema=0.8)
    said = two(launcher, BIN / 'ipb-train', dataset, '--out', out, '--no_notebook', *options(fields))
    assert said.count('macro recall') == 5 and json.loads((out / 'run.json').read_text())['state'] == 'done'
    b, h = pd.read_csv(out / 'balance.csv'), pd.read_csv(out / 'history.csv')
    assert b.groupby('epoch').draws.sum().eq(8 * 4).all() and len(h) == 2 + 2 + 1 and (b.taught <= b.draws.sum()).all()
    assert not (out / 'checkpoint').exists() and not (out / '.lock').exists()


def test_a_notebook_is_for_one(dataset, tiny, tmp_path):
    err = two('torchrun', BIN / 'ipb-train', dataset, '--out', tmp_path / 'run', *options(tiny), ok=False)
    assert 'no_notebook: found no, with 2 processes; expected yes' in err


def test_a_batch_is_divided_evenly(monkeypatch):
    monkeypatch.setattr('ipb_nb.distributed.n_ranks', lambda: 2)
    assert check_batch(8) == 4
    with pytest.raises(InputError, match='batch_size: found 7; expected a multiple of the 2 processes'):
        check_batch(7)
