// SPDX-License-Identifier: Apache-2.0
// What the reader can do to the draft of the open cine. Each is one button and, most of them, one key.

import {
  acceptAll, acceptFrame, boxesOn, copyFrame, interpolate, isAnnotated, keyFrames, withFrame, withoutFrame,
} from './annotation.js';
import { setDrawing } from './box-tool.js';
import { newDraft } from './draft.js';
import { frameList, MODEL, PERSON } from './words.js';

function edit(session, change) {
  if (session.mayChange()) session.change(change(session.state.draft.now));
}

/** Draw boxes of a septum with the left mouse button; the same septum again, or null, stops it. */
export function draw(session, septum) {
  const drawing = septum === session.state.drawing ? null : septum;
  if (drawing !== null && !session.mayChange()) return;
  setDrawing(session.managers, drawing !== null);
  session.viewer.play(false);
  session.set({ drawing });
}

/** Return the boxes of a frame as they are shown: the reader's, or the model's where nobody has looked. */
export function shownOn({ draft, prediction }, frameIndex) {
  if (draft && isAnnotated(draft.now, frameIndex)) {
    return boxesOn(draft.now, frameIndex).map((box) => ({ ...box, by: PERSON }));
  }
  return boxesOn(prediction ?? { boxes: [] }, frameIndex).map((box) => ({ ...box, by: MODEL }));
}

function replaceFrame(session, boxes) {
  const plain = boxes.map(({ by, ...box }) => box);
  edit(session, (annotation) => withFrame(annotation, session.state.frameIndex, plain));
}

export function setSeptum(session, uid, septum) {
  const boxes = shownOn(session.state, session.state.frameIndex);
  replaceFrame(session, boxes.map((box) => (box.uid === uid ? { ...box, septum } : box)));
}

export function deleteBox(session, uid) {
  replaceFrame(session, shownOn(session.state, session.state.frameIndex).filter((box) => box.uid !== uid));
}

/** Say that the frame shows no septum. */
export const markEmpty = (session) => replaceFrame(session, []);

/** Take back all that was said of the frame. */
export const forgetFrame = (session) =>
  edit(session, (annotation) => withoutFrame(annotation, session.state.frameIndex));

export function accept(session) {
  const { prediction, frameIndex } = session.state;
  if (prediction) edit(session, (annotation) => acceptFrame(annotation, prediction, frameIndex));
  else session.say('Predict this cine first; then its boxes can be accepted.', 'note');
}

export function acceptEverything(session) {
  const { prediction } = session.state;
  if (prediction) edit(session, (annotation) => acceptAll(annotation, prediction));
  else session.say('Predict this cine first; then its boxes can be accepted.', 'note');
}

export function copyToNext(session) {
  if (!session.mayChange()) return;
  const { frameIndex, frames } = session.state;
  if (!shownOn(session.state, frameIndex).length) {
    session.say('This frame has no box to copy.', 'note');
  } else if (frameIndex + 1 >= frames) {
    session.say('This is the last frame.', 'note');
  } else {
    if (session.state.prediction) accept(session);
    edit(session, (annotation) => copyFrame(annotation, frameIndex, frameIndex + 1));
    session.viewer.goTo(frameIndex + 1);
  }
}

export function fillBetween(session) {
  if (!session.mayChange()) return;
  const { draft, frameIndex } = session.state;
  const keys = keyFrames(draft.now, frameIndex);
  if (!keys) {
    session.say('Draw a box on two frames with others between them; then fill those.', 'note');
    return;
  }
  edit(session, (annotation) => interpolate(annotation, ...keys));
  session.say(`Filled ${frameList(Array.from({ length: keys[1] - keys[0] - 1 }, (_, place) => keys[0] + 1 + place))}.`);
}

export const setView = (session, view) => edit(session, (annotation) => ({ ...annotation, view: view || null }));

/** Set the defect; size and whether it is shown were said of the one before, and go with it. */
export const setDefect = (session, defect) => edit(session, (annotation) =>
  (defect || null) === (annotation.defect ?? null) ? annotation
    : { ...annotation, defect: defect || null, defect_size_mm: null, defect_visible: null });

/** Say whether this cine shows the defect: 'yes', 'no' or, for not said, ''. */
export const setVisible = (session, seen) =>
  edit(session, (annotation) => ({ ...annotation, defect_visible: seen === '' ? null : seen === 'yes' }));

/** Take the size of the defect from an input of mm; empty: not measured. */
export function setSize(session, input) {
  const size = input.value === '' ? null : Number(input.value);
  if (input.validity.badInput || (size !== null && !(size > 0))) {
    session.say('The size of a defect is a positive number of millimetres.', 'note');
  } else edit(session, (annotation) => ({ ...annotation, defect_size_mm: size }));
  input.value = session.state.draft.now.defect_size_mm ?? '';
}

export const setUnusable = (session, isUnusable) =>
  edit(session, (annotation) => ({ ...annotation, unusable: isUnusable }));

/** Show the model's boxes on the reader's frames too, or not. */
export function compare(session) {
  session.set({ isComparing: !session.state.isComparing });
  session.draw();
}

export function discard(session) {
  session.change(newDraft(session.state.draft.base).now);
  session.say('Your changes are discarded.', 'note');
}
