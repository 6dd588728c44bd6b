// SPDX-License-Identifier: Apache-2.0

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { boxesAfterEdit, boxesInPicture, isTiny, PictureBoxes } from '../../echo_plugin/viewers/ohif/boxes.js';
import { newDraft } from '../../echo_plugin/viewers/ohif/draft.js';
import { editInPicture, shownOn } from '../../echo_plugin/viewers/ohif/editing.js';
import { parseImageId, Viewer } from '../../echo_plugin/viewers/ohif/viewer.js';
import { annotation, box, emptyStorage, openSession } from './fixtures.mjs';

const PIXEL_MM = [0.5, 0.8]; // higher than wide
const frameId = (frameIndex, imageId = '1.2') =>
  `wadors:/studies/1/series/1.1/instances/${imageId}/frames/${frameIndex + 1}`;

/** Return cornerstone as far as the panel asks it: annotations, coordinates, events, one viewport of 8 frames. */
function fakeCornerstone() {
  const held = new Map();
  const viewport = {
    id: 'viewport',
    element: {},
    render: () => {},
    getCurrentImageId: () => frameId(0),
    getImageIds: () => [...Array(8).keys()].map((index) => frameId(7 - index)), // not in the order of frames
    getCamera: () => ({ viewPlaneNormal: [0, 0, -1], viewUp: [0, -1, 0] }),
    getFrameOfReferenceUID: () => '1.9',
  };
  const state = {
    getAllAnnotations: () => [...held.values()],
    addAnnotation: (one) => held.set(one.annotationUID, one),
    removeAnnotation: (uid) => {
      const one = held.get(uid);
      held.delete(uid);
      eventTarget.dispatchEvent(Object.assign(new Event('removed'), { detail: { annotation: one } }));
    },
  };
  const eventTarget = new EventTarget();
  const libraries = {
    cornerstone: {
      eventTarget,
      utilities: {
        imageToWorldCoords: (_, [x, y]) => [x * PIXEL_MM[0], y * PIXEL_MM[1], 0],
        worldToImageCoords: (_, [x, y]) => [x / PIXEL_MM[0], y / PIXEL_MM[1]],
      },
    },
    cornerstoneTools: {
      annotation: { state },
      Enums: {
        Events: { ANNOTATION_COMPLETED: 'completed', ANNOTATION_MODIFIED: 'modified', ANNOTATION_REMOVED: 'removed' },
      },
      utilities: { triggerAnnotationRenderForViewportIds: () => {} },
    },
  };
  const services = {
    viewportGridService: { getState: () => ({ activeViewportId: 'viewport' }) },
    cornerstoneViewportService: { getCornerstoneViewport: () => viewport },
  };
  const managers = {
    extensionManager: { getModuleEntry: () => ({ exports: { getCornerstoneLibraries: () => libraries } }) },
    servicesManager: { services },
  };
  return { picture: new PictureBoxes(new Viewer(managers)), eventTarget, held, state };
}

let cornerstone;
let picture;
beforeEach(() => {
  emptyStorage();
  cornerstone = fakeCornerstone();
  ({ picture } = cornerstone);
});

const drawnBy = (by, frameIndex, changed = {}) => box(frameIndex, { by, uid: `${by}-${frameIndex}`, ...changed });
const sides = ({ x1, y1, x2, y2 }) => [x1, y1, x2, y2];

test('an image id of cornerstone names the cine and its frame, counted from 0', () => {
  assert.deepEqual(parseImageId(frameId(11)), { imageId: '1.2', frameIndex: 11 });
  assert.equal(parseImageId('nifti:volume'), null);
  assert.equal(parseImageId(undefined), null);
});

test('the picture shows the model only where the reader has not looked', () => {
  const draft = newDraft(annotation([box(0)], { annotated_frames: [0, 1] }));
  const prediction = { boxes: [box(0, { x1: 40 }), box(1), box(2)].map((one, n) => ({ ...one, uid: `model-${n}` })) };

  const shown = boxesInPicture({ draft, prediction, conflict: null, isComparing: false });

  assert.deepEqual(
    shown.map(({ by, frame_index }) => [by, frame_index]),
    [
      ['person', 0],
      ['model', 2],
    ],
  );
});

