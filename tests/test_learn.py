"The labelling loop on its page: keys, rounds, a look, a training to its end."

import shutil
from threading import Thread

import pandas as pd
import pytest
from browser import Widget, barriers, look, settled

from ipb_nb.active import colony_features
from ipb_nb.core import InputError, read_json, write_csv, write_json
from ipb_nb.dataset import ColonyDataset
from ipb_nb.learn import FullTraining, LabelLoop, Loop, earlier_training
from ipb_nb.panes import page_server
from ipb_nb.toy import toy_dataset


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    "60 colonies of three textures, and their classes, which the dataset does not know."
    ds = toy_dataset(tmp_path_factory.mktemp('loop') / 'cells', (24, 24, 12), labeled='rest')
    truth = ds.colonies.label.copy()
    write_csv(ds.colonies.assign(label=''), ds.path / 'colonies.csv')
    ds = ColonyDataset(ds.path)
    colony_features(ds)
    return ds, truth


def fresh(ds, folder):
    "A copy of a dataset, without anybody's labels."
    ignored = shutil.ignore_patterns('annotations', 'worklists', 'splits')
    return shutil.copytree(ds.path, folder / 'cells', ignore=ignored)


def judge_all(loop, truth):
    for k, (i, _) in enumerate(loop.items):
        if loop.due(k):
            loop.judge(truth[i], items=[k])


def test_a_person_labels_two_rounds_looks_and_corrects(labelled, driver, tmp_path):
    ds, truth = labelled
    kw = dict(ds=str(ds.path), by='ana', n=8, runs=str(tmp_path / 'runs'))
    with page_server('ipb_nb.learn:LabelLoop', kw) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        look(driver, 1280, 1000)
        driver.get(server.url)
        page = Widget(driver)
        settled(page)
        loop = next(iter(server.windows.values())).widget.state
        for k in range(16):
            page.wait(lambda: not loop.resting and loop.progress[0] == k)
            page.press(str(ds.classes.index(truth[loop.items[loop.at][0]]) + 1))
            page.wait(lambda: loop.progress[0] == k + 1)
            if k in (7, 15):
                page.wait(lambda: 'next round' in page.text('main'))
            if k == 7:
                page.click('button[data-do=next]')
                page.wait(lambda: len(loop.items) == 16)
        assert sum(i in loop.held for i, _ in loop.items) == 4
        page.click('button[data-value=look]')
        page.wait(lambda: 'How good the labels are' in page.text('main'))
        assert 'macro recall' in page.text('head')
        assert barriers(driver) == []
        page.click('button[data-value=train]')
        page.wait(lambda: 'The full method' in page.text('main'))
        assert barriers(driver) == []
        page.click('button[data-value=look]')
        page.wait(lambda: 'How good the labels are' in page.text('main'))
        page.press('1')  # no colony is asked about here
        page.click('button[data-do=visit]')
        page.wait(lambda: loop.single and 'no verdict yet' in page.text('main'))
        i = loop.items[loop.at][0]
        assert i not in loop.held and len(loop.items) == 17
        page.press(str(ds.classes.index(truth[i]) + 1))
        page.wait(lambda: loop.progress == (17, 17))
        said = ColonyDataset(ds.path).annotations().set_index('colony_id').vote
        assert len(said) == 17 and said.eq(truth[said.index]).all()
        server.shutdown()


def test_a_class_is_added_between_rounds(labelled, tmp_path):
    ds, truth = labelled
    w = LabelLoop(fresh(ds, tmp_path), 'dora', n=16)
    judge_all(w.state, truth)
    w.act('add_class', 'Bleb')
    w.act('tab', 'look')
    assert 'Bleb' in w.pane_main and w.state.class_table().labels['Bleb'] == 0 and not len(w.state.predicted()['Bleb'])
    w.act('tab', 'label')
    w.act('next')
    judge_all(w.state, pd.Series('Bleb', truth.index))
    w.act('tab', 'look')
    assert w.state.class_table().loc['Bleb', ['labels', 'held']].sum() == 16
    assert len(w.state.predicted()['Bleb']) and w.message == ''


