# SPDX-License-Identifier: Apache-2.0
"""Small pictures of cines: the thumbnail of a past case, the crop that a defect was read from.

Without a box a picture shows the tissue region only, so that no name burnt in beside it is shown with another case.
"""

from __future__ import annotations

import io

from fastapi import APIRouter, Query
from fastapi.responses import Response
from PIL import Image

from echo_plugin.host.request_parts import echo_app, run_heavy
from echo_plugin.io.sector import tissue_region

router = APIRouter(prefix="/pictures")

SIDE_PX = 160


@router.get("/{image_id}", summary="A small picture of a frame")
async def picture(
    image_id: str,
    frame_index: int | None = None,
    box: str | None = Query(None, description="x1,y1,x2,y2 in px of the file; what lies outside is cut off"),
) -> Response:
    """Return a PNG of the tissue region of a frame (None: the middle one), or of a box in it."""
    content = await run_heavy(lambda: _png(image_id, frame_index, box))
    return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _png(image_id: str, frame_index: int | None, box: str | None) -> bytes:
    cine = echo_app().datastore().images.read(image_id)
    frame = cine.read_frames([cine.frame_count // 2 if frame_index is None else frame_index])[0]
    region = tissue_region(cine)
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    whole = (region.x1, region.y1, region.x2, region.y2)
    image = image.crop(whole if box is None else _within(_parse_box(box), image.width, image.height))
    image.thumbnail((SIDE_PX, SIDE_PX))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _within(box: tuple[float, float, float, float], width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return the part of a box that lies in the picture, so that none is larger than the file's own."""
    x1, x2 = (min(max(round(x), 0), width_px) for x in box[::2])
    y1, y2 = (min(max(round(y), 0), height_px) for y in box[1::2])
    if x1 >= x2 or y1 >= y2:
        msg = f"Parameter 'box' lies outside of the picture; one in its {width_px} x {height_px} px is accepted."
        raise ValueError(msg)
    return x1, y1, x2, y2


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
        is_box = max(abs(end) for end in (x1, y1, x2, y2)) < 1e5 and x2 - x1 >= 1 and y2 - y1 >= 1
    except ValueError:
        is_box = False
    if not is_box:
        msg = f"Parameter 'box' is {text[:40]!r}; four numbers x1,y1,x2,y2 of at least one pixel are accepted."
        raise ValueError(msg)
    return x1, y1, x2, y2
