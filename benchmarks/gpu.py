"""`make gpu`: half an hour on a GPU, in order of worth: does it compute what the CPU computes, how fast are loader,
step and prediction, and what do the paper's networks learn.

    python benchmarks/gpu.py --minutes 25

Each part runs in a process of its own, and a figure is in results/gpu.jsonl, with card, driver and torch, as soon as it
is measured. A second call skips the parts that are done; --only names some, which are then measured again: the last
line of a figure counts. A part that does not fit the minutes that are left is named and left out. Nothing is
downloaded: the colonies are simulated. `--rehearse` runs every part on whatever device there is, tiny, and writes to a
temporary file."""

import argparse
import atexit
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
import step as mpl_step
import torch
from figures import machine, show

import ipb_nb.baselines  # noqa: F401 (a checkout that is not installed announces no methods)
import ipb_nb.ipb  # noqa: F401
from ipb_nb.checkpoint import peak_memory, time_steps
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json, seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.model import create_model
from ipb_nb.patch import colony_dataloaders, patch_views
from ipb_nb.predict import predict_source
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split
from ipb_nb.student import Student

RESULTS = Path(__file__).parent / 'results' / 'gpu.jsonl'
GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'


class Part:
    "Where a part of the measurements works, and how large."

    def __init__(self, folder, tiny):
        self.folder, self.tiny = Path(folder), tiny
        mpl_step.SIDES, mpl_step.STEPS = self.sides, 2 if tiny else 12

    def colonies(self, n):
        "A simulated dataset, a tenth labelled, by track."
        n = 36 if self.tiny else n
        folder = self.folder / f'colonies_{n}'
        if not (folder / 'splits').exists():
            ds = simulate_dataset(folder, n, seed=41, workers=os.cpu_count(), overwrite=True)
            save_split(ds, by='random' if self.tiny else 'track', labeled=0.3 if self.tiny else 0.1, test=0.3, folds=1)
        return ColonyDataset(folder)

    @property
    def paper(self):
        "Arguments of the paper's networks; narrow and small in a rehearsal."
        return dict(scales='32,16', width=0.25) if self.tiny else dict(scales='224,112')

    @property
    def sides(self):
        return tuple(map(int, self.paper['scales'].split(',')))

    def network(self, device=DEVICE):
        return create_model('hrnet', self.sides, 4, device=device, width=self.paper.get('width', 1.0))


def seconds(f, n=1):
    "Mean of `n` calls."
    return mpl_step.seconds(lambda: [f() for _ in range(n)]) / n


def first_batches(ds, device, sides):
    "The first batch of U as it is read, and its strong views."
    loaders = colony_dataloaders(ds, scales=sides, bs=16, device=device, num_workers=0)
    x, keys = loaders.unlabeled.train.one_batch()
    return x, keys, patch_views(loaders.labeled.train)(x, keys, 'strong')


def digest(run):
    "Of a run's weights."
    return hashlib.sha256((run / 'student.safetensors').read_bytes()).hexdigest()


def one_run(part, ds, out, device):
    "A short run of preset quick on a device, as a command and its environment."
    how = dict(epochs=4, pretrain_epochs=4, steps=80, pretrain_steps=80, finetune=2)
    if part.tiny:
        how = dict(epochs=2, pretrain_epochs=2, steps=4, finetune=1)
    how |= dict(amp=False, threads=1)
    env = dict(CUDA_VISIBLE_DEVICES='') if device == 'cpu' else {}
    return command_of('quick', how, ds.path, out), os.environ | env


def command_of(preset, how, data, out):
    return [sys.executable, __file__, '--config', json.dumps(how | dict(preset=preset)), data, out]


