"""How hard the simulated classes are: supervised macro recall with a tenth labelled (resnet10t, 64 px), for some
values of `overlap`.

python benchmarks/run.py --only=long_difficulty        # what the default OVERLAP was chosen by
python benchmarks/long_difficulty.py 0.8 7             # another overlap and seed, printed only
"""

import os
import sys
import tempfile
from pathlib import Path

from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import CLASSES, read_json
from ipb_nb.experiment import train
from ipb_nb.growth import OVERLAP
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import save_split

overlaps, seed = ([float(sys.argv[1])], int(sys.argv[2])) if len(sys.argv) > 2 else ([0.0, OVERLAP, 1.0], 0)
for overlap in overlaps:
    with tempfile.TemporaryDirectory() as d:
        ds = simulate_dataset(Path(d) / 'cells', 2000, seed, overlap=overlap, workers=os.cpu_count())
        save_split(ds, by='track', labeled=0.1, test=0.2, folds=1, seed=seed)
        m = read_json(
            train(
                ExperimentConfig(method='supervised', arch='resnet10t', scales='64', seed=seed),
                ds.path,
                Path(d) / 'run',
            )
            / 'metrics.json'
        )['student']
    here, against = (
        f'difficulty.{overlap:g}',
        f'the range 0.75 to 0.90 asked of the default; 2000 crops, T by track, seed {seed}',
    )
    show(f'{here}.macro_tpr', round(m['macro_tpr'], 3), 'recall', against)
    for c in CLASSES:
        show(f'{here}.tpr.{c}', round(m['tpr'][c], 3), 'recall', against)
    for i, a in enumerate(CLASSES):
        for j, b in enumerate(CLASSES):
            if i < j:
                show(
                    f'{here}.confused.{a}-{b}',
                    m['confusion'][i][j] + m['confusion'][j][i],
                    'colonies',
                    f"both ways, of {sum(map(sum, m['confusion']))} in T",
                    better='lower',
                )
