"""`make gpu`: half an hour on a GPU, in order of worth: does it compute what the CPU computes, how fast are loader,
step and prediction, and what do the paper's networks learn.

    python benchmarks/gpu.py --minutes 25

Each part runs in a process of its own, and a figure is in results/gpu.jsonl, with card, driver and torch, as soon as it
is measured. A second call skips the parts that are done; --only names some, which are then measured again. A part that
does not fit the minutes that are left is named and left out. Nothing is downloaded: the colonies are simulated.
`--rehearse` runs every part on whatever device there is, tiny, and writes to a temporary file."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from figures import machine

import ipb_nb.baselines  # noqa: F401 (a checkout that is not installed announces no methods)
import ipb_nb.ipb  # noqa: F401
from ipb_nb.checkpoint import time_steps
from ipb_nb.config import ExperimentConfig
from ipb_nb.core import read_json, seed_all
from ipb_nb.dataset import ColonyDataset
from ipb_nb.experiment import train
from ipb_nb.model import create_model
from ipb_nb.patch import colony_dataloaders, patch_views
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

RESULTS = Path(__file__).parent / 'results' / 'gpu.jsonl'
GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'


class Part:
    "One part of the measurements: where it works, how large, and the line that it prints for a figure."

    def __init__(self, folder, tiny):
        self.folder, self.tiny, self.machine = Path(folder), tiny, machine()

    def show(self, figure, value, unit, against, target=None, better='higher'):
        value = value if isinstance(value, str) else round(float(value), 7)
        line = dict(figure=f'gpu.{figure}', value=value, unit=unit, target=target, better=better, against=against)
        print(json.dumps(line | dict(machine=self.machine)), flush=True)

    def colonies(self, n):
        "A simulated dataset, a tenth labelled, by track."
        n = 60 if self.tiny else n
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

    def network(self, **kwargs):
        return create_model('hrnet', self.sides, 4, device=DEVICE, width=self.paper.get('width', 1.0), **kwargs)


def sync():
    if GPU:
        torch.cuda.synchronize()


def seconds(f, n=1):
    sync()
    start = time.perf_counter()
    for _ in range(n):
        f()
    sync()
    return (time.perf_counter() - start) / n


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
    how = dict(epochs=4, pretrain_epochs=4, amp=False, threads=1)
    how |= dict(steps=8, finetune=1) if part.tiny else dict(steps=80, pretrain_steps=80, finetune=2)
    env = dict(CUDA_VISIBLE_DEVICES='') if device == 'cpu' else {}
    return command_of('quick', how, ds.path, out), os.environ | env


def command_of(preset, how, data, out):
    return [sys.executable, __file__, '--config', json.dumps(how | dict(preset=preset)), data, out]


def killed_and_resumed(command, env, out):
    "Kill a run in its main training, and resume it; whether it was alive when it was killed."
    p = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    while p.poll() is None:
        time.sleep(0.05)
        history = out / 'history.csv'
        if history.exists() and len(history.read_text().splitlines()) > 6:
            p.send_signal(signal.SIGKILL)
            p.wait()
            break
    killed = read_json(out / 'run.json')['state'] != 'done'
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return killed


def agree(part):
    "Do CPU and GPU agree; does a run repeat, and resume?"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ds = part.colonies(400)
    here, there = first_batches(ds, 'cpu', part.sides), first_batches(ds, DEVICE, part.sides)
    same = all(torch.equal(a, b.cpu()) for a, b in zip(here[:2], there[:2]))
    part.show('agree.patches', same, 'share', 'a batch of U as read on the CPU: all bytes equal', 1)
    apart = (here[2] - there[2].cpu()).abs().max()
    part.show('agree.views', apart, 'grey SD', 'the strong views of that batch on the CPU', 1e-3, 'lower')
    seed_all(0)
    net = create_model('hrnet', part.sides, 4, width=part.paper.get('width', 1.0)).eval()
    with torch.no_grad():
        on_cpu = net(here[2])
        on_gpu = net.to(DEVICE)(here[2].to(DEVICE)).cpu()
    part.show('agree.logits', (on_cpu - on_gpu).abs().max(), 'logit', 'HRNet on the CPU, fp32', 1e-4, 'lower')
    part.show('agree.labels', (on_cpu.argmax(1) == on_gpu.argmax(1)).float().mean(), 'share', 'the CPU', 1)
    runs = {}
    for name, device in dict(cpu='cpu', one=DEVICE, two=DEVICE).items():
        command, env = one_run(part, ds, part.folder / f'run_{name}', device)
        runs[name] = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    for name, p in runs.items():
        if p.wait():
            raise RuntimeError(f'the run {name} failed')
    out = part.folder / 'run_killed'
    killed = killed_and_resumed(*one_run(part, ds, out, DEVICE), out)
    recall = {name: read_json(part.folder / f'run_{name}' / 'metrics.json')['student']['macro_tpr'] for name in runs}
    against = f'the same run on the CPU, {recall["cpu"]:.3f}; the GPU {recall["one"]:.3f}'
    part.show('agree.macro_tpr', abs(recall['cpu'] - recall['one']), 'recall', against, 0.02, 'lower')
    weights = {name: digest(part.folder / f'run_{name}') for name in (*runs, 'killed')}
    part.show('agree.repeats', weights['one'] == weights['two'], 'share', 'weights of a second run', 1)
    against = 'weights of a run never stopped' + ('' if killed else '; it was done before it could be killed')
    part.show('agree.resumes', weights['one'] == weights['killed'], 'share', against, 1)


def rate(batches, most=8.0):
    "Patches a second, of an iterator of batches, after the first four."
    n, start = 0, None
    for k, b in enumerate(batches):
        if k == 4:
            sync()
            start = time.perf_counter()
        n += len(b[0]) * (k > 4)
        if start and time.perf_counter() - start > most:
            break
    sync()
    return n / (time.perf_counter() - start)


def loader(part):
    "Patches delivered a second, and what limits them, beside what the network takes."
    ds, n = part.colonies(2000), 10 if part.tiny else 400
    net = part.network()
    for b in (8,) if part.tiny else (32, 64, 128):
        made = {}
        for name, device in dict(cut='cpu', moved=DEVICE).items():
            workers = min(os.cpu_count(), 8)  # (processes)
            loaders = colony_dataloaders(ds, scales=part.sides, bs=b, steps=n, device=device, num_workers=workers)
            made[name] = rate(loaders.unlabeled.train)
        views = patch_views(loaders.labeled.train)

        def shown(loaders=loaders, views=views):
            for x, keys in loaders.unlabeled.train:
                yield views(x, keys, 'weak'), views(x, keys, 'strong')

        made['shown'] = rate(shown())
        x, keys = loaders.unlabeled.train.one_batch()
        made['views'] = b / seconds(lambda: views(x, keys, 'strong'), 3 if part.tiny else 30)
        v = views(x, keys, 'strong')

        def learn(v=v, b=b):
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = net(v).float().logsumexp(1).sum()
            loss.backward()
            net.zero_grad()

        learn()
        takes = b / seconds(learn, 2 if part.tiny else 15)
        what = f'HRNet {part.paper["scales"]}, B = {b}'
        part.show(f'loader.{b}.network', takes, 'patches/s', f'the loader; forward and backward, bf16, {what}')
        part.show(f'loader.{b}.cut', made['cut'], 'patches/s', f'8 processes, uint8, before any transfer, {what}')
        part.show(f'loader.{b}.moved', made['moved'], 'patches/s', f'the same, on the device, {what}')
        part.show(f'loader.{b}.views', made['views'], 'patches/s', f'strong views of a batch on the device, {what}')
        part.show(f'loader.{b}.shown', made['shown'], 'patches/s', f'read, moved, a weak and a strong view, {what}')
        part.show(f'loader.{b}.over_network', made['shown'] / takes, 'x', f'the network, {what}', 1.5)


def memory_of(f):
    "GB at its highest, or None where there is not enough."
    if not GPU:
        f()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        f()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return torch.cuda.max_memory_allocated() / 2**30


def step(part):
    "A step of meta pseudo labels beside its bare passes and those of the published loop; variants; memory."
    import step as cpu  # (the benchmark of the same figures on a CPU)

    ds, steps, base = part.colonies(2000), 2 if part.tiny else 12, 4 if part.tiny else 32
    cpu.SIDES, cpu.STEPS = part.sides, steps
    own, plain = [part.network() for _ in range(2)], [part.network().to(memory_format=torch.contiguous_format)]
    plain += [part.network().to(memory_format=torch.contiguous_format)]
    for b in (base, base * 4):
        learner = cpu.learner(ds, b, 'exact', own)[0]
        saving = cpu.learner(ds, b, 'exact', own, save_memory=True)[0]
        of = {
            'step': lambda learner=learner: time_steps(learner, steps),
            'save_memory': lambda saving=saving: time_steps(saving, steps),
            'passes': lambda b=b: seconds(lambda: cpu.exact(*own, b, True), steps),
            'passes_contiguous': lambda b=b: seconds(lambda: cpu.exact(*plain, b, True), steps),
            'passes_fp32': lambda b=b: seconds(lambda: cpu.exact(*own, b, False), steps),
            'published': lambda b=b: seconds(lambda: cpu.published(*plain, b, False), steps),
        }
        for f in list(of.values())[2:]:
            f()
        took = {k: np.median(v) for k, v in zip(of, np.array([[f() for f in of.values()] for _ in range(2)]).T)}
        what = f'HRNet {part.paper["scales"]}, B = {b}, bf16, channels last'
        part.show(f'step.{b}', took['step'], 's', f'its bare passes; {what}', better='lower')
        part.show(f'step.{b}.over_passes', took['step'] / took['passes'], 'x', 'its bare passes', 1.05, 'lower')
        against = f'the published passes, fp32, contiguous, without data and optimiser, {took["published"]:.3f} s'
        part.show(f'step.{b}.speedup', took['published'] / took['step'], 'x', against, 5)
        for k in ('save_memory', 'passes_contiguous', 'passes_fp32'):
            base_of = 'step' if k == 'save_memory' else 'passes'
            part.show(f'step.{b}.{k}', took[k] / took[base_of], 'x', f'{base_of} without it', better='lower')
        hours = took['step'] * 20_000 / 60
        part.show(f'step.{b}.paper_20000', hours, 'min', '20,000 steps of preset paper by estimate', 40, 'lower')
    largest = 0
    for b in (8, 16) if part.tiny else (32, 128, 256, 512, 1024, 2048):
        gb = memory_of(lambda b=b: time_steps(cpu.learner(ds, b, 'exact', own)[0], 1))
        if gb is None:
            break
        largest = b
        part.show(f'step.memory.{b}', gb, 'GB', 'a smaller batch; teacher and student, one step', better='lower')
    part.show('step.largest', largest, 'patches', 'B of the largest step that fits, by doubling')


def graphs(part):
    "One pass forward and backward, as it is, compiled, and compiled with CUDA graphs."
    b = 4 if part.tiny else 32
    x = torch.randn(b, 1, part.sides[0], part.sides[0], device=DEVICE)
    took = {}
    for name, how in dict(eager=None, compile='default', cuda_graphs='reduce-overhead').items():
        if how and part.tiny:
            continue
        net = part.network()
        if how:
            net.compile(mode=how)

        def learn(net=net):
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = net(x).float().logsumexp(1).sum()
            loss.backward()
            net.zero_grad(set_to_none=False)

        first = seconds(learn, 3)
        took[name] = seconds(learn, 2 if part.tiny else 20)
        part.show(f'graphs.{name}', took[name], 's', f'eager; first three {first * 3:.0f} s', better='lower')
        part.show(f'graphs.{name}.speedup', took['eager'] / took[name], 'x', f'eager, B = {b}, bf16')


def frames(part):
    "Patches of a frame of 2908 × 2908 px a second, of a trained network."
    from ipb_nb.student import Student
    from ipb_nb.predict import predict_source

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
        **part.paper,
    )
    run = train(cfg, ds.path, part.folder / 'run_frames', resume=True)
    student, ids = Student(run), [*ds.colonies.sort_values('area_px').index[-30:]]

    def classify():
        predict_source(student, ds, ids, size=(size, size))

    classify()
    took = seconds(classify, 3)
    part.show('predict.frames', 1 / took, 'frames/s', f'none stated; 30 colonies of {size} px, HRNet, detection aside')


def learn(part):
    "The preset paper, its training cut: supervised, IPB, FixMatch, side by side on one card."
    ds = part.colonies(4000)
    small = dict(epochs=2, steps=4, finetune=1, batch_size=4)
    few = small if part.tiny else dict(epochs=15, steps=1500, finetune=20)
    rows = dict(
        supervised=dict(method='supervised', **few | dict(steps=few['steps'] * 4 // 3)),
        ipb=dict(method='mpl', pretrain_epochs=2 if part.tiny else 60, **few),
        fixmatch=dict(method='fixmatch', mu=3, **few),
    )
    todo = {name: part.folder / f'paper_{name}' for name in rows}
    begun = {}
    for name, out in todo.items():
        command = command_of('paper', rows[name] | part.paper, ds.path, out)
        begun[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(f'{out}.log', 'w'))
    for name, p in begun.items():
        if p.wait():
            print(Path(f'{todo[name]}.log').read_text()[-2000:], file=sys.stderr)
            continue
        run, scores = read_json(todo[name] / 'run.json'), read_json(todo[name] / 'metrics.json')
        what = f'the other rows; {run["seconds"]:.0f} s, the three at a time on one card'
        part.show(f'paper.{name}.macro_tpr', scores['student']['macro_tpr'], 'recall', what)
        history = pd.read_csv(todo[name] / 'history.csv')
        curve = history[history.stage == 'student'].macro_tpr.round(3).tolist()
        part.show(f'paper.{name}.curve', ' '.join(map(str, curve)), 'recall', 'V (or L) after each epoch')


PARTS = dict(  # with the minutes that they take on an H100
    agree=(agree, 3), step=(step, 5), loader=(loader, 1), frames=(frames, 1), learn=(learn, 15), graphs=(graphs, 5)
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


def everything(args):
    start, here = time.monotonic(), machine()
    print(here, flush=True)
    if not GPU and not args.rehearse:
        sys.exit('No GPU: torch.cuda.is_available() is False. --rehearse runs every part, tiny, on the CPU.')
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
