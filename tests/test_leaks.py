"What crosses modules: no test label, no hidden label, no test image may reach training."
import shutil

import pandas as pd
import pytest
from safetensors.numpy import load_file

from ipb_nb.core import InputError, read_json, write_json, write_png
from ipb_nb.dataset import ColonyDataset, Split, _digest
from ipb_nb.experiment import ExperimentConfig, train


@pytest.fixture
def copy(dataset, tmp_path): return shutil.copytree(dataset, tmp_path/'copy')


def same_weights(a, b):
    a, b = load_file(a/'student.safetensors'), load_file(b/'student.safetensors')
    return all((a[k] == b[k]).all() for k in a)


def test_same_seed_same_metrics(dataset, run, tiny, tmp_path):
    again = train(ExperimentConfig(**tiny), dataset, tmp_path/'again')
    assert (again/'metrics.json').read_text() == (run/'metrics.json').read_text()
    assert same_weights(run, again)


def test_hidden_labels_of_u_change_nothing(copy, run, tiny, tmp_path):
    split = pd.read_csv(copy/'splits'/'default.csv', keep_default_na=False)
    hidden = (split.part == 'U') & ~split.label.isin(['', 'multi-label'])
    split.loc[hidden, 'label'] = split.label[hidden].sample(frac=1, random_state=0).values
    split.to_csv(copy/'splits'/'default.csv', index=False)
    labels = pd.read_csv(copy/'colonies.csv', keep_default_na=False)
    u = labels.colony_id.isin(split.colony_id[(split.fold == 0) & hidden])
    labels.loc[u, 'label'] = labels.label[u].sample(frac=1, random_state=0).values
    labels.to_csv(copy/'colonies.csv', index=False)
    assert same_weights(run, train(ExperimentConfig(**tiny), copy, tmp_path/'run'))


def test_labels_of_t_change_the_scores_alone(copy, run, tiny, tmp_path):
    split = pd.read_csv(copy/'splits'/'default.csv', keep_default_na=False)
    t = (split.part == 'T') & (split.fold == 0)
    split.loc[t, 'label'] = split.label[t].sample(frac=1, random_state=0).values
    split.to_csv(copy/'splits'/'default.csv', index=False)
    with pytest.raises(InputError, match='a T that was changed after it was drawn'): Split(ColonyDataset(copy))
    info = copy/'splits'/'default.json'
    write_json(read_json(info) | dict(test_sha256=_digest(split[split.part == 'T'])), info)
    new = train(ExperimentConfig(**tiny), copy, tmp_path/'run')
    assert same_weights(run, new)
    assert (new/'predictions.csv').read_text() != (run/'predictions.csv').read_text()


def test_images_of_t_do_not_reach_the_student(copy, run, tiny, tmp_path):
    ds = ColonyDataset(copy)
    t = Split(ds).fold(0).query('part == "T"').index
    for i in t: write_png(ds.colony(i).image[112:-112, 112:-112][::-1].copy(), copy/'images'/f'{i}.png')
    new = train(ExperimentConfig(**tiny), copy, tmp_path/'run')
    assert same_weights(run, new)
    assert read_json(new/'metrics.json')['n_test'] == len(t)
