// SPDX-License-Identifier: Apache-2.0
// A draft: the annotation as it was read (`base`) and as the reader has changed it (`now`).
// Unsaved drafts are kept in this browser, by image id and without any patient identity, until they are submitted.

import { readAnnotation } from './api.js';
import { saysTheSame, toDocument, withUids } from './annotation.js';

const PREFIX = 'echo-draft/';
const SET_ASIDE = 'echo-set-aside/';
const KEEP_AFTER_MS = 250;
const NOT_READ = 'The annotation of this cine is still being read; nothing can be drawn or submitted until it is here.';

export const newDraft = (annotation) => ({ base: annotation, now: withUids(annotation) });
export const isChanged = (draft) => !saysTheSame(draft.base, draft.now);

function store(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // a full or forbidden storage: the page still asks before it is left
  }
}

function load(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

/** Keep a changed draft in the browser; forget one without changes. */
export function keepDraft(imageId, { base, now }) {
  store(PREFIX + imageId, isChanged({ base, now }) ? { base, now: toDocument(now, now.author) } : null);
}

/** Return the draft that was kept of a cine; null when there is none. */
export function keptDraft(imageId) {
  const kept = load(PREFIX + imageId);
  return kept?.base?.image_id === imageId ? { base: kept.base, now: withUids(kept.now) } : null;
}

const asideOf = (imageId) => [load(SET_ASIDE + imageId) ?? []].flat();
export const hasAside = (imageId) => asideOf(imageId).length > 0;

/** Keep what a reader gave up in favour of another version, above what was set aside before. */
export function setAside(imageId, annotation) {
  store(SET_ASIDE + imageId, [...asideOf(imageId), toDocument(annotation, annotation.author)]);
}

/** Return what was set aside last, and keep it no longer. */
export function takeAside(imageId) {
  const kept = asideOf(imageId);
  const last = kept.pop();
  store(SET_ASIDE + imageId, kept.length ? kept : null);
  return last;
}

/** Write to the browser's storage what changed in this page; what another tab has kept there stays. */
export function keepDrafts(session) {
  clearTimeout(session.keeping);
  session.unkept.forEach((imageId) => keepDraft(imageId, session.drafts.get(imageId)));
  session.unkept.clear();
}

/** Keep the drafts, and ask, when the page is left with unsaved changes; return what ends it. */
export function keepWhenLeaving(session) {
  const beforeLeaving = (event) => {
    const changed = [...session.drafts].filter(([, draft]) => isChanged(draft));
    changed.forEach(([imageId]) => session.unkept.add(imageId));
    keepDrafts(session);
    if (changed.length) event.preventDefault();
  };
  window.addEventListener('beforeunload', beforeLeaving);
  return () => window.removeEventListener('beforeunload', beforeLeaving);
}

/** Read the annotation of a cine; a draft that the browser kept of it goes on, in conflict where it was saved since. */
export async function readDraft(session, imageId) {
  if (session.reading.has(imageId)) return;
  session.reading.add(imageId);
  try {
    const stored = await readAnnotation(imageId);
    const kept = keptDraft(imageId);
    const draft = kept ?? newDraft(stored);
    session.drafts.set(imageId, draft);
    if (imageId !== session.state.imageId) return;
    session.set({ draft });
    if (session.state.message?.text === NOT_READ) session.say('');
    if (kept) session.say('Your unsaved changes are back: submit or discard them.', 'note');
    if (kept && kept.base.revision !== stored.revision) session.set({ conflict: stored });
    session.draw();
  } catch (error) {
    if (imageId !== session.state.imageId) return;
    const advice = 'Nothing can be drawn before the annotation is read; draw or submit to ask again.';
    session.say(`${error.message} ${advice}`, 'bad');
  } finally {
    session.reading.delete(imageId);
  }
}

/** Return whether there is an annotation to change; else say why not, and ask for it again. */
export function mayChange(session) {
  const { imageId, draft } = session.state;
  if (draft) return true;
  session.say(imageId ? NOT_READ : 'Open a cine first.', 'note');
  if (imageId) readDraft(session, imageId);
  return false;
}

/** Change the draft of the open cine. The picture is drawn anew by the caller, where it does not show it already. */
export function changeDraft(session, now) {
  const { imageId } = session.state;
  const draft = { ...session.state.draft, now };
  session.drafts.set(imageId, draft);
  session.unkept.add(imageId);
  clearTimeout(session.keeping);
  session.keeping = setTimeout(() => keepDrafts(session), KEEP_AFTER_MS);
  session.set({ draft });
}

/** Take another draft of a cine, and write it to the browser's storage at once. */
export function adoptDraft(session, imageId, draft) {
  session.drafts.set(imageId, draft);
  session.unkept.add(imageId);
  keepDrafts(session);
  if (imageId !== session.state.imageId) return;
  session.set({ draft, conflict: null, hasAside: hasAside(imageId) });
  session.draw();
}