def kill_and_resume(command, env, out):
    "Kill a run after the first epoch of its main training, and resume it."
    p = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    history = out / 'history.csv'
    while p.poll() is None and (not history.exists() or '\nstudent,' not in history.read_text()):
        time.sleep(0.05)
    p.kill()
    p.wait()
    if read_json(out / 'run.json')['state'] == 'done':
        raise RuntimeError('the run had ended before it could be killed')
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def agree(part):
    "Do CPU and GPU agree; does a run repeat, and resume?"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ds = part.colonies(400)
    here, there = first_batches(ds, 'cpu', part.sides), first_batches(ds, DEVICE, part.sides)
    same = all(torch.equal(a, b.cpu()) for a, b in zip(here[:2], there[:2]))
    show('gpu.agree.patches', same, 'share', 'a batch of U as read on the CPU: all bytes equal', 1)
    apart = (here[2] - there[2].cpu()).abs().max()
    show('gpu.agree.views', apart, 'grey SD', 'the strong views of that batch on the CPU', 1e-3, 'lower')
    seed_all(0)
    net = part.network('cpu').eval()
    with torch.no_grad():
        on_cpu = net(here[2])
        on_gpu = net.to(DEVICE)(here[2].to(DEVICE)).cpu()
    apart, against = (on_cpu - on_gpu).abs().max() / on_cpu.abs().max(), 'the largest logit of HRNet, CPU, fp32'
    show('gpu.agree.logits', apart, 'of the largest', against, 1e-4, 'lower')
    show('gpu.agree.labels', (on_cpu.argmax(1) == on_gpu.argmax(1)).float().mean(), 'share', 'the CPU', 1)
    runs = {}
    for name, device in dict(cpu='cpu', one=DEVICE, two=DEVICE).items():
        command, env = one_run(part, ds, part.folder / f'run_{name}', device)
        runs[name] = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    for name, p in runs.items():
        if p.wait():
            raise RuntimeError(f'the run {name} failed')
    recall = {name: read_json(part.folder / f'run_{name}' / 'metrics.json')['student']['macro_tpr'] for name in runs}
    against = f'the same run on the CPU, {recall["cpu"]:.3f}; the GPU {recall["one"]:.3f}'
    show('gpu.agree.macro_tpr', abs(recall['cpu'] - recall['one']), 'recall', against, 0.02, 'lower')
    weights = {name: digest(part.folder / f'run_{name}') for name in runs}
    show('gpu.agree.repeats', weights['one'] == weights['two'], 'share', 'weights of a second run', 1)
    out = part.folder / 'run_killed'
    kill_and_resume(*one_run(part, ds, out, DEVICE), out)
    show('gpu.agree.resumes', weights['one'] == digest(out), 'share', 'weights of a run never stopped', 1)


def rate(batches, most=8.0):
    "Patches a second, of an iterator of batches, after the first four."
    n, start = 0, None
    for k, b in enumerate(batches):
        if k == 4:
            mpl_step.sync()
            start = time.perf_counter()
        n += len(b[0]) * (k > 4)
        if start and time.perf_counter() - start > most:
            break
    mpl_step.sync()
    return n / (time.perf_counter() - start)


def loader(part):
    "Patches delivered a second, and what limits them, beside what the network takes."
    ds, n, workers = part.colonies(2000), 10 if part.tiny else 400, min(os.cpu_count(), 8)
    net = part.network()
    for b in (8,) if part.tiny else (32, 64, 128):
        made = {}
        for name, device in dict(cut='cpu', moved=DEVICE).items():
            loaders = colony_dataloaders(ds, scales=part.sides, bs=b, steps=n, device=device, num_workers=workers)
            made[name] = rate(loaders.unlabeled.train)
        views = patch_views(loaders.labeled.train)

        def shown(loaders=loaders, views=views):
            for x, keys in loaders.unlabeled.train:
                yield views(x, keys, 'weak'), views(x, keys, 'strong')

        made['shown'] = rate(shown())
        x, keys = loaders.unlabeled.train.one_batch()
        made['views'] = b / seconds(lambda: views(x, keys, 'strong'), 3 if part.tiny else 30)
        mpl_step.learn(net, b, True)
        takes = b / seconds(lambda b=b: mpl_step.learn(net, b, True), 2 if part.tiny else 15)
        what = f'HRNet {part.paper["scales"]}, B = {b}'
        show(f'gpu.loader.{b}.network', takes, 'patches/s', f'the loader; forward and backward, bf16, {what}')
        show(
            f'gpu.loader.{b}.cut', made['cut'], 'patches/s', f'{workers} processes, uint8, before any transfer, {what}'
        )
        show(f'gpu.loader.{b}.moved', made['moved'], 'patches/s', f'the same, on the device, {what}')
        show(f'gpu.loader.{b}.views', made['views'], 'patches/s', f'strong views of a batch on the device, {what}')
        show(f'gpu.loader.{b}.shown', made['shown'], 'patches/s', f'read, moved, a weak and a strong view, {what}')
        show(f'gpu.loader.{b}.over_network', made['shown'] / takes, 'x', f'the network, {what}', 1.5)


def memory_of(f):
    "GB at its highest, or None where there is not enough."
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        f()
    except torch.cuda.OutOfMemoryError:
        return None
    return peak_memory(DEVICE)


