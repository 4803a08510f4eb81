"""A training step of each related method against the bare passes of its networks.

As many patches forward and backward, in the same precision, without data, views, loss and optimiser."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import show
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

from ipb_nb.checkpoint import time_steps
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import seed_all
from ipb_nb.model import autocast
from ipb_nb.simclr import nt_xent
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.training import Training, run_loaders

STEPS, ROUNDS = 4, 3


def sync(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()


def seconds(f, device=None):
    device = device or torch.device('cpu')
    sync(device)
    start = time.perf_counter()
    f()
    sync(device)
    return time.perf_counter() - start


def passes(t, stage):
    "A function that makes the bare passes of a step."
    c, head, device = t.cfg, t.live.get('head'), t.loaders.test.device
    net, side, b = t.live['student'], c.sides[0], c.batch_size
    images = lambda n: torch.randn(n, 1, side, side, device=device)

    def learn(n):
        with autocast(device, c.amp):
            if stage != 'pretext':
                out = net(images(n))
            elif c.method.startswith('clustering'):
                out = torch.cat([head(f := net.features(images(n))), net.classifier(f)], 1)
            else:
                out = head(net.features(images(n)))
        (torch.cat(out, 1) if isinstance(out, tuple) else out).float().square().mean().backward()

    def look(n):
        with torch.no_grad(), autocast(device, c.amp):
            net(images(n))

    def once():
        if stage == 'pretext':
            learn((3 if c.method == 'simtriplet' else 2) * c.pairs)
        elif c.method in ('fixmatch', 'crest'):
            look(c.mu * b)
            learn((1 + c.mu) * b)
        else:
            learn(b)
        for o in (net, head):
            if o is not None:
                o.zero_grad()

    return once


def step(ds, method, stage, arch, scales):
    seed_all(0)
    cfg = ExperimentConfig(method=method, arch=arch, scales=scales, steps=100, epochs=10)
    t = Training(cfg, ds, run_loaders(cfg, ds), Path(tempfile.mkdtemp()))
    learn, bare, device = t.learner(stage), passes(t, stage), t.loaders.test.device
    bare()
    took = np.median(
        [
            [time_steps(learn, STEPS), seconds(lambda: [bare() for _ in range(STEPS)], device) / STEPS]
            for _ in range(ROUNDS)
        ],
        axis=0,
    )
    what = f'{arch} {scales} px, ' + (
        f'{cfg.pairs} patches'
        if stage == 'pretext'
        else f'B = {cfg.batch_size}' + (f', μ = {cfg.mu}' if method in ('fixmatch', 'crest') else '')
    )
    show(f'related.{method}.{arch}', float(took[0]), 's', what)
    show(
        f'related.{method}.{arch}.over_passes',
        float(took[0] / took[1]),
        'x',
        'the bare passes of the same networks',
        1.1 if arch == 'hrnet' else None,
        'lower',
    )


def loss():
    z = [torch.randn(256, 128, requires_grad=True) for _ in range(2)]
    ours, theirs = [
        np.median([seconds(lambda: f(*z).backward()) for _ in range(3)])
        for f in (nt_xent, SelfSupervisedLoss(NTXentLoss(0.5)))
    ]
    show('related.nt_xent', float(theirs / ours), 'x', f'pytorch-metric-learning, {theirs:.1f} s for 256 pairs')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as d:
        ds = simulate_dataset(Path(d) / 'cells', 300, workers=2)
        save_split(ds, labeled=0.2, test=0.2, folds=1)
        loss()
        for arch in ('hrnet', 'test_resnet'):
            for method, stage in {
                'simclr': 'pretext',
                'clustering': 'pretext',
                'simtriplet': 'pretext',
                'fixmatch': 'student',
                'crest': 'student',
                'logit_adjusted': 'student',
            }.items():
                step(ds, method, stage, arch, '64')
