"Runs that are killed, stopped, starved of disk or blown up: what is left, and what comes of it when they go on."

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ShowGraphCallback
from filelock import FileLock
from safetensors.torch import load_file

from ipb_nb.config import ExperimentConfig
from ipb_nb.core import InputError
from ipb_nb.experiment import run_notebook, run_state, train, train_in_notebook
from ipb_nb.kernel import execute_notebook, kernel_ahead

resource = pytest.importorskip('resource')  # (limits of a process, which Windows lacks)

BIN = Path(sys.executable).parent
FILES = {
    'run.json',
    'history.csv',
    'balance.csv',
    'predictions.csv',
    'features.safetensors',
    'metrics.json',
    'student.safetensors',
    'teacher.safetensors',
    'reference.safetensors',
    'model.json',
}


@pytest.fixture(scope='module')
def longer(tiny):
    return tiny | dict(pretrain_epochs=4, epochs=6, steps=48, finetune=2, ema=0.8)


@pytest.fixture(scope='module')
def undisturbed(dataset, longer, processes, tmp_path_factory):
    "A run in one go, and its seconds."
    out = tmp_path_factory.mktemp('undisturbed') / 'run'
    for work, args in ((len, ('',)), (train, (ExperimentConfig(**longer), dataset, out))):  # the first one imports
        start, p = time.time(), processes.Process(target=work, args=args)
        p.start()
        p.join()
        assert p.exitcode == 0
    return out, time.time() - start


def same(a, b):
    "Two runs ended with the same figures and weights, to the last bit."
    assert (a / 'metrics.json').read_text() == (b / 'metrics.json').read_text()
    assert (a / 'predictions.csv').read_text() == (b / 'predictions.csv').read_text()
    for f in ('student', 'teacher'):
        one, other = (load_file(o / f'{f}.safetensors') for o in (a, b))
        assert all(torch.equal(one[k], other[k]) for k in one)
    for f in ('history.csv', 'balance.csv'):
        one, other = (pd.read_csv(o / f).drop(columns='seconds', errors='ignore') for o in (a, b))
        pd.testing.assert_frame_equal(one, other)
    assert {f.name for f in b.iterdir()} - {'train.ipynb'} == FILES


def epochs_of(out):
    f = out / 'history.csv'
    return max(len(f.read_text().splitlines()) - 1, 0) if f.exists() else 0


def test_five_kills(dataset, longer, undisturbed, processes, tmp_path):
    whole, seconds = undisturbed
    out, epochs = tmp_path / 'run', []
    for k in range(5):
        p = processes.Process(target=train, args=(ExperimentConfig(**longer), dataset, out, True))
        p.start()
        while not (out / 'run.json').exists() or len(json.loads((out / 'run.json').read_text())['resumed']) < k:
            time.sleep(0.005)
        while k == 2 and not list((out / 'checkpoint').glob('*.json')):
            time.sleep(0.005)  # (so that there is one to go on from)
        while epochs_of(out) < 2 * k:  # (of twelve, so that none is killed after its end)
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.06) * seconds)
        p.kill()
        p.join()
        assert run_state(out) == 'stopped'
        epochs.append(epochs_of(out))
    print('epochs at the kills:', epochs)
    assert epochs[-1] > 0 and len(json.loads((out / 'run.json').read_text())['resumed']) == 4
    train(ExperimentConfig(**longer), dataset, out, resume=True)
    same(whole, out)


def killed_after(processes, epochs, cfg, dataset, out):
    p = processes.Process(target=train, args=(cfg, dataset, out))
    p.start()
    while not (out / 'history.csv').exists() or len((out / 'history.csv').read_text().splitlines()) <= epochs:
        assert p.is_alive()
        time.sleep(0.002)
    p.kill()
    p.join()


def test_a_cut_checkpoint_is_passed_over(dataset, longer, undisturbed, processes, tmp_path, capfd):
    cfg, out = ExperimentConfig(**longer), tmp_path / 'run'
    killed_after(processes, 5, cfg, dataset, out)
    newest = max((out / 'checkpoint').glob('*.safetensors'))
    newest.write_bytes(newest.read_bytes()[:-1000])
    (out / '.history.1.partial.csv').write_text('half')
    with pytest.raises(InputError, match=r'a run \(stopped\); expected a new folder. .*--resume'):
        train(cfg, dataset, out)
    train(cfg, dataset, out, resume=True)
    assert 'not whole (not the tensors that were saved); the state before it counts' in capfd.readouterr().err
    same(undisturbed[0], out)
    assert len(json.loads((out / 'run.json').read_text())['resumed']) == 1
    before = (out / 'run.json').read_text()
    assert train(cfg, dataset, out, resume=True) == out and (out / 'run.json').read_text() == before  # done already


