// SPDX-License-Identifier: Apache-2.0
// Plain DOM: elements from code, text never parsed as HTML, and how they look.

const SVG = ['svg', 'polyline', 'line', 'text'];

/** Return an element: `h('button', { class: 'primary', onclick: save }, 'Submit')`. Null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const isSvg = SVG.includes(tag);
  const node = isSvg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return elements in one row. */
export const row = (...children) => h('div', { class: 'echo-row' }, children);

/**
 * Return a section that is drawn anew only when what it shows has changed, so that a playing cine costs nothing.
 * `pick` is what it shows: names of the state's fields, or a function of the state.
 */
export function section(pick, draw) {
  const node = h('section');
  const pickedFrom = Array.isArray(pick)
    ? (state) => Object.fromEntries(pick.map((name) => [name, state[name]]))
    : pick;
  let shown = null;
  return {
    node,
    update(state) {
      const picked = pickedFrom(state);
      const key = JSON.stringify(picked);
      if (key === shown) return;
      shown = key;
      node.replaceChildren(...[draw(picked)].flat(Infinity).filter(Boolean));
      node.hidden = node.childNodes.length === 0;
    },
  };
}

/** Return a button with its key shown and its purpose as tooltip. */
export function button(text, onclick, { key = null, title = '', ...attributes } = {}) {
  const hint = key ? `${title || text} (key ${key})` : title;
  return h('button', { type: 'button', title: hint, onclick, ...attributes }, text, key && h('kbd', {}, key));
}

/** Return a select of `values`; `labels` gives the words shown where they differ. */
export function choice(values, chosen, onchange, { labels = {}, ...attributes } = {}) {
  const options = values.map((value) => h('option', { value, selected: value === chosen }, labels[value] ?? value));
  return h('select', { onchange: (event) => onchange(event.target.value), ...attributes }, options);
}

