// SPDX-License-Identifier: Apache-2.0
// The extension "Echo AI" that OHIF loads at run time: one panel. No build step; OHIF's React draws one empty element
// and the panel fills it: badge on top, two tabs (this cine, learning), and at the foot what is always needed.

import {
  cineChoices,
  drawButtons,
  frameBoxes,
  FrameStrip,
  frameTools,
  pickCine,
  pickFrame,
} from './annotation-tools.js';
import { addStyle, button, choice, h, row, section } from './dom.js';
import { isChanged, keepWhenLeaving } from './draft.js';
import * as editing from './editing.js';
import { childCard, findings, modelBadge, pickFindings, predictButtons } from './findings.js';
import { followTraining, pickTraining, readSuspicious, stopFollowing, suspects, trainingCard } from './learning.js';
import { askByAddress, followViewer, goToNext } from './open-cine.js';
import { predictCine } from './prediction.js';
import { Session } from './session.js';
import { bringBack, conflictCard, pickConflict, submit } from './submission.js';
import { clock } from './words.js';

export const EXTENSION_ID = '@echo/extension-ai';
export const PANEL_NAME = 'echo';

/** What a key does. These come before OHIF's own; none of them acts while one types in a field. */
const KEYS = {
  ArrowRight: (session) => session.viewer.step(1),
  ArrowLeft: (session) => session.viewer.step(-1),
  ' ': (session) => session.viewer.play(!session.viewer.isPlaying()),
  p: predictCine,
  1: (session) => editing.draw(session, 'interatrial'),
  2: (session) => editing.draw(session, 'interventricular'),
  Escape: (session) => editing.draw(session, null),
  a: editing.accept,
  e: editing.markEmpty,
  c: editing.copyToNext,
  i: editing.fillBetween,
  m: editing.compare,
  s: submit,
  n: goToNext,
};

/** Listen to the keyboard; return what ends it. */
function listenToKeys(session) {
  const listener = (event) => {
    const isTyping = event.target.closest?.('input, select, textarea, [contenteditable], [role=dialog]');
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === ' ' && event.target.closest?.('button')) event.target.blur();
    event.preventDefault();
    event.stopImmediatePropagation();
    act(session);
  };
  window.addEventListener('keydown', listener, true);
  return () => window.removeEventListener('keydown', listener, true);
}

function why({ reason, worthDrawing }, { viewer }) {
  if (!reason) return null;
  const frame = (index) => button(index + 1, () => viewer.goTo(index), { title: `Show frame ${index + 1}` });
  return h('div', { class: 'why', 'data-echo': 'reason' }, [
    h('b', {}, 'Why this cine: '),
    reason,
    worthDrawing.length > 0 && h('div', {}, 'Worth drawing: ', worthDrawing.map(frame)),
  ]);
}

const pickStatus = ({ imageId, draft, hasAside }) =>
  draft && {
    imageId,
    hasAside,
    isChanged: isChanged(draft),
    revision: draft.base.revision ?? 0,
    author: draft.base.author,
    savedAt: draft.base.saved_at,
  };

function status(picked, session) {
  if (!picked) return null;
  const { imageId, revision, author, savedAt, hasAside } = picked;
  const saved = `Revision ${revision}${author ? ` by ${author}` : ''}${savedAt ? `, ${clock(savedAt)}` : ''}`;
  const shown = { 'data-image': imageId, 'data-changed': String(picked.isChanged), 'data-revision': revision };
  const link = (text, act, part) => button(text, () => act(session), { class: 'link', 'data-echo': part });
  return h('div', { class: 'echo-line', 'data-echo': 'status', ...shown }, [
    h('span', { class: 'hint' }, revision ? saved : 'Not annotated yet'),
    picked.isChanged && h('b', {}, 'unsaved changes'),
    hasAside && link('bring back mine', bringBack, 'bring-back'),
    picked.isChanged && link('discard', editing.discard, 'discard'),
  ]);
}