def test_only_the_same_run_goes_on(dataset, longer, processes, tmp_path):
    cfg, out = ExperimentConfig(**longer), tmp_path / 'run'
    killed_after(processes, 1, cfg, dataset, out)
    with pytest.raises(
        InputError, match='lr: found 0.1; expected 0.01, as in .*run.json. Resume with the configuration'
    ):
        train(ExperimentConfig(**longer | dict(lr=0.1)), dataset, out, resume=True)
    assert run_state(out) == 'stopped'
    with FileLock(out / '.lock'):  # as a run holds it
        assert run_state(out) == 'running'
        with pytest.raises(InputError, match='found a run that is going on'):
            train(cfg, dataset, out, resume=True)
    (dataset / 'colonies.csv').write_text((before := (dataset / 'colonies.csv').read_text()) + '\n')
    try:
        with pytest.raises(InputError, match='a table that has changed'):
            train(cfg, dataset, out, resume=True)
    finally:
        (dataset / 'colonies.csv').write_text(before)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c(number, dataset, longer, undisturbed, tmp_path):
    out = tmp_path / 'run'
    command = [
        BIN / 'ipb-train',
        dataset,
        '--out',
        out,
        '--no_notebook',
        *(str(o) for k, v in longer.items() for o in (f'--{k}', v)),
    ]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / 'history.csv').exists() or len(pd.read_csv(out / 'history.csv')) < 4:
        time.sleep(0.01)
    p.send_signal(number)
    _, err = p.communicate()
    assert p.returncode == 1 and 'the same command with --resume goes on from there' in err and 'Traceback' not in err
    run = json.loads((out / 'run.json').read_text())
    assert run['state'] == 'stopped' and run['error'].startswith('by hand; the last state is checkpoint/0000')
    subprocess.run([*command, '--resume'], check=True, capture_output=True)
    same(undisturbed[0], out)


class CtrlCInAnEpoch(Callback):
    "Ctrl-C in the third epoch."

    def before_batch(self):
        if self.epoch == 2 and self.iter == 1:
            self.press()


class Swallowed(CtrlCInAnEpoch):
    "Ctrl-C at a moment when Python swallows it: while an object is being removed."

    class Removed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass

    def press(self):
        self.Removed()


class Disguised(CtrlCInAnEpoch):
    "Ctrl-C while a module is being imported: what comes out is the import's own error."

    def press(self):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError('cannot release un-acquired lock') from None


@pytest.mark.parametrize('ctrl_c', [Swallowed, Disguised])
def test_a_lost_ctrl_c(ctrl_c, dataset, longer, undisturbed, processes, tmp_path):
    cfg, out = ExperimentConfig(**longer), tmp_path / 'run'
    p = processes.Process(target=train, args=(cfg, dataset, out), kwargs=dict(cbs=[ctrl_c()]))
    p.start()
    p.join()
    run = json.loads((out / 'run.json').read_text())
    assert run['state'] == 'stopped' and run['error'] == 'by hand; the last state is checkpoint/00006.json'
    train(cfg, dataset, out, resume=True)
    same(undisturbed[0], out)


class FullDisk(Callback):
    "From the third epoch on no file can grow beyond 100 kB."

    def before_epoch(self):
        if self.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk(dataset, longer, undisturbed, processes, tmp_path):
    cfg, out = ExperimentConfig(**longer), tmp_path / 'run'
    p = processes.Process(target=train, args=(cfg, dataset, out), kwargs=dict(cbs=[FullDisk()]))
    p.start()
    p.join()
    run = json.loads((out / 'run.json').read_text())
    assert run['state'] == 'stopped' and re.search(
        'NoRoom: .*/checkpoint: found .*File too large.*; expected room for a state of .* Make room and go '
        'on from checkpoint/00006.json',
        run['error'],
    )
    assert sorted(f.name for f in (out / 'checkpoint').iterdir()) == [
        f'0000{k}.{s}' for k in (5, 6) for s in ('json', 'safetensors')
    ]
    train(cfg, dataset, out, resume=True)
    same(undisturbed[0], out)


@pytest.mark.parametrize('method', ['mpl', 'supervised'])
def test_a_loss_that_is_no_number(method, dataset, longer, tmp_path):
    with pytest.raises(
        InputError, match=r'epoch \d, step \d: found a loss that is (nan|inf); expected a number.* colonies: .*\d'
    ):
        train(ExperimentConfig(**longer | dict(method=method, lr=2e9, warmup=0.0)), dataset, tmp_path / 'run')
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['state'] == 'failed'


