// SPDX-License-Identifier: Apache-2.0
// The drawing tool: cornerstone's rectangle, styled by septum and by who drew it.
// A tool of its own, so that OHIF neither lists our boxes as measurements nor asks to track them.

import { boxLabel, MODEL, OTHER_READER, SEPTA } from './words.js';

export const BOX_TOOL = 'EchoBox';
const TOOL_GROUP = 'default';
const DASHES = { [MODEL]: '6,4', [OTHER_READER]: '2,3' };
const LABEL_HEIGHT_PX = 17;

export function cornerstoneOf({ extensionManager }) {
  const entry = extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.common');
  return entry.exports.getCornerstoneLibraries();
}

/** Return the tool class; what it draws is in `annotation.data.echo`: septum, by, score, author, uid. */
function boxToolClass({ RectangleROITool, drawing }) {
  class EchoBoxTool extends RectangleROITool {
    static toolName = BOX_TOOL;

    constructor(toolProps = {}) {
      super(toolProps, {
        supportedInteractionTypes: ['Mouse', 'Touch'],
        configuration: {
          shadow: true,
          calculateStats: false,
          preventHandleOutsideImage: false,
          getTextLines: (data) => [boxLabel(data.echo ?? { septum: 'unspecified' })],
        },
      });
    }

    getAnnotationStyle({ annotation }) {
      const { septum, by } = annotation.data.echo ?? { septum: 'unspecified' };
      const { colour } = SEPTA[septum] ?? SEPTA.unspecified;
      const active = annotation.highlighted || annotation.isSelected;
      return {
        visibility: true, locked: false, color: colour, lineDash: DASHES[by] ?? '', lineWidth: active ? 3 : 2, shadow: true,
      };
    }

    /** Write the label above (or below) the box, without the movable text box and its line. */
    renderLinkedTextBoxAnnotation({ svgDrawingHelper, annotation, textLines, canvasCoordinates }) {
      const [xs, ys] = [canvasCoordinates.map(([x]) => x), canvasCoordinates.map(([, y]) => y)];
      const { color } = this.getAnnotationStyle({ annotation });
      const { by, isCompared } = annotation.data.echo ?? {};
      const isBelow = isCompared || by === OTHER_READER; // where the reader's own box may lie in the same place
      const place = [Math.min(...xs), isBelow ? Math.max(...ys) + 2 : Math.max(0, Math.min(...ys) - LABEL_HEIGHT_PX - 5)];
      drawing.drawTextBox(svgDrawingHelper, annotation.annotationUID, 'label', textLines, place, {
        color, background: 'rgba(0, 0, 0, 0.55)', fontFamily: 'sans-serif', fontSize: '13px', padding: 1, centering: { x: false, y: false },
      });
      delete annotation.data.handles.textBox; // nothing to drag but the box
      return true;
    }
  }
  return EchoBoxTool;
}

/** Add the tool to the viewer and to the tool group of its stack viewports: editable, not yet drawing. */
export function addBoxTool(managers) {
  const { cornerstoneTools } = cornerstoneOf(managers);
  cornerstoneTools.addTool(boxToolClass(cornerstoneTools));
  const group = managers.servicesManager.services.toolGroupService.getToolGroup(TOOL_GROUP);
  group.addTool(BOX_TOOL);
  group.setToolPassive(BOX_TOOL);
}

/** Let the left mouse button draw boxes, or do what it did before. */
export function setDrawing(managers, isDrawing) {
  const { MouseBindings } = cornerstoneOf(managers).cornerstoneTools.Enums;
  const group = managers.servicesManager.services.toolGroupService.getToolGroup(TOOL_GROUP);
  if (!group) return;
  const current = group.getActivePrimaryMouseButtonTool();
  const next = isDrawing ? BOX_TOOL : 'WindowLevel';
  if (current === next) return;
  if (!isDrawing && current !== BOX_TOOL) return; // another tool was chosen meanwhile
  if (current) group.setToolPassive(current);
  group.setToolActive(next, { bindings: [{ mouseButton: MouseBindings.Primary }] });
}
