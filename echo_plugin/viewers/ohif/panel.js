// SPDX-License-Identifier: Apache-2.0
// The panel: badge on top, two tabs (this cine, learning), and at the foot what is always needed: name, submit, next.

import { button, choice, h, section } from './dom.js';
import { discard } from './editing.js';
import { listenToKeys } from './keys.js';
import { Session } from './session.js';
import { cineChoices, drawButtons, frameBoxes, frameTools, pickCine, pickFrame, pickStatus } from './show-annotate.js';
import { childCard } from './show-child.js';
import { conflictCard } from './show-conflict.js';
import { findings } from './show-findings.js';
import { FrameStrip } from './show-frames.js';
import { suspects, trainingCard } from './show-learning.js';
import { modelBadge } from './show-model.js';
import { addStyle } from './style.js';
import * as tasks from './tasks.js';
import { TrainingWatch } from './training.js';
import { clock } from './words.js';

function predictButtons({ busy, progress, imageId }, session) {
  if (busy === 'predict') {
    const many = progress?.total > 1;
    const doing = many && progress.done === progress.total ? 'Joining the cines of this child' : many ? `Predicting cine ${progress.done + 1} of ${progress.total}` : 'Predicting';
    return [
      h('div', { class: 'echo-row' }, h('span', { class: 'live', 'data-echo': 'progress' }, doing),
        button('Cancel', () => tasks.stopPredicting())),
      h('progress', many ? { max: progress.total, value: progress.done } : {}),
    ];
  }
  const disabled = !imageId || Boolean(busy);
  return h('div', { class: 'echo-row' },
    button('Predict this cine', () => tasks.predictCine(session), { key: 'P', class: 'primary', disabled, 'data-echo': 'predict' }),
    button('All of the study', () => tasks.predictStudy(session), { title: 'Predict all cines of this study', disabled, 'data-echo': 'predict-study' }));
}

function why({ reason, worthDrawing }, session) {
  if (!reason) return null;
  return h('div', { class: 'why', 'data-echo': 'reason' }, h('b', {}, 'Why this cine: '), reason,
    worthDrawing.length
      ? h('div', {}, 'Worth drawing: ', worthDrawing.map((index) => button(String(index + 1), () => session.viewer.goTo(index), { title: `Show frame ${index + 1}` })))
      : null);
}

function status({ imageId, revision, author, savedAt, changed, loaded, hasAside }, session) {
  if (!loaded) return null;
  const stored = revision ? `Revision ${revision}${author ? ` by ${author}` : ''}${savedAt ? `, ${clock(savedAt)}` : ''}` : 'Not annotated yet';
  return h('div', { class: 'echo-line', 'data-echo': 'status', 'data-image': imageId, 'data-changed': String(changed), 'data-revision': revision },
    h('span', { class: 'hint' }, stored), changed ? h('b', {}, 'unsaved changes') : null,
    hasAside ? button('bring back mine', () => tasks.bringBack(session), { class: 'link', 'data-echo': 'bring-back' }) : null,
    changed ? button('discard', () => discard(session), { class: 'link', 'data-echo': 'discard' }) : null);
}

function footer(session) {
  const name = h('input', {
    type: 'text', placeholder: 'your name', maxlength: 64, value: session.state.reader, size: 10, 'aria-label': 'Your name or initials',
    title: 'Stored with each revision', onchange: (event) => session.setReader(event.target.value), 'data-echo': 'reader',
  });
  const submit = button('Submit', () => tasks.submit(session), { key: 'S', class: 'primary', 'data-echo': 'submit' });
  const next = section(
    ({ about, strategy }) => ({ strategies: about?.strategies, strategy }),
    ({ strategies, strategy }) => strategies && h('div', { class: 'echo-row' },
      choice(Object.keys(strategies), strategy, (chosen) => session.setStrategy(chosen), { title: strategies[strategy], 'aria-label': 'How the next cine is chosen', 'data-echo': 'strategy' }),
      button('Next cine', () => tasks.next(session, session.state.strategy), { key: 'N', 'data-echo': 'next' })));
  const saved = section((state) => ({ ...pickStatus(state), imageId: state.imageId, hasAside: state.hasAside }), (picked) => status(picked, session));
  const message = section(({ message: said }) => said, (said) => said && h('p', { class: `message ${said.kind}`, role: 'status', 'data-echo': 'message' }, said.text));
  return {
    nodes: [message.node, h('div', { class: 'foot' }, saved.node, h('div', { class: 'echo-row' }, name, submit), next.node)],
    sections: [saved, next, message, { update: ({ busy }) => { submit.disabled = Boolean(busy); } }],
  };
}

