"Runs that a student cannot be read from."

import shutil

import pytest

from ipb_nb.core import InputError, read_json, write_json
from ipb_nb.student import load_student


def test_a_run_that_is_not_done(run, tmp_path):
    shutil.copytree(run, tmp_path / 'odd')
    write_json(read_json(run / 'run.json') | dict(state='running'), tmp_path / 'odd' / 'run.json')
    with pytest.raises(InputError, match='a run that is running; expected a finished one'):
        load_student(tmp_path / 'odd')


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match='nowhere: found no such folder'):
        load_student(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='no model.json'):
        load_student(tmp_path)