test('compared boxes of the model are shown beside the reader, but not over the same place', () => {
  const draft = newDraft(annotation([box(0), box(1, { x1: 12 })]));
  const prediction = {
    boxes: [
      box(0, { x1: 10.5, uid: 'same' }),
      box(1, { uid: 'off' }),
      box(0, { septum: 'interventricular', uid: 'other' }),
    ],
  };

  const shown = boxesInPicture({ draft, prediction, conflict: null, isComparing: true });

  assert.deepEqual(
    shown.slice(2).map(({ by, uid, isCompared }) => [by, uid, isCompared]),
    [
      ['model', 'off-compared', true],
      ['model', 'other-compared', true],
    ],
  );
});

test('the other reader of a conflict is named beside their boxes', () => {
  const conflict = annotation([box(3)], { author: 'Dr Two' });

  const shown = boxesInPicture({ draft: newDraft(annotation()), prediction: null, conflict, isComparing: true });

  assert.deepEqual(shown, [{ ...box(3), by: 'other', author: 'Dr Two' }]);
  assert.deepEqual(boxesInPicture({ draft: newDraft(annotation()), isComparing: true }), []);
});

test('boxes in the picture are read back as they were written, on pixels of any shape', () => {
  const boxes = [drawnBy('person', 2), drawnBy('model', 5, { score: 0.7, septum: 'interventricular' })];

  picture.write('1.2', boxes);

  const expected = boxes.map((one) => ({ ...one, author: null, isCompared: false }));
  assert.deepEqual(picture.read('1.2'), expected);
  assert.deepEqual(picture.read('1.3'), []);
  assert.equal(cornerstone.held.get('person-2').metadata.referencedImageId, frameId(2));
});

test('a box that was drawn from right to left, or out of the picture, is where it was drawn', () => {
  picture.write('1.2', [drawnBy('person', 0, { x1: 30, y1: 60, x2: -7, y2: -20 })]);

  assert.deepEqual(picture.read('1.2').map(sides), [[-7, -20, 30, 60]]);
});

test('a box on a frame that the viewer does not have is left out of the picture', () => {
  picture.write('1.2', [drawnBy('person', 8), drawnBy('person', -1), drawnBy('person', 7)]);

  assert.deepEqual(
    picture.read('1.2').map((one) => one.frame_index),
    [7],
  );
  assert.equal(cornerstone.held.size, 1);
});

test('writing again moves, adds and removes boxes, and calls nothing of that an edit', () => {
  const edits = [];
  const end = picture.watch((one, kind) => edits.push(kind));
  picture.write('1.2', [drawnBy('person', 0), drawnBy('person', 1)]);
  const kept = cornerstone.held.get('person-1');

  picture.write('1.2', [drawnBy('person', 1, { x1: 3 }), drawnBy('person', 4)]);

  assert.deepEqual(
    picture.read('1.2').map(({ uid, x1 }) => [uid, x1]),
    [
      ['person-1', 3],
      ['person-4', 10],
    ],
  );
  assert.equal(cornerstone.held.get('person-1'), kept, 'a box under the mouse is not taken away');
  assert.deepEqual(edits, []);
  cornerstone.state.removeAnnotation('person-4');
  assert.deepEqual(edits, ['deleted']);
  end();
  cornerstone.state.removeAnnotation('person-1');
  assert.deepEqual(edits, ['deleted']);
});

test('boxes of others and boxes that are compared cannot be dragged', () => {
  picture.write('1.2', [drawnBy('person', 0), drawnBy('other', 1), drawnBy('model', 2, { isCompared: true })]);

  const isLocked = [...cornerstone.held.values()].map((one) => one.isLocked);
  assert.deepEqual(isLocked, [false, true, true]);
});

test('a box without a side of two pixels is not meant', () => {
  assert.equal(isTiny(box(0, { x1: 10, x2: 11.9 })), true);
  assert.equal(isTiny(box(0, { y1: 10, y2: 11.9 })), true);
  assert.equal(isTiny(box(0, { x1: 10, x2: 12, y1: 10, y2: 12 })), false);
});