function tabs(bodies) {
  const buttons = bodies.map(([title, body], place) =>
    h('button', { type: 'button', role: 'tab', 'aria-selected': place === 0 ? 'true' : 'false', 'data-echo': `tab-${place}`, onclick: () => show(place) }, title));
  function show(place) {
    bodies.forEach(([, body], other) => {
      body.hidden = other !== place;
      buttons[other].setAttribute('aria-selected', String(other === place));
    });
  }
  show(0);
  return h('nav', { role: 'tablist' }, buttons);
}

/** Build the panel in `root` and let it follow the viewer; return what ends it. */
export function mountPanel(root, managers) {
  addStyle();
  const session = new Session(managers);
  const watch = new TrainingWatch(session);
  const goTo = (frameIndex) => session.viewer.goTo(frameIndex);
  const choose = (patch) => session.set(patch);
  const strip = new FrameStrip(goTo);
  const badge = section(({ about }) => ({ about: about && { models: about.models } }), modelBadge);
  const cine = [
    section(({ draft, conflict }) => ({ mine: draft?.now, theirs: conflict }), (picked) => conflictCard(picked, session)),
    section(({ reason, worthDrawing }) => ({ reason, worthDrawing }), (picked) => why(picked, session)),
    section(({ busy, progress, imageId }) => ({ busy, progress, imageId }), (picked) => predictButtons(picked, session)),
    section(({ prediction, imageId, isFolded, busy }) => ({ imageId, isFolded, busy, ...(prediction ?? {}), boxes: undefined, timings_ms: undefined }),
      (picked) => findings(picked, { goTo, fold: (isFolded) => session.set({ isFolded }), explain: () => tasks.explain(session) })),
    section(({ child, isFolded }) => ({ child, isFolded }), childCard),
    { node: h('section', {}, strip.node), update: (state) => strip.update(state) },
    section(pickFrame, (picked) => picked.frames > 0 && frameBoxes(picked, session)),
    section(({ drawing }) => ({ drawing }), (picked) => drawButtons(picked, session)),
    section(({ prediction, isComparing }) => ({ hasPrediction: Boolean(prediction), isComparing }), (picked) => frameTools(picked, session)),
    section(pickCine, (picked) => cineChoices(picked, session)),
  ];
  const learning = [
    section(({ training, about, epochs, trainer }) => ({ training, about: about && { trainers: about.trainers }, epochs, model: trainer }),
      (picked) => trainingCard(picked, watch, ({ model, ...rest }) => choose(model ? { trainer: model, ...rest } : rest))),
    section(({ suspicious: list }) => ({ list }), (picked) => suspects(picked, () => tasks.readSuspicious(session), (one) => tasks.visit(session, one), (one) => tasks.keepLabel(session, one))),
  ];
  const cineBody = h('div', { class: 'body' }, cine.map(({ node }) => node));
  const learningBody = h('div', { class: 'body' }, learning.map(({ node }) => node));
  const foot = footer(session);
  root.classList.add('echo-panel');
  root.replaceChildren(badge.node, tabs([['This cine', cineBody], ['Learning', learningBody]]), cineBody, learningBody, ...foot.nodes);

  const sections = [badge, ...cine, ...learning, ...foot.sections];
  session.listeners.add((state) => sections.forEach((one) => one.update(state)));
  session.set({ trainer: 'septal_boxes', epochs: 0 });
  const address = new URLSearchParams(location.search);
  if (address.has('cine')) {
    const frames = (address.get('frames') ?? '').split(',').filter(Boolean).map(Number).filter(Number.isInteger);
    session.asked = { imageId: address.get('cine'), frames, reason: address.get('reason') };
  }
  const ends = [session.start(), listenToKeys(session), () => watch.end()];
  watch.follow();
  tasks.readSuspicious(session);
  return { session, end: () => ends.forEach((end) => end()) };
}
