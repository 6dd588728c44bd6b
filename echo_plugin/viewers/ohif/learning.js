// SPDX-License-Identifier: Apache-2.0
// The tab Learning: the training of the server, and the labels that look like mistakes.
// A training belongs to the server, not to this page: a reload finds it.

import * as api from './api.js';
import { toDocument } from './annotation.js';
import { button, choice, h, row } from './dom.js';
import { visit } from './open-cine.js';
import { adoptSaved, requireReader } from './submission.js';
import { duration, frameList, percent } from './words.js';

const POLL_MS = 1500;
const UNDER_WAY = ['SUBMITTED', 'RUNNING', 'PENDING'];
const ENDED = ['DONE', 'ERROR', 'STOPPED'];
const WIDTH = 320;
const HEIGHT = 84;

export const isRunning = ({ status, progress } = {}) => UNDER_WAY.includes(status) && !ENDED.includes(progress?.status);

/** Ask how far the training is now, and again as long as one runs. */
export async function followTraining(session) {
  stopFollowing(session);
  const before = session.state.training;
  try {
    const training = await api.training();
    session.set({ training });
    if (isRunning(before) && !isRunning(training)) session.refreshAbout(); // the badge names the new model
  } catch {
    // the server restarts, perhaps; asked again below
  }
  if (isRunning(session.state.training)) session.trainingTimer = setTimeout(() => followTraining(session), POLL_MS);
}

export const stopFollowing = (session) => clearTimeout(session.trainingTimer);

const start = (session) =>
  session.work('train', async () => {
    const { trainer, epochs } = session.state;
    await api.startTraining(trainer, epochs ? { epochs } : {});
    session.set({ training: { model: trainer, status: 'SUBMITTED', progress: {} } });
    await followTraining(session);
  });

const stop = (session) =>
  session.work('train', async () => {
    await api.stopTraining();
    await followTraining(session);
    session.say('The training is stopped; the published model is as it was.', 'note');
  });

/** Return what the card of the training shows of the state. */
export const pickTraining = ({ training, trainer, epochs, about }) => ({
  training,
  trainer,
  epochs,
  trainers: about?.trainers,
});

/** Return the card of the training: start, stop, how far it is, and the curve of its metric. */
export function trainingCard({ training, trainer, epochs, trainers }, session) {
  if (!trainers) return null;
  const { model, status, progress = {} } = training;
  const running = isRunning(training);
  return [
    row(
      choice(Object.keys(trainers), trainer, (chosen) => session.set({ trainer: chosen }), {
        'aria-label': 'What is trained',
        title: trainers[trainer],
        disabled: running,
        'data-echo': 'trainer',
      }),
      h('label', { class: 'echo-inline', title: 'Empty: as many as the recipe takes' }, [
        'epochs',
        h('input', {
          type: 'number',
          min: 1,
          max: 999,
          value: epochs || '',
          placeholder: 'recipe',
          disabled: running,
          onchange: (event) => session.set({ epochs: Number(event.target.value) || 0 }),
          'data-echo': 'epochs',
        }),
      ]),
      running
        ? button('Stop', () => stop(session), { class: 'danger', 'data-echo': 'stop-training' })
        : button('Train', () => start(session), { class: 'primary', 'data-echo': 'start-training' }),
    ),
    h('p', { class: 'hint' }, trainers[trainer]),
    h('div', { 'data-echo': 'training', 'data-status': running ? 'RUNNING' : (progress.status ?? status ?? '') }, [
      h('p', { class: running ? 'live' : '' }, model && h('b', {}, `${model}: `), howFar(training)),
      running && h('progress', { max: 1, value: progress.total_epochs ? progress.epoch / progress.total_epochs : 0 }),
      progress.best_metric > 0 && h('p', { class: 'hint' }, `best metric ${percent(progress.best_metric)}`),
      curve(progress.curve ?? [], progress.total_epochs),
    ]),
  ];
}

