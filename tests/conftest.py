"Small data that tests draw themselves, and the folder of real images where there is one."

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

import ipb_nb  # noqa: F401  (before torch: see there)
from starts import only_afresh, starts_afresh

ROOT = Path(__file__).parent.parent
os.environ.setdefault('TQDM_DISABLE', '1')
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # (what a shell starts in the background ignores Ctrl-C, and so would the runs that tests stop by it)


def pytest_configure(config):
    "Commands of ours are copies of a process that has imported everything, see ahead.py."
    if starts_afresh():
        only_afresh()
    elif sys.platform == 'linux':
        import ahead

        if not hasattr(config, 'workerinput'):
            config.ahead = ahead.start()  # (ends with this process)
        subprocess.Popen = ahead.Popen


def pytest_unconfigure(config):
    if hasattr(config, 'ahead'):
        config.ahead.communicate()


SLOW = """inspect page tuning learn report survive ranks sweep related wheel predict export method bccd leaks commands
notebooks init frozen gpu""".split()
LONGEST = """test_wheel test_survive test_export test_sweep 70_demo test_channels 17_model 27_baselines
10_simulate test_bccd test_gpu 45_report 1_first_run 60_worklist test_ranks 21_mpl test_method 32_experiment
test_related 54_export test_predict 53_predict test_init 51_timecourse 25_clustering 22_balance 7_a_new_class
test_frozen 34_sweep 43_figures test_simulate 26_simtriplet 61_annotate test_mps 65_learn train report test_inspect
test_detect test_splits test_commands test_channel_frames""".split()


