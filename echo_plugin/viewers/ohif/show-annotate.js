// SPDX-License-Identifier: Apache-2.0
// The tools of annotation: draw, the boxes of the frame, what is said of the cine.

import { isAnnotated } from './annotation.js';
import { button, choice, h } from './dom.js';
import * as editing from './editing.js';
import { isChanged } from './draft.js';
import { MODEL, SEPTA } from './words.js';

const NOT_SAID = 'not said';
const IN_PICTURE = { '': NOT_SAID, yes: 'yes', no: 'no' };

export function drawButtons({ drawing }, session) {
  const draw = ['interatrial', 'interventricular'].map((septum, place) =>
    button(`Draw ${SEPTA[septum].short}`, () => editing.draw(session, septum), {
      key: String(place + 1), title: `Draw a box on the ${SEPTA[septum].name.toLowerCase()}`, class: 'draw',
      style: `--septum:${SEPTA[septum].colour}`, 'aria-pressed': drawing === septum ? 'true' : 'false', 'data-echo': `draw-${septum}`,
    }));
  return h('div', { class: 'echo-row' }, draw);
}

export function frameTools({ hasPrediction, isComparing }, session) {
  const act = (action) => () => action(session);
  return [
    h('div', { class: 'echo-row' },
      button('Accept', act(editing.accept), { key: 'A', title: 'Take over the model\'s boxes on this frame', disabled: !hasPrediction, 'data-echo': 'accept' }),
      button('Accept all', act(editing.acceptEverything), { title: 'Take over the model\'s boxes on every frame not yet yours', disabled: !hasPrediction, 'data-echo': 'accept-all' }),
      button('No septum', act(editing.markEmpty), { key: 'E', title: 'This frame shows no septum', 'data-echo': 'no-septum' })),
    h('div', { class: 'echo-row' },
      button('Copy to next', act(editing.copyToNext), { key: 'C', title: 'Copy the boxes to the next frame', 'data-echo': 'copy' }),
      button('Fill between', act(editing.fillBetween), { key: 'I', title: 'Interpolate between the two key frames around this one', 'data-echo': 'interpolate' }),
      button('Model', act(editing.compare), { key: 'M', title: 'Show the model\'s boxes on your frames too', disabled: !hasPrediction, 'aria-pressed': String(isComparing), 'data-echo': 'compare' })),
  ];
}

/** Return the boxes of the frame as a list: septum to choose, whose it is, delete. */
export function frameBoxes({ frameIndex, frames, boxes, mine }, session) {
  const state = mine ? (boxes.length ? 'yours' : 'yours: no septum') : boxes.length ? 'from the model' : 'nothing yet';
  const rows = boxes.map(({ uid, septum, by, score }) =>
    h('li', { style: `--septum:${SEPTA[septum].colour}`, class: by },
      choice(Object.keys(SEPTA), septum, (chosen) => editing.setSeptum(session, uid, chosen), {
        labels: Object.fromEntries(Object.entries(SEPTA).map(([name, { short, name: full }]) => [name, name === 'unspecified' ? full : `${short}  ${full}`])),
        'aria-label': 'Septum of the box',
      }),
      h('span', { class: 'by' }, by === MODEL ? `model ${score.toFixed(2)}` : 'yours'),
      button('✕', () => editing.deleteBox(session, uid), { title: 'Delete this box', class: 'plain', 'aria-label': 'Delete box' })));
  return h('div', { 'data-echo': 'frame' },
    h('div', { class: 'echo-line' },
      h('b', {}, `Frame ${frameIndex + 1} of ${frames}`), h('span', { class: 'hint' }, state),
      mine ? button('undo frame', () => editing.forgetFrame(session), { title: 'Take back all that was said of this frame', class: 'link', 'data-echo': 'forget' }) : null),
    rows.length ? h('ul', { class: 'boxes' }, rows) : null);
}

/** Return what is said of the defect of the child beside its name: whether this cine shows it, and its size. */
function defectDetails({ defect, size, visible }, session) {
  if (!defect || defect === 'Normal') return null;
  const seen = visible === null ? '' : visible ? 'yes' : 'no';
  return h('div', { class: 'cine-choices' },
    h('label', { title: 'Whether this cine shows the defect that the child has' }, 'Shown here',
      choice(Object.keys(IN_PICTURE), seen, (chosen) => editing.setVisible(session, chosen), { labels: IN_PICTURE, 'data-echo': 'set-visible' })),
    h('label', { title: 'The largest diameter of the defect; empty: not measured' }, 'Size, mm',
      h('input', { type: 'number', min: 0, step: 'any', value: size ?? '', onchange: (event) => editing.setSize(session, event.target), 'data-echo': 'set-size' })));
}

export function cineChoices({ view, defect, size, visible, unusable, about }, session) {
  if (!about) return null;
  const offered = (values, chosen) => ['', ...new Set([...values, ...(chosen ? [chosen] : [])])];
  const labels = { '': NOT_SAID };
  return [h('div', { class: 'cine-choices' },
    h('label', {}, 'View', choice(offered(about.views, view), view ?? '', (chosen) => editing.setView(session, chosen), { labels, 'data-echo': 'set-view' })),
    h('label', {}, 'Defect', choice(offered(about.defects, defect), defect ?? '', (chosen) => editing.setDefect(session, chosen), { labels, 'data-echo': 'set-defect' })),
    unusable === null ? null : h('label', { class: 'check', title: 'Nobody should annotate or learn from this cine' },
      h('input', { type: 'checkbox', checked: unusable, onchange: (event) => editing.setUnusable(session, event.target.checked) }), 'unusable')),
  defectDetails({ defect, size, visible }, session)];
}

/** Return what the sections above depend on, picked from the state. */
export const pickFrame = (state) => ({
  frameIndex: state.frameIndex, frames: state.frames, boxes: editing.shownOn(state, state.frameIndex).map(({ uid, septum, by, score }) => ({ uid, septum, by, score })),
  mine: state.draft ? isAnnotated(state.draft.now, state.frameIndex) : false,
});

export const pickCine = ({ draft, about }) => ({
  view: draft?.now.view ?? null, defect: draft?.now.defect ?? null,
  size: draft?.now.defect_size_mm ?? null, visible: draft?.now.defect_visible ?? null, unusable: draft ? draft.now.unusable ?? false : null,
  about: about && { views: about.views, defects: about.defects },
});

export const pickStatus = ({ draft }) => ({
  revision: draft?.base.revision ?? 0, author: draft?.base.author ?? null, savedAt: draft?.base.saved_at ?? null,
  changed: draft ? isChanged(draft) : false, loaded: Boolean(draft),
});
