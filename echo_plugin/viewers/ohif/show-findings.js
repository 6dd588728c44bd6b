// SPDX-License-Identifier: Apache-2.0
// What the models say of the cine: view and defect with their probabilities, and the evidence for the defect.

import { cineUrl, pictureUrl } from './api.js';
import { button, h } from './dom.js';
import { frameList, percent, rounded } from './words.js';

const VIEWS_SHOWN = 3;
const BETTER_THAN_CHANCE = 1.2;
export const UNDECIDED = 'Undecided: hardly better than chance.';

/** Return a line with a name, a probability as a bar and as a number, and a note where there is one. */
export function bar(name, probability, note, { chosen = false } = {}) {
  return h(
    'div',
    { class: `bar${chosen ? ' chosen' : ''}` },
    h('span', { class: 'name' }, name),
    h('span', { class: 'track' }, h('span', { class: 'fill', style: `width:${percent(probability)}` })),
    h('span', { class: 'number' }, percent(probability)),
    note === null ? null : h('span', { class: 'note' }, note),
  );
}

function viewLine(view) {
  const likely = Object.entries(view.probabilities).sort(([, one], [, other]) => other - one).slice(0, VIEWS_SHOWN);
  const others = likely.slice(1).map(([name, probability]) => `${name} ${percent(probability)}`).join(', ');
  return h(
    'div',
    { 'data-echo': 'view', title: `Then ${others}; from ${frameList(view.frame_indices)}` },
    h('h3', {}, 'View ', h('b', {}, view.view), bar('', view.probability, null, { chosen: true })),
    viewDoubt(view) === null ? null : h('p', { class: 'note' }, viewDoubt(view)),
  );
}

/** Return what must be known of the view beside its probability, in one sentence; null when there is nothing. */
function viewDoubt(view) {
  if (view.is_standard === false) return 'No standard view: what depends on one should not be trusted.';
  return view.is_still ? 'From one frame, without motion.' : null;
}

/** Return why the defect should not be trusted, in one sentence; null when nothing speaks against it. */
function doubt(defect) {
  if (defect.abstained) return `The model abstains: ${defect.abstained}`;
  if (defect.is_whole_frame) return 'No septum was found: whole frames were compared, so this says little.';
  return isUndecided(defect) ? UNDECIDED : null;
}

/** Return whether the likeliest class is hardly likelier than a guess. */
export function isUndecided({ probability, probabilities }) {
  return probability < BETTER_THAN_CHANCE / Object.keys(probabilities).length;
}

/** Return a picture of a frame, which shows that frame when it is pressed. */
const framePicture = (src, alt, frameIndex, goTo) =>
  h('button', { type: 'button', class: 'picture', title: 'Show this frame', onclick: () => goTo(frameIndex) }, h('img', { src, alt }));

function cropUsed(imageId, { crops = [] }, goTo) {
  if (!crops.length) return null;
  const { frame_index: frameIndex, x1, y1, x2, y2 } = crops[Math.floor(crops.length / 2)];
  return h(
    'figure',
    {},
    framePicture(pictureUrl(imageId, frameIndex, [x1, y1, x2, y2]), 'Crop that the defect was read from', frameIndex, goTo),
    h('figcaption', { title: `The crop it was read from, one of ${crops.length}` }, `frame ${frameIndex + 1}`),
  );
}

function whereItLooked({ defect }, { url, frameIndex }, goTo) {
  return h(
    'figure',
    { class: 'wide', 'data-echo': 'explanation' },
    framePicture(url, `What in the crop speaks for ${defect}`, frameIndex, goTo),
    h('figcaption', {}, `Frame ${frameIndex + 1}: the brighter a place, the more it speaks for ${defect} (Grad-CAM). Where it looked, not why.`),
  );
}

function defectPart({ imageId, defect, explanation, busy }, { goTo, explain }) {
  const warning = doubt(defect);
  const bars = Object.entries(defect.probabilities).map(([name, probability]) => {
    const angle = defect.angles_deg?.[name];
    return bar(name, probability, angle === undefined ? null : `${Math.round(angle)}°`, { chosen: name === defect.defect });
  });
  return h(
    'div',
    { 'data-echo': 'defect', title: `Degrees: angle to the centre of each class; from ${frameList(defect.frame_indices)}` },
    h('div', { class: 'beside' },
      h('div', {},
        h('h3', {}, 'Defect ', h('b', {}, warning ? `${defect.defect}?` : defect.defect),
          button(explainWord(explanation, busy), explain, { class: 'link', title: 'Show what in the picture speaks for this defect', disabled: Boolean(busy), 'data-echo': 'explain' })),
        bars),
      cropUsed(imageId, defect, goTo)),
    warning ? h('p', { class: 'doubt', 'data-echo': 'doubt' }, warning) : null,
    explanation ? whereItLooked(defect, explanation, goTo) : null,
  );
}

function explainWord(explanation, busy) {
  if (busy === 'explain') return 'Looking';
  return explanation ? 'Hide where it looked' : 'Where it looked';
}

function nearestCases(cases, isSeptumFound) {
  if (!cases.length) return isSeptumFound ? h('p', { class: 'hint', 'data-echo': 'nearest' }, 'No past cases to compare with yet.') : null;
  return h(
    'div',
    { 'data-echo': 'nearest' },
    h('h3', {}, cases.some(({ similarity }) => similarity > 0) ? 'Most similar past cases' : 'Past cases: none is alike'),
    h('div', { class: 'cases' }, cases.map(({ image_id: imageId, study_instance_uid: study, defect, similarity }) => {
      const picture = study ? h('img', { src: pictureUrl(imageId), alt: `Past case with ${defect}` }) : h('span', { class: 'missing' }, 'not in this folder');
      const caption = h('span', {}, `${defect} ${rounded(similarity)}`);
      if (!study) return h('span', { class: 'case' }, picture, caption);
      return h('a', { class: 'case', href: cineUrl(study, imageId), target: '_blank', rel: 'noopener', title: `Similarity ${rounded(similarity)} (1: the same, 0 and less: nothing in common). Opens in a new tab` }, picture, caption);
    })),
  );
}

/**
 * Return the card of a prediction: `goTo(frameIndex)` shows a frame, `fold(isFolded)` hides the evidence, `explain()` asks
 * where the network looked.
 */
export function findings(picked, { goTo, fold, explain }) {
  const { view, defect, nearest, isFolded } = picked;
  if (!view && !defect) return null;
  const evidence = [defect ? defectPart(picked, { goTo, explain }) : null, nearestCases(nearest ?? [], Boolean(defect && !defect.is_whole_frame))];
  const toggle = button(isFolded ? 'more' : 'less', () => fold(!isFolded), { class: 'link fold', title: 'Show or hide the evidence', 'data-echo': 'fold' });
  const summary = isFolded && defect ? h('h3', {}, 'Defect ', h('b', {}, doubt(defect) ? `${defect.defect}?` : defect.defect), percent(defect.probability)) : null;
  return h('div', { class: 'card' }, view ? viewLine(view) : null, summary, isFolded ? null : evidence, toggle);
}