// OHIF's dark blue, text of at least 4.5:1, everything reachable at 1280 x 800.
const CSS = `
.echo-panel {
  position: relative; display: flex; flex-direction: column; height: 100%; min-height: 0; background: #0b1426;
  color: #eef3ff; font: 13px/1.4 Inter, system-ui, sans-serif;
}
.echo-panel h3 {
  margin: 0 0 4px; font-size: 13px; font-weight: 500; color: #b9c8ea; display: flex; gap: 6px; align-items: baseline;
}
.echo-panel h3 b { color: #fff; font-size: 15px; }
.echo-panel p { margin: 2px 0; }
.echo-panel [hidden] { display: none !important; }
.echo-panel .badge {
  flex: none; display: flex; justify-content: space-between; gap: 8px; padding: 3px 10px; background: #5b3a00;
  color: #ffe2ad; font-size: 11px;
}
.echo-panel .badge span { white-space: nowrap; opacity: .9; }
.echo-panel nav { flex: none; display: flex; border-bottom: 1px solid #2b3d63; }
.echo-panel nav button {
  flex: 1; border-radius: 0; background: none; padding: 4px; color: #b9c8ea; border-bottom: 2px solid transparent;
}
.echo-panel nav button[aria-selected=true] { color: #fff; border-bottom-color: #5acce6; }
.echo-panel .body { flex: 1; min-height: 0; overflow-y: auto; padding: 5px 10px; scrollbar-color: #33466f #0b1426; }
.echo-panel .foot { flex: none; padding: 5px 10px; border-top: 1px solid #2b3d63; background: #0e1a33; }
.echo-panel section { margin-bottom: 3px; }
.echo-panel h3 .bar { flex: 1; grid-template-columns: 0 1fr 34px; gap: 0 4px; }
.echo-panel .echo-row { display: flex; gap: 6px; margin: 3px 0; }
.echo-panel .echo-line { display: flex; gap: 8px; align-items: baseline; }
.echo-panel .echo-line b { flex: none; }
.echo-panel button {
  flex: 1 1 auto; border: 0; border-radius: 4px; padding: 3px 7px; background: #24395f; color: #eef3ff;
  font: inherit; cursor: pointer; white-space: nowrap;
}
.echo-panel button:hover:not(:disabled) { background: #34507f; }
.echo-panel button:focus-visible, .echo-panel select:focus-visible, .echo-panel input:focus-visible {
  outline: 2px solid #5acce6; outline-offset: 1px;
}
.echo-panel button:disabled { opacity: .45; cursor: default; }
.echo-panel button.primary { background: #2f62d9; color: #fff; font-weight: 600; }
.echo-panel button.primary:hover:not(:disabled) { background: #4277ee; }
.echo-panel button.danger { background: #a5303b; color: #fff; }
.echo-panel button.link, .echo-panel button.plain { flex: none; background: none; padding: 0 4px; color: #9fc1ff; }
.echo-panel button.link { margin-left: auto; text-decoration: underline; }
.echo-panel button.link:hover:not(:disabled) { color: #fff; }
.echo-panel button.draw { border-left: 5px solid var(--septum); }
.echo-panel button.draw[aria-pressed=true] { background: var(--septum); color: #08101f; font-weight: 600; }
.echo-panel button[aria-pressed=true]:not(.draw) { box-shadow: inset 0 -2px #5acce6; }
.echo-panel kbd {
  margin-left: 6px; padding: 0 4px; border: 1px solid currentColor; border-radius: 3px;
  font: 10px/1.3 ui-monospace, monospace;
}
.echo-panel select, .echo-panel input:not([type=checkbox]) {
  min-width: 0; padding: 2px 6px; border: 1px solid #3b5080; border-radius: 4px; background: #101d38; color: #fff;
  font: inherit;
}
.echo-panel .hint { color: #b9c8ea; font-size: 11.5px; }
.echo-panel .number { font-variant-numeric: tabular-nums; color: #fff; }
.echo-panel .card {
  margin: 4px 0; padding: 5px 8px; border: 1px solid #2b3d63; border-radius: 5px; background: #101d38;
}
.echo-panel .doubt { padding: 3px 7px; border-left: 3px solid #ffb84d; background: #3a2a08; color: #ffe2ad; }
.echo-panel .bar {
  display: grid; grid-template-columns: 66px 1fr 34px auto; gap: 6px; align-items: center; font-size: 12px;
  color: #c6d3ef;
}
.echo-panel .bar.chosen { color: #fff; font-weight: 600; }
.echo-panel .bar .track { height: 8px; border-radius: 4px; background: #24324f; overflow: hidden; }
.echo-panel .bar .fill { display: block; height: 100%; background: #5c7fc9; }
.echo-panel .bar.chosen .fill { background: #5acce6; }
.echo-panel .bar .number { text-align: right; }
.echo-panel .bar .note { min-width: 30px; text-align: right; color: #b9c8ea; font-weight: 400; }
.echo-panel .beside { display: grid; grid-template-columns: 1fr auto; gap: 10px; }
.echo-panel figure { margin: 0; width: 68px; font-size: 10.5px; color: #b9c8ea; text-align: center; }
.echo-panel figure img {
  width: 68px; height: 68px; object-fit: contain; background: #000; border-radius: 3px; display: block;
}
.echo-panel figure.wide { width: 100%; margin-top: 4px; }
.echo-panel figure.wide :is(button, img) { width: 100%; height: auto; }
.echo-panel button.picture { padding: 0; background: none; }
.echo-panel .cases { display: grid; grid-template-columns: repeat(5, 1fr); gap: 5px; }
.echo-panel .case { display: block; color: #cfe0ff; font-size: 10.5px; line-height: 1.2; text-align: center; }
.echo-panel .case img, .echo-panel .missing {
  width: 100%; height: 46px; object-fit: contain; background: #000; border-radius: 3px; display: block;
  color: #b9c8ea;
}
.echo-panel a.case:hover { text-decoration: underline; }
.echo-panel .strip { display: flex; height: 24px; gap: 1px; padding: 2px 0; overflow: hidden; }
.echo-panel .strip button { flex: 1 1 0; min-width: 1px; padding: 0; border-radius: 2px; position: relative; }
.echo-panel .strip button[aria-selected=true] { outline: 2px solid #fff; z-index: 1; }
.echo-panel .strip .empty {
  background: #24324f linear-gradient(45deg, transparent 44%, #fff 44% 56%, transparent 56%) !important;
}
.echo-panel .strip .worth::after {
  content: ''; position: absolute; left: 50%; bottom: 1px; width: 4px; height: 4px; margin-left: -2px;
  border-radius: 2px; background: #fff; box-shadow: 0 0 2px #000;
}
.echo-panel .boxes { list-style: none; margin: 2px 0; padding: 0; }
.echo-panel .boxes li {
  display: flex; gap: 8px; align-items: center; margin: 2px 0; padding-left: 7px;
  border-left: 4px solid var(--septum);
}
.echo-panel .boxes li.model { border-left-style: dashed; }
.echo-panel .boxes select { flex: 1; }
.echo-panel .boxes .by { width: 72px; color: #b9c8ea; font-size: 12px; }
.echo-panel .cine-choices { display: flex; gap: 8px; align-items: center; }
.echo-panel .cine-choices label {
  display: flex; flex: 1; gap: 5px; align-items: center; font-size: 11.5px; color: #b9c8ea;
}
.echo-panel .cine-choices label select { flex: 1; width: 0; }
.echo-panel .cine-choices label input[type=number] { flex: 1; width: 0; color-scheme: dark; }
.echo-panel .cine-choices + .cine-choices { margin-top: 3px; }
.echo-panel .cine-choices label.check { flex: none; gap: 4px; }
.echo-panel label.echo-inline { display: flex; gap: 5px; align-items: center; color: #b9c8ea; }
.echo-panel label.echo-inline input { width: 62px; }
.echo-panel input::placeholder { color: #b9c8ea; opacity: 1; }
.echo-panel .why { padding: 5px 8px; border-left: 3px solid #5acce6; background: #10283a; }
.echo-panel .why button { flex: none; padding: 0 6px; margin: 2px 3px 0 0; }
.echo-panel .message { margin: 0; padding: 5px 10px; background: #12381f; color: #c9f7d4; }
.echo-panel .message.bad { background: #54151c; color: #ffd9dc; }
.echo-panel .message.note { background: #1c3157; color: #dce8ff; }
.echo-panel .conflict { padding: 8px; border: 2px solid #ffb84d; border-radius: 5px; background: #2a2108; }
.echo-panel .conflict h3 { color: #ffe2ad; }
.echo-panel .versions { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; font-size: 12px; }
.echo-panel progress { width: 100%; height: 8px; accent-color: #5acce6; }
.echo-panel .curve { width: 100%; }
.echo-panel .curve line { stroke: #5c6f98; }
.echo-panel .curve .faint { stroke: #33466f; stroke-dasharray: 3 3; }
.echo-panel .curve polyline { fill: none; stroke: #5acce6; stroke-width: 2; }
.echo-panel .curve text { fill: #fff; font-size: 11px; }
.echo-panel .suspects { list-style: none; padding: 0; margin: 4px 0; }
.echo-panel .suspects li {
  display: grid; grid-template-columns: 60px 1fr auto; gap: 8px; align-items: center; padding: 4px 0;
  border-top: 1px solid #2b3d63; font-size: 12px;
}
.echo-panel .suspects img { width: 60px; height: 46px; object-fit: contain; background: #000; }
.echo-panel .card { position: relative; }
.echo-panel button.fold { position: absolute; right: 6px; bottom: 3px; }
`;

/** Put the style into the page once. */
export function addStyle() {
  if (document.getElementById('echo-style')) return;
  const style = document.createElement('style');
  style.id = 'echo-style';
  style.textContent = CSS;
  document.head.append(style);
}
