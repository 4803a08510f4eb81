"Several people at once, and their votes counted another way."

import multiprocessing
import signal
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from ipb_nb.core import MULTI_LABEL, InputError, read_table
from ipb_nb.folders import append_csv
from ipb_nb.dataset import LOG_COLUMNS, ColonyDataset, write_dataset

CLASSES = ['a', 'b', 'c']


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    def row(k):
        return dict(
            colony_id=f'c{k:03d}',
            label='',
            source='',
            group='',
            box=(0, 0, 9, 9),
            touches_border=False,
            frame=0,
            pixels=np.zeros((9, 9), np.uint8),
            mask=np.ones((9, 9), bool),
        )

    return write_dataset(tmp_path_factory.mktemp('cells') / 'ds', [row(k) for k in range(60)], CLASSES).path


@pytest.fixture
def clean(cells):
    for f in (cells / 'annotations').glob('*'):
        f.unlink()
    return ColonyDataset(cells)


def write_many(path, label, n):
    ds = ColonyDataset(path)
    for k in range(n):
        ds.annotate(f'c{k % 60:03d}', label, by='ana')


def test_two_processes_lose_no_line(clean):
    context = multiprocessing.get_context('spawn')
    both = [context.Process(target=write_many, args=(clean.path, c, 150)) for c in 'ab']
    for p in both:
        p.start()
    for p in both:
        p.join()
    assert [p.exitcode for p in both] == [0, 0]
    log = read_table(clean.path / 'annotations' / 'ana.csv', LOG_COLUMNS, [])
    assert Counter(log.classes) == {'a': 150, 'b': 150}
    assert len(clean.labels()) == 60


def on_a_full_disk(path, error):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10,) * 2)
    try:
        append_csv(path, dict(colony_id='c001', action='set', classes='b', exclude='', time=''))
    except OSError as e:
        error.put(e.strerror)


def test_a_full_disk_leaves_no_half_line(clean):
    pytest.importorskip('resource')
    clean.annotate('c000', 'a', by='ana')
    log = clean.path / 'annotations' / 'ana.csv'
    before, context = log.read_bytes(), multiprocessing.get_context('spawn')
    error = context.Queue()
    p = context.Process(target=on_a_full_disk, args=(log, error))
    p.start()
    p.join()
    assert error.get(timeout=5) and log.read_bytes() == before


def test_a_second_look_alone(clean):
    clean.annotate('c000', 'a', by='ana')
    clean.annotate('c000', 'b', by='ana', action='repeat')
    clean.annotate('c000', by='ana', action='undo')
    clean.annotate('c001', 'a', by='ben')
    clean.annotate('c001', 'a', by='cho')
    assert clean.agreement().loc['ana – ana again', 'n'] == 0


VERDICTS = [*CLASSES, 'a;b', '!unsure', '!cut_off']


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(['ana', 'ben', 'cho', 'dee']), st.integers(0, 5), st.sampled_from([*VERDICTS, 'undo'])
        ),
        max_size=60,
    )
)
def test_votes_counted_one_by_one(cells, said):
    for f in (cells / 'annotations').glob('*'):
        f.unlink()
    ds, stacks = ColonyDataset(cells), {}
    for who, k, v in said:
        stack = stacks.setdefault((who, k), [])
        if v == 'undo':
            if stack:
                ds.annotate(f'c{k:03d}', by=who, action='undo')
                stack.pop()
        else:
            ds.annotate(f'c{k:03d}', **(dict(exclude=v[1:]) if v[0] == '!' else dict(classes=v.split(';'))), by=who)
            stack.append('excluded' if v[0] == '!' else MULTI_LABEL if ';' in v else v)
    now = ds.labels()
    for k in range(6):
        n = Counter(s[-1] for (_, j), s in stacks.items() if j == k and s).most_common()
        tie = len(n) > 1 and n[0][1] == n[1][1]
        want = '' if not n or tie or n[0][0] == 'excluded' else n[0][0]
        row = now.loc[f'c{k:03d}']
        assert row.label == want
        assert (row.state == 'unresolved') == tie and bool(row.exclude) == (
            bool(n) and not tie and n[0][0] == 'excluded'
        )


