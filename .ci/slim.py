"""Stored PNG figures with at most 128 colours: a third of the size, and the same to look at.

python .ci/slim.py nbs/33_run.ipynb …"""

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image


def slim(png):
    "The picture with a palette, or as it is where that is no smaller."
    image, out = Image.open(io.BytesIO(png)), io.BytesIO()
    if image.mode == 'P':
        return png
    image.convert('RGBA').convert('RGB').quantize(128, dither=Image.Dither.NONE).save(out, 'png', optimize=True)
    return min(out.getvalue(), png, key=len)


for path in map(Path, sys.argv[1:]):
    nb, saved = json.loads(path.read_text(encoding='utf-8')), 0
    for output in (o for c in nb['cells'] for o in c.get('outputs', [])):
        stored = output.get('data', {}).get('image/png')
        if stored:
            text = ''.join(stored)
            small = base64.b64encode(slim(base64.b64decode(text))).decode()
            saved += len(text) - len(small)
            output['data']['image/png'] = small + '\n' * text.endswith('\n')
    path.write_text(json.dumps(nb, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')
    print(f'{path}: {saved / 1000:.0f} kB less')
