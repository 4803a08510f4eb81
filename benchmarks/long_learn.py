"""How many labels does a rule need? The rules of `active` with simulated annotators.

`python benchmarks/long_learn.py FOLDER` keeps datasets and features in FOLDER. 1,200 simulated colonies, and blood
cells where IPB_BCCD names their folder. 40 % of the tracks (or cells) are the test set, others are labelled in rounds
of 18 beginning with 24; five seeds of test set, first round and order. Needed: the first number of labels at which the
mean over seeds reaches the macro recall of 400 random labels; for the rarest class: at which ten of it were found."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show
from tqdm import tqdm

from ipb_nb.active import RULES, colony_features, components, next_colonies, quick_probabilities
from ipb_nb.dataset import ColonyDataset
from ipb_nb.importers import import_voc
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import lineages

SEEDS, FIRST, ROUND, MOST, RANDOM, RARE = range(5), 24, 18, 402, 400, 10
SHOWN = 24, 42, 60, 78, 96, 114, 150, 204, 294, 402  # numbers of labels


def simulated(folder):
    simulate_dataset(folder, 1200, seed=32, workers=2)


def blood(folder):
    import_voc(os.environ['IPB_BCCD'], folder)


def rounds(x, truth, units, classes, rule, seed):
    "Macro recall on the test set, and labels of the rarest class, by the number of labels."
    rng = np.random.default_rng(seed)
    drawn = units.drop_duplicates().sample(frac=1, random_state=seed)
    test = units.isin(drawn.iloc[: round(0.4 * len(drawn))])
    left, rare, rows, own = list(truth.index[~test]), truth.value_counts().idxmin(), [], []
    actual, p = truth[test], None
    while len(own) < MOST:
        n, chance = (FIRST, True) if not own and rule != 'diverse' else (FIRST if not own else ROUND, False)
        chosen = next_colonies(x, p, own, left, units, n, 'random' if chance else rule, int(rng.integers(2**31)))
        own += chosen
        left = [i for i in left if i not in set(chosen)]
        p = quick_probabilities(x, truth[own], classes)
        said = p.loc[actual.index].idxmax(axis=1)
        recall = np.mean([(said[actual == c] == c).mean() for c in classes if (actual == c).any()])
        rows.append((len(own), recall, (truth[own] == rare).sum()))
    return pd.DataFrame(rows, columns=['labels', 'recall', 'rare']).set_index('labels')


def first(series, least):
    "The first number of labels at which a curve is high enough; nan if it never is."
    return series.index[series >= least].min()


def main(folder):
    wanted = {'simulated': simulated} | ({'blood': blood} if 'IPB_BCCD' in os.environ else {})
    for name, make in wanted.items():
        if not (folder / name).exists():
            make(folder / name)
        ds = ColonyDataset(folder / name)
        truth = ds.labels().label
        truth = truth[truth.isin(ds.classes)]
        x, units = components(colony_features(ds)).loc[truth.index], lineages(ds.colonies)[truth.index]
        curves = {}
        for rule in tqdm(RULES, desc=name):
            of_seeds = [rounds(x, truth, units, ds.classes, rule, seed) for seed in SEEDS]
            curves[rule] = sum(of_seeds) / len(of_seeds)
        goal = np.interp(RANDOM, curves['random'].index, curves['random'].recall)
        needed = {rule: first(c.recall, goal) for rule, c in curves.items()}
        found = {rule: first(c.rare, RARE) for rule, c in curves.items()}
        for rule, c in curves.items():
            which = f'{name}.{rule}'
            about = f'{len(truth)} colonies, {len(SEEDS)} seeds; macro recall of {RANDOM} random labels: {goal:.3f}'
            show(f'learn.{which}.labels_needed', needed[rule], 'labels', about, RANDOM / 2, 'lower')
            rare = f'at random {found["random"]:.0f}'
            show(f'learn.{which}.labels_rarest', found[rule], 'labels', rare, found['random'] / 3, 'lower')
            for n in c.index.intersection(SHOWN):
                show(f'learn.{which}.macro_tpr_{n}', c.recall[n], 'recall', f'{n} labels')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
