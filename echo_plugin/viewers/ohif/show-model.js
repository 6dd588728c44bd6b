// SPDX-License-Identifier: Apache-2.0
// The badge: which models speak here, what they learned from, what they are for.

import { h } from './dom.js';

const NAMES = { septal_detector: 'Septa', defect_embedder: 'Defect', view_classifier: 'View' };

/** Return the shortest true statement on what a model learned from: a long provenance begins with it. */
const source = ({ trained_on: trainedOn }) => trainedOn.split(',')[0];

export function modelBadge({ about }) {
  if (!about) return null;
  const models = Object.entries(about.models);
  if (!models.length) {
    return h('div', { class: 'badge', 'data-echo': 'badge' }, 'No model is published yet: annotate, then train one.');
  }
  const sources = [...new Set(models.map(([, card]) => source(card)))];
  const versions = models.map(([name, { version }]) => `${NAMES[name] ?? name} ${version}`).join(' · ');
  const details = models.map(([name, card]) => `${NAMES[name] ?? name} v${card.version}: ${card.trained_on}. ${card.limits}`);
  return h(
    'div',
    { class: 'badge', 'data-echo': 'badge', title: details.join('\n') },
    h('strong', {}, `${sources.join('; ')}: not for clinical use`),
    h('span', {}, versions),
  );
}
