// SPDX-License-Identifier: Apache-2.0
// The tools of annotation: the frame strip, what is drawn on a frame, what is said of the cine.

import { boxesOn } from './annotation.js';
import { button, choice, h, row } from './dom.js';
import * as editing from './editing.js';
import { MODEL, SEPTA } from './words.js';

const NOT_SAID = 'not said';
const IN_PICTURE = { '': NOT_SAID, yes: 'yes', no: 'no' };
const NOBODY = '#24324f';
const SEPTUM_LABELS = Object.fromEntries(
  Object.entries(SEPTA).map(([septum, { short, name }]) => [septum, short === '?' ? name : `${short}  ${name}`]),
);

/**
 * The frame strip: one cell for each frame, coloured by the septa on it; solid the reader's, hatched the model's.
 * The cells are made once for a cine and only repainted, because the strip follows a playing cine.
 */
export class FrameStrip {
  constructor(goTo) {
    this.goTo = goTo;
    this.strip = h('div', { class: 'strip', role: 'listbox', 'aria-label': 'Frames', 'data-echo': 'frames' });
    this.node = h('section', {}, this.strip);
    this.shown = {};
  }

  update({ imageId, frames, frameIndex, draft, prediction, worthDrawing }) {
    const cells = this.strip.childNodes;
    if (this.shown.imageId !== imageId || cells.length !== frames) {
      this.strip.replaceChildren(...Array.from({ length: frames }, (_, index) => this.cell(index)));
      this.shown = { imageId };
    }
    const { shown } = this;
    if (shown.now !== draft?.now || shown.prediction !== prediction || shown.worthDrawing !== worthDrawing) {
      cells.forEach((cell, index) => repaint(cell, index, { draft, prediction, worthDrawing }));
    }
    if (shown.frameIndex !== frameIndex) {
      cells[shown.frameIndex]?.removeAttribute('aria-selected');
      cells[frameIndex]?.setAttribute('aria-selected', 'true');
    }
    this.shown = { imageId, now: draft?.now, prediction, worthDrawing, frameIndex };
  }

  cell(index) {
    return h('button', { type: 'button', role: 'option', onclick: () => this.goTo(index) });
  }
}

function repaint(cell, index, { draft, prediction, worthDrawing }) {
  const isMine = editing.isMineOn(draft, index);
  const boxes = boxesOn(isMine ? draft.now : (prediction ?? { boxes: [] }), index);
  cell.style.background = colours(boxes, isMine);
  cell.className = `${isMine && !boxes.length ? 'empty' : ''} ${worthDrawing.includes(index) ? 'worth' : ''}`;
  const septa = boxes.map((box) => SEPTA[box.septum].short).join(', ');
  const whose = septa && !isMine ? ' (model)' : '';
  cell.title = `Frame ${index + 1}: ${septa || (isMine ? 'no septum' : 'nothing yet')}${whose}`;
}

function colours(boxes, isMine) {
  const septa = Object.keys(SEPTA).filter((septum) => boxes.some((box) => box.septum === septum));
  if (!septa.length) return NOBODY;
  const height = 100 / septa.length;
  const bands = septa.map((septum, place) => `${SEPTA[septum].colour} ${place * height}% ${(place + 1) * height}%`);
  const hatch = 'repeating-linear-gradient(135deg, #0b1426 0 2px, transparent 2px 5px), ';
  return `${isMine ? '' : hatch}linear-gradient(${bands.join(', ')})`;
}

/** Return what the boxes of the frame depend on, picked from the state. */
export const pickFrame = (state) => ({
  frameIndex: state.frameIndex,
  frames: state.frames,
  boxes: editing.shownOn(state, state.frameIndex).map(({ uid, septum, by, score }) => ({ uid, septum, by, score })),
  isMine: editing.isMineOn(state.draft, state.frameIndex),
});

/** Return the boxes of the frame as a list: septum to choose, whose it is, delete. */
export function frameBoxes({ frameIndex, frames, boxes, isMine }, session) {
  if (!frames) return null;
  const [some, none] = isMine ? ['yours', 'yours: no septum'] : ['from the model', 'nothing yet'];
  const undo = { title: 'Take back all that was said of this frame', class: 'link', 'data-echo': 'forget' };
  return h('div', { 'data-echo': 'frame' }, [
    h('div', { class: 'echo-line' }, [
      h('b', {}, `Frame ${frameIndex + 1} of ${frames}`),
      h('span', { class: 'hint' }, boxes.length ? some : none),
      isMine && button('undo frame', () => editing.forgetFrame(session), undo),
    ]),
    boxes.length > 0 &&
      h(
        'ul',
        { class: 'boxes' },
        boxes.map((box) => boxLine(box, session)),
      ),
  ]);
}

