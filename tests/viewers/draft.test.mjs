// SPDX-License-Identifier: Apache-2.0

import assert from 'node:assert/strict';
import { afterEach, beforeEach, mock, test } from 'node:test';

import { differingFrames, saysTheSame, withFrame } from '../../echo_plugin/viewers/ohif/annotation.js';
import * as drafts from '../../echo_plugin/viewers/ohif/draft.js';
import { adoptSaved, bringBack, settle } from '../../echo_plugin/viewers/ohif/submission.js';
import { annotation, box, emptyStorage, openSession } from './fixtures.mjs';

const { hasAside, isChanged, keepDraft, keptDraft, newDraft, setAside, takeAside } = drafts;

let storage;
beforeEach(() => {
  storage = emptyStorage();
});
afterEach(() => mock.timers.reset());

/** Return a draft of the annotation with a change on a frame. */
const changedOn = (frameIndex, base = annotation([box(0)])) => ({
  base,
  now: withFrame(newDraft(base).now, frameIndex, [box(frameIndex, { x1: 11 })]),
});

/** Let the server answer a reading of the annotation. */
const serverHas = (stored) => {
  globalThis.fetch = async () => Response.json(stored);
};

test('a new draft has no change, and one that was undone has none again', () => {
  const draft = newDraft(annotation([box(0)]));
  const moved = withFrame(draft.now, 0, [box(0, { x1: 11 })]);

  assert.ok(!isChanged(draft));
  assert.ok(isChanged({ ...draft, now: moved }));
  assert.ok(!isChanged({ ...draft, now: withFrame(moved, 0, [box(0)]) }));
});

test('a changed draft is kept and read back, without uids in the storage', () => {
  const draft = changedOn(2);

  keepDraft('1.2', draft);
  const kept = keptDraft('1.2');

  assert.ok(!JSON.stringify([...storage]).includes('uid'));
  assert.deepEqual(kept.base, draft.base);
  assert.ok(saysTheSame(kept.now, draft.now));
  assert.ok(kept.now.boxes.every(({ uid }) => uid));
  assert.equal(keptDraft('1.3'), null);
});

test('a draft without changes is forgotten', () => {
  keepDraft('1.2', changedOn(2));
  keepDraft('1.2', newDraft(annotation()));

  assert.equal(keptDraft('1.2'), null);
  assert.equal(storage.size, 0);
});

test('what is kept under a cine but speaks of another, or is no JSON, is no draft of it', () => {
  keepDraft('1.3', changedOn(2));
  storage.set('echo-draft/1.4', '{"base":');

  assert.equal(keptDraft('1.3'), null);
  assert.equal(keptDraft('1.4'), null);
});

test('a storage that is full or forbidden stops nobody', () => {
  const refuse = () => {
    throw new Error('QuotaExceededError');
  };
  globalThis.localStorage = { getItem: refuse, setItem: refuse, removeItem: refuse };

  keepDraft('1.2', changedOn(2));

  assert.equal(keptDraft('1.2'), null);
  assert.equal(hasAside('1.2'), false);
});

test('what is set aside comes back last first', () => {
  setAside('1.2', annotation([box(1)]));
  setAside('1.2', annotation([box(2)]));

  assert.deepEqual(takeAside('1.2'), annotation([box(2)]));
  assert.ok(hasAside('1.2'));
  assert.deepEqual(takeAside('1.2'), annotation([box(1)]));
  assert.ok(!hasAside('1.2'));
  assert.equal(takeAside('1.2'), undefined);
});

test('changes are written to the storage once, a moment after the last', () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  const write = mock.method(localStorage, 'setItem');
  const session = openSession(newDraft(annotation()));

  drafts.changeDraft(session, changedOn(1).now);
  mock.timers.tick(200);
  drafts.changeDraft(session, changedOn(2).now);
  mock.timers.tick(200);

  assert.equal(keptDraft('1.2'), null);
  mock.timers.tick(1000);
  assert.equal(write.mock.callCount(), 1);
  assert.deepEqual(keptDraft('1.2').now.annotated_frames, [0, 2]);
  assert.equal(session.unkept.size, 0);
});

test('only cines that changed in this page are written, so another tab loses nothing', () => {
  const session = openSession(newDraft(annotation()));
  keepDraft('1.2', changedOn(5)); // by another tab

  drafts.keepDrafts(session);

  assert.deepEqual(keptDraft('1.2').now.annotated_frames, [0, 5]);
});

test('the page asks before it is left with unsaved changes, and only then', () => {
  let leave;
  globalThis.window = { addEventListener: (_, listener) => (leave = listener), removeEventListener: () => {} };
  const session = openSession(newDraft(annotation()));
  const event = { preventDefault: mock.fn() };
  drafts.keepWhenLeaving(session);

  leave(event);
  assert.equal(event.preventDefault.mock.callCount(), 0);
  session.drafts.set('1.2', changedOn(1));
  leave(event);

  assert.equal(event.preventDefault.mock.callCount(), 1);
  assert.ok(keptDraft('1.2'));
});

