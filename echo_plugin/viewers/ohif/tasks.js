// SPDX-License-Identifier: Apache-2.0
// What needs the server: predict, submit, settle a conflict, go to the next cine.

import * as api from './api.js';
import { merge, newUid, saysTheSame, toDocument, withUids } from './annotation.js';
import { hasAside, isChanged, newDraft, setAside, takeAside } from './draft.js';
import { clock, frameList } from './words.js';

const SAME_ANSWER = 0.005; // of two probabilities of one cine and model: arithmetic differs a little from run to run

let stopping = null;

async function predictOne(session, imageId) {
  const answer = await api.predict(imageId, stopping.signal);
  const prediction = { ...answer, boxes: answer.boxes.map((box) => ({ ...box, uid: newUid() })) };
  forgetExplanation(session.predictions.get(imageId));
  adoptPrediction(session, imageId, prediction);
  return prediction;
}

function adoptPrediction(session, imageId, prediction) {
  session.predictions.set(imageId, prediction);
  if (imageId !== session.state.imageId) return;
  session.set({ prediction });
  session.draw();
}

const forgetExplanation = (prediction) => prediction?.explanation && URL.revokeObjectURL(prediction.explanation.url);

/** Show where the network looked for the defect of the open cine; asked once more, hide it. */
export const explain = (session) =>
  session.work('explain', async () => {
    const { imageId, prediction } = session.state;
    if (prediction.explanation) {
      forgetExplanation(prediction);
      adoptPrediction(session, imageId, { ...prediction, explanation: null });
      return;
    }
    const explanation = await api.explanation(imageId);
    const { defect, probability } = prediction.defect;
    const isOfThisAnswer = explanation.defect === defect && Math.abs(explanation.probability - probability) < SAME_ANSWER;
    if (isOfThisAnswer && session.predictions.get(imageId) === prediction) {
      adoptPrediction(session, imageId, { ...prediction, explanation });
      return;
    }
    forgetExplanation({ explanation });
    if (!isOfThisAnswer) throw new Error('The models were replaced since this prediction; predict the cine again.');
  });

function found({ boxes }) {
  const frames = new Set(boxes.map((box) => box.frame_index)).size;
  return boxes.length ? `${boxes.length} boxes on ${frames} frames` : 'no septum found';
}

export const predictCine = (session) =>
  session.work('predict', async () => {
    stopping = new AbortController();
    session.set({ progress: { done: 0, total: 1 } });
    const prediction = await predictOne(session, session.state.imageId);
    session.say(`Predicted: ${found(prediction)}.`);
  });

export const predictStudy = (session) =>
  session.work('predict', async () => {
    stopping = new AbortController();
    const study = session.viewer.study();
    const cines = await api.cinesOfStudy(study);
    const failures = [];
    setChild(session, study, null);
    for (const [done, { image_id: imageId }] of cines.entries()) {
      session.set({ progress: { done, total: cines.length } });
      await predictOne(session, imageId).catch((error) => failures.push(error.message));
      if (stopping.signal.aborted) {
        session.say(`Cancelled; ${done} of ${cines.length} cines of this study are predicted.`, 'note');
        return;
      }
    }
    if (failures.length) session.say(`${failures.length} of ${cines.length} cines failed. ${failures[0]}`, 'bad');
    else session.say(`All ${cines.length} cines of this study are predicted.`);
    const isAnyAnswered = cines.some(({ image_id: imageId }) => session.predictions.get(imageId)?.defect);
    if (isAnyAnswered) await joinCines(session, study, cines);
  });

/** Ask what the cines of the child say together; why that is not known is said in its place. */
async function joinCines(session, study, cines) {
  session.set({ progress: { done: cines.length, total: cines.length } });
  let child;
  try {
    child = { answer: await api.childDefect(cines[0].image_id, stopping.signal) };
  } catch (error) {
    child = { error: error.name === 'AbortError' ? 'cancelled.' : error.message };
  }
  setChild(session, study, child);
}

function setChild(session, study, child) {
  session.children.set(study, child);
  if (study === session.viewer.study()) session.set({ child });
}

export const stopPredicting = () => stopping?.abort();

export const submit = (session) =>
  session.work('submit', async () => {
    if (!session.mayChange()) return;
    const { draft, reader, conflict } = session.state;
    if (conflict) throw new Error('First choose what becomes of the other reader\'s version.');
    if (!reader.trim()) throw new Error('Enter your name or initials beside Submit first.');
    if (!isChanged(draft)) throw new Error('Nothing has changed since the last revision. Keep, under Labels to look at again, confirms a doubted label.');
    try {
      const saved = await api.submitAnnotation(toDocument(draft.now, reader.trim()));
      const isAllSaved = adoptSaved(session, draft.now, saved);
      const boxes = `${saved.boxes.length} box${saved.boxes.length === 1 ? '' : 'es'}`;
      const on = saved.annotated_frames.length ? ` on ${frameList(saved.annotated_frames)}` : '';
      const rest = isAllSaved ? '' : ' What you changed meanwhile is not submitted yet.';
      session.say(`Saved as revision ${saved.revision} by ${saved.author} at ${clock(saved.saved_at)}: ${boxes}${on}.${rest}`);
    } catch (error) {
      if (!(error instanceof api.ConflictError)) throw error;
      showConflict(session, error.current);
    }
  });

