"Conditions, windows and tests: tables that cannot be, and what must not matter."

import numpy as np
import pandas as pd
import pytest

from ipb_nb.core import InputError
from ipb_nb.timecourse import compare_conditions, in_window, read_conditions, well_fractions

CLASSES = ['Dense', 'Diff']
WELLS = [f'P1-A{k}' for k in range(1, 9)]


@pytest.fixture
def course():
    "Eight wells with four frames each."
    rng = np.random.default_rng(0)
    df = pd.DataFrame([(w, f, 16.0 * f) for w in WELLS for f in range(4)], columns=['group', 'frame', 'time_h'])
    return df.assign(area_Dense=rng.random(32), area_Diff=rng.random(32))


@pytest.fixture
def replicates():
    "Four replicates of two conditions on two plates."
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(condition=['treated', 'untreated'] * 4, unit=list('11223344'), plate=list('PPPPQQQQ')))
    return df.assign(wells=1, Dense=rng.random(8), Diff=rng.random(8))


@pytest.mark.parametrize(
    'rows, said',
    [
        (
            ['P1,P1-A1,treated,1', 'P1,P1-A99,treated,2'],
            'line 3: found well P1-A99; expected a well of the images: P1-A1',
        ),
        (['P1,P1-A1,treated,1', 'P1,A1,treated,2'], 'line 3: found well A1 a second time; expected one row per well'),
        (['P1,P1-A1,,1'], 'line 2: found no condition'),
        (['P1,P1-A1,a,1', 'P1,P1-A2,a,'], 'line 3: found no replicate; expected one for every well'),
    ],
)
def test_conditions_that_cannot_be(tmp_path, rows, said):
    (tmp_path / 'odd.csv').write_text('\n'.join(['plate,well,condition,replicate', *rows]))
    with pytest.raises(InputError) as e:
        read_conditions(tmp_path / 'odd.csv', WELLS)
    assert said in str(e.value)


def test_a_dose_is_a_condition(tmp_path):
    f = tmp_path / 'doses.csv'
    f.write_text('well,condition,dose,replicate\nP1-A1,drug,1,1\nP1-A2,drug,10,1\nP1-A3,none,0,1')
    assert read_conditions(f, WELLS).condition.tolist() == ['drug 1', 'drug 10', 'none']


def test_windows_are_those_of_each_well(course):
    first = course[course.frame.eq(0)].assign(time_h=np.linspace(0, 1, 8))
    assert in_window(first).all()  # a well with one frame has that one, whenever its turn came
    shares = well_fractions(course, CLASSES)
    assert well_fractions(course.set_axis([0] * len(course)), CLASSES).equals(shares)  # whatever the rows are called


def test_no_p_value_where_there_is_nothing_to_test_with(replicates):
    assert compare_conditions(replicates, CLASSES).p.notna().all()
    assert compare_conditions(replicates.groupby('condition').head(2), CLASSES).p.isna().all()
    assert compare_conditions(replicates.assign(unit='unknown'), CLASSES).p.isna().all()
    confounded = compare_conditions(replicates.assign(plate=replicates.condition), CLASSES)
    assert confounded.p.isna().all() and set(confounded.note) == {'cannot be told from plates'}
    untreated = replicates[replicates.condition.eq('untreated')].reset_index()
    lost = compare_conditions(untreated, CLASSES, names=['treated', 'untreated'])  # nothing grew in the treated wells
    assert lost.replicates.tolist() == [0, 0] and lost.p.isna().all()
