// SPDX-License-Identifier: Apache-2.0
// The training of the server, followed while it runs. It belongs to the server, not to this page: a reload finds it.

import * as api from './api.js';

const POLL_MS = 1500;
const ENDED = ['DONE', 'ERROR', 'STOPPED'];

export const isRunning = ({ status, progress } = {}) =>
  ['SUBMITTED', 'RUNNING', 'PENDING'].includes(status) && !ENDED.includes(progress?.status);

export class TrainingWatch {
  constructor(session) {
    this.session = session;
    this.timer = null;
    this.session.set({ training: {} });
  }

  /** Ask now, and again as long as one runs. */
  async follow() {
    clearTimeout(this.timer);
    const was = this.session.state.training;
    try {
      const training = await api.training();
      this.session.set({ training });
      if (isRunning(was) && !isRunning(training)) this.session.refreshAbout(); // the badge names the new model
    } catch {
      // the server restarts, perhaps; asked again below
    }
    if (isRunning(this.session.state.training)) this.timer = setTimeout(() => this.follow(), POLL_MS);
  }

  start(model, epochs) {
    return this.session.work('train', async () => {
      await api.startTraining(model, epochs ? { epochs } : {});
      this.session.set({ training: { model, status: 'SUBMITTED', progress: {} } });
      await this.follow();
    });
  }

  stop() {
    return this.session.work('train', async () => {
      await api.stopTraining();
      await this.follow();
      this.session.say('The training is stopped; the published model is as it was.', 'note');
    });
  }

  end() {
    clearTimeout(this.timer);
  }
}