/** Adopt what the server saved of `sent`, and keep what was changed while it was under way; return whether that is nothing. */
function adoptSaved(session, sent, saved) {
  const { now } = session.drafts.get(saved.image_id);
  const isAllSaved = saysTheSame(sent, now);
  adopt(session, saved, isAllSaved ? newDraft(saved) : { base: saved, now: withUids(merge(sent, now, saved)) });
  return isAllSaved;
}

function showConflict(session, theirs) {
  if (theirs.image_id !== session.state.imageId) {
    const who = theirs.author ?? 'another reader';
    throw new Error(`Cine ${theirs.image_id} is not submitted: ${who} saved it meanwhile; yours is kept, open it and submit again.`);
  }
  session.set({ conflict: theirs });
  session.draw();
}

function adopt(session, { image_id: imageId }, draft) {
  session.drafts.set(imageId, draft);
  session.unkept.add(imageId);
  session.keepNow();
  if (imageId !== session.state.imageId) return;
  session.set({ draft, conflict: null, hasAside: hasAside(imageId) });
  session.draw();
}

/** Settle a conflict: 'both' joins the versions, 'mine' or 'theirs' takes one; the other stays in history or aside. */
export function settle(session, choice) {
  const { draft, conflict: theirs } = session.state;
  if (draft?.base.image_id !== theirs.image_id) {
    session.set({ conflict: null });
    session.say(`That version is of cine ${theirs.image_id}, not of this one; open that cine and submit it again.`, 'bad');
    return;
  }
  const mine = draft.now;
  if (choice === 'theirs') {
    setAside(theirs.image_id, mine);
    adopt(session, theirs, newDraft(theirs));
    session.say('Their version is shown; yours is set aside in this browser.', 'note');
    return;
  }
  const now = choice === 'both' ? merge(draft.base, mine, theirs) : { ...mine, revision: theirs.revision };
  adopt(session, theirs, { base: theirs, now: withUids(now) });
  session.say(
    choice === 'both'
      ? 'Both versions are joined; look at it, then submit.'
      : `Your version is kept; submit it. Theirs stays in the history as revision ${theirs.revision}.`,
    'note',
  );
}

/** Bring back the version that was set aside last; changes made since are set aside in its place. */
export function bringBack(session) {
  const { imageId, draft } = session.state;
  const aside = takeAside(imageId);
  if (isChanged(draft)) setAside(imageId, draft.now);
  session.set({ hasAside: hasAside(imageId) });
  session.change(withUids({ ...aside, revision: draft.base.revision }));
  session.say('Your version is back; look at it, then submit.', 'note');
}

/** Go to a cine: in this viewer when it is of the open study, else by its address. */
export function open(session, { image_id: imageId, study_instance_uid: study, show: frames = [], reason = '' }) {
  if (!study) throw new Error(`Cine ${imageId} is no DICOM file; this viewer cannot open it, 3D Slicer can.`);
  if (study !== session.viewer.study()) {
    session.keepNow();
    location.assign(api.cineUrl(study, imageId, { frames, reason }));
    return;
  }
  session.asked = { imageId, frames, reason };
  if (imageId === session.state.imageId) session.onCine();
  else session.openAsked();
}

export const next = (session, strategy) =>
  session.work('next', async () => {
    const chosen = await api.nextCine(strategy, session.holder());
    if (!chosen.image_id) session.say(chosen.reason ?? 'Every cine has a label.', 'note');
    else open(session, { ...chosen, reason: chosen.reason ?? `${session.state.about?.strategies[strategy] ?? strategy}.` });
  });

/** Read the list of labels that look like mistakes. */
export async function readSuspicious(session) {
  try {
    session.set({ suspicious: await api.suspicious() });
  } catch (error) {
    session.say(error.message, 'bad');
  }
}

/** Submit the label of a cine once more as it is: a person has looked, and it is not doubted again. */
export const keepLabel = (session, { image_id: imageId, revision }) =>
  session.work('submit', async () => {
    const reader = session.state.reader.trim();
    if (!reader) throw new Error('Enter your name or initials beside Submit first.');
    const stored = await api.readAnnotation(imageId);
    if (stored.revision !== revision) throw new Error(`Cine ${imageId} has another label by now; refresh the list.`);
    const saved = await api.submitAnnotation(toDocument(stored, reader));
    if (session.drafts.get(imageId)?.base.revision === revision) adoptSaved(session, stored, saved);
    await readSuspicious(session);
    session.say(`Kept: the label is confirmed as revision ${saved.revision} by ${saved.author}.`);
  });

/** Go to a cine of a list, unless another annotator has it; a refusal becomes the message. */
export const visit = (session, one) =>
  session.work('next', async () => {
    const lease = await api.takeCine(one.image_id, session.holder());
    if (lease.is_yours) open(session, one);
    else session.say(lease.reason, 'note');
  });
