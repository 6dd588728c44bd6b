// SPDX-License-Identifier: Apache-2.0

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as words from '../../echo_plugin/viewers/ohif/words.js';

const { boxLabel, clock, defectWords, duration, frameList, isUndecided, percent, rounded } = words;

test('a box is labelled by its septum, and by the score or the reader that it has', () => {
  assert.equal(boxLabel({ septum: 'interatrial', by: 'person', score: null }), 'IAS');
  assert.equal(boxLabel({ septum: 'interventricular', by: 'model', score: 0.876 }), 'IVS 0.88');
  assert.equal(boxLabel({ septum: 'interatrial', by: 'model', score: 0 }), 'IAS 0.00');
  assert.equal(boxLabel({ septum: 'interatrial', by: 'other', author: 'Dr Two' }), 'IAS Dr Two');
  assert.equal(boxLabel({ septum: 'interatrial', by: 'other', author: null }), 'IAS other reader');
  assert.equal(boxLabel({ septum: 'no such' }), '?');
});

test('numbers are rounded and zero has no sign', () => {
  assert.deepEqual([-0.001, 0.004, -0.2, 0.996, 1].map(rounded), ['0.00', '0.00', '-0.20', '1.00', '1.00']);
  assert.deepEqual([0, 0.005, 0.494, 1].map(percent), ['0%', '1%', '49%', '100%']);
});

test('a class is undecided where it is hardly likelier than a guess', () => {
  const probabilities = { Normal: 0, ASD: 0, VSD: 0 };

  assert.equal(isUndecided({ probability: 0.39, probabilities }), true);
  assert.equal(isUndecided({ probability: 0.41, probabilities }), false);
  assert.equal(isUndecided({ probability: 0.59, probabilities: { Normal: 0, ASD: 0 } }), true);
});

test('frames are counted from 1 and neighbours are joined', () => {
  assert.equal(frameList([2]), 'frame 3');
  assert.equal(frameList([2, 6, 7, 8, 11]), 'frames 3, 7-9, 12');
  assert.equal(frameList([0, 1]), 'frames 1-2');
  assert.equal(frameList([]), 'frames ');
});

test('a duration has its two largest units, and is never negative', () => {
  assert.deepEqual([-3, 0, 59.4, 59.6, 125, 3600, 7379].map(duration), [
    '0 s',
    '0 s',
    '59 s',
    '1 min 0 s',
    '2 min 5 s',
    '1 h 0 min',
    '2 h 2 min',
  ]);
});

test('a defect is named with its size and whether it is shown, where those are said', () => {
  assert.equal(defectWords({ defect: null, defect_size_mm: 8 }), null);
  assert.equal(defectWords({ defect: 'ASD' }), 'ASD');
  assert.equal(defectWords({ defect: 'ASD', defect_size_mm: 8, defect_visible: false }), 'ASD of 8 mm, not shown here');
  assert.equal(defectWords({ defect: 'VSD', defect_size_mm: null, defect_visible: true }), 'VSD, shown here');
});

test('a time has its date only when that is not today', () => {
  const now = new Date();

  assert.equal(clock(null), '');
  assert.match(clock('2020-02-03T12:00:00Z'), /^2020-02-03 \d/);
  assert.doesNotMatch(clock(now.toISOString()), /-/);
});
