// SPDX-License-Identifier: Apache-2.0
// What the reader can do to the draft of the open cine: with the mouse in the picture, by a button or by a key.

import {
  acceptAll,
  acceptFrame,
  boxesOn,
  copyFrame,
  interpolate,
  isAnnotated,
  keyFrames,
  withFrame,
  withoutFrame,
} from './annotation.js';
import { boxesAfterEdit, isOnlyShown, isTiny, setDrawing } from './boxes.js';
import { changeDraft, mayChange, newDraft } from './draft.js';
import { frameList, MODEL, PERSON } from './words.js';

const PREDICT_FIRST = 'Predict this cine first; then its boxes can be accepted.';

function edit(session, change) {
  if (!mayChange(session)) return;
  changeDraft(session, change(session.state.draft.now));
  session.draw();
}

/** Draw boxes of a septum with the left mouse button; the same septum again, or null, stops it. */
export function draw(session, septum) {
  const drawing = septum === session.state.drawing ? null : septum;
  if (drawing !== null && !mayChange(session)) return;
  setDrawing(session.managers, drawing !== null);
  session.viewer.play(false);
  session.set({ drawing });
}

/** A person has 'drawn', 'moved' or 'deleted' (`kind`) a box in the picture: the boxes of its frame are theirs now. */
export function editInPicture(session, annotation, kind) {
  const { picture, state } = session;
  const { imageId, draft, drawing } = state;
  const { echo } = annotation.data;
  if (kind === 'moved' && !echo) return; // being drawn
  if (!draft) {
    if (kind !== 'drawn') return;
    mayChange(session);
    queueMicrotask(() => session.state.draft || picture.write(imageId, [])); // it is taken away
    return;
  }
  if (kind === 'drawn') {
    annotation.data.echo = { septum: drawing ?? 'unspecified', by: PERSON, score: null, author: null };
  }
  const edited = picture.toBox(annotation);
  if ((echo && isOnlyShown(echo)) || (kind === 'drawn' && isTiny(edited))) {
    queueMicrotask(() => session.draw()); // it is put back, or taken away
    return;
  }
  const boxes = boxesAfterEdit(picture.read(imageId), edited, kind);
  changeDraft(session, withFrame(draft.now, edited.frame_index, boxes)); // the picture shows it already
  // Not now: cornerstone is still at work on this very annotation.
  if (echo?.by !== PERSON) queueMicrotask(() => session.draw());
}

/** Return the boxes of a frame as they are shown: the reader's, or the model's where nobody has looked. */
export function shownOn({ draft, prediction }, frameIndex) {
  const isMine = isMineOn(draft, frameIndex);
  const boxes = isMine ? boxesOn(draft.now, frameIndex) : boxesOn(prediction ?? { boxes: [] }, frameIndex);
  return boxes.map((box) => ({ ...box, by: isMine ? PERSON : MODEL }));
}

/** Whether the reader has said something of a frame. */
export const isMineOn = (draft, frameIndex) => Boolean(draft) && isAnnotated(draft.now, frameIndex);

function replaceFrame(session, boxes) {
  const plain = boxes.map(({ by, ...box }) => box);
  edit(session, (annotation) => withFrame(annotation, session.state.frameIndex, plain));
}

export function setSeptum(session, uid, septum) {
  const boxes = shownOn(session.state, session.state.frameIndex);
  replaceFrame(
    session,
    boxes.map((box) => (box.uid === uid ? { ...box, septum } : box)),
  );
}

export function deleteBox(session, uid) {
  replaceFrame(
    session,
    shownOn(session.state, session.state.frameIndex).filter((box) => box.uid !== uid),
  );
}

/** Say that the frame shows no septum. */
export const markEmpty = (session) => replaceFrame(session, []);

/** Take back all that was said of the frame. */
export const forgetFrame = (session) =>
  edit(session, (annotation) => withoutFrame(annotation, session.state.frameIndex));

export function accept(session) {
  const { prediction, frameIndex } = session.state;
  if (prediction) edit(session, (annotation) => acceptFrame(annotation, prediction, frameIndex));
  else session.say(PREDICT_FIRST, 'note');
}

export function acceptEverything(session) {
  const { prediction } = session.state;
  if (prediction) edit(session, (annotation) => acceptAll(annotation, prediction));
  else session.say(PREDICT_FIRST, 'note');
}

export function copyToNext(session) {
  if (!mayChange(session)) return;
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
  if (!mayChange(session)) return;
  const { draft, frameIndex } = session.state;
  const keys = keyFrames(draft.now, frameIndex);
  if (!keys) {
    session.say('Draw a box on two frames with others between them; then fill those.', 'note');
    return;
  }
  edit(session, (annotation) => interpolate(annotation, ...keys));
  const [from, to] = keys;
  session.say(`Filled ${frameList(Array.from({ length: to - from - 1 }, (_, place) => from + 1 + place))}.`);
}

export const setView = (session, view) => edit(session, (annotation) => ({ ...annotation, view: view || null }));

/** Set the defect; size and whether it is shown were said of the one before, and go with it. */
export const setDefect = (session, defect) =>
  edit(session, (annotation) => {
    if ((defect || null) === (annotation.defect ?? null)) return annotation;
    return { ...annotation, defect: defect || null, defect_size_mm: null, defect_visible: null };
  });

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

export const discard = (session) => {
  edit(session, () => newDraft(session.state.draft.base).now);
  session.say('Your changes are discarded.', 'note');
};
