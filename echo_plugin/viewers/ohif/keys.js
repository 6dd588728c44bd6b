// SPDX-License-Identifier: Apache-2.0
// The keyboard. These keys come before OHIF's own; none of them acts while one types in a field.

import * as editing from './editing.js';
import * as tasks from './tasks.js';

export const KEYS = {
  ArrowRight: ['next frame', (session) => session.viewer.step(1)],
  ArrowLeft: ['previous frame', (session) => session.viewer.step(-1)],
  ' ': ['play or pause', (session) => session.viewer.play(!session.viewer.isPlaying())],
  p: ['predict this cine', tasks.predictCine],
  1: ['draw interatrial septum', (session) => editing.draw(session, 'interatrial')],
  2: ['draw interventricular septum', (session) => editing.draw(session, 'interventricular')],
  Escape: ['stop drawing', (session) => editing.draw(session, null)],
  a: ['accept the prediction on this frame', editing.accept],
  e: ['no septum on this frame', editing.markEmpty],
  c: ['copy boxes to the next frame', editing.copyToNext],
  i: ['interpolate between key frames', editing.fillBetween],
  m: ['model boxes on your frames', editing.compare],
  s: ['submit', tasks.submit],
  n: ['next cine', (session) => tasks.next(session, session.state.strategy)],
};

/** Listen to the keyboard; return what ends it. */
export function listenToKeys(session) {
  const listener = (event) => {
    const isTyping = event.target.closest?.('input, select, textarea, [contenteditable], [role=dialog]');
    const [, act] = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key] ?? [];
    if (!act || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === ' ' && event.target.closest?.('button')) event.target.blur();
    event.preventDefault();
    event.stopImmediatePropagation();
    act(session);
  };
  window.addEventListener('keydown', listener, true);
  return () => window.removeEventListener('keydown', listener, true);
}
