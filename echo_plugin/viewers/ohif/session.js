// SPDX-License-Identifier: Apache-2.0
// What the reader is looking at: the open cine, its prediction, the draft of its annotation, messages.
// The panel shows `session.state`; editing.js and tasks.js change it; the picture is kept in step from here.

import * as api from './api.js';
import { isAnnotated, newUid, withFrame } from './annotation.js';
import { setDrawing } from './box-tool.js';
import { PictureBoxes } from './boxes.js';
import { hasAside, isChanged, keepDraft, keptDraft, newDraft } from './draft.js';
import { Viewer } from './viewer.js';
import { MODEL, OTHER_READER, PERSON } from './words.js';

const READER = 'echo-reader';
const BROWSER = 'echo-browser';
const STRATEGY = 'echo-strategy';
const KEEP_AFTER_MS = 250;
const LANDING_MS = 5000;
const SMALLEST_BOX_PX = 2;
const NOT_READ = 'The annotation of this cine is still being read; nothing can be drawn or submitted until it is here.';

const isSamePlace = (one, other) =>
  one.frame_index === other.frame_index && one.septum === other.septum &&
  ['x1', 'y1', 'x2', 'y2'].every((end) => Math.abs(one[end] - other[end]) < 1);

export class Session {
  constructor(managers) {
    this.managers = managers;
    this.viewer = new Viewer(managers);
    this.picture = new PictureBoxes(this.viewer);
    this.listeners = new Set();
    this.drafts = new Map();
    this.unkept = new Set(); // ids of the cines whose draft has changed since the browser's storage was written
    this.reading = new Set(); // ids of the cines whose annotation was asked for and is not here yet
    this.predictions = new Map();
    this.children = new Map(); // by study: what all cines of its child say together
    this.asked = null; // { imageId, frames, reason }: the cine that was asked for, until it is shown
    this.landing = null; // { imageId, frameIndex, until }: the viewer shows the first frame once more while it opens
    this.state = {
      about: null, imageId: null, frames: 0, frameIndex: 0, reader: localStorage.getItem(READER) ?? '', drawing: null,
      draft: null, prediction: null, child: null, conflict: null, hasAside: false, busy: null, progress: null, message: null,
      reason: null, worthDrawing: [], isComparing: true,
      strategy: localStorage.getItem(STRATEGY),
    };
  }

  set(patch) {
    Object.assign(this.state, patch);
    this.listeners.forEach((listener) => listener(this.state));
  }

  say(text, kind = 'good') {
    this.set({ message: text ? { text, kind } : null });
  }

  setReader(reader) {
    localStorage.setItem(READER, reader);
    this.set({ reader });
  }

  /** Return whose the cines are that are handed out here: the reader's, or this browser's while no name is entered. */
  holder() {
    const browser = localStorage.getItem(BROWSER) ?? `browser-${newUid()}`;
    localStorage.setItem(BROWSER, browser);
    return this.state.reader.trim() || browser;
  }

  /** Choose the next cine in this way, also on the page of the next one. */
  setStrategy(strategy) {
    localStorage.setItem(STRATEGY, strategy);
    this.set({ strategy });
  }

  /** Do something that takes a while; a refusal becomes the message. */
  async work(busy, task) {
    if (this.state.busy) return;
    this.set({ busy, message: null });
    try {
      await task();
    } catch (error) {
      if (error.name !== 'AbortError') this.say(error.message, 'bad');
    } finally {
      this.set({ busy: null, progress: null });
    }
  }

