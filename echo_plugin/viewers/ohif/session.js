// SPDX-License-Identifier: Apache-2.0
// What the reader is looking at: the open cine, its prediction, the draft of its annotation, messages.
// The panel shows `session.state`; the files that are named by what a reader does (open, predict, submit) change it.

import * as api from './api.js';
import { newUid } from './annotation.js';
import { boxesInPicture, PictureBoxes } from './boxes.js';
import { Viewer } from './viewer.js';

const READER = 'echo-reader';
const BROWSER = 'echo-browser';
const STRATEGY = 'echo-strategy';

export class Session {
  constructor(managers) {
    this.managers = managers;
    this.viewer = new Viewer(managers);
    this.picture = new PictureBoxes(this.viewer);
    this.listeners = new Set();
    this.drafts = new Map();
    this.unkept = new Set(); // ids of the cines whose draft has changed since the browser's storage was written
    this.keeping = null; // the timer that writes them
    this.reading = new Set(); // ids of the cines whose annotation was asked for and is not here yet
    this.predictions = new Map();
    this.stopping = null; // the AbortController of the prediction under way
    this.trainingTimer = null; // asks how far the training is
    this.children = new Map(); // by study: what all cines of its child say together
    this.asked = null; // { imageId, frames, reason }: the cine that was asked for, until it is shown
    this.landing = null; // { imageId, frameIndex, until }: the viewer shows the first frame once more while it opens
    this.state = {
      about: null,
      busy: null,
      progress: null,
      message: null,
      reader: localStorage.getItem(READER) ?? '',
      // the open cine
      imageId: null,
      frames: 0,
      frameIndex: 0,
      draft: null,
      prediction: null,
      child: null,
      conflict: null,
      hasAside: false,
      drawing: null,
      isComparing: true,
      isFolded: false,
      // the next one, and why this one
      strategy: localStorage.getItem(STRATEGY),
      reason: null,
      worthDrawing: [],
      // learning
      trainer: 'septal_boxes',
      epochs: 0,
      training: {},
      suspicious: null,
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

  /** Ask the server which models, strategies, views and defects it has. */
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

  /** Show in the picture what the draft, the model and, in a conflict, the other reader say. */
  draw() {
    if (this.state.draft) this.picture.write(this.state.imageId, boxesInPicture(this.state));
  }
}