def step(part):
    "A step of meta pseudo labels beside its bare passes and those of the published loop; variants."
    ds, steps, base = part.colonies(2000), mpl_step.STEPS, 4 if part.tiny else 32
    own, plain = (
        [part.network().to(memory_format=o) for _ in 'ts'] for o in (torch.channels_last, torch.contiguous_format)
    )
    for b in (base,) if part.tiny else (base, base * 4):
        learner = mpl_step.learner(ds, b, 'exact', own)[0]
        saving = mpl_step.learner(ds, b, 'exact', own, save_memory=True)[0]
        of = {
            'step': lambda learner=learner: time_steps(learner, steps),
            'save_memory': lambda saving=saving: time_steps(saving, steps),
            'passes': lambda b=b: seconds(lambda: mpl_step.exact(*own, b, True), steps),
            'passes_contiguous': lambda b=b: seconds(lambda: mpl_step.exact(*plain, b, True), steps),
            'passes_fp32': lambda b=b: seconds(lambda: mpl_step.exact(*own, b, False), steps),
            'published': lambda b=b: seconds(lambda: mpl_step.published(*plain, b, False), steps),
        }
        for f in list(of.values())[2:]:
            f()
        took = {
            k: np.median(v)
            for k, v in zip(of, np.array([[f() for f in of.values()] for _ in range(1 if part.tiny else 2)]).T)
        }
        what = f'HRNet {part.paper["scales"]}, B = {b}, bf16, channels last'
        show(f'gpu.step.{b}', took['step'], 's', f'its bare passes; {what}', better='lower')
        show(f'gpu.step.{b}.over_passes', took['step'] / took['passes'], 'x', 'its bare passes', 1.05, 'lower')
        against = f'the published passes, fp32, contiguous, without data and optimiser, {took["published"]:.3f} s'
        show(f'gpu.step.{b}.speedup', took['published'] / took['step'], 'x', against, 5)
        for k in ('save_memory', 'passes_contiguous', 'passes_fp32'):
            base_of = 'step' if k == 'save_memory' else 'passes'
            show(f'gpu.step.{b}.{k}', took[k] / took[base_of], 'x', f'{base_of} without it', better='lower')
        minutes = took['step'] * 20_000 / 60
        show(f'gpu.step.{b}.paper_20000', minutes, 'min', '20,000 steps of preset paper by estimate', 40, 'lower')


def memory(part):
    "The memory of a step, by batch size, and the largest that fits."
    ds, nets, largest = part.colonies(2000), [part.network() for _ in range(2)], 0
    for b in (8, 16) if part.tiny else (32, 128, 256, 512, 1024, 2048):
        gb = memory_of(lambda b=b: time_steps(mpl_step.learner(ds, b, 'exact', nets)[0], 1))
        if gb is None:
            break
        largest = b
        show(f'gpu.memory.{b}', gb, 'GB', 'a smaller batch; teacher and student, two steps')
    show('gpu.memory.largest', largest, 'patches', 'B of the largest step that fits, by doubling')


def graphs(part):
    "One pass forward and backward, as it is, compiled, and compiled with CUDA graphs."
    b, took = 4 if part.tiny else 32, {}
    for name, mode in dict(eager=None, compile='default', cuda_graphs='reduce-overhead').items():
        net = part.network()
        if mode and not part.tiny:
            net.compile(mode=mode)
        first = mpl_step.seconds(lambda net=net: [mpl_step.learn(net, b, True) for _ in range(3)])
        took[name] = seconds(lambda net=net: mpl_step.learn(net, b, True), 2 if part.tiny else 20)
        show(f'gpu.graphs.{name}', took[name], 's', f'eager; the first three took {first:.0f} s')
        show(f'gpu.graphs.{name}.speedup', took['eager'] / took[name], 'x', f'eager, B = {b}, bf16')


def frames(part):
    "Frames of 2908 × 2908 px that a network classifies in a second."
    size = 2908
    ds = part.colonies(2000)
    cfg = ExperimentConfig(
        preset='paper',
        method='supervised',
        epochs=1,
        pretrain_epochs=1,
        steps=4,
        finetune=0,
        batch_size=8,
        threads=1 if part.tiny else 0,
        **part.paper,
    )
    run = train(cfg, ds.path, part.folder / 'run_frames', resume=True)
    student, ids = Student(run), [*ds.colonies.sort_values('area_px').index[-30:]]
    if part.tiny:  # the colony nearest to the corner, in a frame as small as can be
        size = ds.colonies[['y1', 'x1']].max(axis=1).min()
        ids = [ds.colonies[['y1', 'x1']].max(axis=1).idxmin()]

    def classify():
        predict_source(student, ds, ids, size=(size, size))

    classify()
    took = seconds(classify, 1 if part.tiny else 3)
    show(
        'gpu.predict.frames',
        1 / took,
        'frames/s',
        f'none stated; {len(ids)} colonies in {size} px, HRNet, detection aside',
    )