test('an edited frame keeps what the model said of it, and nothing of other frames or readers', () => {
  const septum = 'interventricular';
  const model = drawnBy('model', 0, { septum });
  const inPicture = [
    model,
    drawnBy('model', 1),
    drawnBy('other', 0),
    drawnBy('model', 0, { isCompared: true, uid: 'c' }),
  ];
  const edited = drawnBy('person', 0, { uid: 'mine' });
  const plain = ({ by, author, isCompared, ...rest }) => rest;

  assert.deepEqual(boxesAfterEdit([...inPicture, edited], edited, 'moved'), [plain(model), plain(edited)]);
  assert.deepEqual(boxesAfterEdit([...inPicture, edited], edited, 'deleted'), [plain(model)]);
});

test('a drawn box takes the place of the model of its septum, a moved one does not', () => {
  const inPicture = [drawnBy('model', 0), drawnBy('model', 0, { uid: 'other', septum: 'interventricular' })];
  const edited = drawnBy('person', 0, { uid: 'mine' });
  const uidsAfter = (kind) => boxesAfterEdit(inPicture, edited, kind).map(({ uid }) => uid);

  assert.deepEqual(uidsAfter('drawn'), ['other', 'mine']);
  assert.deepEqual(uidsAfter('moved'), ['model-0', 'other', 'mine']);
});

/** Return an annotation of cornerstone, as it is while a person draws: our tool's, without `echo`. */
const drawnInPicture = (frameIndex, { x1, y1, x2, y2 }) => ({
  annotationUID: 'drawn',
  data: {
    handles: {
      points: [
        [x1, y1],
        [x2, y2],
      ].map(([x, y]) => [x * PIXEL_MM[0], y * PIXEL_MM[1], 0]),
    },
  },
  metadata: { toolName: 'EchoBox', referencedImageId: frameId(frameIndex) },
});

function sessionWithPicture(said, state = {}) {
  const session = openSession(newDraft(said), state);
  return Object.assign(session, { picture });
}

test('a box that is drawn becomes the reader’s, with the septum that was chosen', () => {
  const session = sessionWithPicture(annotation(), { drawing: 'interventricular' });
  const drawn = drawnInPicture(3, { x1: 4, y1: 5, x2: 24, y2: 45 });

  editInPicture(session, drawn, 'moved'); // the mouse is still down
  assert.deepEqual(session.state.draft.now.boxes, []);
  editInPicture(session, drawn, 'drawn');
  clearTimeout(session.keeping);

  const [made] = session.state.draft.now.boxes;
  assert.deepEqual([made.septum, made.frame_index, made.score], ['interventricular', 3, null]);
  assert.deepEqual(sides(made).map(Math.round), [4, 5, 24, 45]);
  assert.deepEqual(session.state.draft.now.annotated_frames, [3]);
  assert.equal(drawn.data.echo.by, 'person');
});

test('a click and a box of another reader change nothing, and the picture is drawn again', async () => {
  const session = sessionWithPicture(annotation([box(0)]));
  const { now } = session.state.draft;
  picture.write('1.2', [drawnBy('other', 0)]);

  editInPicture(session, drawnInPicture(3, { x1: 4, y1: 5, x2: 5, y2: 6 }), 'drawn');
  editInPicture(session, cornerstone.held.get('other-0'), 'moved');
  await null;

  assert.equal(session.state.draft.now, now);
  assert.equal(session.drawn, 2);
});

test('a box that is drawn before the annotation is here is taken away', async () => {
  const session = Object.assign(openSession(null), { picture });
  globalThis.fetch = () => new Promise(() => {}); // the server takes its time
  const drawn = drawnInPicture(3, { x1: 4, y1: 5, x2: 24, y2: 45 });
  cornerstone.state.addAnnotation(drawn);

  editInPicture(session, drawn, 'drawn');
  await null;

  assert.equal(cornerstone.held.size, 0);
  assert.match(session.state.message.text, /still being read/);
});

test('the boxes of a frame are the model’s until the reader has looked', () => {
  const prediction = { boxes: [box(0, { score: 0.8 }), box(1, { score: 0.7 })] };
  const draft = newDraft(annotation([], { annotated_frames: [1] }));

  assert.deepEqual(shownOn({ draft, prediction }, 0), [{ ...box(0, { score: 0.8 }), by: 'model' }]);
  assert.deepEqual(shownOn({ draft, prediction }, 1), []);
  assert.deepEqual(shownOn({ draft: null, prediction: null }, 0), []);
});
