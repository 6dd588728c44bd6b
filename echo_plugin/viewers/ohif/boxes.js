// SPDX-License-Identifier: Apache-2.0
// Boxes in the picture: which are shown, cornerstone's annotations made from them and read back, the tool that draws.
// The one place where pixels and cornerstone's world coordinates meet. Cornerstone's image coordinates, like ours,
// have their origin at the outer corner of the first pixel.

import { isAnnotated, SIDES } from './annotation.js';
import { cornerstoneOf, parseImageId } from './viewer.js';
import { boxLabel, MODEL, OTHER_READER, PERSON, SEPTA } from './words.js';

const BOX_TOOL = 'EchoBox';
const TOOL_GROUP = 'default';
const DASHES = { [MODEL]: '6,4', [OTHER_READER]: '2,3' };
const LABEL_HEIGHT_PX = 17;
const SMALLEST_BOX_PX = 2;
const NOT_NAMED = { septum: 'unspecified', by: PERSON, score: null, author: null };

const isSamePlace = (one, other) =>
  one.frame_index === other.frame_index &&
  one.septum === other.septum &&
  SIDES.every((side) => Math.abs(one[side] - other[side]) < 1);

/** Return what the picture shows: the boxes of the reader, the model and, in a conflict, the other reader. */
export function boxesInPicture({ draft, prediction, conflict, isComparing }) {
  const mine = draft.now.boxes.map((box) => ({ ...box, by: PERSON }));
  const models = [];
  for (const box of prediction?.boxes ?? []) {
    if (!isAnnotated(draft.now, box.frame_index)) models.push({ ...box, by: MODEL });
    else if (isComparing && !mine.some((one) => isSamePlace(one, box))) {
      models.push({ ...box, by: MODEL, uid: `${box.uid}-compared`, isCompared: true });
    }
  }
  const theirs = (conflict?.boxes ?? []).map((box) => ({ ...box, by: OTHER_READER, author: conflict.author }));
  return [...mine, ...models, ...theirs];
}

/** Whether a box only shows what the reader did not say: it is neither moved nor deleted, nor becomes theirs. */
export const isOnlyShown = ({ by, isCompared }) => by === OTHER_READER || Boolean(isCompared);

/** Whether a box is too small to be meant. */
export const isTiny = ({ x1, y1, x2, y2 }) => x2 - x1 < SMALLEST_BOX_PX || y2 - y1 < SMALLEST_BOX_PX;

/**
 * Return the boxes of a frame once a person has drawn, moved or deleted (`kind`) the box `edited` among those in the
 * picture. What the model had said there stays beside it, else the frame would teach that the wall which nobody touched
 * is not there; only a drawn box takes the place of the model's of its septum.
 */
export function boxesAfterEdit(inPicture, edited, kind) {
  const others = inPicture.filter((box) => {
    const isReplaced = kind === 'drawn' && box.by === MODEL && box.septum === edited.septum;
    return box.frame_index === edited.frame_index && box.uid !== edited.uid && !isOnlyShown(box) && !isReplaced;
  });
  return (kind === 'deleted' ? others : [...others, edited]).map(({ by, author, isCompared, ...box }) => box);
}

/** The boxes as cornerstone keeps them: an annotation's `data.echo` has septum, by, score, author, isCompared. */
export class PictureBoxes {
  constructor(viewer) {
    this.viewer = viewer;
    this.state = viewer.cornerstoneTools.annotation.state;
    this.isWriting = false;
  }

  /** Return our annotations of a cine. */
  annotationsOf(imageId) {
    const isOurs = ({ toolName, referencedImageId }) =>
      toolName === BOX_TOOL && parseImageId(referencedImageId)?.imageId === imageId;
    return this.state.getAllAnnotations().filter(({ metadata }) => isOurs(metadata));
  }

  /** Return the boxes of a cine in the picture: `{ uid, frame_index, x1, y1, x2, y2, septum, by, score, author }`. */
  read(imageId) {
    return this.annotationsOf(imageId)
      .filter(({ data }) => data.echo)
      .map((one) => this.toBox(one));
  }

  toBox({ annotationUID, data, metadata }) {
    const { worldToImageCoords } = this.viewer.cornerstone.utilities;
    const corners = data.handles.points.map((point) => worldToImageCoords(metadata.referencedImageId, point));
    const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
    const [x1, y1, x2, y2] = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    const { frameIndex } = parseImageId(metadata.referencedImageId);
    return { uid: annotationUID, frame_index: frameIndex, x1, y1, x2, y2, ...data.echo };
  }

