// SPDX-License-Identifier: Apache-2.0
// The viewer: which cine and frame are shown, and how to show another.
// A cine is its SOP Instance UID; what OHIF calls a series or a display set may hold several.

const IMAGE_ID = /\/instances\/([^/]+)\/frames\/(\d+)/;

/** Return `{ imageId, frameIndex }` (SOP Instance UID, 0-based) of a cornerstone image id; null for other images. */
export function parseImageId(cornerstoneImageId) {
  const [, imageId, frameNumber] = IMAGE_ID.exec(cornerstoneImageId ?? '') ?? [];
  return imageId ? { imageId, frameIndex: Number(frameNumber) - 1 } : null;
}

/** Return the libraries `{ cornerstone, cornerstoneTools }` that OHIF itself draws with. */
export function cornerstoneOf({ extensionManager }) {
  const entry = extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.common');
  return entry.exports.getCornerstoneLibraries();
}

export class Viewer {
  constructor(managers) {
    this.managers = managers;
    this.services = managers.servicesManager.services;
    Object.assign(this, cornerstoneOf(managers)); // cornerstone, cornerstoneTools
  }

  /** Return the active stack viewport; null while there is none. */
  viewport() {
    const { activeViewportId } = this.services.viewportGridService.getState();
    const viewport = this.services.cornerstoneViewportService.getCornerstoneViewport(activeViewportId);
    return viewport?.getCurrentImageId?.() ? viewport : null;
  }

  /** Return `{ imageId, frameIndex, frames }` of what is shown; null when it is no cine. */
  shown() {
    const viewport = this.viewport();
    const current = viewport && parseImageId(viewport.getCurrentImageId());
    return current && { ...current, frames: this.frameImageIds(viewport, current.imageId).length };
  }

  /** Return the cornerstone image ids of a cine's frames, in the order of frames. */
  frameImageIds(viewport, imageId) {
    return viewport
      .getImageIds()
      .filter((id) => parseImageId(id)?.imageId === imageId)
      .sort((one, other) => parseImageId(one).frameIndex - parseImageId(other).frameIndex);
  }

  study() {
    const { activeViewportId, viewports } = this.services.viewportGridService.getState();
    const [uid] = viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [];
    return uid ? (this.services.displaySetService.getDisplaySetByUID(uid)?.StudyInstanceUID ?? null) : null;
  }

  /** Call `onCine` when another cine is shown and `onFrame` when another frame is; return what ends it. */
  watch(onCine, onFrame) {
    const { viewportGridService, cornerstoneViewportService } = this.services;
    const { STACK_NEW_IMAGE } = this.cornerstone.Enums.Events;
    let element = null;
    const attach = () => {
      const now = this.viewport()?.element ?? null;
      if (now !== element) {
        element?.removeEventListener(STACK_NEW_IMAGE, onFrame);
        now?.addEventListener(STACK_NEW_IMAGE, onFrame);
        element = now;
      }
      onCine();
    };
    const subscriptions = [
      viewportGridService.subscribe(viewportGridService.EVENTS.ACTIVE_VIEWPORT_ID_CHANGED, attach),
      cornerstoneViewportService.subscribe(cornerstoneViewportService.EVENTS.VIEWPORT_DATA_CHANGED, attach),
    ];
    attach();
    return () => {
      element?.removeEventListener(STACK_NEW_IMAGE, onFrame);
      subscriptions.forEach((subscription) => subscription.unsubscribe());
    };
  }

  /** Show a frame of the cine that is open. */
  async goTo(frameIndex) {
    const viewport = this.viewport();
    const shown = this.shown();
    if (!shown) return;
    this.play(false);
    const place = viewport.getImageIds().findIndex((id) => {
      const parsed = parseImageId(id);
      return parsed?.imageId === shown.imageId && parsed.frameIndex === frameIndex;
    });
    if (place >= 0) await viewport.setImageIdIndex(place);
  }

  step(by) {
    const shown = this.shown();
    if (shown) this.goTo((shown.frameIndex + by + shown.frames) % shown.frames);
  }

  isPlaying() {
    const { activeViewportId } = this.services.viewportGridService.getState();
    return this.services.cineService.getState().cines?.[activeViewportId]?.isPlaying ?? false;
  }

  play(isPlaying) {
    if (this.isPlaying() === isPlaying) return;
    const { cineService, viewportGridService } = this.services;
    const { activeViewportId } = viewportGridService.getState();
    cineService.setIsCineEnabled(true);
    cineService.setCine({ id: activeViewportId, isPlaying });
  }

  /** Return the display set of the open study that holds a cine; undefined when it is of another study. */
  displaySetOf(imageId) {
    return this.services.displaySetService
      .getActiveDisplaySets()
      .find((set) => (set.instances ?? set.images ?? []).some((instance) => instance.SOPInstanceUID === imageId));
  }

  /** Show a cine of the open study; return whether it is in it. */
  openCine(imageId) {
    const displaySet = this.displaySetOf(imageId);
    if (!displaySet) return false;
    if (this.shown()?.imageId !== imageId) {
      const { viewportGridService } = this.services;
      viewportGridService.setDisplaySetsForViewports([
        {
          viewportId: viewportGridService.getState().activeViewportId,
          displaySetInstanceUIDs: [displaySet.displaySetInstanceUID],
        },
      ]);
    }
    return true;
  }
}
