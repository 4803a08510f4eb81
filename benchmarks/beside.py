"""The figures of this checkout beside those of another one, from one run on one machine.

    python benchmarks/beside.py ../other --only=step,patch,detect,predict --rounds=3

Of a long benchmark a short form runs. The two checkouts take turns, so that a machine whose speed drifts slows both;
the figure is the median over the rounds."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent.parent


SHORT = {  # the figure that counts, of a benchmark that takes a quarter of an hour or more
    'step': """
import step
ds = simulate_dataset(d / 'cells', 80)
step.save_split(ds, labeled=.2, test=.2, folds=1)
learn = step.learner(ds, 8, 'exact', step.networks())[0]
show('step.exact', step.time_steps(learn, step.STEPS), 's', 'the other checkout')
""",
    'patch': 'import patch\npatch.speed(d)',
    'detect': """
exp = simulate_experiment(d / 'exp', 'small', seed=1, wells=1, frames=1)
image = exp.frame(exp.wells.well.iloc[0], 0)[0]
try:
    from ipb_nb.segment import colony_mask
except ImportError:
    from ipb_nb.detect import colony_mask
took = seconds(lambda: colony_mask(image))
show('detect.mask', took, 's', 'the other checkout; 2048 x 2048 px')
""",
    'predict': """
import predict
exp = simulate_experiment(d / 'exp', 'tiny', seed=1, wells=6, frames=4, size=640)
predict.save_split(simulate_dataset(d / 'cells', 80), labeled='rest', test=.2, folds=1)
cfg = predict.ExperimentConfig(method='supervised', scales='64', epochs=1, steps=10, batch_size=16, threads=1)
run = predict.train(cfg, d / 'cells', d / 'run')
outs = iter('abcdef')
took = seconds(lambda: ipb_nb.predict.predict(run, exp.path / 'raw', d / next(outs)))
show('predict.frames', took, 's', 'the other checkout; 24 frames of 640 x 640 px')
""",
}
START = """
import tempfile, time
from pathlib import Path
import ipb_nb.predict
from figures import show
from ipb_nb.simulate import simulate_dataset, simulate_experiment

def seconds(f, n=5):
    took = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        took.append(time.perf_counter() - start)
    return min(took)

made = tempfile.TemporaryDirectory()
d = Path(made.name)
"""


def figures(checkout, name):
    "What a benchmark prints, by figure."
    script = checkout / 'benchmarks' / f'{name}.py'
    args = ['-c', START + SHORT[name]] if name in SHORT else [script]
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(checkout), str(script.parent)])}
    own = checkout / '.venv' / 'bin' / 'python'  # (some benchmarks call the commands beside it)
    python = own if own.exists() else sys.executable
    said = subprocess.run([python, *args], cwd=checkout, env=env, capture_output=True, text=True)
    if said.returncode:
        sys.exit(f'{script} failed:\n{said.stderr}')
    rows = [json.loads(line) for line in said.stdout.splitlines() if line.startswith('{')]
    return {row['figure']: row for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('other', type=Path, help='a checkout whose benchmarks have the same figures')
    parser.add_argument('--only', default='step,patch,detect,predict', help='names of benchmarks')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    for name in args.only.split(','):
        rounds = [[figures(checkout.resolve(), name) for checkout in (args.other, HERE)] for _ in range(args.rounds)]
        for figure in sorted(rounds[0][0].keys() & rounds[0][1].keys()):
            other, here = (median(r[side][figure]['value'] for r in rounds) for side in (0, 1))
            line = dict(
                figure=f'beside.{figure}', other=other, here=here, ratio=round(here / other, 3) if other else None
            )
            print(json.dumps(line | dict(unit=rounds[0][1][figure]['unit'])), flush=True)


if __name__ == '__main__':
    main()
