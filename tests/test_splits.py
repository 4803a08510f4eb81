"Splits of any table: nothing lost, nothing twice, units whole, and T frozen."

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipb_nb.core import MULTI_LABEL, InputError
from ipb_nb.dataset import write_dataset
from ipb_nb.split import ipb_split, lineages, make_split, save_split

CLASSES = ['a', 'b', 'c']


@st.composite
def tables(draw):
    "Colonies in tracks in groups; tracks of one class, now and then of another, unlabelled, mixed, merged or excluded."
    rng, rows = np.random.default_rng(draw(st.integers(0, 10**6))), []
    mixed, groups, tracks, frames = (
        draw(st.sampled_from([0, 0.1, 0.4])),
        draw(st.integers(4, 14)),
        draw(st.integers(4, 10)),
        draw(st.integers(1, 5)),
    )
    for g in range(groups):
        for t in range(rng.integers(1, tracks + 1)):
            own, parent = (
                rng.choice(CLASSES, p=[0.5, 0.3, 0.2]),
                f'{g}.{rng.integers(0, t)}' if t and rng.random() < mixed / 2 else '',
            )
            for f in range(rng.integers(1, frames + 1)):
                label = rng.choice([*CLASSES, MULTI_LABEL, '']) if rng.random() < mixed else own
                rows.append(
                    dict(
                        label=label,
                        group=f'g{g}',
                        track_id=f'{g}.{t}',
                        parent_ids=parent if f == 0 else '',
                        exclude='unsure' if rng.random() < mixed / 4 else '',
                    )
                )
    return pd.DataFrame(rows, [f'{k:04d}' for k in rng.permutation(len(rows))])


@pytest.mark.parametrize(
    'kwargs, says',
    [
        (dict(test=0.2), 'folds: found 10; expected 1 to 5'),
        (dict(valid=1), 'valid: found 1'),
        (dict(labeled='all'), 'labeled: found all; expected a share from 0 to 1, or rest'),
        (dict(fixed_u=0.95), 'fixed_u: found 0.95; expected the largest labelled share of the series, from 0.1 to 0.9'),
        (dict(by='well'), 'by: found well; expected random, track, group'),
    ],
)
def test_numbers_that_cannot_be(kwargs, says):
    labels = np.repeat(['a', 'b', MULTI_LABEL, ''], [300, 57, 20, 10])
    table = pd.DataFrame(dict(label=labels, exclude=''), [f'c{i:03d}' for i in range(387)])
    with pytest.raises(InputError, match=says):
        make_split(table, ['a', 'b'], **kwargs)


@pytest.mark.parametrize('n', range(20, 120, 5))
def test_no_colony_in_two_test_sets_whatever_the_size(n):
    table = pd.DataFrame(dict(label='a', exclude=''), [f'c{i}' for i in range(n)])
    rows = make_split(table, ['a'], labeled=0.9, test=0.1)[0]
    t = rows[rows.part == 'T'].colony_id
    assert t.is_unique and len(t) == n


def sides(rows, fold):
    return rows[rows.fold == fold].set_index('colony_id').part.replace('V', 'L')


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    tables(),
    st.sampled_from(['random', 'track', 'group']),
    st.sampled_from([0, 0.1, 0.2, 0.4, 'rest']),
    st.sampled_from([0.1, 0.25, 0.4]),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_split(table, by, labeled, test, seed, fixed):
    more = dict(fixed_u=0.5) if fixed and labeled != 'rest' else {}
    folds = int(1 / test)
    try:
        rows, left = make_split(table, CLASSES, by, labeled, test, folds=folds, seed=seed, **more)
    except InputError:
        assume(False)
    units = dict(random=pd.Series(table.index, table.index), track=lineages(table), group=table.group)[by]
    for fold in range(folds):
        part, out = sides(rows, fold), set(left.colony_id[left.fold == fold])
        assert part.index.is_unique and set(part.index) | out == set(table.index) and not set(part.index) & out
        label = table.label[part.index]
        assert not table.exclude[part.index].any()
        assert label[part != 'U'].isin(CLASSES).all()
        for need in ['T'] + ['L'] * (labeled != 0):
            assert set(label[part == need]) == set(CLASSES)
        whole = part.groupby(units[part.index]).agg(set)
        if labeled == 'rest':
            assert not any('T' in o and len(o) > 1 for o in whole)
        else:
            assert whole.map(len).max() == 1
        if by == 'random':
            n = table.label[table.exclude == ''].value_counts()
            for c in CLASSES:
                assert abs((label[part == 'T'] == c).sum() - test * n[c]) <= 1
                if labeled != 'rest':
                    assert abs((label[part == 'L'] == c).sum() - labeled * n[c]) <= 1
    assert rows[rows.part == 'T'].colony_id.is_unique
    again = make_split(
        table.sample(frac=1, random_state=0), CLASSES, by, labeled, test, folds=folds, seed=seed, **more
    )[0]  # whatever the order of the rows
    order = ['fold', 'colony_id']
    pd.testing.assert_frame_equal(
        rows.sort_values(order, ignore_index=True), again.sort_values(order, ignore_index=True)
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    tables(), st.sampled_from(['random', 'track', 'group']), st.sampled_from([0.1, 0.3, 'rest']), st.integers(0, 10**6)
)
def test_a_frozen_test_part_stays(table, by, labeled, seed):
    try:
        first = make_split(table, CLASSES, by, 0, 0.2, folds=3)[0]
    except InputError:
        assume(False)
    frozen, rng = first[first.part == 'T'], np.random.default_rng(seed)
    later = table.assign(
        label=np.where(rng.random(len(table)) < 0.5, rng.choice(CLASSES, len(table)), table.label),
        exclude=np.where(rng.random(len(table)) < 0.1, 'cut_off', table.exclude),
    )
    try:
        rows, left = make_split(later, CLASSES, by, labeled, 0.2, folds=3, frozen=frozen)
    except InputError:
        assume(False)
    t = rows[rows.part == 'T']
    assert set(zip(t.fold, t.colony_id, t.label)) == set(zip(frozen.fold, frozen.colony_id, frozen.label))
    units = dict(random=pd.Series(table.index, table.index), track=lineages(table), group=table.group)[by]
    for fold in range(3):
        part, out = sides(rows, fold), set(left.colony_id[left.fold == fold])
        assert set(part.index) | out == set(table.index) and not set(part.index) & out
        assert not set(units[part.index[part == 'T']]) & set(units[part.index[part != 'T']])


