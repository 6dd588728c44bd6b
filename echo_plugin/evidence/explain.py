# SPDX-License-Identifier: Apache-2.0
"""What of a crop speaks for the predicted defect: Grad-CAM (arXiv 1610.02391) by captum, drawn over the frame.

The heat is that of the cosine to the class centre, on the last feature map of the network. It says where the network
looked, not why.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import interpolate

from echo_plugin.anatomy import Septum
from echo_plugin.annotations import DefectPrediction
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.defects import can_show
from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.answer.preprocess import crop_square, normalise, whole_square
from echo_plugin.cine import ByteArray, Cine, UltrasoundRegion, to_grey
from echo_plugin.errors import EchoError, ModelMismatchError
from echo_plugin.geometry import FloatArray
from echo_plugin.io.sector import tissue_region
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, build_embedder, load_published, load_state
from echo_plugin.models.defect_embedder import DefectEmbedder

Square = tuple[float, float, float, float]

OPACITY = 0.55
SQUARE_COLOUR = (90, 220, 255)
LETTER_PX = 7
"""The letters of the picture are narrower on average: its words are broken into lines that fit."""


@dataclass(frozen=True)
class Explanation:
    """Where on one frame the predicted ``defect`` was read.

    ``heat`` : (H, W) 0..1, 0 outside ``square`` (px of the file). ``grey`` : (H, W) uint8, black outside the tissue
    region, where names may be burnt in.
    """

    frame_index: int
    defect: DefectPrediction
    square: Square
    heat: FloatArray = field(repr=False)
    grey: ByteArray = field(repr=False)

    @property
    def words(self) -> str:
        """The answer, or why there is none with what it would have been."""
        said = f"{self.defect.defect.value} {self.defect.probability:.2f}"
        return said if self.defect.abstained is None else f"abstained: {self.defect.abstained}; it would be {said}"

    def to_png(self) -> bytes:
        """Return the frame with the heat over it, the crop's outline and the answer, as PNG.

        The number of the frame is left to who shows it: people count from 1, files from 0.
        """
        from matplotlib import colormaps

        colours = colormaps["inferno"](self.heat)[..., :3] * 255
        opacity = (OPACITY * self.heat)[..., None]
        blend = (self.grey[..., None] * (1 - opacity) + colours * opacity).round().astype(np.uint8)
        picture = Image.fromarray(blend)
        draw = ImageDraw.Draw(picture)
        draw.rectangle(self.square, outline=SQUARE_COLOUR)
        place = ", whole frame" if self.defect.is_whole_frame else ""
        draw.multiline_text((4, 4), fill(self.words + place, max(picture.width // LETTER_PX, 1)), fill=SQUARE_COLOUR)
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        return stream.getvalue()


def explain_defect(pipeline: EchoPipeline, cine: Cine, frame_index: int | None = None) -> Explanation:
    """Return what of a cine speaks for the defect that is predicted of it.

    Parameters
    ----------
    pipeline, cine
        As for a prediction; the defect is that of the whole cine.
    frame_index
        0-based; None: of the frames embedded, the one whose crop is nearest to the class centre.

    Raises
    ------
    EchoError
        If no septum was found that can show the predicted defect.
    IndexError
        If the frame is not in the cine.
    ModelNotFoundError, ModelMismatchError
        If detector or embedder are not published, or do not fit their cards.
    """
    if frame_index is not None:
        cine.read_frames([frame_index])  # says which frames there are
    embedded = pipeline.embed(cine)
    defect, region = embedded.defect, tissue_region(cine)
    card, state = load_published(pipeline.models_dir, DEFECT_EMBEDDER)
    if card.sha256 != embedded.embedder.sha256:
        msg = f"The models were replaced while cine {cine.image_id} was explained; ask for it again."
        raise ModelMismatchError(msg)
    embedder = build_embedder(card)
    load_state(embedder, state, card)
    embedder.eval()
    squares = _squares(cine, region, defect, frame_index)
    pixels = dict(zip(squares, cine.read_frames(list(squares)), strict=True))
    places = [(frame, square) for frame, found in squares.items() for square in found]
    crops = torch.stack([crop_square(pixels[f], square, card.input_size_px, region=region) for f, square in places])
    target = card.classes.index(defect.defect.value)
    with torch.no_grad():
        best = int(embedder.cosines(embedder(normalise(crops)))[:, target].argmax())
    chosen, square = places[best]
    heat = _class_heat(DefectRule.of(embedder, card), normalise(crops[best : best + 1]), target)
    in_frame = _in_frame(heat, square, cine.height, cine.width)
    grey = to_grey(pixels[chosen][None])[0]
    return Explanation(chosen, defect, square, _tissue_only(in_frame, region), _tissue_only(grey, region))


def _squares(
    cine: Cine, region: UltrasoundRegion, defect: DefectPrediction, frame_index: int | None
) -> dict[int, list[Square]]:
    """Return by frame the squares of walls that can show the defect; a frame not embedded takes the nearest one's."""
    found: dict[int, list[Square]] = {}
    for box in defect.crops:
        if can_show(None if box.septum is Septum.UNSPECIFIED else box.septum, defect.defect):
            found.setdefault(box.frame_index, []).append((box.x1, box.y1, box.x2, box.y2))
    if not found and defect.crops:
        msg = f"Cine {cine.image_id}: no septum that can show {defect.defect.value} was found, so none can be drawn."
        raise EchoError(msg)
    if not found:
        whole = whole_square(cine, region)
        return {frame: [whole] for frame in (defect.frame_indices if frame_index is None else (frame_index,))}
    if frame_index is None:
        return found
    return {frame_index: found[min(found, key=lambda known: abs(known - frame_index))]}


