"""ipb_nb/assets/help: what each command says of itself, so that --help imports nothing heavy."""

import os
from pathlib import Path

os.environ['COLUMNS'] = '100'

from ipb_nb.commands import COMMANDS, find_command
from ipb_nb.core import command_parser

folder = Path('ipb_nb/assets/help')
folder.mkdir(parents=True, exist_ok=True)
for name in COMMANDS:
    text = command_parser(find_command(name)).format_help()
    (folder / f'{name}.txt').write_text(text, encoding='utf-8')