test('a cine that is read becomes a draft', async () => {
  const session = openSession(null);
  serverHas(annotation([box(4)]));

  await drafts.readDraft(session, '1.2');

  assert.deepEqual(session.state.draft.base, annotation([box(4)]));
  assert.equal(session.drafts.get('1.2'), session.state.draft);
  assert.deepEqual([session.drawn, session.state.conflict, session.reading.size], [1, null, 0]);
  assert.equal(session.state.message, undefined);
});

test('a kept draft goes on; it is in conflict only where somebody saved since', async () => {
  keepDraft('1.2', changedOn(2));
  for (const [revision, conflict] of [
    [3, null],
    [4, 4],
  ]) {
    const session = openSession(null);
    serverHas(annotation([box(0)], { revision }));

    await drafts.readDraft(session, '1.2');

    assert.deepEqual(session.state.draft.now.annotated_frames, [0, 2]);
    assert.match(session.state.message.text, /unsaved changes are back/);
    assert.equal(session.state.conflict?.revision ?? null, conflict);
  }
});

test('an annotation that arrives after another cine was opened is kept for later and not shown', async () => {
  const session = openSession(null, { imageId: '1.3' });
  serverHas(annotation());

  await drafts.readDraft(session, '1.2');

  assert.equal(session.state.draft, null);
  assert.deepEqual(session.drafts.get('1.2').base, annotation());
  assert.equal(session.drawn, 0);
});

test('nothing can be changed before the annotation is here, and it is asked for again', async () => {
  const session = openSession(null);
  serverHas(annotation());

  assert.equal(drafts.mayChange(session), false);
  assert.match(session.state.message.text, /still being read/);
  assert.deepEqual([...session.reading], ['1.2']);
  await new Promise(setImmediate);

  assert.equal(drafts.mayChange(session), true);
});

test('a refusal to read is said with what to do', async () => {
  const session = openSession(null);
  globalThis.fetch = async () => Response.json({ detail: 'Cine 1.2 cannot be read.' }, { status: 400 });

  await drafts.readDraft(session, '1.2');

  assert.match(session.state.message.text, /^Cine 1\.2 cannot be read\. .*draw or submit to ask again\.$/);
  assert.equal(session.state.draft, null);
  assert.equal(session.reading.size, 0);
});

test('what was changed while a submission was under way stays a change on top of what was saved', () => {
  const sent = changedOn(1).now;
  const session = openSession(changedOn(1));
  session.drafts.set('1.2', { ...changedOn(1), now: withFrame(sent, 6, []) });
  const saved = { ...annotation([box(0), box(1, { x1: 11 })]), revision: 4 };

  assert.equal(adoptSaved(session, sent, saved), false);

  const { base, now } = session.state.draft;
  assert.equal(base, saved);
  assert.deepEqual(differingFrames(base, now), [6]);
  assert.ok(keptDraft('1.2'));
});

test('a submission without later changes leaves nothing to submit', () => {
  const session = openSession(changedOn(1));
  const saved = { ...annotation([box(0), box(1, { x1: 11 })]), revision: 4 };

  assert.equal(adoptSaved(session, session.state.draft.now, saved), true);

  assert.ok(!isChanged(session.state.draft));
  assert.equal(keptDraft('1.2'), null);
});

const THEIRS = annotation([box(0), box(5)], { revision: 4, author: 'Dr Two' });
const inConflict = () => openSession(changedOn(2), { conflict: THEIRS });

test('both versions of a conflict are joined on top of theirs', () => {
  const session = inConflict();

  settle(session, 'both');

  const { draft, conflict } = session.state;
  assert.deepEqual([draft.base, conflict], [THEIRS, null]);
  assert.deepEqual(draft.now.annotated_frames, [0, 2, 5]);
});

test('my version of a conflict is submitted on top of theirs', () => {
  const session = inConflict();

  settle(session, 'mine');

  const { base, now } = session.state.draft;
  assert.deepEqual([base.revision, now.revision, now.annotated_frames], [4, 4, [0, 2]]);
});

test('my version is set aside for theirs, and can be brought back', () => {
  const session = inConflict();

  settle(session, 'theirs');
  assert.ok(saysTheSame(session.state.draft.now, THEIRS));
  assert.equal(session.state.hasAside, true);
  bringBack(session);

  const { draft, hasAside: isAsideLeft } = session.state;
  assert.deepEqual([draft.now.annotated_frames, draft.now.revision, isAsideLeft], [[0, 2], 4, false]);
});

test('a conflict of another cine than the open one changes nothing', () => {
  const session = openSession(changedOn(2), { conflict: { ...THEIRS, image_id: '1.9' } });
  const before = session.state.draft;

  settle(session, 'theirs');

  assert.equal(session.state.draft, before);
  assert.equal(session.state.conflict, null);
  assert.match(session.state.message.text, /That version is of cine 1\.9/);
  assert.equal(storage.size, 0);
});
