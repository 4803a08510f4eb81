"""Damaged and made-up files of every kind for an hour, or the minutes given: readers raise only `InputError`.

Each round takes other examples than the rounds before and than the tests. It stops at the first that fails, and pytest
shows the smallest such file."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from figures import show

ROOT = Path(__file__).parent.parent
EXAMPLES = 1000  # of each kind of file in a round


def one_round():
    "The fuzzing tests once, with new examples; stops where one fails."
    env = os.environ | dict(IPB_FUZZ=str(EXAMPLES), TQDM_DISABLE='1')
    args = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', 'tests/test_foreign.py', '-k', 'any']
    subprocess.run(args, cwd=ROOT, env=env, check=True, timeout=3600)


def main(minutes=60.0):
    start, rounds = time.monotonic(), 0
    while not rounds or time.monotonic() - start < 60 * minutes:
        one_round()
        rounds += 1
    took = time.monotonic() - start
    show('fuzz.files', 4 * EXAMPLES * rounds, 'files', 'none that ended otherwise than read or as an InputError')
    show('fuzz.seconds', round(took / (4 * EXAMPLES * rounds), 4), 's', 'per file, hypothesis included')
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    show('fuzz.memory', round(peak, 2), 'GB', '0.9 GB for the imports alone')


if __name__ == '__main__':
    main(*map(float, sys.argv[1:]))