function howFar(training) {
  const { status, progress = {} } = training;
  if (!status) return 'No training yet on this server.';
  if (!isRunning(training)) return progress.message ?? `${status.toLowerCase()}.`;
  if (!progress.epoch) return 'Starting: the libraries load and the frames are decoded';
  return `Epoch ${progress.epoch} of ${progress.total_epochs}, about ${duration(progress.eta_s ?? 0)} left`;
}

/** Return the curve of `[[epoch, metric], ...]`; the metric is between 0 and 1. */
function curve(points, totalEpochs) {
  const known = points.filter(([, metric]) => metric !== null);
  if (!known.length) return null;
  const x = (epoch) => 4 + ((WIDTH - 8) * epoch) / Math.max(totalEpochs, 1);
  const y = (metric) => HEIGHT - 4 - (HEIGHT - 18) * metric;
  const line = known.map(([epoch, metric]) => `${x(epoch).toFixed(1)},${y(metric).toFixed(1)}`).join(' ');
  const [lastEpoch, last] = known.at(-1);
  const label = `Metric by epoch, last ${last.toFixed(3)}`;
  const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'curve', role: 'img', 'aria-label': label };
  return h('svg', { ...box, 'data-echo': 'curve' }, [
    h('line', { x1: 4, x2: WIDTH - 4, y1: y(0), y2: y(0) }),
    h('line', { x1: 4, x2: WIDTH - 4, y1: y(1), y2: y(1), class: 'faint' }),
    h('polyline', { points: known.length > 1 ? line : `4,${y(last)} ${line}` }),
    h('text', { x: Math.min(x(lastEpoch), WIDTH - 40), y: Math.max(y(last) - 5, 11) }, last.toFixed(3)),
  ]);
}

/** Read the list of labels that look like mistakes. */
export async function readSuspicious(session) {
  try {
    session.set({ suspicious: await api.suspicious() });
  } catch (error) {
    session.say(error.message, 'bad');
  }
}

/** Submit the label of a cine once more as it is: a person has looked, and it is not doubted again. */
const keepLabel = (session, { image_id: imageId, revision }) =>
  session.work('submit', async () => {
    const reader = requireReader(session);
    const stored = await api.readAnnotation(imageId);
    if (stored.revision !== revision) throw new Error(`Cine ${imageId} has another label by now; refresh the list.`);
    const saved = await api.submitAnnotation(toDocument(stored, reader));
    if (session.drafts.get(imageId)?.base.revision === revision) adoptSaved(session, stored, saved);
    await readSuspicious(session);
    session.say(`Kept: the label is confirmed as revision ${saved.revision} by ${saved.author}.`);
  });

/** Return the labels that look like mistakes, the worst first; each is opened at its doubtful frames, or kept. */
export function suspects({ suspicious }, session) {
  const refresh = { class: 'link', 'data-echo': 'refresh-suspicious' };
  return [
    h(
      'h3',
      {},
      'Labels to look at again',
      button('refresh', () => readSuspicious(session), refresh),
    ),
    suspicious && !suspicious.length && h('p', { class: 'hint' }, NO_DOUBT),
    suspicious?.length > 0 &&
      h(
        'ul',
        { class: 'suspects', 'data-echo': 'suspicious' },
        suspicious.map((one) => suspect(one, session)),
      ),
  ];
}

const NO_DOUBT = 'No doubt on record: `monailabel-echo review` compares labels and detector.';

function suspect(one, session) {
  const { image_id: imageId, show, quality, author, reason } = one;
  const open = () => visit(session, { ...one, reason: `Its label looks doubtful: ${reason}` });
  const keep = { title: 'The label is right: submit it as it is, and doubt it no more' };
  return h('li', {}, [
    h('img', { src: api.pictureUrl(imageId, show[0] ?? null), alt: '' }),
    h('div', {}, [
      h('b', {}, `quality ${quality.toFixed(2)}`),
      ` by ${author ?? 'nobody named'}`,
      h('br'),
      show.length ? `${reason} (${frameList(show)})` : reason,
    ]),
    h(
      'div',
      {},
      button('Open', open),
      button('Keep', () => keepLabel(session, one), keep),
    ),
  ]);
}