function boxLine({ uid, septum, by, score }, session) {
  const onSeptum = (chosen) => editing.setSeptum(session, uid, chosen);
  const remove = { title: 'Delete this box', class: 'plain', 'aria-label': 'Delete box' };
  return h('li', { style: `--septum:${SEPTA[septum].colour}`, class: by }, [
    choice(Object.keys(SEPTA), septum, onSeptum, { labels: SEPTUM_LABELS, 'aria-label': 'Septum of the box' }),
    h('span', { class: 'by' }, by === MODEL ? `model ${score.toFixed(2)}` : 'yours'),
    button('✕', () => editing.deleteBox(session, uid), remove),
  ]);
}

/** Return the buttons that draw a box of a septum. */
export function drawButtons({ drawing }, session) {
  const draw = (septum, key) =>
    button(`Draw ${SEPTA[septum].short}`, () => editing.draw(session, septum), {
      key,
      title: `Draw a box on the ${SEPTA[septum].name.toLowerCase()}`,
      class: 'draw',
      style: `--septum:${SEPTA[septum].colour}`,
      'aria-pressed': String(drawing === septum),
      'data-echo': `draw-${septum}`,
    });
  return row(draw('interatrial', '1'), draw('interventricular', '2'));
}

/** Return the buttons for the boxes of a frame; those that need the model's boxes are off without a prediction. */
export function frameTools({ isPredicted, isComparing }, session) {
  const tool = (part, text, key, act, title, more) =>
    button(text, () => act(session), { key, title, 'data-echo': part, ...more });
  const off = { disabled: !isPredicted };
  const shown = { ...off, 'aria-pressed': String(isComparing) };
  const ofAll = "Take over the model's boxes on every frame not yet yours";
  const between = 'Interpolate between the two key frames around this one';
  return [
    row(
      tool('accept', 'Accept', 'A', editing.accept, "Take over the model's boxes on this frame", off),
      tool('accept-all', 'Accept all', null, editing.acceptEverything, ofAll, off),
      tool('no-septum', 'No septum', 'E', editing.markEmpty, 'This frame shows no septum'),
    ),
    row(
      tool('copy', 'Copy to next', 'C', editing.copyToNext, 'Copy the boxes to the next frame'),
      tool('interpolate', 'Fill between', 'I', editing.fillBetween, between),
      tool('compare', 'Model', 'M', editing.compare, "Show the model's boxes on your frames too", shown),
    ),
  ];
}

/** Return what is said of the cine, picked from the state. */
export const pickCine = ({ draft, about }) => ({
  view: draft?.now.view ?? null,
  defect: draft?.now.defect ?? null,
  sizeMm: draft?.now.defect_size_mm ?? null,
  visible: draft?.now.defect_visible ?? null,
  unusable: draft ? (draft.now.unusable ?? false) : null,
  about: about && { views: about.views, defects: about.defects },
});

/** Return what is said of the cine: view, defect, whether nobody should use it. */
export function cineChoices({ view, defect, sizeMm, visible, unusable, about }, session) {
  if (!about) return null;
  const named = (name, values, chosen, set, part) => {
    const offered = ['', ...new Set(chosen ? [...values, chosen] : values)];
    const onChoice = (value) => set(session, value);
    return h(
      'label',
      {},
      name,
      choice(offered, chosen ?? '', onChoice, { labels: { '': NOT_SAID }, 'data-echo': part }),
    );
  };
  const onUnusable = (event) => editing.setUnusable(session, event.target.checked);
  return [
    h('div', { class: 'cine-choices' }, [
      named('View', about.views, view, editing.setView, 'set-view'),
      named('Defect', about.defects, defect, editing.setDefect, 'set-defect'),
      unusable !== null &&
        h('label', { class: 'check', title: 'Nobody should annotate or learn from this cine' }, [
          h('input', { type: 'checkbox', checked: unusable, onchange: onUnusable }),
          'unusable',
        ]),
    ]),
    defect && defect !== 'Normal' && defectDetails(sizeMm, visible, session),
  ];
}

/** Return what is said of the defect of the child beside its name: whether this cine shows it, and its size. */
function defectDetails(sizeMm, visible, session) {
  const seen = { true: 'yes', false: 'no' }[visible] ?? '';
  const onSeen = (chosen) => editing.setVisible(session, chosen);
  const onSize = (event) => editing.setSize(session, event.target);
  const size = { type: 'number', min: 0, step: 'any', value: sizeMm ?? '', onchange: onSize, 'data-echo': 'set-size' };
  return h('div', { class: 'cine-choices' }, [
    h('label', { title: 'Whether this cine shows the defect that the child has' }, [
      'Shown here',
      choice(Object.keys(IN_PICTURE), seen, onSeen, { labels: IN_PICTURE, 'data-echo': 'set-visible' }),
    ]),
    h('label', { title: 'The largest diameter of the defect; empty: not measured' }, 'Size, mm', h('input', size)),
  ]);
}
