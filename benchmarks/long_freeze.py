"""How long a run takes on 2,000 simulated colonies, a tenth labelled: of preset frozen the first one, which computes
features, and the next one, which reads them; of preset best one. `python benchmarks/long_freeze.py FOLDER`."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from figures import show

from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split


def seconds(data, out, method, preset):
    "Of the whole command, imports included."
    shutil.rmtree(out, ignore_errors=True)
    ipb_train = Path(sys.executable).parent / 'ipb-train'
    start = time.perf_counter()
    subprocess.run(
        [ipb_train, data, '--preset', preset, '--method', method, '--no_notebook', '--out', out],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | dict(TQDM_DISABLE='1'),
    )
    return time.perf_counter() - start


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    data = folder / 'colonies'
    if not (data / 'splits').exists():
        save_split(simulate_dataset(data, 2000, seed=31, workers=2), by='track', labeled=0.1, test=0.3, folds=3)
    for method in ('mpl', 'supervised'):
        for f in (data / '.cache').glob('features-*'):
            f.unlink()
        first, then = (seconds(data, folder / 'run', method, 'frozen') for _ in range(2))
        show(f'freeze.{method}.first', first, 's', 'the target of 60 s', target=60)
        show(f'freeze.{method}.next', then, 's', f'the first run of this table, {first:.0f} s', target=60)
        all_layers = seconds(data, folder / 'run', method, 'best')
        show(f'best.{method}', all_layers, 's', f'preset frozen, {first:.0f} s at first', target=600)
