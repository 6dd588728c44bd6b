// SPDX-License-Identifier: Apache-2.0
// The open cine: the session follows what the viewer shows, and goes to the cine that was asked for.

import * as api from './api.js';
import { setDrawing } from './boxes.js';
import { hasAside, keepDrafts, readDraft } from './draft.js';

const LANDING_MS = 5000;
const HANDS = ['pointerdown', 'wheel', 'keydown'];

/** Follow the viewer; return what ends it. */
export function followViewer(session) {
  const { displaySetService } = session.viewer.services;
  const onHand = () => {
    session.landing = null;
  };
  const added = displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, () => openAsked(session));
  HANDS.forEach((kind) => window.addEventListener(kind, onHand, { capture: true, passive: true }));
  const endWatching = session.viewer.watch(
    () => onCine(session),
    () => onFrame(session),
  );
  return () => {
    endWatching();
    HANDS.forEach((kind) => window.removeEventListener(kind, onHand, { capture: true }));
    added.unsubscribe();
  };
}

/** Show the cine that was asked for, once the viewer knows it. */
function openAsked({ asked, viewer }) {
  if (asked && viewer.viewport()) viewer.openCine(asked.imageId);
}

function onFrame(session) {
  const shown = session.viewer.shown();
  if (shown?.imageId === session.state.imageId) session.set({ frameIndex: shown.frameIndex });
  else onCine(session);
  const { landing } = session;
  if (!landing || performance.now() > landing.until) session.landing = null;
  else if (shown?.imageId === landing.imageId && shown.frameIndex !== landing.frameIndex) {
    session.viewer.goTo(landing.frameIndex);
  }
}

function onCine(session) {
  const shown = session.viewer.shown();
  if (!shown) return;
  const asked = session.asked?.imageId === shown.imageId ? session.asked : null;
  if (asked) session.asked = null;
  else openAsked(session);
  if (asked || shown.imageId !== session.state.imageId) showOther(session, shown, asked);
  else session.set(shown);
  if (session.state.draft) session.draw(); // also of the same cine: the viewport may have been made anew
  else readDraft(session, shown.imageId); // it was refused, perhaps
}

/** Let the panel show another cine; `asked` says why it and which of its frames, null where the reader chose it. */
function showOther(session, shown, asked) {
  const { imageId } = shown;
  setDrawing(session.managers, false);
  session.set({
    ...shown,
    draft: session.drafts.get(imageId) ?? null,
    prediction: session.predictions.get(imageId) ?? null,
    child: session.children.get(session.viewer.study()) ?? null,
    conflict: null,
    hasAside: hasAside(imageId),
    drawing: null,
    message: null,
    reason: asked?.reason ?? null,
    worthDrawing: asked?.frames ?? [],
  });
  if (!asked?.frames.length) return;
  const [frameIndex] = asked.frames;
  session.landing = { imageId, frameIndex, until: performance.now() + LANDING_MS };
  session.viewer.goTo(frameIndex);
}

/** Go to the cine that the page's address asks for, once the viewer shows a study. */
export function askByAddress(session) {
  const address = new URLSearchParams(location.search);
  if (!address.has('cine')) return;
  const frames = (address.get('frames') ?? '').split(',').filter(Boolean).map(Number).filter(Number.isInteger);
  session.asked = { imageId: address.get('cine'), frames, reason: address.get('reason') };
}

/** Go to a cine: in this viewer when it is of the open study, else by its address. */
function goTo(session, { image_id: imageId, study_instance_uid: study, show: frames = [], reason = '' }) {
  if (!study) throw new Error(`Cine ${imageId} is no DICOM file; this viewer cannot open it, 3D Slicer can.`);
  if (study !== session.viewer.study()) {
    keepDrafts(session);
    location.assign(api.cineUrl(study, imageId, { frames, reason }));
    return;
  }
  session.asked = { imageId, frames, reason };
  if (imageId === session.state.imageId) onCine(session);
  else openAsked(session);
}

/** Go to the cine that is worth an annotation next, as the chosen strategy has it. */
export const goToNext = (session) =>
  session.work('next', async () => {
    const { strategy, about } = session.state;
    const chosen = await api.nextCine(strategy, session.holder());
    if (!chosen.image_id) session.say(chosen.reason ?? 'Every cine has a label.', 'note');
    else goTo(session, { ...chosen, reason: chosen.reason ?? `${about?.strategies[strategy] ?? strategy}.` });
  });

/** Go to a cine of a list, unless another annotator has it; a refusal becomes the message. */
export const visit = (session, one) =>
  session.work('next', async () => {
    const lease = await api.takeCine(one.image_id, session.holder());
    if (lease.is_yours) goTo(session, one);
    else session.say(lease.reason, 'note');
  });
