"""A student (preset frozen) trained on one simulated experiment looks at another.

Its maps against the true class of every pixel, its time courses against the true ones, and the treatment's known
effect. Ten to twenty minutes; keeps what it makes in the folder that it is given."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import CLASSES, read_json, write_json
from ipb_nb.detect import detect_dataset
from ipb_nb.experiment import train
from ipb_nb.predict import against_truth, predict
from ipb_nb.simulate import simulate_experiment
from ipb_nb.split import save_split
from ipb_nb.timecourse import (
    compare_conditions,
    correct_shares,
    fractions,
    read_conditions,
    replicate_fractions,
    well_fractions,
)

WELLS = 60


def true_frames(exp):
    "What is really in each frame: the areas of colonies by class."
    c = exp.colonies
    df = (
        c[['well', 'frame', 'time_h']]
        .rename(columns=dict(well='group'))
        .assign(**{f'area_{k}': c.area_px * c[k] for k in CLASSES})
    )
    return df.groupby(['group', 'frame', 'time_h']).sum().reset_index()


def without_bias(run, folder):
    "A copy of the run whose probabilities are scaled by the temperature alone."
    if not folder.exists():
        shutil.copytree(run, folder)
        info = read_json(folder / 'model.json')
        info['trust']['bias'] = [0.0] * len(info['classes'])
        write_json(info, folder / 'model.json')
    return folder


def show_ways(d, run, second):
    "Errors of the mean shares, of area and of colonies, by way of calibration and by the prior."
    true_area = well_fractions(true_frames(second), CLASSES).mean().to_numpy()
    majority = second.colonies[list(CLASSES)].idxmax(axis=1)
    true_count = majority.value_counts(normalize=True).reindex(CLASSES, fill_value=0).to_numpy()
    bias = ', '.join(f'{b:+.2f}' for b in read_json(run / 'model.json')['trust'].get('bias', []) if b)
    plain = without_bias(run, d / 'run_without_bias') if bias else run
    ways = {'temperature': (plain, 'equal'), 'temperature.own_prior': (plain, 'own')}
    if bias:  # calibration on V may have found that none helps
        ways |= {'temperature_bias': (run, 'equal'), 'temperature_bias.own_prior': (run, 'own')}
    for name, (model, prior) in ways.items():
        out = predict(model, d / 'answers' / 'cells', d / name, prior=prior, resume=(d / name).exists()).parent
        frames, shares = pd.read_csv(out / 'frames.csv'), pd.read_csv(out / 'shares.csv')
        area = np.abs(well_fractions(frames, CLASSES).mean() - true_area).mean()
        how = f'true mean shares of the area; biases {bias if "bias" in name else "none"}, prior {prior}'
        show(f'long_predict.share_error.{name}', float(area), 'share', how, better='lower')
        for column in ('predicted', 'expected'):
            off = float(np.abs(shares[column] - true_count).mean())
            how = f'true shares of the colonies by their main class; {column} in shares.csv'
            show(f'long_predict.count_error.{name}.{column}', off, 'share', how, better='lower')


def main(d):
    first = simulate_experiment(d / 'first', 'small', seed=20, workers=2)
    second = simulate_experiment(
        d / 'second', 'small', seed=21, wells=WELLS, plates=3, frames=4, interval_h=16.0, workers=2
    )
    if not (d / 'cells').exists():
        save_split(
            detect_dataset(first.path / 'raw', d / 'cells', truth=first.path / 'truth', workers=2),
            labeled=0.3,
            test=0.1,
            folds=1,
            by='random',
        )
    run = train(ExperimentConfig(preset='frozen'), d / 'cells', d / 'run', resume=(d / 'run').exists())
    predict(
        run,
        second.path / 'raw',
        d / 'answers',
        conditions=second.path / 'wells.csv',
        workers=2,
        resume=(d / 'answers').exists(),
    )
    scores = read_json(run / 'metrics.json')['student']
    show(
        'long_predict.recall', scores['macro_tpr'], 'share', 'macro recall of the student on T of the first experiment'
    )
    table, errors = against_truth(d / 'answers', second.path / 'truth')
    for c, r in table.iterrows():
        show(
            f'long_predict.iou.{c}',
            r.iou,
            'share',
            f'the true class of every pixel; true share of the area {r.true_area:.3f}, found {r.found_area:.3f}',
        )
    show(
        'long_predict.composition_error',
        errors.mean(),
        'share',
        f'half the sum of differences of the shares, mean over {len(errors)} colonies',
        better='lower',
    )
    frames, true = pd.read_csv(d / 'answers' / 'frames.csv'), true_frames(second)
    both = (
        fractions(frames, CLASSES)
        .merge(fractions(true, CLASSES), on=['group', 'frame'], suffixes=('', '_true'))
        .dropna()
    )
    for c in CLASSES:
        show(
            f'long_predict.course.{c}',
            float((both[c] - both[f'{c}_true']).abs().mean()),
            'share',
            f'true shares of the area, mean over {len(both)} frames; correlation {both[c].corr(both[f"{c}_true"]):.2f}',
            better='lower',
        )
    conditions = read_conditions(second.path / 'wells.csv', frames.group.unique())
    for name, df in (('found', frames), ('true', true)):
        t = compare_conditions(replicate_fractions(well_fractions(df, CLASSES), conditions), CLASSES).set_index('class')
        show(
            f'long_predict.effect.{name}',
            t.p_holm['Diff'],
            'p',
            f"Diff, treated less untreated {t.difference['Diff']:+.3f} (95 % {t.low['Diff']:+.3f} to "
            f"{t.high['Diff']:+.3f}), {WELLS // 2} replicates a side; "
            f"other classes p ≥ {t.p_holm.drop('Diff').min():.3f}",
            0.05,
            'lower',
        )
    x, y = (well_fractions(o, CLASSES) for o in (frames, true))
    x = x.loc[y.index.intersection(x.index)].mean().to_numpy()
    y = y.mean().to_numpy()
    corrected = correct_shares(x, scores['confusion'])
    show(
        'long_predict.share_error',
        float(np.abs(x - y).mean()),
        'share',
        'true mean shares of the area, as observed',
        better='lower',
    )
    show(
        'long_predict.share_error.corrected',
        float(np.abs(corrected - y).mean()),
        'share',
        'the same after correction by the confusion matrix',
        better='lower',
    )
    show_ways(d, run, second)


if __name__ == '__main__':
    main(Path(sys.argv[1]))
