// SPDX-License-Identifier: Apache-2.0
// Plain DOM: elements from code, text never parsed as HTML.

/** Return an element: `h('button', { class: 'primary', onclick: save }, 'Submit')`. Null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const svg = ['svg', 'polyline', 'line', 'text'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Return a section that is drawn anew only when what it shows has changed, so that a playing cine costs nothing. */
export function section(pick, draw, attributes = {}) {
  const node = h('section', attributes);
  let shown = null;
  return {
    node,
    update(state) {
      const picked = pick(state);
      const key = JSON.stringify(picked);
      if (key === shown) return;
      shown = key;
      node.replaceChildren(...[draw(picked)].flat().filter(Boolean));
      node.hidden = node.childNodes.length === 0;
    },
  };
}

/** Return a button with its key shown and its purpose as tooltip. */
export function button(text, onclick, { key = null, title = '', ...attributes } = {}) {
  const hint = key ? `${title || text} (key ${key})` : title;
  return h('button', { type: 'button', title: hint, onclick, ...attributes }, text, key ? h('kbd', {}, key) : null);
}

/** Return a select of `values`; `labels` gives the words shown where they differ. */
export function choice(values, chosen, onchange, { labels = {}, ...attributes } = {}) {
  const options = values.map((value) =>
    h('option', { value, selected: value === chosen }, labels[value] ?? value),
  );
  return h('select', { onchange: (event) => onchange(event.target.value), ...attributes }, options);
}
