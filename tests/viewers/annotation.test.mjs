// SPDX-License-Identifier: Apache-2.0

import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as annotations from '../../echo_plugin/viewers/ohif/annotation.js';
import { annotation, box, withoutUids } from './fixtures.mjs';

const { acceptAll, acceptFrame, copyFrame, differingFrames, interpolate, keyFrames, merge, saysTheSame } = annotations;
const { newUid, toDocument, withFrame, withoutFrame, withUids } = annotations;

const septaOn = (said, frameIndex) => annotations.boxesOn(said, frameIndex).map(({ septum }) => septum);
const VENTRICULAR = { septum: 'interventricular', x1: 50, y1: 30, x2: 62, y2: 90 };

test('a uid is a random UUID of version 4', () => {
  const uids = Array.from({ length: 100 }, newUid);

  uids.forEach((uid) => assert.match(uid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/));
  assert.equal(new Set(uids).size, 100);
});

test('boxes get a uid once, and what is sent has none', () => {
  const first = withUids(annotation([box(0), box(1, { uid: 'known' })]));
  const second = withUids(first);

  assert.equal(first.boxes[1].uid, 'known');
  assert.deepEqual(second, first);
  assert.deepEqual(toDocument(second, 'Dr Two'), annotation([box(0), box(1)], { author: 'Dr Two' }));
});

test('a drawn frame replaces its boxes, has no score and counts as looked at', () => {
  const before = annotation([box(1), box(4)]);

  const after = withFrame(before, 2, [box(7, { score: 0.9 })]);
  const emptied = withFrame(after, 4, []);

  assert.deepEqual(after.annotated_frames, [1, 2, 4]);
  assert.deepEqual(withoutUids(after).boxes, [box(1), box(4), box(2)]);
  assert.deepEqual(emptied.annotated_frames, [1, 2, 4]);
  assert.deepEqual(septaOn(emptied, 4), []);
  assert.deepEqual(before, annotation([box(1), box(4)]), 'the annotation before is as it was');
});

test('a frame that is forgotten is as if nobody had looked', () => {
  const said = annotation([box(0), box(1)]);

  assert.deepEqual(withoutFrame(said, 1), annotation([box(0)]));
  assert.deepEqual(withoutFrame(said, 7), said);
});

test('a prediction is accepted only on frames that nobody has annotated', () => {
  const prediction = { boxes: [box(0), box(2, { ...VENTRICULAR, uid: 'model' }), box(2, { score: 0.9 })] };
  const said = annotation([], { annotated_frames: [0] });

  const one = acceptFrame(said, prediction, 0);
  const all = acceptAll(said, prediction);

  assert.equal(one, said, 'an empty frame that was looked at stays empty');
  assert.deepEqual(all.annotated_frames, [0, 2]);
  assert.deepEqual(septaOn(all, 0), []);
  assert.deepEqual(septaOn(all, 2), ['interventricular', 'interatrial']);
  assert.ok(all.boxes.every(({ uid, score }) => uid && uid !== 'model' && score === null));
});

test('accepting a frame without a prediction says that it shows no septum', () => {
  assert.deepEqual(acceptFrame(annotation(), { boxes: [] }, 3), annotation([], { annotated_frames: [3] }));
  assert.deepEqual(acceptAll(annotation(), { boxes: [] }), annotation());
});

test('a copied frame replaces the same septum and keeps the other', () => {
  const said = annotation([box(0, { x1: 1 }), box(1, { x1: 5 }), box(1, VENTRICULAR)]);

  const copied = withoutUids(copyFrame(said, 0, 1));

  assert.deepEqual(copied.boxes, [box(0, { x1: 1 }), box(1, VENTRICULAR), box(1, { x1: 1 })]);
});

test('key frames enclose the frame and leave a gap between them', () => {
  const said = annotation([box(0), box(3), box(4), box(7)]);

  assert.deepEqual(keyFrames(said, 1), [0, 3]);
  assert.deepEqual(keyFrames(said, 3), [0, 3], 'the end of one gap; 3 and 4 have none between them');
  assert.deepEqual(keyFrames(said, 4), [4, 7]);
  assert.equal(keyFrames(said, 8), null);
  assert.equal(keyFrames(annotation([box(3), box(7)]), 2), null);
  assert.equal(keyFrames(annotation([box(2)]), 2), null);
  assert.equal(keyFrames(annotation(), 0), null);
});

test('boxes between key frames move evenly from one to the other', () => {
  const last = { x1: 22, y1: 8, x2: 42, y2: 48 };
  const said = annotation([box(1), box(5, last)]);

  const filled = withoutUids(interpolate(said, 1, 5));

  assert.deepEqual(filled.annotated_frames, [1, 2, 3, 4, 5]);
  assert.deepEqual(annotations.boxesOn(filled, 2), [box(2, { x1: 13, y1: 17, x2: 33, y2: 57 })]);
  assert.deepEqual(annotations.boxesOn(filled, 4), [box(4, { x1: 19, y1: 11, x2: 39, y2: 51 })]);
  assert.deepEqual([annotations.boxesOn(filled, 1), annotations.boxesOn(filled, 5)], [[box(1)], [box(5, last)]]);
});