def test_the_notebook_goes_on(dataset, longer, undisturbed, tmp_path):
    out = tmp_path / 'run'
    command = [BIN / 'ipb-train', dataset, '--out', out, *(str(o) for k, v in longer.items() for o in (f'--{k}', v))]
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / 'history.csv').exists() or len(pd.read_csv(out / 'history.csv')) < 4:
        time.sleep(0.01)
    p.kill()
    p.wait()  # the kernel sees that its parent is gone and ends, too
    train_in_notebook(ExperimentConfig(**longer), dataset, out, resume=True)
    same(undisturbed[0], out)
    assert (out / 'train.ipynb').exists()


def test_callbacks_of_fastai_compose(dataset, longer, tmp_path):
    graph = ShowGraphCallback()
    train(ExperimentConfig(**longer), dataset, tmp_path / 'run', cbs=[graph])
    assert len(graph.nb_batches) == 6 and run_state(tmp_path / 'run') == 'done'


def test_a_run_takes_the_kernel_of_its_own_python(tiny, tmp_path, monkeypatch):
    "Module systems and JupyterHub set JUPYTER_PATH to kernels of other Pythons with the usual name."
    spec = tmp_path / 'jupyter' / 'kernels' / 'python3' / 'kernel.json'
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=['/bin/false', '{connection_file}'], display_name='P', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', language='python', display_name='P')))
    nb.cells = [
        nbformat.v4.new_code_cell('data = out = ""', metadata=dict(tags=['parameters'])),
        nbformat.v4.new_code_cell('import sys; print(sys.executable)'),
    ]
    nbformat.write(nb, tmp_path / 'mine.ipynb')
    run_notebook(ExperimentConfig(**tiny), tmp_path, tmp_path / 'run', tmp_path / 'mine.ipynb')
    cells = nbformat.read(tmp_path / 'run' / 'train.ipynb', 4).cells
    assert [o.text.strip() for c in cells for o in c.get('outputs', [])] == [sys.executable]


def test_a_notebook_that_is_interrupted_is_stopped_not_wrong(tiny, tmp_path):
    "As Ctrl-C does that reaches the kernel first."
    cells = [nbformat.v4.new_code_cell('data = out = ""', metadata=dict(tags=['parameters']))]
    cells += [nbformat.v4.new_code_cell('raise KeyboardInterrupt')]
    python = dict(kernelspec=dict(name='python3', language='python', display_name='P'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=python), tmp_path / 'mine.ipynb')
    with pytest.raises(KeyboardInterrupt):
        run_notebook(ExperimentConfig(**tiny), tmp_path, tmp_path / 'run', tmp_path / 'mine.ipynb')


def in_a_notebook(folder, ahead):
    "Execute a notebook that says what its kernel has imported already, after a copy was made or not."
    said = "import os, sys; print('timm' in sys.modules, os.environ['OMP_NUM_THREADS'])"
    cells = [nbformat.v4.new_code_cell(o) for o in (said, 'import matplotlib.pyplot as plt; plt.plot([1]); plt.show()')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / 'mine.ipynb')
    with kernel_ahead() if ahead else nullcontext():
        execute_notebook(folder / 'mine.ipynb', folder / 'done.ipynb', {}, 1)


@pytest.mark.parametrize('ahead', [True, False])
def test_a_kernel_is_a_copy_of_a_process_that_asks_for_it(processes, tmp_path, ahead):
    "It has imported what that has, and draws into the notebook all the same."
    p = processes.Process(target=in_a_notebook, args=(tmp_path, ahead))
    p.start()
    p.join()
    assert p.exitcode == 0
    text, picture = (c.outputs[-1] for c in nbformat.read(tmp_path / 'done.ipynb', 4).cells)
    assert text.text.split() == [str(ahead and sys.platform == 'linux'), '1'] and 'image/png' in picture.data


def copies(folder):
    "What is left of a copy that no notebook needed."
    with kernel_ahead():
        (copy,) = psutil.Process().children()
    psutil.wait_procs([copy], 10)
    (folder / 'left').write_text(str(copy.is_running() and copy.status() != psutil.STATUS_ZOMBIE))


def test_a_copy_that_is_not_needed_ends(processes, tmp_path):
    p = processes.Process(target=copies, args=(tmp_path,))
    p.start()
    p.join()
    assert p.exitcode == 0 and (tmp_path / 'left').read_text() == 'False'


def test_a_process_with_threads_is_not_copied():
    "Their locks would stay locked in the copy."
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    before = psutil.Process().children()
    with kernel_ahead():
        assert psutil.Process().children() == before
    over.set()
    thread.join()
