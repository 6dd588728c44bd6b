# SPDX-License-Identifier: Apache-2.0
"""A reader at the viewer: opens a cine, looks at what is drawn, moves the mouse. Waits for states, never for time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

LIMIT_MS = 120_000

PLACE = """
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


class Reader:
    """One browser window with one reader in front of it."""

    def __init__(self, browser: Any, url: str, name: str = "reader-1") -> None:
        self.url = url
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.context.add_init_script(
            f"localStorage.getItem('echo-reader') ?? localStorage.setItem('echo-reader', '{name}')"
        )

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def close(self) -> None:
        self.context.close()

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
        self.page.wait_for_function(f"(asked) => ({SHOWN})()?.image_id === asked", arg=image_id)
        self.settle()

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
        self.page.wait_for_function(f"(asked) => ({SHOWN})().frame_index === asked", arg=frame_index)
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

    def says(self, text: str) -> str:
        """Wait until the message has ``text`` in it; return the message."""
        message = self.part("message").filter(has_text=text)
        message.wait_for()
        return message.inner_text()

    def submit(self) -> str:
        self.part("submit").click()
        return self.says("Saved as revision")
