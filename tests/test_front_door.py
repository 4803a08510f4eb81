"What a newcomer meets first: a project, the next command to type, the documentation site."

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipb_nb.commands import COMMANDS, ipb, next_command
from ipb_nb.export import FORMATS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def docs():
    "The module that builds the site."
    spec = importlib.util.spec_from_file_location('docs', ROOT / '.ci' / 'docs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_project_is_made_once_and_nothing_in_it_is_overwritten(tmp_path, capsys):
    (tmp_path / 'my cells').mkdir()
    (tmp_path / 'my cells' / 'wells.csv').write_text('well,condition\nA1,control\n')
    ipb(['new', str(tmp_path / 'my cells')])
    said = capsys.readouterr().out
    assert said.count('made ') == 3 and said.splitlines()[-1] == f"next: jupyter lab '{tmp_path}/my cells'/start.ipynb"
    made = json.loads((tmp_path / 'my cells' / 'start.ipynb').read_text(encoding='utf-8'))
    assert not any(c.get('outputs') for c in made['cells'])
    source = json.loads((ROOT / 'nbs' / 'experiments' / 'start.ipynb').read_text(encoding='utf-8'))
    assert [c['source'] for c in made['cells']] == [c['source'] for c in source['cells']]

    (tmp_path / 'my cells' / 'start.ipynb').write_text('mine')
    ipb(['new', str(tmp_path / 'my cells')])
    assert 'nothing was changed' in capsys.readouterr().out
    assert (tmp_path / 'my cells' / 'start.ipynb').read_text() == 'mine'
    assert (tmp_path / 'my cells' / 'wells.csv').read_text().endswith('control\n')


ARGUMENTS = {  # the least that a command takes
    'ipb-simulate': ['exp'],
    'ipb-detect': ['raw', 'cells'],
    'ipb-import': ['folder', 'cells'],
    'ipb-sweep': ['grid.yaml'],
    'ipb-predict': ['run', 'raw'],
    'ipb-demo': [],
    'ipb-doctor': [],
}


def test_the_next_command_is_one_that_can_be_typed():
    from ipb_nb.commands import find_command
    from ipb_nb.core import command_parser

    for name in COMMANDS:
        said = next_command(name, ARGUMENTS.get(name, ['thing'])).partition('#')[0].split()
        assert said[0] in ('ipb', 'jupyter')
        if said[0] == 'ipb' and said[1] != 'new':
            command_parser(find_command(f'ipb-{said[1]}')).parse_args(said[2:])  # (ends the process where it cannot)


def test_an_export_for_others_is_not_predicted_with():
    by_format = {f: next_command('ipb-export', ['run', '--out', 'mine', '--format', f]) for f in FORMATS}
    assert by_format == {f: f'ipb predict {"mine" if f == "safetensors" else "run"} NEW_FRAMES' for f in FORMATS}


def test_only_one_of_several_processes_says_what_comes_next():
    call = [sys.executable, '-m', 'ipb_nb', 'doctor']
    said = [
        subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ | {'RANK': r}).stdout
        for r in '01'
    ]
    assert [s.splitlines()[-1].startswith('next: ') for s in said] == [True, False]


def test_the_reference_has_what_docments_say(docs):
    source = '''
def area(
    mask: Mask,  # bool (H, W)
    pixel_size: float = 0.8,  # µm
) -> float:  # µm²
    "Area of a mask."
'''
    text = '\n'.join(docs.described(ast.parse(source).body[0], docs.comments(source), 'area', 2))
    assert '## `area`' in text and 'Area of a mask.' in text
    assert '| `mask` | Mask |  | bool (H, W) |' in text and '| `pixel_size` | float | 0.8 | µm |' in text
    assert 'Returns float: µm².' in text


def test_broken_links_of_a_site_are_found(docs, tmp_path):
    (tmp_path / 'b').mkdir()
    good = '<a href="b/">b</a> <a href="b/#here">c</a> <a href="https://elsewhere.org">d</a>'
    (tmp_path / 'index.html').write_text(f'{good} <a href="gone/">e</a> <a href="b/#nowhere">f</a> <img src="x.png">')
    (tmp_path / 'b' / 'index.html').write_text('<h1 id="here">B</h1>')
    assert sorted(docs.broken_links(tmp_path)) == [f'index.html: {x}' for x in ('b/#nowhere', 'gone/', 'x.png')]


def test_every_notebook_is_in_a_chapter_of_the_site(docs):
    numbers = [int(p.name[:2]) for p in (ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb')]
    assert all(sum(n in chapter for chapter in docs.CHAPTERS.values()) == 1 for n in numbers)


def test_the_container_takes_the_pins_apart():
    "PyTorch of the build that was asked for, and all else, in the versions of constraints.txt."
    pins = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if '==' in line]
    asked = re.findall(r"grep -E(v?) '([^']+)' /src/constraints.txt", (ROOT / 'Dockerfile').read_text())
    torch, others = ([p for p in pins if bool(re.search(found, p)) != bool(no)] for no, found in asked)
    assert [p.partition('==')[0] for p in torch] == ['torch', 'torchvision']
    assert 'fastai' in [p.partition('==')[0] for p in others] and not set(torch) & set(others)
    assert not [p for p in pins if 'cuda' in p.lower() and p in others]
