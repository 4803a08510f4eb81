"""Does learning from the unlabelled images pay? configs/evidence.yaml on simulated colonies and on real cells.

`python benchmarks/long_evidence.py FOLDER [SPLIT [ROWS]]` keeps datasets and runs in FOLDER and resumes there; SPLIT
limits it to per5, per20 or per80 (so many labels a class) or share10 (a tenth of all), or to per20b or share10b (as
many, but other colonies are labelled), ROWS (with * and ?) to some rows of the grid. Blood cells where IPB_BCCD,
imaging-flow cells where IPB_MLCP names their folder. Three folds with 30 % of the tracks (or cells) in T. The recalls
are those of all test colonies of the folds together; intervals come from a bootstrap over tracks (or fields, or
cells)."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from figures import show

from ipb_nb.compare import compare
from ipb_nb.dataset import ColonyDataset
from ipb_nb.importers import import_folders, import_voc
from ipb_nb.simulate import simulate_dataset
from ipb_nb.split import Split, save_split, write_split
from ipb_nb.sweep import sweep
from ipb_nb.verdict import unit_counts

GRID = Path(__file__).parent.parent / 'configs' / 'evidence.yaml'
LATE = ('Metaphase', 'Anaphase', 'Telophase')  # 111 cells together


def simulated(folder):
    save_split(simulate_dataset(folder, 1200, seed=21, workers=2), by='track', labeled='rest', test=0.3, folds=3)


def blood(folder):
    save_split(import_voc(os.environ['IPB_BCCD'], folder), labeled='rest', test=0.3, folds=3)


def flow(folder):
    classes = folder.parent / 'flow_classes'
    for f in Path(os.environ['IPB_MLCP']).glob('*/*.png'):
        to = classes / ('Late' if f.parent.name in LATE else f.parent.name)
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to / f'{f.parent.name}-{f.name}')
    save_split(import_folders(classes, folder), labeled='rest', test=0.3, folds=3)


DATASETS = dict(simulated=(simulated, None), blood=(blood, 'IPB_BCCD'), flow=(flow, 'IPB_MLCP'))


def with_few_labels(ds, base, name, number, seed):
    "A split with the test set of `base`, and `number` of its other labelled colonies of each class, or a tenth, in L."
    rng, parts = np.random.default_rng(seed), []
    for _, rows in base.table.groupby('fold'):
        known = rows[rows.part.isin(['L', 'V'])]
        chosen = []
        for _, of in known.groupby('label'):
            n = number or max(round(len(of) / 7), 2)  # (a tenth of all is a seventh without T)
            chosen.extend(rng.choice(of.index, min(n, len(of)), replace=False))
        part = rows.part.where(rows.part == 'T', 'U')
        parts.append(rows.assign(part=part.where(~rows.index.isin(chosen), 'L')))
    nothing = pd.DataFrame(columns=['colony_id', 'fold', 'reason'])
    same = {k: base.info[k] for k in ('by', 'folds', 'test')}
    write_split(ds, name, pd.concat(parts), nothing, frozen=base.name, **same)


# labels of a class (None: a tenth of all), and the seed by which they are drawn
BUDGETS = dict(per5=(5, 0), per20=(20, 0), per80=(80, 0), share10=(None, 0), per20b=(20, 1), share10b=(None, 1))


def recalls(total, found, chosen=slice(None)):
    return found[chosen].sum(0) / total[chosen].sum(0)


def interval(differ, *sizes, repeats=2000):
    "The 95 % interval of a statistic of units drawn with replacement, of each dataset by itself."
    rng = np.random.default_rng(0)
    found = [differ(*(rng.integers(n, size=n) for n in sizes)) for _ in range(repeats)]
    return np.nanpercentile(found, [2.5, 97.5])


def baseline(row):
    "The row that a row is compared with: supervised training of the same layers; for these, of all layers."
    return 'supervised' if row in ('frozen-supervised', 'IPB', 'FixMatch', 'logit-adjusted') else 'frozen-supervised'


OTHERWISE = dict(one_patch='the mean over its patches', with_teacher='the student alone')


def decided_otherwise(runs):
    "Macro recall of the student by its middle patch alone, and of the mean of its and the teacher's probabilities."
    found = {}
    for r in runs:
        networks, said = {name: t.set_index('colony_id') for name, t in r.predictions.groupby('network')}, {}
        student, teacher = networks['student'], networks.get('teacher', networks.get('teacher_pretrained'))
        if 'student_patch' in networks:
            said['one_patch'] = networks['student_patch'].predicted
        if teacher is not None:
            p = [f'p_{c}' for c in r.classes]
            said['with_teacher'] = (student[p] + teacher[p]).idxmax(axis=1).str.removeprefix('p_')
        for how, o in said.items():
            found.setdefault(how, []).append(pd.DataFrame(dict(actual=student.actual, right=o == student.actual)))
    return {how: pd.concat(of).groupby('actual').right.mean().mean() for how, of in found.items()}


def report(data, folder, budget):
    "One line per figure: recalls of each row, and gains over supervised training. Return the counts by row."
    c = compare(folder / f'{data}_runs')
    done = [row for row in c.rows if row.endswith(f'-split{budget}') and len(c.rows[row]) == 3]
    runs = {row.partition('-split')[0]: row for row in done}
    found = {name: unit_counts(c, row)[1:] for name, row in runs.items()}
    rarest = int(next(iter(found.values()))[0].sum(0).argmin())
    for row, of in found.items():
        r, seconds = recalls(*of), np.mean([o.info['seconds'] for o in c.rows[runs[row]]])
        name = f'evidence.{data}.{budget}.{row}'
        show(f'{name}.macro_tpr', r.mean(), 'recall', f'the other rows; {seconds:.0f} s a run, two at a time')
        show(f'{name}.tpr.{c.classes[rarest]}', r[rarest], 'recall', 'the other rows; the rarest class')
        for how, recall in decided_otherwise(c.rows[runs[row]]).items():
            show(f'{name}.{how}', recall - r.mean(), 'recall', OTHERWISE[how])
        base = found.get(baseline(row))
        if row == 'supervised' or not base:
            continue
        for what, of_what in (('gain', np.mean), ('gain_rarest', lambda r: r[rarest])):

            def differ(chosen, of=of, base=base, of_what=of_what):
                return of_what(recalls(*of, chosen)) - of_what(recalls(*base, chosen))

            low, high = interval(differ, len(base[0]))
            against = f'{baseline(row)}; 95 % interval {low:+.3f} to {high:+.3f}, {len(base[0])} {c.units[1]}'
            show(f'{name}.{what}', differ(slice(None)), 'recall', against)
    return found


def pooled(found, budget):
    "The mean gain over the datasets."
    every = list(found.values())
    rows = set.intersection(*map(set, every))
    for row in sorted(r for r in rows - {'supervised'} if baseline(r) in rows):
        pairs = [(of[row], of[baseline(row)]) for of in every]

        def differ(*chosen, pairs=pairs):
            return np.mean([recalls(*of, c).mean() - recalls(*base, c).mean() for (of, base), c in zip(pairs, chosen)])

        low, high = interval(differ, *(len(of[0]) for of, _ in pairs))
        against = f'{baseline(row)}; mean of {", ".join(found)}; 95 % interval {low:+.3f} to {high:+.3f}'
        show(f'evidence.all.{budget}.{row}.gain', differ(*[slice(None)] * len(every)), 'recall', against)


def main(folder, split=None, rows='*'):
    for budget in [split] if split else BUDGETS:
        found = {}
        for data, (make, variable) in DATASETS.items():
            if variable and not os.environ.get(variable):
                continue
            if not (folder / data / 'splits').exists():
                make(folder / data)
            ds = ColonyDataset(folder / data)
            if not (ds.path / 'splits' / f'{budget}.csv').exists():
                with_few_labels(ds, Split(ds), budget, *BUDGETS[budget])
            sweep(GRID, ds.path, folder / f'{data}_runs', workers=2, only=f'{rows}-split{budget}-*')
            found[data] = report(data, folder, budget)
        pooled(found, budget)


if __name__ == '__main__':
    main(Path(sys.argv[1]), *sys.argv[2:])