def _class_heat(rule: DefectRule, crop: Tensor, target: int) -> Tensor:
    """Return (S, S), 1 at its hottest: what speaks for a class, and against the others, in a (1, 1, S, S) crop."""
    from captum.attr import LayerGradCam

    embedder = rule.embedder
    layer = _last_feature_map(embedder, crop)
    # probabilities, not cosines: a crop may turn away from every centre and from one the least
    cam = LayerGradCam(
        lambda inputs: rule.probabilities(embedder.logits(embedder(inputs))).clamp_min(1e-9).log(), layer
    )
    coarse = cam.attribute(crop.detach().requires_grad_(True), target=target, relu_attributions=True).detach()
    heat = interpolate(coarse, crop.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    heat = heat - heat.min()
    peak = heat.max()
    return heat / peak if peak > 0 else heat


def _last_feature_map(embedder: DefectEmbedder, crop: Tensor) -> nn.Module:
    """Return the part of the backbone that gives the last picture (more than one pixel), whatever its architecture."""
    last: list[nn.Module] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            last[:] = [module]

    hooks = [module.register_forward_hook(note) for module in embedder.backbone.modules()]
    try:
        with torch.no_grad():
            embedder(crop)
    finally:
        for hook in hooks:
            hook.remove()
    return last[0]


def _in_frame(heat: Tensor, square: Square, height: int, width: int) -> FloatArray:
    """Return (H, W): the heat of a crop where it lies in the frame, 0 elsewhere."""
    left, top = round(square[0]), round(square[1])
    side = max(round(square[2] - square[0]), 1)
    sized = interpolate(heat[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0].double().numpy()
    frame: FloatArray = np.zeros((height, width))
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 < x2 and y1 < y2:
        frame[y1:y2, x1:x2] = sized[y1 - top : y2 - top, x1 - left : x2 - left]
    return frame


def _tissue_only(picture: NDArray[Any], region: UltrasoundRegion) -> NDArray[Any]:
    """Return an (H, W) picture, 0 outside the region."""
    shown = np.zeros_like(picture)
    rows, columns = slice(round(region.y1), round(region.y2)), slice(round(region.x1), round(region.x2))
    shown[rows, columns] = picture[rows, columns]
    return shown
