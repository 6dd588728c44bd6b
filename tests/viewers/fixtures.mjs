// SPDX-License-Identifier: Apache-2.0
// What the tests of the panel's modules share: boxes and annotations, the browser's storage, a session.

/** Return a box of 20 x 40 px of the interatrial septum on a frame; `changed` says what is different. */
export const box = (frameIndex, changed = {}) => {
  const place = { x1: 10, y1: 20, x2: 30, y2: 60 };
  return { frame_index: frameIndex, septum: 'interatrial', ...place, score: null, ...changed };
};

/** Return the annotation of cine 1.2 with these boxes; frames with a box count as looked at. */
export const annotation = (boxes = [], changed = {}) => ({
  image_id: '1.2',
  revision: 3,
  author: 'Dr One',
  annotated_frames: [...new Set(boxes.map((one) => one.frame_index))].sort((a, b) => a - b),
  view: null,
  defect: null,
  defect_size_mm: null,
  defect_visible: null,
  unusable: false,
  boxes,
  ...changed,
});

/** Return an annotation without the uids of its boxes, which are random. */
export const withoutUids = ({ boxes, ...rest }) => ({ ...rest, boxes: boxes.map(({ uid, ...one }) => one) });

/** Give the module under test a browser's storage, empty; return what it holds, by key. */
export function emptyStorage() {
  const held = new Map();
  globalThis.localStorage = {
    getItem: (key) => held.get(key) ?? null,
    setItem: (key, value) => held.set(key, String(value)),
    removeItem: (key) => held.delete(key),
  };
  return held;
}

/** Return a session as the modules see it, with a draft of cine 1.2 open on frame 0; `drawn` counts pictures. */
export function openSession(draft, state = {}) {
  const session = {
    drafts: new Map([['1.2', draft]]),
    unkept: new Set(),
    reading: new Set(),
    state: {
      imageId: '1.2',
      frames: 8,
      frameIndex: 0,
      drawing: null,
      prediction: null,
      conflict: null,
      draft,
      ...state,
    },
    drawn: 0,
    set: (patch) => Object.assign(session.state, patch),
    say: (text, kind = 'good') => session.set({ message: { text, kind } }),
    draw: () => (session.drawn += 1),
    work: (_, task) => task(),
  };
  return session;
}
