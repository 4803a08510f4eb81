"""A sweep of tiny runs.

Two workers over one, what sharing the cores saves, what a run costs beyond papermill's own execution of its
notebook, and how long 1,000 finished runs take to recognise."""

import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import papermill
import yaml
from figures import show

from ipb_nb.core import read_json, write_json
from ipb_nb.experiment import train_notebook
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.sweep import _PRELOADED, read_grid, sweep

TINY = dict(pretrain_epochs=4, epochs=6, steps=120, batch_size=16, scales=64, finetune=1, ema=0, threads=1)


def grid(path, rows, **axes):
    path.write_text(yaml.safe_dump(dict(defaults=TINY, axes=axes, rows=rows), sort_keys=False))
    return path


def seconds(f, *args, **kwargs):
    start = time.perf_counter()
    f(*args, **kwargs)
    return time.perf_counter() - start


def by_papermill(runs, data, out):
    "The same notebooks one after the other, as papermill alone does it."
    out.mkdir()
    os.environ.update(OMP_NUM_THREADS='1', TQDM_DISABLE='1')
    for name, cfg in runs.items():
        papermill.execute_notebook(
            train_notebook(),
            out / f'{name}.ipynb',
            cfg.dict() | dict(data=str(data), out=str(out / name), resume=False),
            kernel_name='python3',
            progress_bar=False,
        )


def first_process():
    "What a sweep's first process waits for: a server that has everything imported."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_PRELOADED)
    p = context.Process(target=time.sleep, args=(0,))
    p.start()
    p.join()


def thousand(one, out):
    "A finished run a thousand times, by seed."
    for s in range(1000):
        to = out / f'ipb-seed{s}'
        shutil.copytree(one, to)
        run = read_json(to / 'run.json')
        write_json(run | dict(config=run['config'] | dict(seed=s)), to / 'run.json')


def main(d):
    data = d / 'colonies'
    save_split(simulate_dataset(data, 200), labeled=0.3, test=0.3, folds=2)
    tiny = grid(d / 'tiny.yaml', {'ipb': {}}, fold=[0, 1], seed=[0, 1])
    show('sweep.start', seconds(first_process), 's', 'once a sweep, before its first run; not in the overhead a run')
    took = {w: seconds(sweep, tiny, data, d / f'runs{w}', workers=w) for w in (1, 2)}
    show(
        'sweep.speed_up',
        took[1] / took[2],
        'x',
        f'one worker, {took[1]:.0f} s for four tiny runs of a thread each',
        1.6,
    )
    short = grid(d / 'short.yaml', {'ipb': dict(steps=10, pretrain_epochs=1, epochs=1)}, fold=[0, 1], seed=[0, 1])
    pairs = [
        (
            seconds(by_papermill, read_grid(short), data, d / f'papermill{k}'),
            seconds(sweep, short, data, d / f'short{k}'),
        )
        for k in range(3)
    ]
    show(
        'sweep.overhead',
        sorted((b - a) / 4 for a, b in pairs)[1],
        's',
        f"a run, over papermill's own execution of the same notebooks of a few steps, {pairs[0][0] / 4:.0f} s "
        f"each; the middle of three rounds of four",
        1,
    )
    few = d / 'few.yaml'
    few.write_text(
        yaml.safe_dump(
            dict(
                defaults={k: v for k, v in TINY.items() if k != 'threads'}
                | dict(pretrain_epochs=1, epochs=1, steps=10),
                axes=dict(fold=[0, 1]),
                rows={'ipb': {}},
            )
        )
    )
    each = {
        k: sweep(few, data, d / k, workers=2, overrides=o).seconds.mean()
        for k, o in (('shared', None), ('crowded', dict(threads=os.cpu_count())))
    }
    show(
        'sweep.shared_cores',
        each['crowded'] / each['shared'],
        'x',
        f"two runs at a time with all cores each, {each['crowded']:.0f} s a run; with their share "
        f"{each['shared']:.1f} s",
    )
    many = grid(d / 'many.yaml', {'ipb': dict(fold=0)}, seed=list(range(1000)))
    thousand(d / 'runs1' / 'ipb-fold0-seed0', d / 'many')
    show(
        'sweep.thousand',
        seconds(sweep, many, data, d / 'many'),
        's',
        'the sweep of 1,000 finished runs once more, results.csv written anew',
        2,
    )


if __name__ == '__main__':  # (the runs' processes import this file)
    with tempfile.TemporaryDirectory() as d:
        main(Path(d))
