// SPDX-License-Identifier: Apache-2.0
// The server's routes for this panel. A refusal is thrown as the one sentence that the server gave.

const ROOT = new URL('../', import.meta.url);

/** Somebody saved a newer revision: `current` is what they saved. */
export class ConflictError extends Error {
  constructor(sentence, current) {
    super(sentence);
    this.current = current;
  }
}

async function fetchOrRefuse(path, request) {
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { cache: 'no-store', ...request });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server does not answer; your changes stay in this browser. Is it still running?');
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  if (response.status === 409 && answer.current) throw new ConflictError(answer.detail, answer.current);
  throw new Error(answer.detail ?? `${path}: the server answered ${response.status}.`);
}

async function ask(method, path, body, signal) {
  const request = { method, signal };
  if (body !== undefined) {
    request.headers = { 'Content-Type': 'application/json' };
    request.body = JSON.stringify(body);
  }
  const response = await fetchOrRefuse(path, request);
  return response.json().catch(() => ({}));
}

const id = encodeURIComponent;

export const about = () => ask('GET', 'echo/about');
export const cinesOfStudy = (study) => ask('GET', `echo/cines?study=${id(study)}`);
export const readAnnotation = (imageId) => ask('GET', `echo/annotations/${id(imageId)}`);
export const submitAnnotation = (document) => ask('PUT', `echo/annotations/${id(document.image_id)}`, document);
export const predict = (imageId, signal) => ask('POST', `echo/predictions/${id(imageId)}`, undefined, signal);
/** Ask what all cines of the child of a cine say together; null: none of them was answered. */
export const childDefect = async (imageId, signal) =>
  (await ask('GET', `echo/patient?image=${id(imageId)}`, undefined, signal)).patient_defect;
/**
 * Ask for the picture of what in a cine speaks for its defect: `{ url, frameIndex, defect, probability }` with the
 * answer that it explains, which the server made anew. The address is this page's to revoke.
 */
export async function explanation(imageId) {
  const response = await fetchOrRefuse(`echo/explain?image=${id(imageId)}`);
  const { frame_index: frameIndex, ...answer } = JSON.parse(response.headers.get('X-Explanation'));
  return { ...answer, frameIndex, url: URL.createObjectURL(await response.blob()) };
}
export const nextCine = (strategy, holder) => ask('POST', 'echo/next', { strategy, client_id: holder });
/** Take a cine that was chosen from a list, so that it is shown to nobody else; `is_yours` says whether it could be. */
export const takeCine = (imageId, holder) => ask('PUT', `echo/lease?image=${id(imageId)}&client_id=${id(holder)}`);
export const suspicious = () => ask('GET', 'echo/suspicious');
export const training = () => ask('GET', 'echo/training');
export const startTraining = (model, params) => ask('POST', `train/${id(model)}`, params);
export const stopTraining = () => ask('DELETE', 'train/');

/** Return the address of a small picture: the tissue in the middle frame, or a box `[x1, y1, x2, y2]` in a frame. */
export function pictureUrl(imageId, frameIndex = null, box = null) {
  const url = new URL(`echo/pictures/${id(imageId)}`, ROOT);
  if (frameIndex !== null) url.searchParams.set('frame_index', frameIndex);
  if (box !== null) url.searchParams.set('box', box.map((end) => end.toFixed(1)).join(','));
  return url.href;
}

/** Return the address that opens a cine in this viewer, at the first of `frames` (0-based). */
export function cineUrl(study, imageId, { frames = [], reason = '' } = {}) {
  const url = new URL(location.pathname, location.origin);
  url.searchParams.set('StudyInstanceUIDs', study);
  url.searchParams.set('cine', imageId);
  if (frames.length) url.searchParams.set('frames', frames.join(','));
  if (reason) url.searchParams.set('reason', reason);
  return url.href;
}
