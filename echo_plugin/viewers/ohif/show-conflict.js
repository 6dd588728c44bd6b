// SPDX-License-Identifier: Apache-2.0
// Somebody saved meanwhile: both versions, and what can become of them. Nothing is lost by any choice.

import { differingFrames } from './annotation.js';
import { button, h } from './dom.js';
import { settle } from './tasks.js';
import { clock, defectWords, frameList } from './words.js';

function summary(title, annotation) {
  const { boxes, annotated_frames: frames, view, defect } = annotation;
  const said = [`${boxes.length} boxes`, frames.length ? frameList(frames) : 'no frame', view && `view ${view}`, defect && `defect ${defectWords(annotation)}`];
  return h('div', {}, h('b', {}, title), h('br'), said.filter(Boolean).join(', '));
}

export function conflictCard({ mine, theirs }, session) {
  if (!theirs) return null;
  const frames = differingFrames(mine, theirs);
  const who = theirs.author ?? 'Another reader';
  return h('div', { class: 'conflict', role: 'alertdialog', 'aria-label': 'Conflict', 'data-echo': 'conflict' },
    h('h3', {}, `${who} saved revision ${theirs.revision} at ${clock(theirs.saved_at)}, while you were at work`),
    h('div', { class: 'versions' }, summary('Yours (solid)', mine), summary(`${who} (dotted)`, theirs)),
    h('p', {}, frames.length ? `They differ on ${frameList(frames)}.` : 'They differ in what they say of the cine.'),
    h('div', { class: 'echo-row' },
      button('Keep both', () => settle(session, 'both'), { class: 'primary', title: 'Join them; where both changed a frame, yours is taken', 'data-echo': 'keep-both' }),
      button('Keep mine', () => settle(session, 'mine'), { title: 'Theirs stays in the history', 'data-echo': 'keep-mine' }),
      button('Take theirs', () => settle(session, 'theirs'), { title: 'Yours is set aside and can be brought back', 'data-echo': 'take-theirs' })));
}
