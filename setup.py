"""Everything is read from settings.ini, which nbdev reads too."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
ini = ConfigParser()
ini.read(root / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
readme = root / 'README.md'
lib = cfg['lib_path']
status = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}


class BuildWithNotebooks(build_py):
    "The wheel carries the notebooks that papermill runs and the grids of the sweeps."

    def run(self):
        super().run()
        if self.editable_mode:  # the repository has them
            return
        for folder, files in {'experiments': 'nbs/experiments/*.ipynb', 'configs': 'configs/*.yaml'}.items():
            to = Path(self.build_lib) / lib / folder
            to.mkdir(parents=True, exist_ok=True)
            for f in root.glob(files):
                shutil.copy(f, to)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license='Apache-2.0',
    url=cfg['git_url'],
    keywords=cfg['keywords'].split(),
    classifiers=[
        f"Development Status :: {status[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        'Framework :: Jupyter',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Bio-Informatics',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires=f">={cfg['min_python']}",
    packages=[lib],
    package_data={lib: ['assets/*', 'assets/*/*']},
    cmdclass={'build_py': BuildWithNotebooks},
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'ipb_nb.methods': cfg['methods'].split(),
    },
    zip_safe=False,
)
