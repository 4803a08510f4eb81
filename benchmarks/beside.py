"""The figures of this checkout beside those of another one, from one run on one machine.

    python benchmarks/beside.py ../other --only=step,patch,detect,predict --rounds=3

The two take turns, so that a machine whose speed drifts slows both; the figure is the median over the rounds."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent.parent


def figures(checkout, name):
    "What a benchmark prints, by figure."
    script = checkout / 'benchmarks' / f'{name}.py'
    env = os.environ | {'PYTHONPATH': str(checkout)}
    said = subprocess.run([sys.executable, script], cwd=checkout, env=env, capture_output=True, text=True)
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
