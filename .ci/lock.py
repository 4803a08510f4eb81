"""requirements.lock: the pins of constraints.txt with the SHA-256 of their files, for `pip install --require-hashes`.

python .ci/lock.py asks the registry (PEP 691) and writes the file: wheels for Python 3.11 and 3.12 on Linux x86-64,
Windows and macOS; the source archive where a pin has no wheel at all. Nothing is downloaded or installed."""

import json
import os
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from pip._internal.models.index import PyPI
from platforms import LINUX_ONLY, ROOT

INDEX = os.environ.get('PIP_INDEX_URL', PyPI.simple_url).rstrip('/')
PLATFORM = re.compile('any|win_amd64|macosx_.*_(arm64|universal2|x86_64)|(many)?linux.*_x86_64')
HEAD = """# Made from constraints.txt by .ci/lock.py. An environment of which every file is known:
# pip install --require-hashes -r requirements.lock && pip install --no-deps --no-build-isolation .
"""


def fits(tag):
    "A wheel's tag: does it run on Python 3.11 or 3.12 of a platform that is supported?"
    python = tag.interpreter in ('py3', 'cp311', 'cp312')
    old = re.fullmatch(r'cp3(\d+)', tag.interpreter)
    return (python or tag.abi == 'abi3' and old and int(old[1]) <= 12) and PLATFORM.fullmatch(tag.platform)


def hashes(pin):
    "The SHA-256 of a pin's wheels, or of its source archive."
    name, version = pin.split('==')
    page, form = f'{INDEX}/{canonicalize_name(name)}/', 'application/vnd.pypi.simple.v1+json'
    request = urllib.request.Request(page, headers={'Accept': form})
    with urllib.request.urlopen(request, timeout=120) as answer:
        files = json.load(answer)['files']
    wheels, archives = [], []
    for f in files:
        filename, sha = f['filename'], f['hashes']['sha256']
        try:
            if filename.endswith('.whl'):
                _, found, _, tags = parse_wheel_filename(filename)
                if str(found) == version and any(map(fits, tags)):
                    wheels.append(sha)
            elif filename.endswith('.tar.gz') and str(parse_sdist_filename(filename)[1]) == version:
                archives.append(sha)
        except ValueError:  # (names of old releases that are none)
            continue
    if not wheels + archives:
        sys.exit(f'{pin}: the registry has neither a wheel for these platforms nor a source archive')
    return sorted(wheels or archives)


def main():
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pins = [line.strip() for line in lines if line.strip() and line[0] != '#']
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(pins, pool.map(hashes, pins)))
    text = HEAD
    for pin, of in found.items():
        marker = ' ; sys_platform == "linux"' if re.match(LINUX_ONLY, pin) else ''
        text += ' \\\n'.join([pin + marker, *(f'    --hash=sha256:{sha}' for sha in of)]) + '\n'
    (ROOT / 'requirements.lock').write_text(text, encoding='utf-8')
    print(f'{len(found)} pins, {sum(map(len, found.values()))} files')


if __name__ == '__main__':
    main()