def drawn(i, label, **fields):
    im = np.random.default_rng(int(i[1:])).integers(0, 255, (30, 30), dtype=np.uint8)
    return (
        dict(
            colony_id=i,
            label=label,
            source=f'{i}.png',
            group='g',
            box=(0, 0, 30, 30),
            touches_border=False,
            frame=0,
            pixels=im,
            mask=np.ones((30, 30), bool),
        )
        | fields
    )


@pytest.fixture
def cells(tmp_path):
    return write_dataset(tmp_path / 'ds', [drawn(f'c{k}', 'ab'[k % 2]) for k in range(20)], ['a', 'b'])


def test_a_class_with_one_colony(cells):
    for i in cells.colonies.index[1::2][1:]:
        cells.annotate(i, 'a', by='ana')
    with pytest.raises(
        InputError,
        match='class b: found 1 colonies with labels; expected at least 10 for shares of 0.1, 0.1. Label more '
        'colonies, or take the class out',
    ):
        save_split(cells)
    assert not (cells.path / 'splits').exists()


def test_a_share_that_leaves_a_class_without_a_label(cells):
    with pytest.raises(
        InputError, match='class a: found 10 colonies with labels; expected at least 20 for shares of 0.2, 0.05'
    ):
        save_split(cells, labeled=0.05, test=0.2, folds=2)


def test_a_class_in_one_group_alone(tmp_path):
    ds = write_dataset(
        tmp_path / 'ds', [drawn(f'c{k}', 'ab'[k < 4], group=f'g{k // 4}') for k in range(24)], ['a', 'b']
    )
    with pytest.raises(
        InputError,
        match=r'class b, fold 0: found no colony in the (test set \(T\)|labelled set \(L\)); expected at least one',
    ):
        save_split(ds, by='group', labeled=0.3, test=0.3, folds=3)


def test_verdicts_after_the_draw_change_nothing(cells):
    split = save_split(cells, 'v1', labeled=0.2, test=0.2, folds=1)
    before, text = split.test.values.tolist(), split.path.read_text()
    for i in split.test.colony_id:
        cells.annotate(i, exclude='unsure', by='ana')
    assert split.path.read_text() == text
    later = save_split(cells, 'v2', frozen='v1', labeled='rest', seed=5)
    assert later.test.values.tolist() == before


def test_shares_are_reached_and_told(cells):
    info = save_split(cells, labeled=0.4, test=0.2, folds=5).info
    assert [o['T'] for o in info['reached']] == [0.2] * 5 and info['left_out'] == {} and info['by'] == 'random'


def test_frames_of_a_colony_stay_together_unless_asked_otherwise(few, tmp_path, capsys):
    ds = few('tracks', 90)
    split = save_split(ds, labeled='rest', test=0.5, folds=1)
    assert split.info['by'] == 'track' and not (split.check().kind == 'track').any()
    assert save_split(ds, 'paper', by='random', labeled='rest', test=0.2, folds=2).info['by'] == 'random'
    assert save_split(ds, 'later', frozen='paper', labeled=0.2).info['by'] == 'random'
    rows = [drawn(f'c{k}', 'ab'[k % 2], track_id=f't{k}') for k in range(20)]  # (tracks of one frame each)
    assert save_split(write_dataset(tmp_path / 'ones', rows, ['a', 'b']), test=0.2, labeled=0.4).info['by'] == 'random'
    with pytest.raises(InputError, match='--by random'):
        save_split(ds, 'shares', labeled='rest', test=0.05)
    ipb_split(str(ds.path), name='told', test=0.5, labeled='rest')
    assert 'by track: all frames of a colony are in one part' in capsys.readouterr().out
