"""The documentation site: pages from notebooks as they are stored, API from signatures, links checked.

python .ci/docs.py [folder]   (default _docs; the site is folder/site)

Nothing is executed or imported, so this needs no PyTorch: docs/requirements.txt lists all that it needs."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
CHAPTERS = {  # by the leading number of a notebook
    'Files, crops, datasets': range(0, 8),
    'Simulation': (8, 9),
    'Frames and detection': range(10, 14),
    'Networks and training': range(14, 36),
    'Results': range(40, 50),
    'New experiments': range(50, 60),
    'Labels and mistakes': range(60, 70),
    'Commands': range(70, 80),
}
HIDDEN = re.compile(r'#\s*\|\s*hide\s*$', re.M)
DIRECTIVE = re.compile(r'^#\s*\|.*\n?', re.M)
REPOSITORY = 'https://github.com/ipb-nb/ipb_nb/blob/main'
ROOT_PAGES = {'README': 'index', 'CHANGELOG': 'changes', 'CONTRIBUTING': 'contributing', 'CODE_OF_CONDUCT': 'conduct'}
WRITTEN = ('howto', 'explain')  # folders of docs/


def shown_cells(nb):
    "Cells for readers: no hidden ones, no directives, no noise."
    for cell in nb.cells:
        if HIDDEN.match(cell.source) or cell.cell_type == 'raw':
            continue
        if cell.cell_type == 'code':
            cell.source = DIRECTIVE.sub('', cell.source).strip()
            cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
            if not cell.source:
                continue
        yield cell


def plain_tables(text):
    "Tables that take the site's style, and scroll where they are wider than the page."
    text = re.sub(r'<style scoped>.*?</style>\n?', '', text, flags=re.S)
    text = re.sub(r'<table border="1" class="dataframe">', '<table>', text)
    return re.sub(r'\n[ \t]+\n', '\n\n', text)


def page_of(path, dest):
    "A notebook as a Markdown page with its pictures beside it."
    nb = nbformat.read(path, as_version=4)
    nb.cells = list(shown_cells(nb))
    nb.metadata['language_info'] = {'name': 'python'}
    parts = {'output_files_dir': f'{path.stem}_files', 'unique_key': path.stem}
    text, extra = MarkdownExporter().from_notebook_node(nb, parts)
    for name, data in extra['outputs'].items():
        (dest.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (dest.parent / name).write_bytes(data)
    dest.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r'\]\((?:\.\./)+(benchmarks|configs|tests)/', rf']({REPOSITORY}/\1/', plain_tables(text))
    text = re.sub(r'(\]\([^)\s:]*)\.ipynb([)#])', r'\1.md\2', text)
    text = re.sub(r'\]\(\.\./((?:\.\./)*)docs/', r'](\1', text)  # what is in docs/ lies at the root of the site
    if dest.parent.name == 'tutorials':  # (the page has no imports)
        (dest.parent / path.name).write_bytes(path.read_bytes())
        title, _, rest = text.partition('\n')
        text = f'{title}\n\n[Download this notebook]({path.name}) to run it.\n{rest}'
    dest.write_text(text, encoding='utf-8')


def title_of(path):
    "Title and subtitle of a notebook."
    first = nbformat.read(path, as_version=4).cells[0].source
    title, _, rest = first.removeprefix('# ').partition('\n')
    return title.strip(), rest.strip().removeprefix('> ').partition('\n')[0]


def comments(source):
    "The comment of each line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}


def parameters(f, said):
    "Name, type, default and comment of each parameter; and what is returned."
    a = f.args
    every = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    defaults = [None] * (len(a.posonlyargs + a.args) - len(a.defaults)) + a.defaults
    given = dict(zip([p.arg for p in a.posonlyargs + a.args], defaults))
    given |= dict(zip([p.arg for p in a.kwonlyargs], a.kw_defaults))
    for p in every:
        if p.arg not in ('self', 'cls'):
            star = '*' if p is a.vararg else '**' if p is a.kwarg else ''
            default, kind = given.get(p.arg), p.annotation
            yield star + p.arg, kind and ast.unparse(kind), default and ast.unparse(default), said.get(p.end_lineno, '')


def cell(text):
    "Text in a table of Markdown."
    return (text or '').replace('|', '\\|').replace('<', '&lt;').replace('*', '\\*')


def described(f, said, name, level):
    "A function as Markdown."
    rows = list(parameters(f, said))
    returns = f.returns and ast.unparse(f.returns)
    lines = [f'{"#" * level} `{name}`', '', ast.get_docstring(f) or '', '']
    if rows:
        lines += ['| parameter | type | default | |', '| --- | --- | --- | --- |']
        lines += [f'| `{n}` | {cell(kind)} | {cell(default)} | {cell(text)} |' for n, kind, default, text in rows]
    if returns and returns != 'None':
        end = f.returns.end_lineno
        lines += ['', f'Returns {cell(returns)}' + (f': {cell(said[end])}' if said.get(end) else '') + '.']
    return [*lines, '']


def patched(f):
    "The class that a function is patched into (fastcore's `patch`), or nothing."
    by = [ast.unparse(d) for d in f.decorator_list]
    first = (f.args.args or [None])[0]
    return (
        ast.unparse(first.annotation) if any(d.startswith('patch') for d in by) and first and first.annotation else ''
    )


def members(body, said, owner):
    "Public methods of a class that have something said about them."
    for f in body:
        if isinstance(f, ast.FunctionDef) and not f.name.startswith('_') and ast.get_docstring(f):
            yield from described(f, said, f'{owner}.{f.name}', 3)


def api_page(module):
    "The exported names of a module as Markdown."
    source = module.read_text(encoding='utf-8')
    tree, said, lines, more = ast.parse(source), comments(source), [], {}
    exported = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                     and ast.unparse(n.targets[0]) == '__all__'), [])  # fmt: skip
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (owner := patched(node)) and not node.name.startswith('_'):
            more.setdefault(owner, []).append(node)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in exported and not patched(node):
            lines += described(node, said, node.name, 2)
        elif isinstance(node, ast.ClassDef) and node.name in exported:
            lines += [f'## `{node.name}`', '', ast.get_docstring(node) or '', '']
            init = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == '__init__']
            lines += described(init[0], said, node.name + '(…)', 3) if init else []
            lines += members([*node.body, *more.pop(node.name, [])], said, node.name)
    for owner, found in more.items():
        lines += members(found, said, owner)
    return lines


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_api(src):
    "A page for each module, in the order of the notebooks; their entries in the navigation."
    nav = []
    for nb in sorted((ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb')):
        name, (_, about) = nb.stem.partition('_')[2], title_of(nb)
        lines = api_page(ROOT / 'ipb_nb' / f'{name}.py')
        if lines:
            head = [f'# ipb_nb.{name}', '', f'{about}. Examples are in [{nb.stem}](../{nb.stem}.md).', '']
            write(src / 'api' / f'{name}.md', [*head, *lines])
            nav.append({name: f'api/{name}.md'})
    return nav


def write_commands(src):
    "One page with the help of all commands."
    lines = ['# Commands', '', '`ipb train` and `ipb-train` are the same; `ipb` alone lists all.', '']
    for f in sorted((ROOT / 'ipb_nb' / 'assets' / 'help').glob('*.txt')):
        lines += [f'## {f.stem}', '', '```text', f.read_text(encoding='utf-8').rstrip(), '```', '']
    write(src / 'commands.md', lines)


def from_root(text, folder=''):
    "Links as seen from the root of the repository become links among pages, or to the repository."
    text = re.sub(r'\]\(nbs/([\w./-]+)\.ipynb', rf']({folder}\1.md', text)
    text = re.sub(r'\]\(nbs/', rf']({folder}', text)
    text = re.sub(r'\]\(docs/', rf']({folder}', text)
    text = re.sub(r'\]\((\w+)\.md\)', lambda m: f']({ROOT_PAGES.get(m[1], m[1])}.md)', text)
    return re.sub(r'\]\((LICENSE|(?:configs|benchmarks)/[^)]*)\)', rf']({REPOSITORY}/\1)', text)


def write_pages(src):
    "All pages below `src`; the navigation."
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' not in path.parts and path.name != 'index.ipynb':
            page_of(path, (src / path.relative_to(ROOT / 'nbs')).with_suffix('.md'))
    for path in (ROOT / 'nbs' / 'images').glob('*'):
        (src / 'images').mkdir(exist_ok=True)
        (src / 'images' / path.name).write_bytes(path.read_bytes())
    for name, page in ROOT_PAGES.items():
        text = plain_tables((ROOT / f'{name}.md').read_text(encoding='utf-8'))
        write(src / f'{page}.md', [from_root(text).strip()])
    nav = {}
    for folder in WRITTEN:
        nav[folder] = []
        for path in sorted((ROOT / 'docs' / folder).glob('*.md')):
            write(src / folder / path.name, [path.read_text(encoding='utf-8').strip()])
            nav[folder].append(f'{folder}/{path.name}')
    numbered = sorted((src).glob('[0-9][0-9]_*.md'))
    chapters = [
        {name: [{p.stem: p.name} for p in numbered if int(p.stem[:2]) in numbers]} for name, numbers in CHAPTERS.items()
    ]
    chapters.append(
        {
            'Evidence and whole runs': [
                'evidence.md',
                *(f'experiments/{p.name}' for p in sorted((src / 'experiments').glob('*.md'))),
            ]
        }
    )
    write_commands(src)
    return [
        {'Home': 'index.md'},
        {'Tutorials': [f'tutorials/{p.name}' for p in sorted((src / 'tutorials').glob('*.md'))]},
        {'How to': nav['howto']},
        {'Explanations': nav['explain']},
        {'Notebooks': chapters},
        {'Reference': [{'Commands': 'commands.md'}, *write_api(src)]},
        {'Project': [{'Changes': 'changes.md'}, {'Contributing': 'contributing.md'}, 'conduct.md']},
    ]


class Page(HTMLParser):
    "Links and anchors of a page."

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get('id'), attrs.get('name')} - {None}
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]


def broken_links(site):
    "Links to pages, pictures or anchors of the site that are not there."
    pages = {p.resolve(): Page(p.read_text(encoding='utf-8')) for p in Path(site).rglob('*.html')}
    for path, page in pages.items():
        for link in page.links:
            to, _, anchor = unquote(link).partition('#')
            if re.match(r'[a-z]+:|//', to) or to.startswith('/'):
                continue
            target = (path.parent / to.partition('?')[0]).resolve() if to else path
            target = target / 'index.html' if target.is_dir() else target
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                yield f'{path.relative_to(Path(site).resolve())}: {link}'


def main(out='_docs'):
    out = Path(out)
    src = out / 'src'
    for old in sorted(src.rglob('*'), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    src.mkdir(parents=True, exist_ok=True)
    nav = write_pages(src)
    here = dict(INHERIT=str((ROOT / 'docs' / 'mkdocs.yml').resolve()), docs_dir='src', site_dir='site', nav=nav)
    (out / 'mkdocs.yml').write_text(yaml.safe_dump(here, sort_keys=False, allow_unicode=True), encoding='utf-8')
    code = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '-q', '-f', out / 'mkdocs.yml']).returncode
    broken = list(broken_links(out / 'site')) if code == 0 else []
    for line in broken:
        print(f'broken link in {line}')
    print(f'{len(list((out / "site").rglob("index.html")))} pages in {out / "site"}; {len(broken)} broken links')
    sys.exit(code or bool(broken))


if __name__ == '__main__':
    main(*sys.argv[1:])
