// SPDX-License-Identifier: Apache-2.0
// What all cines of the child say together, below what the open one says alone.

import { h } from './dom.js';
import { bar, isUndecided, UNDECIDED } from './show-findings.js';
import { percent } from './words.js';

const NO_ANSWER = 'No answer: the model abstains on every cine of this child.';

/** Return `[sentence, isDoubt]`: whether the cines that can show the defect say so. */
function agreement({ defect, cines, agreement: share }) {
  if (share === null) return [`None of these views can show ${defect}: it rests on views that do not.`, true];
  if (cines === 1) return ['From one cine alone: no other view confirms it.', false];
  const able = defect === 'Normal' ? 'cines' : `cines that can show ${defect}`;
  if (share === 1) return [`The views agree: all ${able} say ${defect}.`, false];
  return [`The views do not agree: ${percent(share)} of the ${able} say ${defect}.`, true];
}

function joined(answer, isFolded) {
  const { defect, probability, probabilities, cines, asked } = answer;
  const [words, isDoubt] = agreement(answer);
  const heading = [h('b', {}, isDoubt || isUndecided(answer) ? `${defect}?` : defect), isFolded ? percent(probability) : null,
    h('span', { class: 'hint' }, `${cines} of ${asked} cine${asked === 1 ? '' : 's'} took part`)];
  if (isFolded) return [h('h3', {}, 'This child ', heading)];
  return [
    h('h3', {}, 'This child ', heading),
    Object.entries(probabilities).map(([name, share]) => bar(name, share, null, { chosen: name === defect })),
    isUndecided(answer) ? h('p', { class: 'doubt' }, UNDECIDED) : null,
    h('p', { class: isDoubt ? 'doubt' : 'hint', 'data-echo': 'agreement' }, words),
  ].flat();
}

/** Return the card of the child: `child` has the joined `answer` (null: none), or the `error` in its place. */
export function childCard({ child, isFolded }) {
  if (!child) return null;
  const { answer, error } = child;
  const said = error || !answer
    ? [h('h3', {}, 'This child'), h('p', { class: 'doubt' }, error ? `The cines were not joined: ${error}` : NO_ANSWER)]
    : joined(answer, isFolded);
  return h('div', { class: 'card', 'data-echo': 'child', title: 'All cines of this child, joined' }, said);
}
