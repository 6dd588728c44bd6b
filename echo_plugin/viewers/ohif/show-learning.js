// SPDX-License-Identifier: Apache-2.0
// The training: start, stop, how far it is, and the curve of its metric.

import { pictureUrl } from './api.js';
import { button, choice, h } from './dom.js';
import { isRunning } from './training.js';
import { duration, frameList, percent } from './words.js';

const WIDTH = 320;
const HEIGHT = 84;

/** Return the curve of `[[epoch, metric], ...]`; the metric is between 0 and 1. */
function curve(points, totalEpochs) {
  const known = points.filter(([, metric]) => metric !== null);
  if (!known.length) return null;
  const x = (epoch) => 4 + ((WIDTH - 8) * epoch) / Math.max(totalEpochs, 1);
  const y = (metric) => HEIGHT - 4 - (HEIGHT - 18) * metric;
  const line = known.map(([epoch, metric]) => `${x(epoch).toFixed(1)},${y(metric).toFixed(1)}`).join(' ');
  const [lastEpoch, last] = known.at(-1);
  return h('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'curve', role: 'img', 'aria-label': `Metric by epoch, last ${last.toFixed(3)}`, 'data-echo': 'curve' },
    h('line', { x1: 4, x2: WIDTH - 4, y1: y(0), y2: y(0) }), h('line', { x1: 4, x2: WIDTH - 4, y1: y(1), y2: y(1), class: 'faint' }),
    h('polyline', { points: known.length > 1 ? line : `4,${y(last)} ${line}` }),
    h('text', { x: Math.min(x(lastEpoch), WIDTH - 40), y: Math.max(y(last) - 5, 11) }, last.toFixed(3)));
}

export function trainingCard({ training, about, epochs, model }, watch, choose) {
  if (!about) return null;
  const { status, progress = {} } = training;
  const running = isRunning(training);
  const share = progress.total_epochs ? progress.epoch / progress.total_epochs : 0;
  const state = running
    ? progress.epoch ? `Epoch ${progress.epoch} of ${progress.total_epochs}, about ${duration(progress.eta_s ?? 0)} left` : 'Starting: the libraries load and the frames are decoded'
    : status ? progress.message ?? `${status.toLowerCase()}.` : 'No training yet on this server.';
  return [
    h('div', { class: 'echo-row' },
      choice(Object.keys(about.trainers), model, (chosen) => choose({ model: chosen }), { 'aria-label': 'What is trained', title: about.trainers[model], disabled: running, 'data-echo': 'trainer' }),
      h('label', { class: 'echo-inline', title: 'Empty: as many as the recipe takes' }, 'epochs',
        h('input', { type: 'number', min: 1, max: 999, value: epochs || '', placeholder: 'recipe', disabled: running, onchange: (event) => choose({ epochs: Number(event.target.value) || 0 }), 'data-echo': 'epochs' })),
      running
        ? button('Stop', () => watch.stop(), { class: 'danger', 'data-echo': 'stop-training' })
        : button('Train', () => watch.start(model, epochs), { class: 'primary', 'data-echo': 'start-training' })),
    h('p', { class: 'hint' }, about.trainers[model]),
    h('div', { 'data-echo': 'training', 'data-status': running ? 'RUNNING' : progress.status ?? status ?? '' },
      h('p', { class: running ? 'live' : '' }, training.model ? h('b', {}, `${training.model}: `) : null, state),
      running ? h('progress', { max: 1, value: share }) : null,
      progress.best_metric ? h('p', { class: 'hint' }, `best metric ${percent(progress.best_metric)}`) : null,
      curve(progress.curve ?? [], progress.total_epochs)),
  ];
}

/** Return the labels that look like mistakes, the worst first; each opens at its doubtful frames, or is kept as it is. */
export function suspects({ list }, refresh, open, keep) {
  const heading = h('h3', {}, 'Labels to look at again', button('refresh', refresh, { class: 'link', 'data-echo': 'refresh-suspicious' }));
  if (!list) return heading;
  if (!list.length) return [heading, h('p', { class: 'hint' }, 'No doubt on record: `monailabel-echo review` compares labels and detector.')];
  return [heading, h('ul', { class: 'suspects', 'data-echo': 'suspicious' }, list.map((one) =>
    h('li', {},
      h('img', { src: pictureUrl(one.image_id, one.show[0] ?? null), alt: '' }),
      h('div', {}, h('b', {}, `quality ${one.quality.toFixed(2)}`), ` by ${one.author ?? 'nobody named'}`, h('br'),
        one.reason, one.show.length ? ` (${frameList(one.show)})` : ''),
      h('div', {},
        button('Open', () => open({ ...one, reason: `Its label looks doubtful: ${one.reason}` })),
        button('Keep', () => keep(one), { title: 'The label is right: submit it as it is, and doubt it no more' })))))];
}
