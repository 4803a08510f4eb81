"""Has every pin of constraints.txt a wheel for Windows and for Macs? Asks the registry, downloads and installs nothing.

python .ci/platforms.py [3.12]"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLATFORMS = {  # tags of wheels; pip takes those of Linux as they are, without the older ones
    'Windows': ['win_amd64'],
    'macOS on Apple silicon': ['macosx_14_0_arm64'],
    'Linux': [f'manylinux_2_{n}_x86_64' for n in (28, 27, 26, 24, 17, 12, 5)],
}
LINUX_ONLY = r'nvidia-|cuda-|triton='  # CUDA's libraries, which torch names for Linux alone
NOT_ON = {'Windows': r'uvloop='}  # (uvicorn does not ask for it there)
RELEASE = {'3.11': '3.11.5', '3.12': '3.12.0'}  # the first that is supported


def missing(pins, tags, python):
    "Pins without a wheel."
    lacking = []
    with tempfile.TemporaryDirectory() as d:
        while pins:
            call = [sys.executable, '-m', 'pip', 'install', '-q', '--dry-run', '--no-deps', '--only-binary=:all:']
            call += ['--implementation', 'cp', '--python-version', RELEASE.get(python, python)]
            call += [*(f'--platform={tag}' for tag in tags), '--target', d, *pins]
            said = subprocess.run(call, capture_output=True, text=True)
            if said.returncode == 0:
                return lacking
            found = re.search(r'No matching distribution found for ([^\s;]+)', said.stderr)
            if not found:
                sys.exit(said.stderr)
            lacking.append(found[1])
            pins = [p for p in pins if p != found[1]]
    return lacking


def main(python='3.12'):
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pins = [line.partition(';')[0].strip() for line in lines if line.strip() and line[0] != '#']
    everywhere = [p for p in pins if not re.match(LINUX_ONLY, p)]
    bad = 0
    for name, tags in PLATFORMS.items():
        pins = [p for p in everywhere if not re.match(NOT_ON.get(name, '$'), p)]
        lacking = missing(pins, tags, python)
        bad += len(lacking)
        print(f'{name}: {len(pins) - len(lacking)} of {len(pins)} pins have a wheel', *lacking, flush=True)
    sys.exit(bool(bad))


if __name__ == '__main__':
    main(*sys.argv[1:])