test('only septa on both key frames are interpolated', () => {
  const both = annotation([box(0), box(0, VENTRICULAR), box(2)]);
  const neither = annotation([box(0), box(2, VENTRICULAR)]);

  assert.deepEqual(septaOn(interpolate(both, 0, 2), 1), ['interatrial']);
  assert.equal(interpolate(neither, 0, 2), neither);
  assert.equal(interpolate(both, 0, 1), both, 'neighbours have nothing between them');
});

test('what two annotations say is compared to a thousandth of a pixel, in any order, whoever saved them', () => {
  const said = annotation([box(0), box(1)]);
  const missing = Object.fromEntries(Object.entries(said).filter(([name]) => !/^(defect_|unusable)/.test(name)));

  assert.ok(saysTheSame(said, { ...said, boxes: [box(1), box(0)], revision: 9, author: null }));
  assert.ok(saysTheSame(said, annotation([box(0, { x1: 10.0001 }), box(1, { uid: 'any', score: 0.5 })])));
  assert.ok(saysTheSame(said, missing));
  for (const changed of [
    annotation([box(0, { x1: 10.01 }), box(1)]),
    annotation([box(0, { septum: 'unspecified' }), box(1)]),
    annotation([box(0)], { annotated_frames: [0, 1] }),
    ...['view', 'defect', 'defect_size_mm', 'defect_visible', 'unusable'].map((name) => ({ ...said, [name]: true })),
  ]) {
    assert.ok(!saysTheSame(said, changed), JSON.stringify(changed));
  }
});

test('frames differ where boxes do or where only one was looked at', () => {
  const one = annotation([box(0), box(1), box(2)]);
  const other = annotation([box(0), box(1, { y2: 61 })], { annotated_frames: [0, 1, 4] });

  assert.deepEqual(differingFrames(one, other), [1, 2, 4]);
  assert.deepEqual(differingFrames(one, one), []);
  assert.deepEqual(differingFrames(annotation(), annotation()), []);
});

test('joined versions have what either changed, and mine where both did', () => {
  const base = annotation([box(0), box(1), box(2)], { view: 'A4C' });
  const mine = annotation([box(0, { x1: 11 }), box(2, { x1: 12 })], { view: 'A4C', unusable: true });
  const theirs = annotation([box(0, { x1: 9 }), box(1), box(2), box(5)], { view: 'A2C', revision: 4 });

  const merged = withoutUids(merge(base, mine, theirs));

  assert.deepEqual(merged.annotated_frames, [0, 2, 5], 'frame 1 is forgotten by me');
  assert.deepEqual(annotations.boxesOn(merged, 0), [box(0, { x1: 11 })]);
  assert.deepEqual(annotations.boxesOn(merged, 2), [box(2, { x1: 12 })]);
  assert.deepEqual(annotations.boxesOn(merged, 5), [box(5)]);
  assert.deepEqual([merged.view, merged.unusable, merged.revision], ['A2C', true, 4]);
});

test('joining with a version that changed nothing gives the other one', () => {
  const base = annotation([box(0)]);
  const changed = annotation([box(0, { x2: 33 }), box(3)], { view: 'A4C', defect: 'ASD', defect_size_mm: 8 });

  assert.ok(saysTheSame(merge(base, changed, base), changed));
  assert.ok(saysTheSame(merge(base, base, changed), changed));
});

const BASE = ['ASD', 8, true];
for (const [mine, theirs, joined] of [
  [
    ['ASD', 8, false],
    ['ASD', 6.5, true],
    ['ASD', 6.5, false],
  ],
  [
    ['ASD', 8, false],
    ['Normal', null, null],
    ['Normal', null, null],
  ],
  [
    ['VSD', null, null],
    ['ASD', 6.5, false],
    ['VSD', null, null],
  ],
  [
    ['VSD', 3, null],
    ['Normal', null, null],
    ['VSD', 3, null],
  ],
  [
    ['VSD', 3, null],
    ['VSD', 4, true],
    ['VSD', 3, null],
  ],
  [BASE, ['VSD', 3, false], ['VSD', 3, false]],
]) {
  test(`size and whether it is shown stay with the defect they were said of: ${mine} and ${theirs}`, () => {
    const [one, other, third] = [BASE, mine, theirs].map(([defect, defect_size_mm, defect_visible]) =>
      annotation([], { defect, defect_size_mm, defect_visible }),
    );

    const merged = merge(one, other, third);

    assert.deepEqual([merged.defect, merged.defect_size_mm, merged.defect_visible], joined);
  });
}
