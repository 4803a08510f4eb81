"""A training step of preset best's network while other programs need the cores, with as long a spin of waiting threads
as `ipb_nb` asks for and with that of GNU's OpenMP, each as the median of three processes."""

import os
import subprocess
import sys
import time
from statistics import median

SPINS = dict(ours=None, openmp='300000')  # (what libgomp's manual gives as its default)
STEPS = 4


def work():
    from ipb_nb.model import create_model  # (before torch, which reads the length of a spin once)
    import torch

    net, x = create_model('tf_efficientnet_lite0', (64,), 4), torch.randn(32, 1, 64, 64)
    step = lambda: net(x).sum().backward()
    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    print((time.perf_counter() - start) / STEPS)


def process(spin, code=None):
    env = {k: v for k, v in os.environ.items() if k not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'OMP_NUM_THREADS')}
    env |= {'GOMP_SPINCOUNT': spin} if spin else {}
    command = [sys.executable, '-c', code] if code else [sys.executable, __file__, 'work']
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def seconds(spin, busy=0, at_once=1):
    "Of a step; `busy` more programs do nothing but count."
    others = [process(None, 'while True: pass') for _ in range(busy)]
    try:
        found = []
        while len(found) < 3:
            own = [process(spin) for _ in range(at_once)]
            found += [float(p.communicate()[0]) for p in own]
        return median(found)
    finally:
        for p in others:
            p.kill()


if __name__ == '__main__':
    if sys.argv[1:] == ['work']:
        work()
        sys.exit()
    from figures import show

    cores = os.cpu_count()
    for name, how, text in (
        ('idle', {}, 'nothing else runs'),
        ('one', dict(busy=1), 'another program on one core'),
        ('all', dict(busy=cores), f'other programs on {cores} cores'),
        ('two_trainings', dict(at_once=2), 'two trainings at once'),
    ):
        took = {who: seconds(spin, **how) for who, spin in SPINS.items()}
        for who, value in took.items():
            show(f'busy.{name}.{who}', value, 's', f'the other spin; {text}')
        show(f'busy.{name}.speedup', took['openmp'] / took['ours'], 'x', f"OpenMP's spin; {text}")
