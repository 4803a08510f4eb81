"""Statistics of the whole `paper` preset, crops by truth, beside the paper's Table 1.

Some 7 GB of disk and some ten minutes on two cores."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show

from ipb_nb.core import MULTI_LABEL
from ipb_nb.simulate import simulate_experiment

PAPER = {'Debris': 3587, 'Dense': 3934, 'Diff': 656, 'Spread': 10506, MULTI_LABEL: 2659}


with tempfile.TemporaryDirectory() as d:
    start = time.time()
    exp = simulate_experiment(Path(d) / 'exp', 'paper', workers=os.cpu_count())
    show('paper_preset.seconds', round(time.time() - start), 's', 'none stated; 720 frames of 2908 px, written')
    show(
        'paper_preset.gigabytes',
        round(sum(f.stat().st_size for f in exp.path.rglob('*') if f.is_file()) / 1e9, 1),
        'GB',
        'none stated',
    )
    c = exp.colonies
show('paper_preset.colonies', len(c), 'colonies', "the paper's 21342")
share = exp.shares / exp.shares.sum() / (pd.Series(PAPER) / sum(PAPER.values()))
for label in PAPER:
    show(
        f'paper_preset.share.{label}',
        round(share[label], 3),
        "of the paper's",
        f'0.8 to 1.2; here {exp.shares[label]}, there {PAPER[label]}',
    )
show('paper_preset.share.farthest', round(float(np.abs(share - 1).max()), 3), 'from 1', 'at most 0.2', 0.2, 'lower')
short, long = np.sort(np.stack([c.y1 - c.y0, c.x1 - c.x0]), 0)
show(
    'paper_preset.sides',
    round(float(((short >= 55) & (long >= 85) & (short <= 771) & (long <= 1298)).mean()), 3),
    'of the crops',
    '55 x 85 to 771 x 1298 px',
    0.9,
)
for condition, own in c.merge(exp.wells[['well', 'condition']], on='well').groupby('condition'):
    show(
        f'paper_preset.diff.{condition}',
        round(float((own.area_px * own.Diff).sum() / own.area_px.sum()), 4),
        'of the area is Diff',
        'the other condition',
    )
