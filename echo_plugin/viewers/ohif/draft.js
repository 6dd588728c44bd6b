// SPDX-License-Identifier: Apache-2.0
// A draft: the annotation as it was read (`base`) and as the reader has changed it (`now`).
// Unsaved drafts are kept in this browser, by image id and without any patient identity, until they are submitted.

import { saysTheSame, toDocument, withUids } from './annotation.js';

const PREFIX = 'echo-draft/';
const SET_ASIDE = 'echo-set-aside/';

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
export function keepDraft(imageId, draft) {
  store(PREFIX + imageId, isChanged(draft) ? { base: draft.base, now: toDocument(draft.now, draft.now.author) } : null);
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
