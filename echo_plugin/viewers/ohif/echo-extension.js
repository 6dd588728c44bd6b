// SPDX-License-Identifier: Apache-2.0
// The extension "Echo AI" that OHIF loads at run time: one panel. No build step; OHIF's React draws one empty element
// and the panel fills it.

import { mountPanel } from './panel.js';

export const EXTENSION_ID = '@echo/extension-ai';
export const PANEL_NAME = 'echo';

let mounted = null;

/** Return a React element (React 18's form) whose node is handed to `ref`, null when it goes. */
function reactElement(type, ref, props) {
  return { $$typeof: Symbol.for('react.element'), type, key: null, ref, props, _owner: null, _store: {} };
}

function panelOf(managers) {
  const ref = (node) => {
    if (node && mounted?.node !== node) {
      mounted?.panel.end();
      mounted = { node, panel: mountPanel(node, managers) };
    } else if (!node && mounted && !mounted.node.isConnected) {
      mounted.panel.end();
      mounted = null;
    }
  };
  return () => reactElement('div', ref, { style: { height: '100%' } });
}

export default {
  id: EXTENSION_ID,
  getPanelModule: (managers) => [
    { name: PANEL_NAME, iconName: 'tool-rectangle', iconLabel: 'Echo AI', label: 'Echo AI', component: panelOf(managers) },
  ],
};
