"""`make bench`: run the benchmarks, keep their lines in results/latest.jsonl, show which targets are met.

A benchmark is a script here that prints one JSON line per figure; its figures begin with the script's name.
long_*.py are run by hand, gpu.py by `make gpu`."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LATEST = HERE / 'results' / 'latest.jsonl'
NO_BENCHMARKS = {'run', 'figures', 'beside', 'gpu'}


def lines(text):
    return [json.loads(o) for o in text.splitlines() if o.startswith('{')]


def verdict(r):
    if r.get('target') is None:
        return ''
    return 'met' if (r['value'] >= r['target']) == (r['better'] == 'higher') or r['value'] == r['target'] else 'MISSED'


def main(only):
    scripts = {p.stem for p in HERE.glob('*.py')} - NO_BENCHMARKS
    names = sorted(name for name in scripts if not name.startswith('long_'))
    chosen = [n for n in only.split(',') if n] or names
    if odd := set(chosen) - scripts:
        sys.exit(f"ONLY: found {', '.join(sorted(odd))}; expected some of {', '.join(names)}.")
    kept = {r['figure']: r for r in lines(LATEST.read_text())} if LATEST.exists() else {}
    for n in chosen:
        print(f'{n} …', flush=True)
        out = subprocess.run([sys.executable, HERE / f'{n}.py'], stdout=subprocess.PIPE, text=True)
        if out.returncode:
            sys.exit(f'{n}: failed with exit code {out.returncode}; its earlier figures stand.')
        kept = {f: r for f, r in kept.items() if f.split('.')[0] != n.removeprefix('long_')} | {
            r['figure']: r for r in lines(out.stdout)
        }
        LATEST.parent.mkdir(exist_ok=True)
        LATEST.write_text(''.join(json.dumps(r) + '\n' for r in kept.values()))
    for r in kept.values():
        print(
            f"{r['figure']:28} {r['value']:>10} {r['unit']:12} target {str(r.get('target') or '–'):>6}  "
            f"{verdict(r):7} {r['against']}"
        )


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--only', default='', help='names of benchmarks, separated by commas')
    main(p.parse_args().only)
