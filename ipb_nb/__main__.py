"python -m ipb_nb: see nbs/71_commands.ipynb"

from ipb_nb.commands import ipb

if __name__ == '__main__':
    ipb()
