"""README.md from nbs/index.ipynb: no cells that start with `#| hide`, no directives, links as seen from the root.

Of a cell that starts with `#| echo: false`, only the output is shown."""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

nb = nbformat.read('nbs/index.ipynb', as_version=4)
hidden = re.compile(r'#\s*\|\s*hide\s*$', re.M)
silent = re.compile(r'#\s*\|\s*echo:\s*false\s*$', re.M)
directive = re.compile(r'^#\s*\|.*\n?', re.M)

cells = []
for cell in nb.cells:
    if hidden.match(cell.source) or (cell.cell_type == 'raw' and cell.source.startswith('---')):
        continue
    if cell.cell_type == 'code':
        cell.source = '' if silent.match(cell.source) else directive.sub('', cell.source).strip()
        cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    cells.append(cell)
nb.cells = cells
nb.metadata['language_info'] = {'name': 'python'}  # nbdev_clean drops it; it names the code blocks

# pictures among the outputs go beside those that the text shows
text, extra = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': 'nbs/images', 'unique_key': 'index'})
for path, data in extra['outputs'].items():
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)

text = re.sub(r'^```python\n+```\n', '', text, flags=re.M)
text = re.sub(r'<style scoped>.*?</style>\n?', '', text, flags=re.S)
outside = r'(?!nbs/|docs/|benchmarks/|[a-z]+:|[/#])'
text = re.sub(rf'(\]\(){outside}', r'\1nbs/', text)
text = re.sub(rf'((?:src|href)="){outside}', r'\1nbs/', text)
text = re.sub(r'nbs/(?:\./)*\.\./', '', text)
Path('README.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')
