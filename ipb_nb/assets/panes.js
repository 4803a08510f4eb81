// HTML in named panes; clicks, choices and keys become messages to Python, which answers with new HTML.
// What changes the view alone (size, contrast, zoom) happens here and is not sent.
const SIZE = 'ipb-size', PLAIN = { contrast: 1, brightness: 1 };
const KEYS = { '[': ['contrast', -1], ']': ['contrast', 1], '{': ['brightness', -1], '}': ['brightness', 1] };
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

// A brush on a picture with data-paint: what a pointer or the keyboard draws is sent as one line when it is lifted.
function brushOf(root, tell) {
  const place = { x: 0, y: 0, key: '' }, keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let line = null, ring = false;
  const box = () => root.querySelector('.zoom[data-paint]');
  const size = () => box().dataset.size.split(' ').map(Number);
  const show = () => {
    const b = box();
    if (!b) return line = null;
    const shot = b.firstElementChild, canvas = shot.querySelector('canvas') ?? document.createElement('canvas');
    if (b.dataset.key != place.key) {
      const [w, h] = size();
      Object.assign(place, { key: b.dataset.key, x: w / 2, y: h / 2 });
      line = null;
    }
    if (!canvas.isConnected) shot.appendChild(canvas).setAttribute('aria-hidden', 'true');
    [canvas.width, canvas.height] = size();
    const c = canvas.getContext('2d'), r = +b.dataset.radius;
    Object.assign(c, { lineCap: 'round', lineJoin: 'round', lineWidth: 2 * r, strokeStyle: b.dataset.paint });
    if (line) {
      c.beginPath();
      for (const [x, y] of [line[0], ...line]) c.lineTo(x, y);
      c.stroke();
    }
    if (!ring) return;
    const on = canvas.width / (canvas.clientWidth || 1);  // px of the picture in one of the page
    for (const [width, color] of [[3, '#000'], [1.5, '#fff']]) {
      Object.assign(c, { lineWidth: width * on, strokeStyle: color });
      c.beginPath();
      c.arc(place.x, place.y, r, 0, 7);
      c.stroke();
    }
  };
  const go = (x, y) => {
    const [w, h] = size(), last = line?.at(-1);
    Object.assign(place, { x: clamp(x, 0, w), y: clamp(y, 0, h) });
    const far = last && Math.hypot(place.x - last[0], place.y - last[1]);
    if (far > Math.max(box().dataset.radius / 4, 0.7)) line.push([place.x, place.y]);
  };
  const to = e => {
    const r = box().querySelector('img').getBoundingClientRect(), [w, h] = size();
    go((e.clientX - r.left) / r.width * w, (e.clientY - r.top) / r.height * h);
  };
  const move = e => {
    ring = e.pointerType != 'touch';
    for (const one of e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e]) to(one);
    show();
  };
  const begin = e => {
    if (e) to(e);
    line = [[place.x, place.y]];
    show();
  };
  const end = () => {
    if (!line || !box()) return;
    const last = line.at(-1);
    if (last[0] != place.x || last[1] != place.y) line.push([place.x, place.y]);
    tell('stroke', line.map(p => p.map(v => v.toFixed(1)).join(' ')).join(';'), { field: box().dataset.key });
    line = null;
  };
  const cancel = () => {
    line = null;
    show();
  };
  const key = k => {
    if (!box() || !keys[k] && k != ' ') return false;
    const step = Math.max(box().dataset.radius / 2, 1);
    ring = true;
    if (keys[k]) go(place.x + step * keys[k][0], place.y + step * keys[k][1]);
    else if (line) end();
    else begin();
    show();
    return true;
  };
  return { on: box, show, begin, move, end, cancel, key };
}