def test_a_network_is_trained_to_its_end(labelled, tmp_path):
    ds, truth = labelled
    loop = Loop(ds.path, 'cem', n=12)
    for _ in range(2):
        judge_all(loop, truth)
        loop.next_round()
    few = '--scales 32 --batch_size 8 --pretrain_epochs 1 --epochs 1 --steps 8 --finetune 0 --threads 1 --no_notebook'
    w = LabelLoop(ds.path, 'cem', n=12)
    split = loop.split()
    out = tmp_path / 'runs' / f'cells-{split.name}'
    w.training = FullTraining(split, 'quick', out, *few.split())
    w.act('tab', 'train')
    assert 'running' in w.pane_main and w.score() == ''
    reloaded = LabelLoop(ds.path, 'cem', n=12, runs=tmp_path / 'runs')
    assert reloaded.training.state == 'running' and reloaded.training.out == out
    reloaded.act('train')
    assert 'one at a time' in reloaded.message
    w.training.process.wait(300)
    w.act('poll')
    assert w.training.state == 'done', w.training.said(20)
    found = read_json(out / 'metrics.json')
    assert f"macro recall {found['student']['macro_tpr']:.0%}" in w.pane_main
    assert found['n_test'] == len(w.training.split.test)
    assert set(w.training.split.test.colony_id) <= set(loop.held)
    reloaded.act('poll')
    assert reloaded.training.state == 'done' and reloaded.score() == w.score()


def test_a_training_that_was_stopped_goes_on_from_another_page(labelled, tmp_path):
    (ds, truth), kw = labelled, dict(n=12, runs=tmp_path / 'runs')
    cells = fresh(ds, tmp_path)
    judge_all(loop := Loop(cells, 'fay', n=12), truth)
    few = '--scales 32 --batch_size 8 --pretrain_epochs 1 --epochs 1 --steps 8 --finetune 0 --threads 1 --no_notebook'
    w, split = LabelLoop(cells, 'fay', **kw), loop.split()
    w.training = FullTraining(split, 'quick', tmp_path / 'runs' / f'cells-{split.name}', *few.split())
    reloaded = LabelLoop(cells, 'fay', **kw)
    reloaded.act('stop')
    w.training.process.wait(60)
    reloaded.act('tab', 'train')
    assert reloaded.training.state == 'stopped' and 'go on with loop-' in reloaded.pane_main
    again = LabelLoop(cells, 'fay', **kw)
    assert again.training.state == 'stopped'
    again.act('resume')
    assert again.training.args[-1] == '--resume'
    again.training.process.wait(300)
    assert again.training.state == 'done', again.training.said(20)
    assert LabelLoop(cells, 'fay', **kw).score().startswith('macro recall')


@pytest.mark.parametrize(
    'content', ['', '{}', '{"data": 3}', '{"data": "", "split": "x", "preset": "quick", "pid": 0}']
)
def test_a_note_of_a_training_that_cannot_be_read_is_passed_over(labelled, tmp_path, content):
    ds, _ = labelled
    (tmp_path / 'cells-loop-1.json').write_text(content)
    gone = dict(data=str(ds.path.resolve()), split='gone', preset='quick', pid=1, began=1.0)
    write_json(gone, tmp_path / 'cells-loop-2.json')
    assert earlier_training(ds, tmp_path) is None


def test_to_the_last_colony(labelled):
    ds, truth = labelled
    judge_all(Loop(ds.path, 'cem', n=12), truth)  # (nobody is asked about what stands on another's list)
    w = LabelLoop(ds.path, 'ben', n=20)
    for _ in range(9):
        judge_all(w.state, truth)
        w.act('next')
        if not w.state.left():
            break
    assert ColonyDataset(ds.path).labels().state.ne('unlabelled').all()
    w.act('next')
    assert not w.state.left() and not w.state.predicted()['fine'].size
    assert 'Every item has its verdict' in w.pane_main
    w.act('tab', 'look')
    assert 'How good the labels are' in w.pane_main and 'failed' not in w.message


def test_bad_input(labelled, tmp_path):
    ds, _ = labelled
    with pytest.raises(InputError, match='rule: found best'):
        Loop(ds.path, 'eva', rule='best')
    with pytest.raises(InputError, match='n: found 2'):
        Loop(ds.path, 'eva', n=2)
    new = toy_dataset(tmp_path / 'cells', (6, 6, 6), labeled='rest')
    write_csv(new.colonies.assign(label=''), new.path / 'colonies.csv')
    loop = Loop(new.path, 'eva', n=4)
    with pytest.raises(InputError, match='class fine: found no colony to learn from'):
        loop.split()
    f = loop.list_of('eva')
    f.write_text(f.read_text() + 'nobody,first\n')
    with pytest.raises(InputError, match=r'eva \(loop\).csv, line 6: found colony_id nobody'):
        Loop(new.path, 'eva')
    (new.path / 'loop.json').write_text('{"held_aside": 3}')
    with pytest.raises(InputError, match='held_aside: found 3'):
        Loop(new.path, 'dan')
