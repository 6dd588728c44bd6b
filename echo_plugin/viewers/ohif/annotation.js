// SPDX-License-Identifier: Apache-2.0
// The annotation of a cine as the server keeps it, and its changes. Pure: each returns a new annotation.
// Pixels of the file, 0-based frames. A frame in `annotated_frames` without a box says "no septum here".
// `uid` of a box is the panel's own and is never sent.

/** The sides of a box: left, top, right, bottom. */
export const SIDES = ['x1', 'y1', 'x2', 'y2'];

const ascending = (frames) => [...new Set(frames)].sort((a, b) => a - b);

/** Return a random UUID of version 4. `crypto.randomUUID` is missing on plain http from another computer. */
export function newUid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

export const boxesOn = (annotation, frameIndex) => annotation.boxes.filter((box) => box.frame_index === frameIndex);
export const isAnnotated = (annotation, frameIndex) => annotation.annotated_frames.includes(frameIndex);

/** Return the annotation with a uid on each box. */
export const withUids = (annotation) => ({
  ...annotation,
  boxes: annotation.boxes.map((box) => ({ ...box, uid: box.uid ?? newUid() })),
});

/** Return a frame's boxes as exactly `boxes`: drawn by a person, so without score. The frame counts as looked at. */
export function withFrame(annotation, frameIndex, boxes) {
  const drawn = boxes.map((box) => ({ ...box, uid: box.uid ?? newUid(), frame_index: frameIndex, score: null }));
  return {
    ...annotation,
    annotated_frames: ascending([...annotation.annotated_frames, frameIndex]),
    boxes: [...annotation.boxes.filter((box) => box.frame_index !== frameIndex), ...drawn],
  };
}

/** Return the annotation as if nobody had looked at a frame. */
export const withoutFrame = (annotation, frameIndex) => ({
  ...annotation,
  annotated_frames: annotation.annotated_frames.filter((index) => index !== frameIndex),
  boxes: annotation.boxes.filter((box) => box.frame_index !== frameIndex),
});

const copies = (boxes) => boxes.map((box) => ({ ...box, uid: newUid() }));

/** Accept a prediction on a frame that nobody has annotated. */
export function acceptFrame(annotation, prediction, frameIndex) {
  if (isAnnotated(annotation, frameIndex)) return annotation;
  return withFrame(annotation, frameIndex, copies(boxesOn(prediction, frameIndex)));
}

/** Accept a prediction on every frame that nobody has annotated and on which it has a box. */
export function acceptAll(annotation, prediction) {
  const frames = ascending(prediction.boxes.map((box) => box.frame_index));
  return frames.reduce((changed, frameIndex) => acceptFrame(changed, prediction, frameIndex), annotation);
}

/** Copy the boxes of a frame to another one, in place of those of the same septa there. */
export function copyFrame(annotation, from, to) {
  const copied = copies(boxesOn(annotation, from));
  const septa = new Set(copied.map((box) => box.septum));
  return withFrame(annotation, to, [...boxesOn(annotation, to).filter((box) => !septa.has(box.septum)), ...copied]);
}

/** Return the two key frames between which the frame lies, or at whose end it is, with a gap to fill; else null. */
export function keyFrames(annotation, frameIndex) {
  const keys = ascending(annotation.boxes.map((box) => box.frame_index));
  const pairs = keys.slice(1).map((key, place) => [keys[place], key]);
  return pairs.find(([from, to]) => to - from > 1 && from <= frameIndex && frameIndex <= to) ?? null;
}

/** Fill the frames between two key frames, corner by corner, for the septa that both have. */
export function interpolate(annotation, from, to) {
  const last = new Map(boxesOn(annotation, to).map((box) => [box.septum, box]));
  const first = boxesOn(annotation, from).filter((box) => last.has(box.septum));
  let filled = annotation;
  for (let frameIndex = from + 1; frameIndex < to && first.length; frameIndex += 1) {
    const share = (frameIndex - from) / (to - from);
    const between = first.map((box) => {
      const { septum } = box;
      const place = SIDES.map((side) => [side, box[side] + share * (last.get(septum)[side] - box[side])]);
      return { ...Object.fromEntries(place), septum };
    });
    filled = withFrame(filled, frameIndex, between);
  }
  return filled;
}

function comparable({ boxes, annotated_frames, view, defect, defect_size_mm, defect_visible, unusable }) {
  const place = (box) => [box.frame_index, box.septum, ...SIDES.map((side) => box[side].toFixed(3))];
  return JSON.stringify([
    boxes.map((box) => place(box).join()).sort(),
    annotated_frames,
    view,
    defect,
    defect_size_mm ?? null,
    defect_visible ?? null,
    unusable ?? false,
  ]);
}

/** Whether two annotations say the same, whoever saved them. */
export const saysTheSame = (one, other) => comparable(one) === comparable(other);

/** Return the frames on which two annotations differ. */
export function differingFrames(one, other) {
  const frames = ascending([...one.annotated_frames, ...other.annotated_frames]);
  const only = (annotation, index) =>
    comparable({ boxes: boxesOn(annotation, index), annotated_frames: isAnnotated(annotation, index) ? [index] : [] });
  return frames.filter((index) => only(one, index) !== only(other, index));
}

/**
 * Return `mine` and `theirs` in one, both changed from `base`: what only one of them changed is taken from that one,
 * what both changed from mine.
 */
export function merge(base, mine, theirs) {
  const changedByMe = new Set(differingFrames(base, mine));
  let merged = { ...theirs };
  for (const frameIndex of changedByMe) {
    merged = isAnnotated(mine, frameIndex)
      ? withFrame(merged, frameIndex, boxesOn(mine, frameIndex))
      : withoutFrame(merged, frameIndex);
  }
  for (const field of ['view', 'defect', 'unusable']) {
    if (mine[field] !== base[field]) merged[field] = mine[field];
  }
  for (const field of ['defect_size_mm', 'defect_visible']) {
    // said of the defect that stands beside them
    const isMine = mine.defect === theirs.defect ? mine[field] !== base[field] : merged.defect === mine.defect;
    if (isMine) merged[field] = mine[field];
  }
  return merged;
}

/** Return what is sent: the schema's fields only. */
export const toDocument = (annotation, reader) => ({
  ...annotation,
  author: reader,
  boxes: annotation.boxes.map(({ uid, ...box }) => box),
});
