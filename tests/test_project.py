"The repository: notebooks stored as they ran, and a set-up that says in one line what stops it."

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from configparser import ConfigParser
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median

import pytest

from ipb_nb.commands import COMMANDS, help_text

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_as_it_ran(path):
    code = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in code for o in c['outputs']]
    source, said = '\n'.join(''.join(c['source']) for c in code), json.dumps(outputs)
    assert not any(o['output_type'] == 'error' for o in outputs)
    assert outputs
    assert path.stat().st_size < 1e6
    assert not re.search(r'(?<![\w.])/(work|tmp|root|home)/', source + said)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_import_us_before_torch(path):
    "Which reads the settings that we make for it when it is loaded."
    nb = json.loads(path.read_text())
    code = '\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code')
    first = re.search(r'^(?:from|import) (ipb_nb|torch|fastai|timm|sklearn)\b', code, re.M)
    assert not first or first[1] == 'ipb_nb'


def exported(path):
    "The exported code cells of a notebook, without nbdev's directives."
    for cell in json.loads(path.read_text())['cells']:
        lines = ''.join(cell['source']).splitlines()
        if cell['cell_type'] == 'code' and lines and lines[0].startswith('#| export'):
            yield [line for line in lines if not line.startswith('#|')]


def modules():
    "Numbered notebooks in their order: the module's name, and the notebook."
    return {p.stem.partition('_')[2]: p for p in sorted((ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb'))}


def imports(path):
    "What a notebook's exported code imports from this package: (module, name), also inside of functions."
    for lines in exported(path):
        for node in ast.walk(ast.parse('\n'.join(lines))):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('ipb_nb.'):
                yield from ((node.module.partition('.')[2], alias.name) for alias in node.names)


def test_a_module_imports_only_earlier_ones():
    order = list(modules())
    late = [
        f'{path.stem} imports {module}'
        for name, path in modules().items()
        for module, _ in imports(path)
        if module != name and order.index(module) >= order.index(name)  # (processes import the module that starts them)
    ]
    assert not late


def test_no_method_is_imported_by_the_experiment():
    methods = {point.value.partition(':')[0].partition('.')[2] for point in entry_points(group='ipb_nb.methods')}
    assert {'ipb', 'simclr', 'baselines'} <= methods
    for name in ('config', 'training', 'experiment'):
        found = {(module, item) for module, item in imports(modules()[name]) if module in methods - {'method'}}
        assert found <= {('simclr', 'loader_of_l')}, name


def test_no_two_modules_export_one_name():
    homes = defaultdict(list)
    for name in modules():
        for node in ast.parse((ROOT / 'ipb_nb' / f'{name}.py').read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                for item in ast.literal_eval(node.value):
                    homes[item].append(name)
    assert not {item: found for item, found in homes.items() if len(found) > 1}


def test_private_names_stay_at_home():
    assert not [
        (path.stem, module, name)
        for path in modules().values()
        for module, name in imports(path)
        if name.startswith('_') and name != '__version__' and module != path.stem.partition('_')[2]
    ]


@pytest.mark.parametrize('path', modules().values(), ids=lambda p: p.stem)
def test_cells_are_short(path):
    cells = json.loads(path.read_text())['cells']
    code = [''.join(c['source']).splitlines() for c in cells if c['cell_type'] == 'code']
    assert median(len([line for line in lines if not line.startswith('#|')]) for lines in code) <= 12
    assert max(map(len, exported(path))) <= 60


@pytest.mark.parametrize('path', modules().values(), ids=lambda p: p.stem)
def test_an_example_is_never_far(path):
    "At most 150 exported lines follow each other before the next example, without empty ones and imports."
    longest = since = 0
    for cell in json.loads(path.read_text())['cells']:
        lines = [line for line in ''.join(cell['source']).splitlines() if line]
        if cell['cell_type'] != 'code' or lines[:1] == ['#| hide']:
            continue
        if lines[:1] != ['#| export']:
            since = 0
        elif not lines[1].startswith(('import ', 'from ')):
            since += len(lines) - 1
        longest = max(longest, since)
    assert longest <= 150


def test_modules_are_short():
    lines = {name: len((ROOT / 'ipb_nb' / f'{name}.py').read_text().splitlines()) for name in modules()}
    assert not {name: n for name, n in lines.items() if n > (900 if name in ('simulate', 'dataset') else 800)}


def test_stored_outputs_are_small():
    cells = [c for p in NOTEBOOKS for c in json.loads(p.read_text())['cells']]
    assert sum(len(json.dumps(c.get('outputs', []))) for c in cells) < 6e6


@pytest.mark.parametrize('path', [ROOT / 'README.md', *NOTEBOOKS], ids=lambda p: p.stem)
def test_links_to_notebooks_lead_to_them(path):
    text = path.read_text()
    if path.suffix == '.ipynb':
        text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    links = re.findall(r'\]\((?!\w+:)([^)#\s]+\.ipynb)', text)
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_lock_has_the_pins_and_their_hashes():
    lock = (ROOT / 'requirements.lock').read_text(encoding='utf-8')
    entries = re.findall(r'^(\S+==[^\s;]+)[^\n]*\\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)', lock, re.M)
    pins = (ROOT / 'constraints.txt').read_text(encoding='utf-8').split('\n')
    assert [pin for pin, _ in entries] == [pin for pin in pins if pin and pin[0] != '#'], 'run python .ci/lock.py'
    assert lock.count('--hash') == sum(hashes.count('--hash') for _, hashes in entries)


def test_every_command_has_its_help():
    ini = ConfigParser()
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    commands = ['ipb=ipb_nb.commands:ipb', *(f'{name}=ipb_nb.commands:run' for name in COMMANDS)]
    assert ini['DEFAULT']['console_scripts'].split() == commands
    for name in COMMANDS:
        text = help_text(name)
        assert text.startswith(f'usage: {name} ') and f'example: {name}' in text
        plain = text.partition('\noptions:\n')[2].partition('\n\n')[0].strip()
        assert plain.startswith('-h, --help') and len(plain.splitlines()) == 1, f'{name}: options without a group'


OF_OTHERS = '--version --force --rwrap --headless --disable --hide --window --screenshot --IPKernelApp'.split()


def test_messages_name_options_that_there_are():
    "The options of our commands, of pip, Chromium and Jupyter, and a variable of CSS."
    known = {o for name in COMMANDS for o in re.findall(r'--\w+', help_text(name))} | set(OF_OTHERS)
    for path in (ROOT / 'ipb_nb').glob('*.py'):
        texts = (n.value for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(n, ast.Constant))
        named = {o for t in texts if isinstance(t, str) for o in re.findall(r'(?<![\w-])--[a-zA-Z]\w*', t)}
        assert named <= known, f'{path.name}: {named - known}'


def set_up(tmp_path, **env):
    "Call the set-up in a copy; it must fail with one line."
    for f in ('.ci/setup', 'settings.ini', 'setup.py', 'constraints.txt', 'README.md'):
        (tmp_path / f).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f, tmp_path / f)
    r = subprocess.run(
        [tmp_path / '.ci' / 'setup'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHON': sys.executable} | env,
        cwd=tmp_path,
    )
    assert r.returncode == 1 and not (tmp_path / '.venv' / '.stamp').exists()
    assert len(r.stderr.strip().splitlines()) == 1
    return r.stderr


def test_no_usable_python(tmp_path):
    assert 'is not a usable Python 3.11 or 3.12' in set_up(tmp_path, PYTHON='/bin/false')


def test_too_little_disk(tmp_path):
    assert 'make room and try again' in set_up(tmp_path, IPB_NEED_GB='999999')


def test_no_network(tmp_path):
    nowhere = dict(
        PIP_INDEX_URL='http://127.0.0.1:9/simple',
        PIP_EXTRA_INDEX_URL='',
        PIP_FIND_LINKS='',
        PIP_RETRIES='1',
        PIP_CONFIG_FILE='/dev/null',
        IPB_NEED_GB='0',
    )
    assert 'the package registry cannot be reached' in set_up(tmp_path, **nowhere)


def test_a_closed_pipe_is_no_error():
    p = subprocess.Popen([sys.executable, '-m', 'ipb_nb', 'doctor'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    said = p.stderr.read()
    assert (p.wait(), said) == (0, b'')


def test_bash_completes_commands_and_options():
    def words(*line):
        made = subprocess.run(
            [sys.executable, '-m', 'ipb_nb', 'completion'], capture_output=True, text=True, check=True
        )
        ask = f'COMP_WORDS=({" ".join(line)}); COMP_CWORD={len(line) - 1}; _ipb; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(
            ['bash', '-c', made.stdout + ask], capture_output=True, text=True, check=True
        ).stdout.split()

    assert words('ipb', 'tr') == ['train']
    assert words('ipb', 'split', '--la') == words('ipb-split', '--la') == ['--labeled']


@pytest.mark.skipif(sys.platform != 'linux', reason="asks GNU's OpenMP")
@pytest.mark.parametrize(
    'asked, spin', [({}, '1000'), ({'OMP_WAIT_POLICY': 'passive'}, '0'), ({'GOMP_SPINCOUNT': '7'}, '7')]
)
def test_threads_that_wait_soon_sleep_unless_told(asked, spin):
    "What torch's OpenMP says that it does."
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    command = [sys.executable, '-c', 'import ipb_nb, torch; torch.ones(10**6).exp()']
    said = subprocess.run(
        command, capture_output=True, text=True, env=env | asked | {'OMP_DISPLAY_ENV': 'verbose'}, check=True
    ).stderr
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said)) == {spin}


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system does not keep processes to cores')
def test_threads_are_as_many_as_the_cores_that_may_be_used():
    code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from ipb_nb.config import ExperimentConfig
print(ExperimentConfig().threads)"""
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '1\n'