def test_kappa_against_scikit_learn_and_fleiss(clean):
    rng, truth = np.random.default_rng(0), np.random.default_rng(1).choice(CLASSES, 60)
    rows = {}
    for who in ('ana', 'ben', 'cho'):
        said = np.where(rng.random(60) < 0.7, truth, rng.choice(CLASSES, 60))
        rows[who] = said
        for k, v in enumerate(said):
            clean.annotate(f'c{k:03d}', v, by=who)
    k = clean.agreement()
    assert k.loc['ana – ben', 'kappa'] == pytest.approx(cohen_kappa_score(rows['ana'], rows['ben']))
    n = np.stack([(pd.DataFrame(rows) == c).sum(axis=1) for c in CLASSES], 1)  # Fleiss 1971, by his formulas
    p, pe = ((n**2).sum(1) - 3) / 6, ((n.sum(0) / 180) ** 2).sum()
    assert k.loc['all', 'kappa'] == pytest.approx((p.mean() - pe) / (1 - pe))
    d = clean.disagreements()
    assert d.n.sum() == sum((rows[a] != rows[b]).sum() for a, b in [('ana', 'ben'), ('ana', 'cho'), ('ben', 'cho')])


@pytest.mark.parametrize(
    'verdict, says',
    [
        (('c000', 'Round', 'ana'), 'classes: found Round; expected a, b, c'),
        (('nobody', 'b', 'ana'), 'colony_id: found nobody'),
        (('c000', '', 'ana'), 'found .+; expected one of the two'),
        (('c009', (), 'ana', '', 'undo'), 'action: found undo of c009; expected a verdict of ana'),
        (('c000', 'b', 'ana', '', 'undo'), 'expected neither, for an undo'),
        (('c000', 'b', 'Ana'), 'by: found Ana; expected ana'),
        (('c000', 'b', '../ana'), 'by: found'),
        (('c000', (), 'ana', 'ugly'), 'exclude: found ugly'),
        (('c000', 'b', 'ana', 'unsure'), 'expected one of the two'),
        (('c000', 'b', 'ana', '', 'remove'), 'action: found remove; expected set, undo, repeat'),
    ],
)
def test_verdicts_that_cannot_be(clean, verdict, says):
    clean.annotate('c000', 'a', by='ana')
    now = clean.labels()
    with pytest.raises(InputError, match=says):
        clean.annotate(*verdict)
    assert clean.labels().equals(now)


@pytest.mark.parametrize(
    'line, says',
    [
        ('c000,set,Round,,', 'ana.csv, line 3: found class Round; expected a, b, c'),
        ('c000,remove,,,', 'line 3: found action remove; expected set, undo, repeat'),
        ('x,set,b,,', 'line 3: found colony x'),
        ('c009,undo,,,', 'line 3: found undo of c009'),
        ('c000,set,,,', 'line 3: found neither classes nor a reason'),
        ('c000,set,b,unsure,', 'line 3: found both classes and a reason'),
        ('c000,set', 'line 3: found 2 fields'),
    ],
)
def test_a_log_edited_by_hand(clean, line, says):
    clean.annotate('c000', 'a', by='ana')
    log = clean.path / 'annotations' / 'ana.csv'
    log.write_text(log.read_text() + line + '\n')
    with pytest.raises(InputError, match=says):
        clean.labels()


def test_two_logs_of_one_person(clean):
    clean.annotate('c000', 'a', by='ana')
    log = clean.path / 'annotations' / 'ana.csv'
    log.with_name('Ana .csv').write_bytes(log.read_bytes())
    with pytest.raises(InputError, match='ana.csv: found a second file of ana, beside Ana .csv'):
        clean.labels()
