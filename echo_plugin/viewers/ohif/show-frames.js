// SPDX-License-Identifier: Apache-2.0
// The frame strip: one cell for each frame, coloured by the septa on it; solid the reader's, hatched the model's.
// The cells are made once for a cine and only repainted, because the strip follows a playing cine.

import { boxesOn, isAnnotated } from './annotation.js';
import { h } from './dom.js';
import { SEPTA } from './words.js';

const NOBODY = '#24324f';

function paint(boxes, isMine) {
  const septa = Object.keys(SEPTA).filter((septum) => boxes.some((box) => box.septum === septum));
  if (!septa.length) return NOBODY;
  const height = 100 / septa.length;
  const bands = septa.map((septum, place) => `${SEPTA[septum].colour} ${place * height}% ${(place + 1) * height}%`);
  const hatch = 'repeating-linear-gradient(135deg, #0b1426 0 2px, transparent 2px 5px), ';
  return `${isMine ? '' : hatch}linear-gradient(${bands.join(', ')})`;
}

export class FrameStrip {
  constructor(goTo) {
    this.goTo = goTo;
    this.node = h('div', { class: 'strip', role: 'listbox', 'aria-label': 'Frames', 'data-echo': 'frames' });
    this.shown = {};
  }

  update({ imageId, frames, frameIndex, draft, prediction, worthDrawing }) {
    if (this.shown.imageId !== imageId || this.node.childNodes.length !== frames) {
      this.node.replaceChildren(...Array.from({ length: frames }, (_, index) => this.cell(index)));
      this.shown = { imageId };
    }
    const { shown } = this;
    if (shown.now !== draft?.now || shown.prediction !== prediction || shown.worthDrawing !== worthDrawing) {
      [...this.node.childNodes].forEach((cell, index) => this.repaint(cell, index, draft?.now, prediction, worthDrawing));
    }
    if (shown.frameIndex !== frameIndex) {
      this.node.childNodes[shown.frameIndex]?.removeAttribute('aria-selected');
      this.node.childNodes[frameIndex]?.setAttribute('aria-selected', 'true');
    }
    this.shown = { imageId, now: draft?.now, prediction, worthDrawing, frameIndex };
  }

  cell(index) {
    return h('button', { type: 'button', role: 'option', title: `Frame ${index + 1}`, onclick: () => this.goTo(index) });
  }

  repaint(cell, index, annotation, prediction, worthDrawing) {
    const isMine = annotation ? isAnnotated(annotation, index) : false;
    const boxes = boxesOn(isMine ? annotation : prediction ?? { boxes: [] }, index);
    cell.style.background = paint(boxes, isMine);
    cell.className = `${isMine && !boxes.length ? 'empty' : ''} ${worthDrawing.includes(index) ? 'worth' : ''}`;
    const what = boxes.map((box) => SEPTA[box.septum].short).join(', ') || (isMine ? 'no septum' : 'nothing yet');
    cell.title = `Frame ${index + 1}: ${what}${boxes.length && !isMine ? ' (model)' : ''}`;
  }
}
