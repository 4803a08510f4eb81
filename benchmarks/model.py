"""What the layout of memory and bfloat16 give, forward and backward.

And how many patches the loader has ready for each one that the network takes."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import default_device
from figures import show

from ipb_nb.model import autocast, bf16_pays, create_model
from ipb_nb.patch import colony_dataloaders, normalisation, views
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

device = torch.device(default_device())
BATCH = 32 if device.type == 'cuda' else 8
card = torch.cuda.get_device_name() if device.type == 'cuda' else torch.cpu.get_capabilities()['cpu_name']


def seconds(f, n=6):
    "The best of n, after two to warm up."
    best = np.inf
    for k in range(n + 2):
        start = time.perf_counter()
        f()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        if k > 1:
            best = min(best, time.perf_counter() - start)
    return best


def step(net, x, amp):
    with autocast(device, amp):
        loss = net(x).float().logsumexp(1).mean()
    loss.backward()


def forms(arch, scales):
    "Plain fp32, and what is taken instead; the best of the alternatives is what we would have to take."
    net = create_model(arch, scales, 4, device=device)
    x = torch.randn(BATCH, 1, *net.sides[:1] * 2, device=device)
    took = {}
    for name, layout, amp in (
        ('plain', torch.contiguous_format, False),
        ('channels_last', torch.channels_last, False),
        ('channels_last_bf16', torch.channels_last, True),
    ):
        net = net.to(memory_format=layout)
        took[name] = seconds(lambda: step(net, x, amp))
    what = f'{arch} {scales} px, B = {BATCH}, forward and backward; {card}'
    for name, s in took.items():
        show(f'model.{arch}.{name}', s * 1000, 'ms', f'the other layouts; {what}')
    for name in ('channels_last', 'channels_last_bf16'):
        show(f'model.{arch}.{name}.speedup', took['plain'] / took[name], 'x', f'plain fp32; {what}')
    ours = 'channels_last_bf16' if bf16_pays(device) else 'channels_last'
    show(
        f'model.{arch}.taken.speedup',
        took['plain'] / took[ours],
        'x',
        f'plain fp32; {ours.replace("_", " ")} is what is taken on this device; {what}',
    )
    return BATCH / took[ours]


def delivered(folder, network):
    """Weak and strong views of patches of 224 px, ready on the device, against what a two-stream HRNet takes in
    forward and backward."""
    ds = simulate_dataset(folder, 200)
    save_split(ds, labeled=0.25, test=0.1)
    loaders = colony_dataloaders(ds, scales='224,112', bs=BATCH, steps=2000 // BATCH, device=device)
    norm, dl = normalisation(loaders.test), loaders.unlabeled.train

    def epoch():
        for x, keys in dl:
            views(x, keys, 'weak', **norm), views(x, keys, 'strong', **norm)

    rate = len(dl) * BATCH / seconds(epoch, 2)
    show('model.delivered', rate, 'patches/s', f'what the network takes; weak and strong views, 224 px; {card}')
    show(
        'model.taken',
        network,
        'patches/s',
        f'what is delivered; hrnet 224,112 px, forward and backward, B = {BATCH}; {card}',
    )
    show(
        'model.delivered.ratio',
        rate / network,
        'x',
        f'what the network takes, in the same run; {card}',
        1.5 if device.type == 'cuda' else None,
    )  # (a CPU is no match)


rate = forms('hrnet', '224,112')
forms('vgg19', '128')
with tempfile.TemporaryDirectory() as d:
    delivered(Path(d) / 'colonies', rate)