def learn(part):
    "The preset paper, its training cut: supervised, IPB, FixMatch, side by side on one card."
    ds = part.colonies(4000)
    small = dict(epochs=2, steps=4, finetune=1, batch_size=4, threads=1)
    few = small if part.tiny else dict(epochs=15, steps=1500, finetune=20)
    rows = dict(
        supervised=dict(method='supervised', **few | dict(steps=few['steps'] * 4 // 3)),
        ipb=dict(method='mpl', pretrain_epochs=2 if part.tiny else 60, **few),
        fixmatch=dict(method='fixmatch', mu=3, **few),
    )
    runs, failed = {name: part.folder / f'paper_{name}' for name in rows}, []
    with ThreadPoolExecutor(len(rows)) as pool:
        commands = {name: command_of('paper', rows[name] | part.paper, ds.path, out) for name, out in runs.items()}
        begun = {pool.submit(subprocess.run, c, stdout=subprocess.DEVNULL): name for name, c in commands.items()}
        for done_run in as_completed(begun):
            name = begun[done_run]
            if done_run.result().returncode:
                failed.append(name)
            else:
                show_run(name, runs[name])
    if failed:
        raise RuntimeError(f'failed: {", ".join(failed)}')


def show_run(name, run):
    "Its recall, and in words how it got there."
    scores, history = read_json(run / 'metrics.json'), pd.read_csv(run / 'history.csv')
    took = read_json(run / 'run.json')['seconds']
    curve = ' '.join(f'{v:.3f}' for v in history[history.stage == 'student'].macro_tpr)
    against = f'the other rows; {took:.0f} s, three at a time on one card; V (or L) after each epoch: {curve}'
    show(f'gpu.paper.{name}.macro_tpr', scores['student']['macro_tpr'], 'recall', against)


PARTS = dict(  # with the minutes that they take on an H100
    agree=(agree, 3),
    step=(step, 4),
    memory=(memory, 1),
    loader=(loader, 1),
    frames=(frames, 1),
    learn=(learn, 15),
    graphs=(graphs, 5),
)


def done(results, here):
    "The parts that this machine has measured."
    if not results.exists():
        return set()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {o['value'] for o in lines if o['figure'] == 'gpu.done' and o['machine'] == here}


def measure(name, args, results, folder):
    "Run a part in a process of its own, and keep its lines as they come; whether it came to its end."
    command = [sys.executable, __file__, '--part', name, '--folder', folder] + ['--rehearse'] * args.rehearse
    env = os.environ | dict(TQDM_DISABLE='1')
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    for line in p.stdout:
        print(line, end='', flush=True)
        if line.startswith('{'):
            with open(results, 'a') as f:
                f.write(line)
                f.flush()
                os.fsync(f.fileno())
    return not p.wait()


def start_fast():
    "Python is started and everything imported once; a process that is begun after this is a copy."
    sys.path.append(str(Path(__file__).parent.parent / 'tests'))
    import ahead

    subprocess.Popen = ahead.Popen
    atexit.register(ahead.start().communicate)


def everything(args):
    start, here = time.monotonic(), machine()
    print(here, flush=True)
    if not GPU and not args.rehearse:
        sys.exit('No GPU: torch.cuda.is_available() is False. --rehearse runs every part, tiny, on the CPU.')
    if args.rehearse and sys.platform == 'linux' and 'IPB_AHEAD' not in os.environ:
        start_fast()
    with tempfile.TemporaryDirectory() as d:
        results = Path(d) / 'gpu.jsonl' if args.rehearse else RESULTS
        folder = args.folder or d
        names = args.only.split(',') if args.only else [n for n in PARTS if n not in done(results, here)]
        if odd := set(names) - set(PARTS):
            sys.exit(f'--only: found {", ".join(sorted(odd))}; expected some of {", ".join(PARTS)}.')
        failed = []
        for name in names:
            left = args.minutes - (time.monotonic() - start) / 60
            if left < PARTS[name][1]:
                print(f'{name}: left out; it takes about {PARTS[name][1]} of the {left:.1f} minutes left', flush=True)
                continue
            began = time.monotonic()
            if measure(name, args, results, folder):
                with open(results, 'a') as f:
                    line = dict(figure='gpu.done', value=name, seconds=round(time.monotonic() - began), machine=here)
                    f.write(json.dumps(line) + '\n')
            else:
                failed.append(name)
            print(f'{name}: {time.monotonic() - began:.0f} s', flush=True)
        if failed:
            sys.exit(f'failed: {", ".join(failed)}; what they had measured is kept')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=25, help='the time there is')
    p.add_argument('--only', default='', help=f'some of {", ".join(PARTS)}')
    p.add_argument('--folder', help='where datasets and runs go; kept there for the next call')
    p.add_argument('--rehearse', action='store_true', help='every part, tiny, on whatever there is')
    p.add_argument('--part', help=argparse.SUPPRESS)
    p.add_argument('--config', nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.config:
        how, data, out = args.config
        train(ExperimentConfig(**json.loads(how)), data, out, resume=True)
    elif args.part:
        PARTS[args.part][0](Part(args.folder, args.rehearse))
    else:
        everything(args)
