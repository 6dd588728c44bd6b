// SPDX-License-Identifier: Apache-2.0
// What the models say: who speaks (the badge), view and defect of the cine with the evidence for it, the whole child.

import { cineUrl, pictureUrl } from './api.js';
import { button, h, row } from './dom.js';
import { explain, predictCine, predictStudy, stopPredicting } from './prediction.js';
import { frameList, isUndecided, percent, rounded } from './words.js';

const MODEL_NAMES = { septal_detector: 'Septa', defect_embedder: 'Defect', view_classifier: 'View' };
const VIEWS_SHOWN = 3;
const UNDECIDED = 'Undecided: hardly better than chance.';

/** Return the badge: which models speak here, what they learned from, what they are for. */
export function modelBadge({ about }) {
  if (!about) return null;
  const models = Object.entries(about.models).map(([name, card]) => ({ name: MODEL_NAMES[name] ?? name, ...card }));
  if (!models.length) {
    return h('div', { class: 'badge', 'data-echo': 'badge' }, 'No model is published yet: annotate, then train one.');
  }
  // the shortest true statement on what a model learned from: a long provenance begins with it
  const sources = [...new Set(models.map((card) => card.trained_on.split(',')[0]))];
  const details = models.map((card) => `${card.name} v${card.version}: ${card.trained_on}. ${card.limits}`);
  return h('div', { class: 'badge', 'data-echo': 'badge', title: details.join('\n') }, [
    h('strong', {}, `${sources.join('; ')}: not for clinical use`),
    h('span', {}, models.map(({ name, version }) => `${name} ${version}`).join(' · ')),
  ]);
}

/** Return the buttons that ask the models, or how far they are. */
export function predictButtons({ busy, progress, imageId }, session) {
  if (busy === 'predict') {
    const { done = 0, total = 1 } = progress ?? {};
    return [
      row(
        h('span', { class: 'live', 'data-echo': 'progress' }, predicting(done, total)),
        button('Cancel', () => stopPredicting(session)),
      ),
      h('progress', total > 1 ? { max: total, value: done } : {}),
    ];
  }
  const disabled = !imageId || Boolean(busy);
  const ofStudy = { title: 'Predict all cines of this study', disabled, 'data-echo': 'predict-study' };
  return row(
    button('Predict this cine', () => predictCine(session), {
      key: 'P',
      class: 'primary',
      disabled,
      'data-echo': 'predict',
    }),
    button('All of the study', () => predictStudy(session), ofStudy),
  );
}

function predicting(done, total) {
  if (total <= 1) return 'Predicting';
  return done === total ? 'Joining the cines of this child' : `Predicting cine ${done + 1} of ${total}`;
}

/** Return what the card of a prediction shows of the state. */
export const pickFindings = ({ prediction, imageId, isFolded, busy }) => {
  const { view, defect, nearest, explanation } = prediction ?? {};
  return { imageId, isFolded, busy, view, defect, nearest, explanation };
};

/** Return the card of a prediction; null where there is none. */
export function findings(picked, session) {
  const { view, defect, nearest, isFolded } = picked;
  if (!view && !defect) return null;
  const evidence = () => [
    defect && defectPart(picked, session),
    nearestCases(nearest ?? [], Boolean(defect && !defect.is_whole_frame)),
  ];
  return h('div', { class: 'card' }, [
    view && viewPart(view),
    isFolded
      ? defect && h('h3', {}, 'Defect ', defectName(defect, doubt(defect)), percent(defect.probability))
      : evidence(),
    button(isFolded ? 'more' : 'less', () => session.set({ isFolded: !isFolded }), {
      class: 'link fold',
      title: 'Show or hide the evidence',
      'data-echo': 'fold',
    }),
  ]);
}

/** Return a line with a name, a probability as a bar and as a number, and a note where there is one. */
function bar(name, probability, { note = null, isChosen = false } = {}) {
  const share = percent(probability);
  return h('div', { class: isChosen ? 'bar chosen' : 'bar' }, [
    h('span', { class: 'name' }, name),
    h('span', { class: 'track' }, h('span', { class: 'fill', style: `width:${share}` })),
    h('span', { class: 'number' }, share),
    note && h('span', { class: 'note' }, note),
  ]);
}

const defectName = (name, isDoubted) => h('b', {}, isDoubted ? `${name}?` : name);

function viewPart({
  view,
  probability,
  probabilities,
  frame_indices: frames,
  is_standard: isStandard,
  is_still: isStill,
}) {
  const likely = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
  const others = likely
    .slice(1, VIEWS_SHOWN)
    .map(([name, share]) => `${name} ${percent(share)}`)
    .join(', ');
  const still = isStill ? 'From one frame, without motion.' : null;
  const note = isStandard === false ? 'No standard view: what depends on one should not be trusted.' : still;
  return h('div', { 'data-echo': 'view', title: `Then ${others}; from ${frameList(frames)}` }, [
    h('h3', {}, 'View ', h('b', {}, view), bar('', probability, { isChosen: true })),
    note && h('p', { class: 'note' }, note),
  ]);
}

/** Return why the defect should not be trusted, in one sentence; null when nothing speaks against it. */
function doubt(defect) {
  if (defect.abstained) return `The model abstains: ${defect.abstained}`;
  if (defect.is_whole_frame) return 'No septum was found: whole frames were compared, so this says little.';
  return isUndecided(defect) ? UNDECIDED : null;
}