function submitRow(session) {
  const name = h('input', {
    type: 'text',
    placeholder: 'your name',
    maxlength: 64,
    value: session.state.reader,
    size: 10,
    'aria-label': 'Your name or initials',
    title: 'Stored with each revision',
    onchange: (event) => session.setReader(event.target.value),
    'data-echo': 'reader',
  });
  const send = button('Submit', () => submit(session), { key: 'S', class: 'primary', 'data-echo': 'submit' });
  const update = ({ busy }) => {
    send.disabled = Boolean(busy);
  };
  return { node: row(name, send), update };
}

function nextRow({ strategies, strategy }, session) {
  if (!strategies) return null;
  return row(
    choice(Object.keys(strategies), strategy, (chosen) => session.setStrategy(chosen), {
      title: strategies[strategy],
      'aria-label': 'How the next cine is chosen',
      'data-echo': 'strategy',
    }),
    button('Next cine', () => goToNext(session), { key: 'N', 'data-echo': 'next' }),
  );
}

const said = ({ message }) =>
  message && h('p', { class: `message ${message.kind}`, role: 'status', 'data-echo': 'message' }, message.text);

function tabs(bodies) {
  const buttons = bodies.map(([title], place) =>
    h('button', { type: 'button', role: 'tab', 'data-echo': `tab-${place}`, onclick: () => show(place) }, title),
  );
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
function mountPanel(root, managers) {
  addStyle();
  const session = new Session(managers);
  const part = (pick, draw) => section(pick, (picked) => draw(picked, session));
  const nodes = (parts) => parts.map(({ node }) => node);

  const badge = part(['about'], modelBadge);
  const cine = [
    part(pickConflict, conflictCard),
    part(['reason', 'worthDrawing'], why),
    part(['busy', 'progress', 'imageId'], predictButtons),
    part(pickFindings, findings),
    part(['child', 'isFolded'], childCard),
    new FrameStrip((frameIndex) => session.viewer.goTo(frameIndex)),
    part(pickFrame, frameBoxes),
    part(['drawing'], drawButtons),
    part(({ prediction, isComparing }) => ({ isComparing, isPredicted: Boolean(prediction) }), frameTools),
    part(pickCine, cineChoices),
  ];
  const learning = [part(pickTraining, trainingCard), part(['suspicious'], suspects)];
  const message = part(['message'], said);
  const foot = [
    part(pickStatus, status),
    submitRow(session),
    part(({ about, strategy }) => ({ strategies: about?.strategies, strategy }), nextRow),
  ];

  const [cineBody, learningBody] = [cine, learning].map((parts) => h('div', { class: 'body' }, nodes(parts)));
  const bar = tabs([
    ['This cine', cineBody],
    ['Learning', learningBody],
  ]);
  root.classList.add('echo-panel');
  root.replaceChildren(badge.node, bar, cineBody, learningBody, message.node, h('div', { class: 'foot' }, nodes(foot)));
  const parts = [badge, ...cine, ...learning, message, ...foot];
  session.listeners.add((state) => parts.forEach((one) => one.update(state)));
  session.set({}); // draws them all once

  askByAddress(session);
  const ends = [
    followViewer(session),
    session.picture.watch((annotation, kind) => editing.editInPicture(session, annotation, kind)),
    keepWhenLeaving(session),
    listenToKeys(session),
    () => stopFollowing(session),
  ];
  session.refreshAbout();
  followTraining(session);
  readSuspicious(session);
  return { end: () => ends.forEach((end) => end()) };
}

/** Return a React element (React 18's form) whose node is handed to `ref`, null when it goes. */
function reactElement(type, ref, props) {
  return { $$typeof: Symbol.for('react.element'), type, key: null, ref, props, _owner: null, _store: {} };
}

let mounted = null; // the panel lives longer than what React draws: it ends when its node is gone or another one comes

function panelOf(managers) {
  const ref = (node) => {
    if (node && mounted?.node !== node) {
      mounted?.panel.end();
      mounted = { node, panel: mountPanel(node, managers) };
    } else if (!node && mounted && !mounted.node.isConnected) {
      mounted.panel.end();
      mounted = null;
    }
  };
  return () => reactElement('div', ref, { style: { height: '100%' } });
}

const ICON = { iconName: 'tool-rectangle', iconLabel: 'Echo AI', label: 'Echo AI' };

export default {
  id: EXTENSION_ID,
  getPanelModule: (managers) => [{ name: PANEL_NAME, ...ICON, component: panelOf(managers) }],
};
