// SPDX-License-Identifier: Apache-2.0
// The submission of a draft, and the conflict where somebody saved meanwhile: both versions, and what becomes of them.
// Nothing is lost by any choice.

import * as api from './api.js';
import { differingFrames, merge, saysTheSame, toDocument, withUids } from './annotation.js';
import { button, h, row } from './dom.js';
import { adoptDraft, changeDraft, hasAside, isChanged, mayChange, newDraft, setAside, takeAside } from './draft.js';
import { clock, defectWords, frameList } from './words.js';

const NOTHING_NEW =
  'Nothing has changed since the last revision. Keep, under Labels to look at again, confirms a doubted label.';

/** Return the name under which the reader submits. */
export function requireReader({ state }) {
  const reader = state.reader.trim();
  if (!reader) throw new Error('Enter your name or initials beside Submit first.');
  return reader;
}

export const submit = (session) =>
  session.work('submit', async () => {
    if (!mayChange(session)) return;
    const { draft, conflict } = session.state;
    if (conflict) throw new Error("First choose what becomes of the other reader's version.");
    const reader = requireReader(session);
    if (!isChanged(draft)) throw new Error(NOTHING_NEW);
    try {
      const saved = await api.submitAnnotation(toDocument(draft.now, reader));
      const isAllSaved = adoptSaved(session, draft.now, saved);
      const boxes = `${saved.boxes.length} box${saved.boxes.length === 1 ? '' : 'es'}`;
      const on = saved.annotated_frames.length ? ` on ${frameList(saved.annotated_frames)}` : '';
      const rest = isAllSaved ? '' : ' What you changed meanwhile is not submitted yet.';
      const revision = `revision ${saved.revision} by ${saved.author} at ${clock(saved.saved_at)}`;
      session.say(`Saved as ${revision}: ${boxes}${on}.${rest}`);
    } catch (error) {
      if (!(error instanceof api.ConflictError)) throw error;
      showConflict(session, error.current);
    }
  });

/**
 * Adopt what the server saved of `sent`, and keep what was changed while it was under way; return whether that is
 * nothing.
 */
export function adoptSaved(session, sent, saved) {
  const { now } = session.drafts.get(saved.image_id);
  const isAllSaved = saysTheSame(sent, now);
  const draft = isAllSaved ? newDraft(saved) : { base: saved, now: withUids(merge(sent, now, saved)) };
  adoptDraft(session, saved.image_id, draft);
  return isAllSaved;
}

function showConflict(session, theirs) {
  if (theirs.image_id !== session.state.imageId) {
    const saved = `${theirs.author ?? 'another reader'} saved it meanwhile`;
    throw new Error(`Cine ${theirs.image_id} is not submitted: ${saved}; yours is kept, open it and submit again.`);
  }
  session.set({ conflict: theirs });
  session.draw();
}

/** Settle a conflict: 'both' joins the versions, 'mine' or 'theirs' takes one; the other stays in history or aside. */
export function settle(session, choice) {
  const { draft, conflict: theirs } = session.state;
  const { image_id: imageId, revision } = theirs;
  if (draft?.base.image_id !== imageId) {
    session.set({ conflict: null });
    session.say(`That version is of cine ${imageId}, not of this one; open that cine and submit it again.`, 'bad');
    return;
  }
  const mine = draft.now;
  if (choice === 'theirs') {
    setAside(imageId, mine);
    adoptDraft(session, imageId, newDraft(theirs));
    session.say('Their version is shown; yours is set aside in this browser.', 'note');
    return;
  }
  const now = choice === 'both' ? merge(draft.base, mine, theirs) : { ...mine, revision };
  adoptDraft(session, imageId, { base: theirs, now: withUids(now) });
  const words =
    choice === 'both'
      ? 'Both versions are joined; look at it, then submit.'
      : `Your version is kept; submit it. Theirs stays in the history as revision ${revision}.`;
  session.say(words, 'note');
}

/** Bring back the version that was set aside last; changes made since are set aside in its place. */
export function bringBack(session) {
  const { imageId, draft } = session.state;
  const aside = takeAside(imageId);
  if (isChanged(draft)) setAside(imageId, draft.now);
  session.set({ hasAside: hasAside(imageId) });
  changeDraft(session, withUids({ ...aside, revision: draft.base.revision }));
  session.draw();
  session.say('Your version is back; look at it, then submit.', 'note');
}

/** Return what the card of a conflict shows of the state. */
export const pickConflict = ({ draft, conflict }) => ({ mine: conflict && draft.now, theirs: conflict });

/** Return the card of a conflict; null where there is none. */
export function conflictCard({ mine, theirs }, session) {
  if (!theirs) return null;
  const frames = differingFrames(mine, theirs);
  const who = theirs.author ?? 'Another reader';
  const saved = `${who} saved revision ${theirs.revision} at ${clock(theirs.saved_at)}, while you were at work`;
  const choose = (text, taken, attributes) => button(text, () => settle(session, taken), attributes);
  return h('div', { class: 'conflict', role: 'alertdialog', 'aria-label': 'Conflict', 'data-echo': 'conflict' }, [
    h('h3', {}, saved),
    h('div', { class: 'versions' }, summary('Yours (solid)', mine), summary(`${who} (dotted)`, theirs)),
    h('p', {}, frames.length ? `They differ on ${frameList(frames)}.` : 'They differ in what they say of the cine.'),
    row(
      choose('Keep both', 'both', {
        class: 'primary',
        title: 'Join them; where both changed a frame, yours is taken',
        'data-echo': 'keep-both',
      }),
      choose('Keep mine', 'mine', { title: 'Theirs stays in the history', 'data-echo': 'keep-mine' }),
      choose('Take theirs', 'theirs', {
        title: 'Yours is set aside and can be brought back',
        'data-echo': 'take-theirs',
      }),
    ),
  ]);
}

function summary(title, annotation) {
  const { boxes, annotated_frames: frames, view, defect } = annotation;
  const said = [
    `${boxes.length} boxes`,
    frames.length ? frameList(frames) : 'no frame',
    view && `view ${view}`,
    defect && `defect ${defectWords(annotation)}`,
  ];
  return h('div', {}, h('b', {}, title), h('br'), said.filter(Boolean).join(', '));
}
