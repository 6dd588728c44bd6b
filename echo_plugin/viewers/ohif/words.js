// SPDX-License-Identifier: Apache-2.0
// Names and colours: one colour for each septum, the same in the picture, the frame strip and the buttons.

export const SEPTA = {
  interatrial: { short: 'IAS', name: 'Interatrial septum', colour: '#4cc9ff' },
  interventricular: { short: 'IVS', name: 'Interventricular septum', colour: '#ffa94d' },
  unspecified: { short: '?', name: 'Septum not named', colour: '#e9e9e9' },
};

export const MODEL = 'model';
export const PERSON = 'person';
export const OTHER_READER = 'other';

/** Return what stands beside a box: its septum, and the score of a model or the name of the other reader. */
export function boxLabel({ septum, by, score, author }) {
  const { short } = SEPTA[septum] ?? SEPTA.unspecified;
  if (by === MODEL && score !== null) return `${short} ${score.toFixed(2)}`;
  return by === OTHER_READER ? `${short} ${author ?? 'other reader'}` : short;
}

/** Return a number with two decimals, never "-0.00". */
export const rounded = (number) => (Math.abs(number) < 0.005 ? 0 : number).toFixed(2);

export const percent = (probability) => `${Math.round(100 * probability)}%`;

const BETTER_THAN_CHANCE = 1.2;

/** Whether the likeliest class is hardly likelier than a guess. */
export const isUndecided = ({ probability, probabilities }) =>
  probability < BETTER_THAN_CHANCE / Object.keys(probabilities).length;

/** Return "frames 3, 7-9, 12" of 0-based indices, counted from 1 as the viewer counts. */
export function frameList(frameIndices) {
  const runs = [];
  for (const index of frameIndices) {
    const last = runs.at(-1);
    if (last && index === last[1] + 1) last[1] = index;
    else runs.push([index, index]);
  }
  const text = runs.map(([from, to]) => (from === to ? `${from + 1}` : `${from + 1}-${to + 1}`)).join(', ');
  return `frame${frameIndices.length === 1 ? '' : 's'} ${text}`;
}

/** Return "2 min 5 s" of seconds. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Return "ASD of 8 mm, not shown here" of an annotation; null where no defect is said. */
export function defectWords({ defect, defect_size_mm: size, defect_visible: visible }) {
  if (!defect) return null;
  const seen = { true: ', shown here', false: ', not shown here' }[visible] ?? '';
  return `${defect}${size ? ` of ${size} mm` : ''}${seen}`;
}

/** Return the clock time of an ISO text, with the date when it is not today. */
export function clock(iso) {
  if (!iso) return '';
  const then = new Date(iso);
  const time = then.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toISOString().slice(0, 10)} ${time}`;
}
