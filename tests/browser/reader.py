# SPDX-License-Identifier: Apache-2.0
"""A reader at the viewer: opens a cine, looks at what is drawn, moves the mouse. Waits for states, never for time."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
from PIL import Image

LIMIT_MS = 120_000

PLACE = """
  if (!window.services) return null;
  const { viewportGridService, cornerstoneViewportService } = window.services;
  const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getState().activeViewportId);
"""

BOXES = f"""() => {{ {PLACE}
  const {{ imageData }} = viewport.getImageData();  // what is drawn, not what the header would have it
  return window.cornerstoneTools.annotation.state.getAllAnnotations()
    .filter((one) => ['EchoBox', 'RectangleROI'].includes(one.metadata.toolName) && one.metadata.referencedImageId)
    .map(({{ data, metadata: {{ toolName, referencedImageId: id }} }}) => {{
      const points = data.handles.points.map((point) => imageData.worldToIndex(point).map((place) => place + 0.5));
      const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
      const [image_id, frame] = [/instances\\/([^/]+)/.exec(id)[1], Number(/frames\\/(\\d+)/.exec(id)[1])];
      return {{ ...data.echo, tool: toolName, label: data.label, image_id, frame_index: frame - 1,
        x1: Math.min(...xs), y1: Math.min(...ys), x2: Math.max(...xs), y2: Math.max(...ys) }};
    }});
}}"""

SHOWN = f"""() => {{ {PLACE}
  const id = viewport?.getCurrentImageId?.();
  if (!id) return null;
  return {{ image_id: /instances\\/([^/]+)/.exec(id)[1], frame_index: Number(/frames\\/(\\d+)/.exec(id)[1]) - 1 }};
}}"""

TO_SCREEN = f"""(points) => {{ {PLACE}
  const {{ x, y }} = viewport.element.getBoundingClientRect();
  const {{ imageData }} = viewport.getImageData();
  return points.map(([column, row]) => {{
    const [left, top] = viewport.worldToCanvas(imageData.indexToWorld([column - 0.5, row - 0.5, 0]));
    return [x + left, y + top];
  }});
}}"""

TOO_FAINT = """(least) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((one, n) => one * a + below[n] * (1 - a));
  const chain = (node) => (node ? [...chain(node.parentElement), node] : []);
  const light = (colour) => colour.map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, n) => sum + one * [0.2126, 0.7152, 0.0722][n], 0);
  return [...document.querySelectorAll('.echo-panel *')].filter((node) =>
    node.checkVisibility() && !node.closest(':disabled')
    && [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim())
  ).map((node) => {
    const styles = chain(node).map((one) => getComputedStyle(one));
    const ground = styles.reduce((below, style) => over(numbers(style.backgroundColor), below), [0, 0, 0]);
    const opacity = styles.reduce((product, style) => product * Number(style.opacity), 1);
    const [r, g, b, a = 1] = numbers(getComputedStyle(node).color);
    const [dark, bright] = [light(ground), light(over([r, g, b, a * opacity], ground))].sort((one, two) => one - two);
    return [node.textContent.trim().slice(0, 40), Math.round(100 * (bright + 0.05) / (dark + 0.05)) / 100];
  }).filter(([, contrast]) => contrast < least);
}"""

OVERFLOWING = """() => {
  const panel = document.querySelector('.echo-panel').getBoundingClientRect();
  return [...document.querySelectorAll('.echo-panel *')].filter((node) => {
    if (!node.checkVisibility() || node.closest('svg, select')) return false;
    const { left, right } = node.getBoundingClientRect();
    const isCut = node.clientWidth && node.scrollWidth > node.clientWidth + 1;
    return left < panel.left - 1 || right > panel.right + 1 || isCut;
  }).map((node) => `${node.tagName} ${node.className} ${node.textContent.trim().slice(0, 40)}`);
}"""

IN_SIGHT = """(name) => {
  const node = document.querySelector(`[data-echo=${name}]`);
  const { left, right, top, bottom } = node.getBoundingClientRect();
  const corners = [[left + 3, top + 3], [right - 3, bottom - 3]].map(([x, y]) => document.elementFromPoint(x, y));
  return corners.every((found) => node.contains(found));
}"""

ALIKE, HALF_COVERED = 0.975, 0.6
"""Cosine between colours of one hue (grey is below 0.93 of ours); brightness of a line that lies on two columns."""

SEPTUM_COLOURS = {"interatrial": (76, 201, 255), "interventricular": (255, 169, 77)}


class Reader:
    """One browser window with one reader in front of it."""

    def __init__(self, browser: Any, url: str, name: str = "reader-1") -> None:
        self.url, self.name = url, name
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.context.add_init_script(
            f"localStorage.getItem('echo-reader') ?? localStorage.setItem('echo-reader', '{name}');"
            "localStorage.setItem('shownTours', '[\"basicViewerTour\"]')"  # the basic viewer's tour has been taken
        )

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def forgive(self, text: str) -> None:
        """Forget the complaints that have ``text`` in them: the browser logs every refusal of the server."""
        self.complaints = [complaint for complaint in self.complaints if text not in complaint]

    def close(self) -> None:
        self.context.close()

    def too_faint(self, least_contrast: float = 4.5) -> list[Any]:
        """Return the visible texts of the panel with less contrast than WCAG 2.2 AA asks, and how much they have."""
        return self.page.evaluate(TOO_FAINT, least_contrast)

    def overflowing(self) -> list[str]:
        """Return what of the panel is wider than its place."""
        return self.page.evaluate(OVERFLOWING)

    def is_in_sight(self, name: str) -> bool:
        """Whether a part of the panel is to be seen whole, without scrolling and with nothing over it."""
        return self.page.evaluate(IN_SIGHT, name)

    def part(self, name: str) -> Any:
        """Return a part of the panel."""
        return self.page.locator(f"[data-echo={name}]")

    def open(self, study: str, image_id: str, frames: str = "") -> None:
        """Open a cine by its address and wait until it and its annotation are there."""
        self.page.goto(f"{self.url}/ohif/echo?StudyInstanceUIDs={study}&cine={image_id}&frames={frames}")
        self.wait_for_cine(image_id)

    def wait_for_cine(self, image_id: str) -> None:
        """Wait until a cine and its annotation are there."""
        self.page.locator(f"[data-echo=status][data-image='{image_id}']").wait_for()
        self.wait_for_picture(image_id)

    def wait_for_picture(self, image_id: str) -> None:
        """Wait until a cine is drawn, in whichever mode of the viewer."""
        self.page.wait_for_function(
            f"(asked) => {{ try {{ return ({SHOWN})()?.image_id === asked; }} catch {{ return false; }} }}",
            arg=image_id,  # the viewer may not have begun
        )
        self.settle()

    def predict(self, image_id: str) -> list[dict[str, Any]]:
        """Predict the open cine; return the boxes that are shown of it."""
        self.part("predict").click()
        return self.wait_for_boxes(image_id, "boxes.some((box) => box.by === 'model')")

    def boxes(self, image_id: str) -> list[dict[str, Any]]:
        """Return the boxes that cornerstone holds of a cine."""
        return [box for box in self.page.evaluate(BOXES) if box["image_id"] == image_id]

    def wait_for_boxes(self, image_id: str, condition: str) -> list[dict[str, Any]]:
        """Return the boxes once ``condition`` (JavaScript on ``boxes``) holds."""
        self.page.wait_for_function(
            f"(asked) => {{ const boxes = ({BOXES})().filter((box) => box.image_id === asked); return {condition}; }}",
            arg=image_id,
        )
        return self.boxes(image_id)

    def frame(self) -> int:
        return self.page.evaluate(SHOWN)["frame_index"]

    def go_to(self, frame_index: int) -> None:
        """Show a frame by the frame strip."""
        self.part("frames").locator("button").nth(frame_index).click()
        self.wait_for_frame(frame_index)

    def wait_for_frame(self, frame_index: int) -> None:
        """Wait until a frame of the open cine is drawn."""
        self.page.wait_for_function(f"(asked) => ({SHOWN})()?.frame_index === asked", arg=frame_index)
        self.settle()

    def settle(self) -> None:
        """Wait until two pictures have been drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def to_screen(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [tuple(point) for point in self.page.evaluate(TO_SCREEN, [list(point) for point in points])]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse between two points of the image, in px of the file."""
        (x1, y1), (x2, y2) = self.to_screen(start, end)
        mouse = self.page.mouse
        mouse.move(x1, y1)
        self.settle()  # the handle under the mouse is found while it moves
        mouse.down()
        mouse.move((x1 + x2) / 2, (y1 + y2) / 2)
        mouse.move(x2, y2)
        mouse.up()
        self.settle()

    def picture(self) -> np.ndarray:
        """Return the (H, W, 3) uint8 pixels of the page."""
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))

    def outline_share(self, box: dict[str, Any], colour: tuple[int, int, int] | None = None) -> float:
        """Return how much of a box's left side is drawn in a colour, its septum's by default, 0..1, from the page."""
        (x, top), (_, bottom) = self.to_screen((box["x1"], box["y1"]), (box["x1"], box["y2"]))
        rows = slice(round(top) + 8, round(bottom) - 8)  # the corners have handles
        strip = self.picture().astype(float)[rows, max(round(x) - 3, 0) : round(x) + 4]
        asked = np.array(colour or SEPTUM_COLOURS[box["septum"]], dtype=float)
        along = strip @ asked / np.linalg.norm(asked)
        is_hue = along > ALIKE * np.linalg.norm(strip, axis=2)
        is_bright = along > HALF_COVERED * np.linalg.norm(asked)
        return float((is_hue & is_bright).any(axis=1).mean())

    def wait_for_outline(
        self, boxes: list[dict[str, Any]], colours: tuple[tuple[int, int, int], ...], least_share: float
    ) -> None:
        """Wait until so much of a left side is drawn in one colour: that of the tallest box on the frame then shown."""
        deadline, share = time.monotonic() + LIMIT_MS / 1000, 0.0
        while share < least_share:
            assert time.monotonic() < deadline, f"{share:.2f} of the box is drawn"
            shown = [box for box in boxes if box["frame_index"] == self.frame()]  # a viewer may go to another one
            if shown:
                tallest = max(shown, key=lambda box: box["y2"] - box["y1"])
                share = max(self.outline_share(tallest, colour) for colour in colours)

    def says(self, text: str) -> str:
        """Wait until the message has ``text`` in it; return the message."""
        message = self.part("message").filter(has_text=text)
        message.wait_for()
        return message.inner_text()

    def submit(self) -> str:
        self.part("submit").click()
        return self.says("Saved as revision")