// Wheel, drag, pinch and + - 0 in a picture that can be zoomed; where there is a brush, one pointer paints.
function zoomable(root, brush) {
  const z = { key: '', k: 1, x: 0, y: 0 }, points = new Map();
  const box = () => root.querySelector('.zoom');
  const show = () => {
    const b = box();
    if (!b) return;
    if (b.dataset.key != z.key) Object.assign(z, { key: b.dataset.key, k: 1, x: 0, y: 0 });
    z.x = clamp(z.x, b.clientWidth * (1 - z.k), 0);
    z.y = clamp(z.y, b.clientHeight * (1 - z.k), 0);
    b.firstElementChild.style.transform = z.k == 1 ? '' : `translate(${z.x}px, ${z.y}px) scale(${z.k})`;
    b.classList.toggle('zoomed', z.k > 1);
  };
  const by = (factor, x, y) => {
    const k = clamp(z.k * factor, 1, 12);
    z.x = x - (x - z.x) * k / z.k;
    z.y = y - (y - z.y) * k / z.k;
    z.k = k;
    show();
  };
  const at = e => { const r = box().getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top] };
  root.addEventListener('wheel', e => {
    if (!e.target.closest('.zoom')) return;
    e.preventDefault();
    by(Math.exp(-0.0016 * e.deltaY), ...at(e));
  }, { passive: false });
  root.addEventListener('pointerdown', e => {
    if (!e.target.closest('.zoom')) return;
    e.preventDefault();
    points.set(e.pointerId, at(e));
    root.setPointerCapture?.(e.pointerId);  // (the picture may be drawn anew meanwhile)
    if (brush.on()) points.size == 1 && e.button == 0 ? brush.begin(e) : brush.cancel();
  });
  root.addEventListener('pointermove', e => {
    const before = points.get(e.pointerId);
    if (brush.on() && (before ? points.size == 1 : e.target.closest('.zoom'))) return brush.move(e);
    if (!before || !box()) return;
    const now = at(e);
    points.set(e.pointerId, now);
    const other = [...points].find(([id]) => id != e.pointerId)?.[1];
    if (other) return by(Math.hypot(now[0] - other[0], now[1] - other[1]) /
                         (Math.hypot(before[0] - other[0], before[1] - other[1]) || 1), ...other);
    z.x += now[0] - before[0];
    z.y += now[1] - before[1];
    show();
  });
  for (const end of ['pointerup', 'pointercancel']) {
    root.addEventListener(end, e => {
      if (points.delete(e.pointerId) && brush.on()) end == 'pointerup' ? brush.end() : brush.cancel();
    });
  }
  const key = k => {
    const b = box(), factor = { '+': 1.4, '-': 1 / 1.4, '0': 1 / 12 }[k];
    if (b && factor) by(factor, b.clientWidth / 2, b.clientHeight / 2);
    return b && factor;
  };
  return { show, key };
}

// The size of thumbnails, contrast and brightness: for this window, and no other.
function lookOf(root, changed) {
  const look = { size: +localStorage.getItem(SIZE) || 128, ...PLAIN };
  const show = () => {
    const adjusted = look.contrast != 1 || look.brightness != 1;
    root.style.setProperty('--w', `${look.size}px`);
    root.style.setProperty('--contrast', look.contrast);
    root.style.setProperty('--brightness', look.brightness);
    root.classList.toggle('adjusted', adjusted);
    for (const i of root.querySelectorAll('input[data-look]')) i.value = look[i.dataset.look];
    for (const o of root.querySelectorAll('output[data-look]')) {
      o.textContent = `${Math.round(100 * look[o.dataset.look])} %`;
    }
  };
  const set = (name, value) => {
    look[name] = value;
    if (name == 'size') localStorage.setItem(SIZE, value);
    show();
    if (name == 'size') changed();
  };
  root.addEventListener('input', e => {
    const name = e.target.dataset.look;
    if (name) set(name, +e.target.value);
  });
  const key = k => {
    if (k == '\\') Object.assign(look, PLAIN);
    else if (!KEYS[k]) return false;
    else look[KEYS[k][0]] = clamp(Math.round(10 * look[KEYS[k][0]] + KEYS[k][1]) / 10, 0.3, 3);
    show();
    return true;
  };
  return { look, show, key };
}

