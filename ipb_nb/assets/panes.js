// HTML in named panes; clicks, choices and keys become messages to Python, which answers with new HTML.
function render({ model, el }) {
  const root = document.createElement('div');
  root.className = 'ipb ipb-' + model.get('kind');
  root.tabIndex = 0;
  root.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.classList.add('ipb-host');

  for (const name of model.get('names')) {
    const pane = root.appendChild(document.createElement('div'));
    pane.dataset.pane = name;
    pane.style.setProperty('--area', name);
    const draw = () => {
      const active = document.activeElement;
      const inside = pane.contains(active);
      const field = inside && active.dataset.field;
      pane.innerHTML = model.get('pane_' + name);
      if (inside) (field && pane.querySelector(`[data-field="${field}"]`) || root).focus({ preventScroll: true });
      pane.querySelector('.now')?.scrollIntoView?.({ block: 'nearest' });
    };
    model.on('change:pane_' + name, draw);
    draw();
  }

  const busy = is => root.setAttribute('aria-busy', is);
  const tell = (what, value, more = {}) => {
    busy(true);
    model.send({ do: what, value, ...more });
  };
  model.on('change:answered', () => busy(false));

  root.addEventListener('click', e => {
    const b = e.target.closest('[data-do]');
    if (!b || b.matches('input, select')) return;
    root.focus({ preventScroll: true });
    tell(b.dataset.do, b.dataset.value ?? '', { field: b.dataset.field });
  });

  root.addEventListener('dblclick', e => {
    const b = e.target.closest('[data-twice]');
    if (b) tell(b.dataset.twice, b.dataset.value);
  });

  root.addEventListener('change', e => {
    const b = e.target.closest('[data-do]');
    if (!b) return;
    if (b.matches('select')) root.focus({ preventScroll: true });  // keys are for the patches again
    tell(b.dataset.do, b.value, { field: b.dataset.field });
  });

  root.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches('input, select, textarea')) return;
    if (e.target.matches('button') && (e.key == 'Enter' || e.key == ' ')) return;
    const k = model.get('shortcuts')[e.key];
    if (!k || e.repeat && !['step', 'row', 'page'].includes(k[0])) return;  // a key held down judges once
    e.preventDefault();
    e.stopPropagation();
    tell(...k);
  });

  el.appendChild(root);
}
export default { render };
