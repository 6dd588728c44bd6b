// SPDX-License-Identifier: Apache-2.0
// What is asked of the models: the prediction of a cine or of a study, the answer for the child, where it looked.

import * as api from './api.js';
import { withUids } from './annotation.js';

const SAME_ANSWER = 0.005; // of two probabilities of one cine and model: arithmetic differs a little from run to run

export const predictCine = (session) =>
  session.work('predict', async () => {
    session.stopping = new AbortController();
    session.set({ progress: { done: 0, total: 1 } });
    const { boxes } = await predictOne(session, session.state.imageId);
    const frames = new Set(boxes.map((box) => box.frame_index)).size;
    session.say(`Predicted: ${boxes.length ? `${boxes.length} boxes on ${frames} frames` : 'no septum found'}.`);
  });

export const predictStudy = (session) =>
  session.work('predict', async () => {
    session.stopping = new AbortController();
    const study = session.viewer.study();
    const cines = await api.cinesOfStudy(study);
    const failures = [];
    setChild(session, study, null);
    for (const [done, { image_id: imageId }] of cines.entries()) {
      session.set({ progress: { done, total: cines.length } });
      await predictOne(session, imageId).catch((error) => failures.push(error.message));
      if (session.stopping.signal.aborted) {
        session.say(`Cancelled; ${done} of ${cines.length} cines of this study are predicted.`, 'note');
        return;
      }
    }
    if (failures.length) session.say(`${failures.length} of ${cines.length} cines failed. ${failures[0]}`, 'bad');
    else session.say(`All ${cines.length} cines of this study are predicted.`);
    const isAnyAnswered = cines.some(({ image_id: imageId }) => session.predictions.get(imageId)?.defect);
    if (isAnyAnswered) await joinCines(session, study, cines);
  });

export const stopPredicting = (session) => session.stopping?.abort();

async function predictOne(session, imageId) {
  const prediction = withUids(await api.predict(imageId, session.stopping.signal));
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

/** Ask what the cines of the child say together; why that is not known is said in its place. */
async function joinCines(session, study, cines) {
  session.set({ progress: { done: cines.length, total: cines.length } });
  let child;
  try {
    child = { answer: await api.childDefect(cines[0].image_id, session.stopping.signal) };
  } catch (error) {
    child = { error: error.name === 'AbortError' ? 'cancelled.' : error.message };
  }
  setChild(session, study, child);
}

function setChild(session, study, child) {
  session.children.set(study, child);
  if (study === session.viewer.study()) session.set({ child });
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
    const isSame = explanation.defect === defect && Math.abs(explanation.probability - probability) < SAME_ANSWER;
    if (isSame && session.predictions.get(imageId) === prediction) {
      adoptPrediction(session, imageId, { ...prediction, explanation });
      return;
    }
    forgetExplanation({ explanation });
    if (!isSame) throw new Error('The models were replaced since this prediction; predict the cine again.');
  });
