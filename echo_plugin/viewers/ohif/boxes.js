// SPDX-License-Identifier: Apache-2.0
// Boxes in the picture: cornerstone annotations made from boxes in pixels of the file, and read back to them.
// The one place where pixels and cornerstone's world coordinates meet. Cornerstone's image coordinates, like ours,
// have their origin at the outer corner of the first pixel.

import { BOX_TOOL } from './box-tool.js';
import { parseImageId } from './viewer.js';
import { OTHER_READER, PERSON } from './words.js';

const CORNERS = (box) => [[box.x1, box.y1], [box.x2, box.y1], [box.x1, box.y2], [box.x2, box.y2]];

export class PictureBoxes {
  constructor(viewer) {
    this.viewer = viewer;
    this.state = viewer.cornerstoneTools.annotation.state;
    this.isWriting = false;
  }

  /** Return our annotations of a cine. */
  annotationsOf(imageId) {
    return this.state.getAllAnnotations().filter(
      (one) => one.metadata.toolName === BOX_TOOL && parseImageId(one.metadata.referencedImageId)?.imageId === imageId,
    );
  }

  /** Return the boxes of a cine as they are in the picture: `{ uid, frame_index, x1, y1, x2, y2, septum, by, score }`. */
  read(imageId) {
    return this.annotationsOf(imageId).filter((one) => one.data.echo).map((one) => this.toBox(one));
  }

  toBox({ annotationUID, data, metadata }) {
    const { worldToImageCoords } = this.viewer.cornerstone.utilities;
    const corners = data.handles.points.map((point) => worldToImageCoords(metadata.referencedImageId, point));
    const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
    return {
      uid: annotationUID,
      frame_index: parseImageId(metadata.referencedImageId).frameIndex,
      x1: Math.min(...xs), y1: Math.min(...ys), x2: Math.max(...xs), y2: Math.max(...ys),
      ...data.echo,
    };
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
    const points = CORNERS(box).map((corner) => Array.from(imageToWorldCoords(referencedImageId, corner)));
    const echo = {
      septum: box.septum, by: box.by ?? PERSON, score: box.score ?? null, author: box.author ?? null,
      isCompared: box.isCompared ?? false,
    };
    if (present) {
      present.data.handles.points = points;
      present.data.echo = echo;
      return;
    }
    const { viewPlaneNormal, viewUp } = viewport.getCamera();
    const annotation = {
      annotationUID: box.uid,
      highlighted: false, isLocked: echo.isCompared || echo.by === OTHER_READER, isVisible: true, invalidated: false,
      data: { label: '', echo, cachedStats: {}, handles: { points, activeHandleIndex: null } },
      metadata: {
        toolName: BOX_TOOL, referencedImageId, FrameOfReferenceUID: viewport.getFrameOfReferenceUID(),
        viewPlaneNormal: [...viewPlaneNormal], viewUp: [...viewUp],
      },
    };
    this.state.addAnnotation(annotation, viewport.element);
  }

  /**
   * Call `onEdit(annotation, kind)` when a person drew, moved or deleted a box; return what ends it.
   * kind: 'drawn', 'moved', 'deleted'.
   */
  watch(onEdit) {
    const { eventTarget } = this.viewer.cornerstone;
    const { Events } = this.viewer.cornerstoneTools.Enums;
    const kinds = [[Events.ANNOTATION_COMPLETED, 'drawn'], [Events.ANNOTATION_MODIFIED, 'moved'], [Events.ANNOTATION_REMOVED, 'deleted']];
    const listeners = kinds.map(([event, kind]) => {
      const listener = ({ detail: { annotation } }) => {
        if (!this.isWriting && annotation?.metadata?.toolName === BOX_TOOL) onEdit(annotation, kind);
      };
      eventTarget.addEventListener(event, listener);
      return [event, listener];
    });
    return () => listeners.forEach(([event, listener]) => eventTarget.removeEventListener(event, listener));
  }
}
