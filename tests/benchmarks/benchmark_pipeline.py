# SPDX-License-Identifier: Apache-2.0
"""Time a cine through decode, view, boxes and defect, and the plain way on the same cine in the same run.

    python tests/benchmarks/benchmark_pipeline.py [--frames 60] [--models DIR] [--device auto] [--json FILE]

The cine is written here: 800 x 600 colour, JPEG baseline, YBR_FULL_422, speckle in a sector. Without ``--models`` the
networks have random weights: time does not depend on them, except for suppression, which then has little to do.
Plain is ``pydicom``'s pixel_array with its colour conversion, and the same networks in eager float32, frame by frame.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does


def write_cine(path: Path, frames: int) -> None:
    """Write the DICOM cine to read."""
    import numpy as np
    import simplejpeg
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, UltrasoundMultiFrameImageStorage, generate_uid

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:600, :800]
    sector = (np.hypot(x - 400, y - 20) < 560) & (np.abs(x - 400) < 0.8 * (y - 20))
    encoded = []
    for _ in range(frames):
        grey = np.clip(rng.rayleigh(40, (300, 400)), 0, 255).repeat(2, 0).repeat(2, 1) * sector
        rgb = np.ascontiguousarray(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))
        encoded.append(simplejpeg.encode_jpeg(rgb, quality=85, colorsubsampling="422"))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = generate_uid(), generate_uid(), "benchmark"
    ds.Modality, ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = "US", frames, 33.3, 0x00181063
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PlanarConfiguration = 600, 800, 3, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PhotometricInterpretation, ds.LossyImageCompression = "YBR_FULL_422", "01"
    ds.PixelData = encapsulate(encoded)
    ds["PixelData"].is_undefined_length = True
    ds.is_little_endian, ds.is_implicit_VR = True, False
    ds.save_as(path, write_like_original=False)


def publish_random_models(directory: Path) -> None:
    """Publish starters that learned nothing."""
    from echo_plugin.anatomy import DEFECTS, DETECTED_SEPTA, PAEDIATRIC
    from echo_plugin.model_card import ModelCard, TrainingCohort
    from echo_plugin.models.checkpoint import publish
    from echo_plugin.models.defect_embedder import DefectEmbedder
    from echo_plugin.models.septal_detector import SeptalDetector
    from echo_plugin.models.view_classifier import ViewClassifier
    from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

    networks = {
        "septal_detector": (SeptalDetector(DetectorConfig()), DETECTED_SEPTA),
        "defect_embedder": (DefectEmbedder(EmbedderConfig()), DEFECTS),
        "view_classifier": (ViewClassifier(ViewConfig(classes=len(PAEDIATRIC))), PAEDIATRIC),
    }
    for name, (network, classes) in networks.items():
        config = network.config
        names = tuple(member.value for member in classes)
        data = TrainingCohort("nothing: random weights", 1, 1, "")
        card = ModelCard(name, "0", name, config.backbone, names, config, data)
        publish(directory, network.state_dict(), card)


def median_ms(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def time_plainly(path: Path, models: Path, device: str) -> dict[str, float]:
    """Return ms of each step done the plain way, once."""
    import numpy as np
    import pydicom
    import torch
    from pydicom.pixel_data_handlers import convert_color_space

    from echo_plugin.answer.preprocess import normalise, to_model_input
    from echo_plugin.cine import Cine, FramesInMemory
    from echo_plugin.io.sector import tissue_region
    from echo_plugin.models.checkpoint import (
        build_detector,
        build_embedder,
        build_view_classifier,
        load_published,
        load_state,
    )

    ms = {}
    start = time.perf_counter()
    ds = pydicom.dcmread(path)
    pixels = convert_color_space(ds.pixel_array, ds.PhotometricInterpretation, "RGB", per_frame=True)
    ms["decode"] = 1000 * (time.perf_counter() - start)
    cine = Cine("plain", FramesInMemory(np.ascontiguousarray(pixels)))
    region = tissue_region(cine)
    builders = {"boxes": build_detector, "view": build_view_classifier, "defect": build_embedder}
    published = {"boxes": "septal_detector", "view": "view_classifier", "defect": "defect_embedder"}
    passes = {"boxes": cine.frame_count, "view": 12, "defect": 10}
    for step, build in builders.items():
        card, state = load_published(models, published[step])
        network = build(card)
        load_state(network, state, card)
        network = network.eval().to(device)
        frames, _ = to_model_input(cine, range(min(passes[step], cine.frame_count)), card.input_size_px, region=region)
        floats = normalise(frames).to(device)
        start = time.perf_counter()
        with torch.inference_mode():
            if step == "view":
                outputs = [network(clip[None]) for clip in floats.split(4) if len(clip) == 4]
            else:
                outputs = [network(frame[None]) for frame in floats]
        if device == "cuda":
            torch.cuda.synchronize()
        ms[step] = 1000 * (time.perf_counter() - start)
        del outputs
    ms["total"] = sum(ms.values())
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, models = Path(folder) / "cine.dcm", options.models or Path(folder) / "models"
        write_cine(path, options.frames)
        before_import = time.perf_counter()
        from echo_plugin.answer.predict import EchoPipeline
        from echo_plugin.io.cine_file import read_cine

        import_ms = 1000 * (time.perf_counter() - before_import)
        if options.models is None:
            publish_random_models(models)
        pipeline = EchoPipeline(models, device=options.device)
        first_ms = median_ms(lambda: pipeline.predict(read_cine(path)), 1)
        steps: list[dict[str, float]] = []
        total = median_ms(lambda: steps.append(dict(pipeline.predict(read_cine(path)).timings_ms)), options.repeats)
        ours = {step: statistics.median(run[step] for run in steps) for step in steps[0]}
        ours["total"] = total
        view_alone = median_ms(lambda: pipeline.predict(read_cine(path), tasks=("view",)), options.repeats)
        ours["decode"] = median_ms(lambda: read_cine(path).pixels, options.repeats)
        plain = time_plainly(path, models, pipeline.runtime.device.type)
        facts = {
            "runtime": pipeline.runtime.describe(),
            "frames": options.frames,
            "import_ms": import_ms,
            "first_prediction_ms": first_ms,
            "view_from_file_ms": view_alone,
            "ours_ms": ours,
            "plain_ms": plain,
            "times_as_fast": {step: plain[step] / ours[step] for step in plain},
        }
    out = sys.stdout.write
    out(f"{facts['runtime']}, {options.frames} frames of 800 x 600\n")
    out(f"imports {import_ms:.0f} ms, first prediction {first_ms:.0f} ms (loads models)\n")
    out(f"view alone, from file to answer: {view_alone:.0f} ms\n")
    out(f"{'step':8} {'ours ms':>9} {'ms/frame':>9} {'plain ms':>9} {'ratio':>6}\n")
    for step in ("decode", "view", "boxes", "defect", "total"):
        ratio = facts["times_as_fast"][step]
        out(f"{step:8} {ours[step]:9.1f} {ours[step] / options.frames:9.2f} {plain[step]:9.1f} {ratio:6.1f}\n")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Speed of a prediction"):
        main()