function render({ model, el }) {
  const root = document.createElement('div');
  root.className = 'ipb ipb-' + model.get('kind');
  root.tabIndex = 0;
  root.setAttribute('role', 'group');
  root.setAttribute('aria-label', model.get('title') || model.get('kind'));
  root.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.classList.add('ipb-host');
  const live = document.createElement('div');  // what a screen reader says; it stays, so that it is heard
  live.className = 'unseen';
  live.setAttribute('aria-live', 'polite');

  const busy = is => root.setAttribute('aria-busy', is);
  const tell = (what, value, more = {}) => {
    if (!['play', 'fit'].includes(what)) play(false);
    if (what == 'play') asked = true;
    busy(true);
    model.send({ do: what, value, ...more });
  };
  const answered = () => {
    busy(false);
    if (playing && asked) play(true);  // (what was asked before it may be answered after its key)
    asked = false;
  };
  model.on('change:answered', answered);

  // Frames played: the next one a moment after the last was drawn, until something else is done.
  let playing = 0, asked = false;
  const pressed = () => root.querySelectorAll('[data-local=play]').forEach(b => b.setAttribute('aria-pressed', playing > 0));
  const play = (on, first = false) => {
    const more = () => root.querySelector('[data-local=play]') && (first || !root.querySelector('.note.bad'));
    clearTimeout(playing);
    playing = on ? setTimeout(() => more() ? tell('play', '') : play(false), 250) : 0;
    pressed();
  };

  // As many thumbnails as the window holds: their number goes to Python, once it has stopped changing.
  let fitted = '', later = 0, opener = null;
  const fit = () => {
    const grid = root.querySelector('.patches[data-fit]'), gap = 8;
    if (!grid || !grid.clientWidth) return;
    const columns = Math.max(Math.floor((grid.clientWidth + gap) / (look.look.size + gap)), 2);
    root.style.setProperty('--columns', columns);
    const side = (grid.clientWidth - gap * (columns - 1)) / columns + 20 + gap;
    const page = document.getElementById('page') === el;
    const above = grid.getBoundingClientRect().top - root.getBoundingClientRect().top;
    const below = [...root.querySelectorAll('[data-below]')].reduce((sum, e) => sum + e.offsetHeight, 24);
    const stuck = [...root.children].filter(e => getComputedStyle(e).bottom == '0px' && e.dataset.pane);
    const room = (page ? innerHeight : 0.8 * innerHeight) - above - below - stuck.reduce((s, e) => s + e.offsetHeight, 0);
    const now = `${columns},${Math.max(Math.floor(room / side), 1)}`;
    if (now == fitted) return;
    fitted = now;
    tell('fit', now);
  };
  const soon = () => {
    clearTimeout(later);
    later = setTimeout(fit, 120);
  };
  const look = lookOf(root, soon), brush = brushOf(root, tell), zoom = zoomable(root, brush);

  for (const name of model.get('names')) {
    const pane = root.appendChild(document.createElement('div'));
    pane.dataset.pane = name;
    pane.style.setProperty('--area', name);
    const draw = () => {
      const active = document.activeElement, inside = pane.contains(active) && { ...active.dataset };
      const thumb = inside && active.closest('.patches');
      pane.innerHTML = model.get('pane_' + name);
      look.show();
      zoom.show();
      brush.show();
      pressed();
      if (inside) {
        const same = [...pane.querySelectorAll('[data-do], [data-local]')].find(e =>
          ['do', 'value', 'field', 'local'].every(k => e.dataset[k] == inside[k]));
        const again = thumb && pane.querySelector('.patches .now') || same || root;
        again.focus({ preventScroll: true });
      }
      const dialog = pane.querySelector('[role=dialog]');
      if (dialog) {
        opener ??= active;
        dialog.querySelector('button')?.focus({ preventScroll: true });
      } else if (opener && name == 'large') {
        (root.contains(opener) ? opener : root).focus({ preventScroll: true });
        opener = null;
      }
      const note = pane.querySelector('.note');
      if (note && live.textContent != note.innerText) live.textContent = note.innerText;
      pane.querySelector('.now')?.scrollIntoView?.({ block: 'nearest' });
      if (pane.querySelector('.patches[data-fit]')) soon();
    };
    model.on('change:pane_' + name, draw);
    draw();
  }

  root.addEventListener('click', e => {
    const b = e.target.closest('[data-do], [data-local]');
    if (!b || b.matches('input, select')) return;
    const [what, value] = (b.dataset.local ?? '').split(':');
    if (what == 'key') look.key(value);
    if (what == 'play') return play(!playing, true);
    if (what == 'toggle') b.setAttribute('aria-expanded', root.classList.toggle(value));
    if (what) return soon();
    if (e.detail) root.focus({ preventScroll: true });  // (a key on a button leaves the focus where it is)
    tell(b.dataset.do, b.dataset.value ?? '', { field: b.dataset.field });
  });

  root.addEventListener('dblclick', e => {
    const b = e.target.closest('[data-twice]');
    if (b) tell(b.dataset.twice, b.dataset.value);
  });

  root.addEventListener('change', e => {
    const b = e.target.closest('[data-do]');
    if (!b) return;
    const { value } = b;
    if (b.matches('[data-do=find], [data-do=add_class]')) b.value = '';
    if (b.matches('select, [data-do=find], [data-do=add_class]')) root.focus({ preventScroll: true });  // keys are for the patches again
    tell(b.dataset.do, value, { field: b.dataset.field });
  });

  root.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const dialog = root.querySelector('[role=dialog]');
    if (dialog && e.key == 'Tab') e.preventDefault();  // it has one button
    if (e.key == 'Escape' && dialog) return tell('close', '');
    if (e.target.matches('input, select, textarea')) return e.key == 'Escape' && root.focus();
    if (e.target.matches('button') && (e.key == 'Enter' || e.key == ' ')) return;
    if (brush.key(e.key)) return e.preventDefault();
    const keys = model.get('shortcuts'), digit = e.shiftKey && !/\d/.test(e.key) && e.code.match(/^Digit(\d)$/);
    const k = digit && keys[`Shift+${digit[1]}`] || keys[e.key];
    if (k?.[0] == 'play') {
      e.preventDefault();
      return root.querySelector('[data-local=play]')?.click();
    }
    if (!k && !look.key(e.key) && !zoom.key(e.key)) return;
    e.preventDefault();
    e.stopPropagation();
    if (!k || e.repeat && !['step', 'row', 'page', 'time'].includes(k[0])) return;  // a key held down judges once
    tell(...k);
  });

  const poll = () => model.send({ do: 'poll' });  // another window may have written something
  addEventListener('focus', poll);
  addEventListener('resize', soon);
  root.appendChild(live);
  el.appendChild(root);
  soon();
  return () => {
    removeEventListener('focus', poll);
    removeEventListener('resize', soon);
  };
}
export default { render };
