// SPDX-License-Identifier: Apache-2.0
// The mode "Echo AI": OHIF's basic mode (stack viewport, cine playback) for ultrasound, with our panel open.

import { addBoxTool } from './boxes.js';
import { EXTENSION_ID, PANEL_NAME } from './panel.js';

const PANEL = `${EXTENSION_ID}.panelModule.${PANEL_NAME}`;
const PANEL_WIDTH_PX = 356;
const THUMBNAILS_WIDTH_PX = 220;

/** Return the basic mode's layout with our panel, open, on the right. */
function layoutOf(route) {
  const { id, props } = route.layoutInstance;
  return {
    id,
    props: {
      ...props,
      leftPanelInitialExpandedWidth: THUMBNAILS_WIDTH_PX,
      rightPanels: [PANEL, ...props.rightPanels.filter((panel) => panel.includes('easurement'))],
      rightPanelClosed: false,
      rightPanelInitialExpandedWidth: PANEL_WIDTH_PX,
      rightPanelMinimumExpandedWidth: PANEL_WIDTH_PX,
    },
  };
}

async function modeFactory({ loadModules }) {
  const [basic] = await loadModules(['@ohif/mode-basic']);
  const mode = basic.modeFactory({});
  const [route] = mode.routes;
  return {
    ...mode,
    id: '@echo/mode-ai',
    routeName: 'echo',
    displayName: 'Echo AI',
    hide: false,
    isValidMode: ({ modalities }) => ({
      valid: modalities.split('\\').includes('US'),
      description: 'Echo AI reads ultrasound only',
    }),
    routes: [{ ...route, path: 'echo', layoutTemplate: () => layoutOf(route) }],
    extensions: { ...mode.extensions, [new URL('./panel.js', import.meta.url).href]: '^1.0.0' },
    onModeEnter(managers) {
      mode.onModeEnter.call(this, managers);
      addBoxTool(managers);
    },
  };
}

export default { id: '@echo/mode-ai', modeFactory };
