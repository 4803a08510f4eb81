// A widget on a page of its own: what the notebook's side of a widget does elsewhere, by requests to one server.
import panes from './panes.js';

const status = document.getElementById('status');
const say = (text, bad = false) => {
  status.textContent = text;
  status.classList.toggle('bad', bad);
  if (bad) status.setAttribute('role', 'alert');
};
const post = (path, data) => fetch(path, { method: 'POST', body: JSON.stringify(data) });
const GONE = 'The server has stopped. All verdicts that were shown are stored; start the command again to go on.';
let model = null;

class Model {
  constructor(id, values) {
    Object.assign(this, { id, values, heard: {}, last: Promise.resolve() });
  }
  get(name) { return this.values[name] }
  on(what, act) { (this.heard[what] ??= []).push(act) }
  take(news) {
    Object.assign(this.values, news);
    for (const name in news) for (const act of this.heard['change:' + name] ?? []) act();
  }
  send(message) { this.last = this.last.then(() => this.ask(message)) }  // one after the other, in order
  async ask(message) {
    try {
      const answer = await post('act', { window: this.id, ...message });
      if (answer.status == 410) return location.reload();  // it was idle for long; the page begins anew
      this.take(await answer.json());
      if (status.textContent) say('');
    } catch (e) {
      say(GONE, true);
      this.take({ answered: this.values.answered });
    }
  }
}

async function open() {
  const id = `${Date.now()}-${Math.random()}`, start = Date.now();
  addEventListener('pagehide', () => navigator.sendBeacon('close', JSON.stringify({ window: id })));
  addEventListener('pageshow', e => { if (e.persisted) location.reload() });
  const waiting = setInterval(async () => {
    const doing = await fetch('doing').then(r => r.text(), () => '');
    if (!model) say(`Opening ${document.title}: ${doing} (${Math.round((Date.now() - start) / 1000)} s)`);
  }, 500);
  try {
    const answer = await post('open', { window: id });
    const news = await answer.json();
    if (news.error) return say(news.error, true);
    model = new Model(id, news);
    if (news.title) document.title = document.querySelector('h1').textContent = news.title;
    say('');
    panes.render({ model, el: document.getElementById('page') });
    document.querySelector('.ipb')?.focus({ preventScroll: true });
  } catch (e) {
    return say(GONE, true);
  } finally {
    clearInterval(waiting);
  }
  let turn = 0;  // what other windows wrote is seen soon; a hidden page only says that it is still there
  setInterval(() => { if (!document.hidden || turn++ % 20 == 0) model.send({ do: 'poll' }) }, 1500);
}
open();