  /** Show exactly these boxes of a cine; one that is there already, by uid, is moved and not made anew. */
  write(imageId, boxes) {
    const viewport = this.viewer.viewport();
    if (!viewport) return;
    this.isWriting = true;
    try {
      const wanted = new Set(boxes.map((box) => box.uid));
      const present = new Map(this.annotationsOf(imageId).map((one) => [one.annotationUID, one]));
      for (const uid of present.keys()) if (!wanted.has(uid)) this.state.removeAnnotation(uid);
      const frames = this.viewer.frameImageIds(viewport, imageId);
      for (const box of boxes) this.put(viewport, frames[box.frame_index], box, present.get(box.uid));
    } finally {
      this.isWriting = false;
    }
    viewport.render();
    this.viewer.cornerstoneTools.utilities.triggerAnnotationRenderForViewportIds([viewport.id]);
  }

  put(viewport, referencedImageId, box, present) {
    if (!referencedImageId) return;
    const { imageToWorldCoords } = this.viewer.cornerstone.utilities;
    const { x1, y1, x2, y2, septum, by = PERSON, score = null, author = null, isCompared = false } = box;
    const corners = [
      [x1, y1],
      [x2, y1],
      [x1, y2],
      [x2, y2],
    ];
    const points = corners.map((corner) => Array.from(imageToWorldCoords(referencedImageId, corner)));
    const echo = { septum, by, score, author, isCompared };
    if (present) {
      present.data.handles.points = points;
      present.data.echo = echo;
      return;
    }
    const { viewPlaneNormal, viewUp } = viewport.getCamera();
    const annotation = {
      annotationUID: box.uid,
      highlighted: false,
      isLocked: isOnlyShown(echo),
      isVisible: true,
      invalidated: false,
      data: { label: '', echo, cachedStats: {}, handles: { points, activeHandleIndex: null } },
      metadata: {
        toolName: BOX_TOOL,
        referencedImageId,
        FrameOfReferenceUID: viewport.getFrameOfReferenceUID(),
        viewPlaneNormal: [...viewPlaneNormal],
        viewUp: [...viewUp],
      },
    };
    this.state.addAnnotation(annotation, viewport.element);
  }

  /** Call `onEdit(annotation, kind)` when a person has 'drawn', 'moved' or 'deleted' a box; return what ends it. */
  watch(onEdit) {
    const { eventTarget } = this.viewer.cornerstone;
    const { Events } = this.viewer.cornerstoneTools.Enums;
    const kinds = {
      [Events.ANNOTATION_COMPLETED]: 'drawn',
      [Events.ANNOTATION_MODIFIED]: 'moved',
      [Events.ANNOTATION_REMOVED]: 'deleted',
    };
    const listener = ({ type, detail: { annotation } }) => {
      if (!this.isWriting && annotation?.metadata?.toolName === BOX_TOOL) onEdit(annotation, kinds[type]);
    };
    Object.keys(kinds).forEach((event) => eventTarget.addEventListener(event, listener));
    return () => Object.keys(kinds).forEach((event) => eventTarget.removeEventListener(event, listener));
  }
}

/** Return the tool class: cornerstone's rectangle, styled by septum and by who drew it. */
function boxToolClass({ RectangleROITool, drawing }) {
  // A tool of its own, so that OHIF neither lists our boxes as measurements nor asks to track them.
  class EchoBoxTool extends RectangleROITool {
    static toolName = BOX_TOOL;

    constructor(toolProps = {}) {
      super(toolProps, {
        supportedInteractionTypes: ['Mouse', 'Touch'],
        configuration: {
          shadow: true,
          calculateStats: false,
          preventHandleOutsideImage: false,
          getTextLines: ({ echo }) => [boxLabel(echo ?? NOT_NAMED)],
        },
      });
    }

    getAnnotationStyle({ annotation }) {
      const { septum, by } = annotation.data.echo ?? NOT_NAMED;
      const { colour } = SEPTA[septum] ?? SEPTA.unspecified;
      const lineWidth = annotation.highlighted || annotation.isSelected ? 3 : 2;
      return { visibility: true, locked: false, color: colour, lineDash: DASHES[by] ?? '', lineWidth, shadow: true };
    }

    /** Write the label above (or below) the box, without the movable text box and its line. */
    renderLinkedTextBoxAnnotation({ svgDrawingHelper, annotation, textLines, canvasCoordinates }) {
      const [xs, ys] = [canvasCoordinates.map(([x]) => x), canvasCoordinates.map(([, y]) => y)];
      const isBelow = isOnlyShown(annotation.data.echo ?? NOT_NAMED); // the reader's own box may lie in the same place
      const top = isBelow ? Math.max(...ys) + 2 : Math.max(0, Math.min(...ys) - LABEL_HEIGHT_PX - 5);
      drawing.drawTextBox(svgDrawingHelper, annotation.annotationUID, 'label', textLines, [Math.min(...xs), top], {
        color: this.getAnnotationStyle({ annotation }).color,
        background: 'rgba(0, 0, 0, 0.55)',
        fontFamily: 'sans-serif',
        fontSize: '13px',
        padding: 1,
        centering: { x: false, y: false },
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