def pytest_collection_modifyitems(items):
    "Mark what is slow. The longest come first, for two workers: the second one begins in the middle."
    first, middle, second = [], [], []
    for item in items:
        name = item.path.stem
        if name.removeprefix('test_') in SLOW:
            item.add_marker('slow')
        if name == 'test_notebooks' and hasattr(item, 'callspec'):
            name = item.callspec.id
        turn = LONGEST.index(name) if name in LONGEST else -1
        (middle if turn < 0 else second if turn % 2 else first).append((turn, item))
    half = max(0, len(items) // 2 - len(first))
    first, second = (sorted(part, key=lambda o: o[0]) for part in (first, second))
    items[:] = [item for _, item in [*first, *middle[:half], *second, *middle[half:]]]


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    "A function (name, make): the folder that `make(folder)` fills, in the first test process that needs it."
    root = tmp_path_factory.getbasetemp()
    root = root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root

    def folder(name, make):
        made = root / f'once-{name}'
        with FileLock(root / f'{name}.lock'):
            if not (made / '.made').exists():
                shutil.rmtree(made, ignore_errors=True)
                made.mkdir()
                make(made)
                (made / '.made').touch()
        return made

    return folder


@pytest.fixture(scope='session')
def bccd():
    "364 real blood-smear fields with Pascal VOC boxes: the folder named by IPB_BCCD."
    path = os.environ.get('IPB_BCCD')
    if path and (Path(path) / 'Annotations').is_dir():
        return Path(path)
    why = f'IPB_BCCD is {path!r}: no folder with Annotations/ and JPEGImages/ of the BCCD dataset'
    if os.environ.get('IPB_REQUIRE_DATA') == '1':
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope='session')
def class_folders(tmp_path_factory):
    """Three classes of 24 noisy squares with stripes of another width each, eight mixed ones and six that nobody has
    sorted."""
    root, rng = tmp_path_factory.mktemp('drawn') / 'cells', np.random.default_rng(0)
    for label, n in {'fine': 24, 'middle': 24, 'coarse': 24, 'multi-label': 8, 'unlabelled': 6}.items():
        (root / label).mkdir(parents=True)
        width = {'fine': 3, 'middle': 6, 'coarse': 12}.get(label, 4)
        for i in range(n):
            stripes = (np.arange(70) // width % 2) * 60
            im = np.clip(
                100 + np.add.outer(stripes * (i % 2), stripes * (1 - i % 2)) + rng.normal(0, 6, (70, 70)), 0, 255
            )
            cv2.imwrite(str(root / label / f'{i:02d}.png'), im.astype(np.uint8))
    return root


@pytest.fixture(scope='session')
def voc(tmp_path_factory):
    """Three fields with boxes of two classes.

    One is overlapped by the other class, one has no area, one field's picture is lost."""
    root, rng = tmp_path_factory.mktemp('drawn') / 'voc', np.random.default_rng(0)
    for d in ('Annotations', 'JPEGImages'):
        (root / d).mkdir(parents=True)
    fields = {
        'a': [('big', 20, 20, 90, 100), ('small', 120, 180, 150, 210)],
        'b': [('big', 30, 100, 100, 170), ('small', 80, 150, 110, 180), ('big', 5, 5, 5, 40)],
        'lost': [('big', 20, 20, 90, 100)],
    }
    for name, cells in fields.items():
        im = rng.normal(200, 4, (200, 260))
        for _, y0, x0, y1, x1 in cells:
            im[y0:y1, x0:x1] -= 80
        if name != 'lost':
            cv2.imwrite(str(root / 'JPEGImages' / f'{name}.png'), np.clip(im, 0, 255).astype(np.uint8))
        boxes = ''.join(
            f'<object><name>{c}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>'
            for c, y0, x0, y1, x1 in cells
        )
        (root / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><filename>{name}.png</filename>{boxes}</annotation>'
        )
    return root


@pytest.fixture(scope='session')
def dataset(class_folders, tmp_path_factory):
    "The folder of a dataset with a split of two folds."
    from ipb_nb.importers import import_folders
    from ipb_nb.split import save_split

    ds = import_folders(class_folders, tmp_path_factory.mktemp('data') / 'colonies')
    save_split(ds, labeled=0.25, test=0.25, folds=2)
    return ds.path


@pytest.fixture(scope='session')
def simulated(once):
    "The folder of 90 simulated colonies with a split. Tests that change it take a copy, or `few`."
    from ipb_nb.simulate import simulate_dataset
    from ipb_nb.split import save_split

    def make(folder):
        save_split(simulate_dataset(folder / 'cells', 90, seed=1), labeled='rest', test=0.2, folds=1)

    return once('simulated', make) / 'cells'


@pytest.fixture
def few(simulated, tmp_path):
    "A function (name, n): a dataset of n simulated colonies."
    from ipb_nb.dataset import ColonyDataset

    def copy(name, n):
        shutil.copytree(simulated, tmp_path / name, ignore=shutil.ignore_patterns('splits', '.cache'))
        table = tmp_path / name / 'colonies.csv'
        head, *rows = table.read_text(encoding='utf-8').splitlines(True)
        table.write_text(''.join([head, *rows[:: len(rows) // n][:n]]), encoding='utf-8')
        return ColonyDataset(tmp_path / name)

    return copy


@pytest.fixture(scope='module')
def driver():
    "Chromium without a screen."
    from browser import chromium

    d = chromium()
    yield d
    d.quit()


@pytest.fixture(scope='session')
def processes():
    "Processes that have imported everything already."
    if starts_afresh():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ipb_nb.experiment', 'timm'])
    return context


TINY = dict(
    pretrain_epochs=2, epochs=2, steps=8, batch_size=8, scales='32', threshold=0.34, finetune=0, ema=0.0, threads=1
)


@pytest.fixture(scope='session')
def tiny():
    "The fields of a configuration that trains in seconds."
    return dict(TINY)


@pytest.fixture(scope='session')
def run(dataset, tiny, tmp_path_factory):
    "A finished IPB run, called without a notebook."
    from ipb_nb.config import ExperimentConfig
    from ipb_nb.experiment import train

    return train(ExperimentConfig(**tiny), dataset, tmp_path_factory.mktemp('runs') / 'ipb')