function defectPart({ imageId, defect, explanation, busy }, session) {
  const warning = doubt(defect);
  const bars = Object.entries(defect.probabilities).map(([name, probability]) => {
    const degrees = defect.angles_deg?.[name];
    const note = degrees === undefined ? null : `${Math.round(degrees)}°`;
    return bar(name, probability, { note, isChosen: name === defect.defect });
  });
  const hidden = busy === 'explain' ? 'Looking' : 'Where it looked';
  const look = button(explanation ? 'Hide where it looked' : hidden, () => explain(session), {
    class: 'link',
    title: 'Show what in the picture speaks for this defect',
    disabled: Boolean(busy),
    'data-echo': 'explain',
  });
  const title = `Degrees: angle to the centre of each class; from ${frameList(defect.frame_indices)}`;
  return h('div', { 'data-echo': 'defect', title }, [
    h('div', { class: 'beside' }, [
      h('div', {}, h('h3', {}, 'Defect ', defectName(defect.defect, warning), look), bars),
      cropUsed(imageId, defect, session),
    ]),
    warning && h('p', { class: 'doubt', 'data-echo': 'doubt' }, warning),
    explanation && whereItLooked(defect, explanation, session),
  ]);
}

/** Return a picture of a frame, which shows that frame when it is pressed. */
const framePicture = (src, alt, frameIndex, { viewer }) =>
  h('button', { type: 'button', class: 'picture', title: 'Show this frame', onclick: () => viewer.goTo(frameIndex) }, [
    h('img', { src, alt }),
  ]);

function cropUsed(imageId, { crops = [] }, session) {
  if (!crops.length) return null;
  const { frame_index: frameIndex, x1, y1, x2, y2 } = crops[Math.floor(crops.length / 2)];
  const src = pictureUrl(imageId, frameIndex, [x1, y1, x2, y2]);
  return h('figure', {}, [
    framePicture(src, 'Crop that the defect was read from', frameIndex, session),
    h('figcaption', { title: `The crop it was read from, one of ${crops.length}` }, `frame ${frameIndex + 1}`),
  ]);
}

function whereItLooked({ defect }, { url, frameIndex }, session) {
  const rule = `the brighter a place, the more it speaks for ${defect} (Grad-CAM). Where it looked, not why.`;
  return h('figure', { class: 'wide', 'data-echo': 'explanation' }, [
    framePicture(url, `What in the crop speaks for ${defect}`, frameIndex, session),
    h('figcaption', {}, `Frame ${frameIndex + 1}: ${rule}`),
  ]);
}

function nearestCases(cases, isSeptumFound) {
  if (!cases.length && !isSeptumFound) return null;
  if (!cases.length) return h('p', { class: 'hint', 'data-echo': 'nearest' }, 'No past cases to compare with yet.');
  const isAnyAlike = cases.some(({ similarity }) => similarity > 0);
  return h('div', { 'data-echo': 'nearest' }, [
    h('h3', {}, isAnyAlike ? 'Most similar past cases' : 'Past cases: none is alike'),
    h('div', { class: 'cases' }, cases.map(pastCase)),
  ]);
}

function pastCase({ image_id: imageId, study_instance_uid: study, defect, similarity }) {
  const caption = h('span', {}, `${defect} ${rounded(similarity)}`);
  if (!study) return h('span', { class: 'case' }, h('span', { class: 'missing' }, 'not in this folder'), caption);
  const scale = '1: the same, 0 and less: nothing in common';
  const title = `Similarity ${rounded(similarity)} (${scale}). Opens in a new tab`;
  return h('a', { class: 'case', href: cineUrl(study, imageId), target: '_blank', rel: 'noopener', title }, [
    h('img', { src: pictureUrl(imageId), alt: `Past case with ${defect}` }),
    caption,
  ]);
}

/** Return the card of the child: `child` has the joined `answer` (null: none), or the `error` in its place. */
export function childCard({ child, isFolded }) {
  if (!child) return null;
  const { answer, error } = child;
  const none = error
    ? `The cines were not joined: ${error}`
    : 'No answer: the model abstains on every cine of this child.';
  const isJoined = !error && answer;
  return h('div', { class: 'card', 'data-echo': 'child', title: 'All cines of this child, joined' }, [
    isJoined ? joinedCines(answer, isFolded) : [h('h3', {}, 'This child'), h('p', { class: 'doubt' }, none)],
  ]);
}

function joinedCines(answer, isFolded) {
  const { defect, probability, probabilities, cines, asked } = answer;
  const [words, isDoubted] = agreement(answer);
  const name = defectName(defect, isDoubted || isUndecided(answer));
  const part = h('span', { class: 'hint' }, `${cines} of ${asked} cine${asked === 1 ? '' : 's'} took part`);
  if (isFolded) return h('h3', {}, 'This child ', name, percent(probability), part);
  return [
    h('h3', {}, 'This child ', name, part),
    Object.entries(probabilities).map(([other, share]) => bar(other, share, { isChosen: other === defect })),
    isUndecided(answer) && h('p', { class: 'doubt' }, UNDECIDED),
    h('p', { class: isDoubted ? 'doubt' : 'hint', 'data-echo': 'agreement' }, words),
  ];
}

/** Return `[sentence, isDoubted]`: whether the cines that can show the defect say so. */
function agreement({ defect, cines, agreement: share }) {
  if (share === null) return [`None of these views can show ${defect}: it rests on views that do not.`, true];
  if (cines === 1) return ['From one cine alone: no other view confirms it.', false];
  const able = defect === 'Normal' ? 'cines' : `cines that can show ${defect}`;
  if (share === 1) return [`The views agree: all ${able} say ${defect}.`, false];
  return [`The views do not agree: ${percent(share)} of the ${able} say ${defect}.`, true];
}