  /** Follow the viewer; return what ends it. */
  start() {
    const { displaySetService } = this.viewer.services;
    const added = displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, () => this.openAsked());
    const beforeLeaving = (event) => {
      const changed = [...this.drafts].filter(([, draft]) => isChanged(draft));
      changed.forEach(([imageId]) => this.unkept.add(imageId));
      this.keepNow();
      if (changed.length) event.preventDefault();
    };
    window.addEventListener('beforeunload', beforeLeaving);
    const onHand = () => { this.landing = null; };
    const hands = ['pointerdown', 'wheel', 'keydown'];
    hands.forEach((kind) => window.addEventListener(kind, onHand, { capture: true, passive: true }));
    const ends = [
      () => added.unsubscribe(),
      () => hands.forEach((kind) => window.removeEventListener(kind, onHand, { capture: true })),
      () => window.removeEventListener('beforeunload', beforeLeaving),
      this.viewer.watch(() => this.onCine(), () => this.onFrame()),
      this.picture.watch((annotation, kind) => this.onEdit(annotation, kind)),
    ];
    this.refreshAbout();
    return () => ends.forEach((end) => end());
  }

  async refreshAbout() {
    try {
      const about = await api.about();
      const offered = Object.keys(about.strategies);
      const strategy = offered.includes(this.state.strategy) ? this.state.strategy : offered[0]; // the server's best
      this.set({ about, strategy });
    } catch (error) {
      this.say(error.message, 'bad');
    }
  }

  /** Show the cine that was asked for, once the viewer knows it. */
  openAsked() {
    if (this.asked && this.viewer.viewport()) this.viewer.openCine(this.asked.imageId);
  }

  onFrame() {
    const shown = this.viewer.shown();
    if (shown?.imageId === this.state.imageId) this.set({ frameIndex: shown.frameIndex });
    else this.onCine();
    const { landing } = this;
    if (!landing || performance.now() > landing.until) this.landing = null;
    else if (shown?.imageId === landing.imageId && shown.frameIndex !== landing.frameIndex) this.viewer.goTo(landing.frameIndex);
  }

  onCine() {
    const shown = this.viewer.shown();
    if (!shown) return;
    const asked = this.asked?.imageId === shown.imageId ? this.asked : null;
    if (this.asked && !asked) this.openAsked();
    if (shown.imageId === this.state.imageId && !asked) {
      this.set(shown);
      if (this.state.draft) this.draw(); // the viewport may have been made anew
      else this.read(shown.imageId); // it was refused, perhaps
      return;
    }
    this.asked = asked ? null : this.asked;
    setDrawing(this.managers, false);
    this.set({
      ...shown, draft: this.drafts.get(shown.imageId) ?? null, prediction: this.predictions.get(shown.imageId) ?? null,
      child: this.children.get(this.viewer.study()) ?? null,
      conflict: null, hasAside: hasAside(shown.imageId), drawing: null, message: null,
      reason: asked?.reason ?? null, worthDrawing: asked?.frames ?? [],
    });
    if (asked?.frames.length) {
      this.landing = { imageId: shown.imageId, frameIndex: asked.frames[0], until: performance.now() + LANDING_MS };
      this.viewer.goTo(asked.frames[0]);
    }
    if (this.state.draft) this.draw();
    else this.read(shown.imageId);
  }

  async read(imageId) {
    if (this.reading.has(imageId)) return;
    this.reading.add(imageId);
    try {
      const stored = await api.readAnnotation(imageId);
      const kept = keptDraft(imageId);
      const draft = kept ?? newDraft(stored);
      this.drafts.set(imageId, draft);
      if (imageId !== this.state.imageId) return;
      this.set({ draft });
      if (this.state.message?.text === NOT_READ) this.say('');
      if (kept) this.say('Your unsaved changes are back: submit or discard them.', 'note');
      if (kept && kept.base.revision !== stored.revision) this.set({ conflict: stored });
      this.draw();
    } catch (error) {
      if (imageId !== this.state.imageId) return;
      this.say(`${error.message} Nothing can be drawn before the annotation is read; draw or submit to ask again.`, 'bad');
    } finally {
      this.reading.delete(imageId);
    }
  }

  /** Return whether there is an annotation to change; else say why not, and ask for it again. */
  mayChange() {
    const { imageId, draft } = this.state;
    if (draft) return true;
    this.say(imageId ? NOT_READ : 'Open a cine first.', 'note');
    if (imageId) this.read(imageId);
    return false;
  }

  /** Show in the picture what the draft, the model and, in a conflict, the other reader say. */
  draw() {
    const { imageId, draft, prediction, conflict, isComparing } = this.state;
    if (!draft) return;
    const boxes = draft.now.boxes.map((box) => ({ ...box, by: PERSON }));
    for (const box of prediction?.boxes ?? []) {
      if (!isAnnotated(draft.now, box.frame_index)) boxes.push({ ...box, by: MODEL });
      else if (isComparing && !draft.now.boxes.some((mine) => isSamePlace(mine, box))) boxes.push({ ...box, by: MODEL, uid: `${box.uid}-compared`, isCompared: true });
    }
    for (const box of conflict?.boxes ?? []) boxes.push({ ...box, by: OTHER_READER, author: conflict.author });
    this.picture.write(imageId, boxes);
  }

  /** Change the draft of the open cine; `redraw` is false where the picture shows the change already. */
  change(now, { redraw = true } = {}) {
    const draft = { ...this.state.draft, now };
    this.drafts.set(this.state.imageId, draft);
    this.unkept.add(this.state.imageId);
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => this.keepNow(), KEEP_AFTER_MS);
    this.set({ draft });
    if (redraw) this.draw();
  }

  /** Write to the browser's storage what changed in this page; what another tab has kept there stays. */
  keepNow() {
    clearTimeout(this.keeping);
    this.unkept.forEach((imageId) => keepDraft(imageId, this.drafts.get(imageId)));
    this.unkept.clear();
  }

  /**
   * A person drew, moved or deleted a box: the frame is theirs now, with what the model had said there beside it.
   * Else the frame would teach that the wall which nobody touched is not there.
   */
  onEdit(annotation, kind) {
    const { imageId, draft, drawing } = this.state;
    const { echo } = annotation.data;
    if (kind === 'moved' && !echo) return; // being drawn
    if (!draft) {
      if (kind !== 'drawn') return;
      this.mayChange();
      queueMicrotask(() => this.state.draft || this.picture.write(imageId, [])); // it is taken away
      return;
    }
    if (kind === 'drawn') annotation.data.echo = { septum: drawing ?? 'unspecified', by: PERSON, score: null, author: null };
    const edited = this.picture.toBox(annotation);
    const isTiny = edited.x2 - edited.x1 < SMALLEST_BOX_PX || edited.y2 - edited.y1 < SMALLEST_BOX_PX;
    if (echo?.by === OTHER_READER || echo?.isCompared || (kind === 'drawn' && isTiny)) {
      queueMicrotask(() => this.draw()); // it is put back, or taken away
      return;
    }
    const others = this.picture.read(imageId).filter(
      (box) =>
        box.frame_index === edited.frame_index && box.uid !== edited.uid && box.by !== OTHER_READER && !box.isCompared &&
        !(kind === 'drawn' && box.by === MODEL && box.septum === edited.septum),
    );
    const boxes = (kind === 'deleted' ? others : [...others, edited]).map(({ by, author, isCompared, ...box }) => box);
    this.change(withFrame(draft.now, edited.frame_index, boxes), { redraw: false });
    // Not now: cornerstone is still at work on this very annotation.
    if (echo?.by !== PERSON) queueMicrotask(() => this.draw());
  }
}
