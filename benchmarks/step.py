"""A training step of meta pseudo labels (two-stream HRNet, 224 and 112 px) against its bare passes and against the
passes that the published loop makes; the labelling pass; memory; two processes.

`python benchmarks/step.py 32` takes another batch than 8."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import default_device
from figures import show

from ipb_nb.balance import pseudo_labels
from ipb_nb.checkpoint import peak_memory, time_steps
from ipb_nb.core import seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.distributed import launched, n_ranks, rank
from ipb_nb.ipb import ipb_learner
from ipb_nb.method import Ranks, paper_sgd
from ipb_nb.model import BFloat16, autocast, bf16_pays, create_model
from ipb_nb.patch import colony_dataloaders, patch_views
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

SIDES, STEPS = (224, 112), 6
DEVICE = default_device()
AMP = bf16_pays(DEVICE)


def sync():
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def seconds(f):
    sync()
    start = time.perf_counter()
    f()
    sync()
    return time.perf_counter() - start


def networks(layout=None):
    nets = [create_model('hrnet', SIDES, 4, device=DEVICE) for _ in range(2)]
    return nets if layout is None else [n.to(memory_format=layout) for n in nets]


def forward(net, n, amp, grad=True):
    with torch.set_grad_enabled(grad), autocast(DEVICE, amp):
        return net(torch.randn(n, 1, SIDES[0], SIDES[0], device=DEVICE))


def learn(net, n, amp):
    "Forward and backward."
    F.cross_entropy(forward(net, n, amp).float(), torch.zeros(n, dtype=torch.long, device=DEVICE)).backward()
    net.zero_grad()


def exact(t, s, b, amp):
    learn(t, 3 * b, amp)
    learn(s, b, amp)
    learn(s, b, amp)


def taylor(t, s, b, amp):
    learn(t, 3 * b, amp)
    learn(s, b, amp)
    [forward(s, b, False, grad=False) for _ in range(2)]


def published(t, s, b, amp):
    learn(t, 3 * b, amp)
    forward(s, 2 * b, amp, grad=False)
    learn(s, 2 * b, amp)
    forward(s, b, amp, grad=False)


def learner(ds, b, feedback, nets, **kwargs):
    loaders = colony_dataloaders(ds, scales=SIDES, bs=b, steps=STEPS + 2)
    return ipb_learner(
        loaders,
        *nets,
        ds.classes,
        balance=False,
        threshold=0.0,
        feedback=feedback,
        **kwargs,
        cbs=[*([BFloat16()] if AMP else []), *([Ranks()] if n_ranks() > 1 else [])],
    ), loaders


def speed(ds, b):
    ours, plain = networks(), networks(torch.contiguous_format)
    learners = {f: learner(ds, b, f, ours)[0] for f in ('exact', 'taylor')} | dict(
        saving=learner(ds, b, 'exact', ours, save_memory=True)[0]
    )
    of = {
        'step.saving': lambda: time_steps(learners['saving'], STEPS) * STEPS,
        'step.exact': lambda: time_steps(learners['exact'], STEPS) * STEPS,
        'step.taylor': lambda: time_steps(learners['taylor'], STEPS) * STEPS,
        'exact': lambda: seconds(lambda: [exact(*ours, b, AMP) for _ in range(STEPS)]),
        'taylor': lambda: seconds(lambda: [taylor(*ours, b, AMP) for _ in range(STEPS)]),
        'published': lambda: seconds(lambda: [published(*plain, b, False) for _ in range(STEPS)]),
    }
    for nets in (ours, plain):
        exact(*nets, b, AMP)
    took = {
        k: np.median(v) / STEPS for k, v in zip(of, np.array([[f() for f in of.values()] for _ in range(3)]).T)
    }  # (taken in turns)
    for f, least in (('exact', 2.2), ('taylor', 2.5)):
        show(f'step.{f}', float(took[f'step.{f}']), 's', f'HRNet {SIDES}, B = {b}, bfloat16 {AMP}')
        show(
            f'step.{f}.over_passes',
            float(took[f'step.{f}'] / took[f]),
            'x',
            'the bare passes of the same networks',
            1.1,
            'lower',
        )
        show(
            f'step.{f}.speedup',
            float(took['published'] / took[f'step.{f}']),
            'x',
            'the passes of the published loop, fp32, contiguous, without data and optimiser',
            least if DEVICE.type == 'cpu' else 3,
        )
        show(
            f'step.{f}.passes_speedup',
            float(took['published'] / took[f]),
            'x',
            'the same, bare passes against bare passes',
        )
    show(
        'step.saving.over_exact',
        float(took['step.saving'] / took['step.exact']),
        'x',
        'with save_memory, over without',
        better='lower',
    )
    show('step.published', float(took['published']), 's', 'ours')


def labelling(ds, b):
    net = networks()[0]
    loaders = colony_dataloaders(ds, scales=SIDES, bs=b)
    dl, views = loaders.unlabeled.train, patch_views(loaders.labeled.train)
    n = dl.n_colonies

    def bare():
        net.eval()
        for k in range(0, n, b):
            forward(net, min(b, n - k), AMP, grad=False).softmax(1)

    pseudo_labels(net, dl, views, AMP)
    took = np.median([[seconds(lambda: pseudo_labels(net, dl, views, AMP)), seconds(bare)] for _ in range(5)], axis=0)
    show(
        'step.labelling',
        float(took[0] / took[1]),
        'x',
        f"the network's inference on as many patches ({n / took[1]:.0f} a second)",
        1.1,
        'lower',
    )


def memory_of(what, data, b):
    "Peak of a process that makes steps, or that holds both networks and optimisers and makes the largest pass."
    ds, nets = ColonyDataset(data), networks() if what != 'nothing' else ()
    opts = [paper_sgd()(list(n.parameters()), lr=0.01) for n in nets]
    if what in ('step', 'saving'):
        time_steps(learner(ds, b, 'exact', nets, save_memory=what == 'saving')[0], STEPS)
    elif what == 'parts':
        colony_dataloaders(ds, scales=SIDES, bs=b)
        for _ in range(STEPS):
            for n, o in zip(nets, opts):
                F.cross_entropy(
                    forward(n, 3 * b if n is nets[0] else b, AMP).float(),
                    torch.zeros(3 * b if n is nets[0] else b, dtype=torch.long, device=DEVICE),
                ).backward()
                o.step()
                o.zero_grad()
    print(peak_memory(DEVICE))


def memory(data, b):
    took = {
        w: float(
            subprocess.run(
                [sys.executable, __file__, 'memory', w, data, str(b)], capture_output=True, text=True, check=True
            ).stdout
        )
        for w in ('nothing', 'parts', 'step', 'saving')
    }
    for w in ('step', 'saving'):
        show(
            f'step.memory.{w}',
            took[w] - took['nothing'],
            'GB',
            'beyond imports and data' + (', with save_memory' if w == 'saving' else ''),
        )
        show(
            f'step.memory.{w}.over_parts',
            (took[w] - took['nothing']) / (took['parts'] - took['nothing']),
            'x',
            'both networks and optimisers with the largest pass',
            1.1,
            'lower',
        )


def ranks_of(data, b):
    with launched():
        torch.set_num_threads(1)
        seed_all(0, 1)
        took = time_steps(learner(ColonyDataset(data), b, 'exact', networks())[0], STEPS)
        if rank() == 0:
            print(took)


def ranks(data, b):
    one = [sys.executable, __file__, 'ranks', data, str(b)]
    two = [Path(sys.executable).parent / 'torchrun', '--standalone', '--nproc_per_node', '2', *one[1:]]
    took = [
        float(subprocess.run(c, capture_output=True, text=True, check=True).stdout.splitlines()[-1]) for c in (one, two)
    ]
    show('step.two_ranks', took[0] / took[1], 'x', f'one process, one thread each, the same batch of {b}', 1.5)


if __name__ == '__main__':
    mode = sys.argv[1] if len(sys.argv) > 1 else '8'
    if mode == 'memory':
        memory_of(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif mode == 'ranks':
        ranks_of(sys.argv[2], int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as d:
            ds = simulate_dataset(Path(d) / 'cells', 200, workers=os.cpu_count())
            save_split(ds, labeled=0.2, test=0.2, folds=1)
            speed(ds, int(mode))
            labelling(ds, int(mode))
            memory(str(ds.path), int(mode))
            if DEVICE.type == 'cpu':
                ranks(str(ds.path), int(mode))
