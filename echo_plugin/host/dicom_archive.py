# SPDX-License-Identifier: Apache-2.0
"""The DICOM instances of a study folder as the routes of DICOMweb ask for them: headers, frames, searches.

References
----------
PS3.18 10.6 (search), F.2 (DICOM JSON), PS3.4 C.2.2.2 (matching)
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from cachetools import LRUCache, cachedmethod
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.tag import Tag

from echo_plugin.errors import UnknownImageError, UnreadableCineError
from echo_plugin.io.dicom_cine import DicomFrames, read_dicom_cine
from echo_plugin.io.stored_bytes import damage_named, unreadable
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import INSTANCE_KEYWORDS, SERIES_KEYWORDS, STUDY_KEYWORDS, DicomInstance, tag_of

Level = Literal["study", "series", "instance"]
JsonAttributes = dict[str, Any]

LARGEST_INLINE_BYTES = 4096
"""A palette of 16 bit and 256 entries has 512; an ECG or a private preview has more and is fetched when asked for."""
OPEN_CINES = 64
"""How many cines keep their table of frames in memory: a few KB each, and a player asks for one frame after another."""
KEPT_HEADERS = 512


def read_metadata(path: Path, bulk_url: str) -> JsonAttributes:
    """Return the DICOM JSON of a file; without pixels; large values are found at an address below ``bulk_url``.

    Raises
    ------
    UnreadableCineError
        If the header cannot be parsed.
    """
    with damage_named(path, "a DICOM header that cannot be parsed"):
        attributes = dcmread(path, stop_before_pixels=True, force=True).to_json_dict(
            bulk_data_threshold=LARGEST_INLINE_BYTES * 4 // 3,  # of their text
            bulk_data_element_handler=lambda element: f"{bulk_url}/{_digest(element.value)}",
            suppress_invalid_tags=True,
        )
        return {tag: _with_nulls(element) for tag, element in attributes.items()}


def read_bulk_value(path: Path, digest: str) -> bytes:
    """Return the large value that ``read_metadata`` named.

    Raises
    ------
    UnreadableCineError
        If there is no such value.
    """
    with damage_named(path, "a DICOM header that cannot be parsed"):
        for element in dcmread(path, stop_before_pixels=True, force=True).iterall():
            if isinstance(element.value, bytes) and _digest(element.value) == digest:
                return element.value
    raise unreadable(path, f"has no bulk data {digest[:64]!r}.")


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _with_nulls(value: Any) -> Any:
    """Return DICOM JSON with null for a number that is none and for an empty value among several (F.2.5)."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items() if item != []}
    if isinstance(value, list):
        return [None if item == "" else _with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class DicomArchive:
    """What DICOMweb serves of a study folder."""

    def __init__(self, studies: StudyFolder) -> None:
        self.studies = studies
        self._frames: LRUCache[Any, DicomFrames] = LRUCache(OPEN_CINES)
        self._headers: LRUCache[Any, JsonAttributes] = LRUCache(KEPT_HEADERS)
        self._lock = threading.Lock()

    def instances(self, study: str, series: str | None = None, sop: str | None = None) -> list[DicomInstance]:
        """Return the instances of a study, a series or the one named.

        Raises
        ------
        UnknownImageError
            If there is none.
        """
        known = self.studies.instances()
        candidates = known.values() if sop is None else filter(None, [known.get(sop)])
        found = [i for i in candidates if i.study_uid == study and series in (None, i.series_uid)]
        if not found:
            what, uid = ("Instance", sop) if sop else ("Series", series) if series else ("Study", study)
            msg = f"{what} {str(uid)[:64]} is not in the study folder."
            raise UnknownImageError(msg)
        return found

    @cachedmethod(attrgetter("_headers"), key=lambda _, one, url: (one.path, one.stamp, url), lock=attrgetter("_lock"))
    def metadata(self, instance: DicomInstance, base_url: str) -> JsonAttributes:
        """Return the DICOM JSON of an instance without its bulk data, which is found below ``base_url``."""
        return read_metadata(instance.path, f"{instance_url(base_url, instance)}/bulkdata")

    @cachedmethod(attrgetter("_frames"), key=lambda _, one: (one.path, one.stamp), lock=attrgetter("_lock"))
    def frames(self, instance: DicomInstance) -> DicomFrames:
        """Return the frames of an instance; where each lies in the file is kept for the next request.

        Raises
        ------
        UnreadableCineError
            If the instance is no image or is damaged.
        """
        frames = read_dicom_cine(instance.path).frames
        if not isinstance(frames, DicomFrames):
            msg = f"File {instance.path.name!r} has no frames that are stored as DICOM has them."
            raise UnreadableCineError(msg)
        return frames


def instance_url(base_url: str, instance: DicomInstance) -> str:
    """Return the address of an instance."""
    return f"{base_url}/studies/{instance.study_uid}/series/{instance.series_uid}/instances/{instance.sop_uid}"


MODALITIES_IN_STUDY = "00080061"
_STUDY_TAGS, _SERIES_TAGS = [tag_of(k) for k in STUDY_KEYWORDS], [tag_of(k) for k in SERIES_KEYWORDS]
_INSTANCE_TAGS = [tag_of(k) for k in INSTANCE_KEYWORDS]
_SEARCHABLE = frozenset([*_STUDY_TAGS, *_SERIES_TAGS, *_INSTANCE_TAGS, MODALITIES_IN_STUDY])
_DATES = frozenset({"DA", "TM", "DT"})
_EMPTY = {tag: {"vr": dictionary_VR(int(tag, 16))} for tag in (*_STUDY_TAGS, *_SERIES_TAGS)}


@dataclass(frozen=True)
class Query:
    """What a search asks for: ``filters`` by tag, further attributes, and which part of the answer."""

    filters: Mapping[str, str] = field(default_factory=dict)
    include: frozenset[str] = frozenset()
    offset: int = 0
    limit: int | None = None


def parse_query(parameters: Iterable[tuple[str, str]]) -> Query:
    """Return the query of a URL's parameters.

    Raises
    ------
    ValueError
        If an attribute is unknown or not indexed, or limit or offset is no whole number of 0 or more.
    """
    filters: dict[str, str] = {}
    include: set[str] = set()
    numbers = {"limit": -1, "offset": 0}
    for name, value in parameters:
        if name in numbers:
            if not value.isdecimal():
                msg = f"Search parameter {name} is {value[:20]!r}; a whole number of 0 or more is accepted."
                raise ValueError(msg)
            numbers[name] = int(value)
        elif name == "includefield":
            include |= {"all" if text == "all" else _tag(text) for text in value.split(",") if text}
        elif name != "fuzzymatching":  # never done: a name matches or does not
            tag = _tag(name)
            if tag not in _SEARCHABLE:
                msg = f"Search by {name[:60]!r} is not supported; {', '.join((*STUDY_KEYWORDS, *SERIES_KEYWORDS))} are."
                raise ValueError(msg)
            if value:
                filters[tag] = value
    limit = None if numbers["limit"] < 0 else numbers["limit"]
    return Query(filters, frozenset(include), numbers["offset"], limit)


def search(
    instances: Mapping[str, DicomInstance], query: Query, level: Level, *, base_url: str
) -> list[JsonAttributes]:
    """Return the matching studies, series or instances in the order of their files, as far as they are indexed."""
    groups: dict[tuple[str, ...], list[DicomInstance]] = {}
    studies: dict[str, list[DicomInstance]] = {}
    for instance in instances.values():
        studies.setdefault(instance.study_uid, []).append(instance)
        groups.setdefault(_key(instance, level), []).append(instance)
    modalities = {uid: sorted({i.text("Modality") for i in members} - {""}) for uid, members in studies.items()}
    matching = [
        members
        for members in groups.values()
        if any(_matches(member, query.filters, modalities[member.study_uid]) for member in members)
    ]
    page = matching[query.offset : None if query.limit is None else query.offset + query.limit]
    return [_describe(members, studies, modalities, level, base_url, query.include) for members in page]


def _key(instance: DicomInstance, level: Level) -> tuple[str, ...]:
    uids = (instance.study_uid, instance.series_uid, instance.sop_uid)
    return uids[: {"study": 1, "series": 2, "instance": 3}[level]]


def _describe(
    members: Sequence[DicomInstance],
    studies: Mapping[str, Sequence[DicomInstance]],
    modalities: Mapping[str, list[str]],
    level: Level,
    base_url: str,
    include: frozenset[str],
) -> JsonAttributes:
    first = members[0]
    study = studies[first.study_uid]
    url = f"{base_url}/studies/{first.study_uid}"
    tags = list(_STUDY_TAGS)
    answer: JsonAttributes = {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        MODALITIES_IN_STUDY: {"vr": "CS", "Value": modalities[first.study_uid]},
        "00201206": {"vr": "IS", "Value": [len({i.series_uid for i in study})]},
        "00201208": {"vr": "IS", "Value": [len(study)]},
    }
    if level != "study":
        url += f"/series/{first.series_uid}"
        tags += _SERIES_TAGS
        in_series = len(members) if level == "series" else sum(i.series_uid == first.series_uid for i in study)
        answer["00201209"] = {"vr": "IS", "Value": [in_series]}
    if level == "instance":
        url += f"/instances/{first.sop_uid}"
        tags += [tag for tag in _INSTANCE_TAGS if tag in first.attributes]
        answer["00083002"] = {"vr": "UI", "Value": [first.transfer_syntax_uid]}
    answer |= {tag: first.attributes.get(tag) or _EMPTY[tag] for tag in tags}
    answer["00081190"] = {"vr": "UR", "Value": [url]}
    wanted = first.attributes if "all" in include else include
    answer |= {tag: first.attributes[tag] for tag in wanted if tag not in answer and tag in first.attributes}
    return dict(sorted(answer.items()))


def _tag(name: str) -> str:
    """Return the tag of an attribute named by keyword or by eight hexadecimal digits."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        return name.upper()
    tag = tag_for_keyword(name)
    if tag is None:
        msg = f"Search parameter {name[:60]!r} is unknown; a keyword or tag of the DICOM dictionary is accepted."
        raise ValueError(msg)
    return f"{Tag(tag):08X}".upper()


def _matches(instance: DicomInstance, filters: Mapping[str, str], modalities: Sequence[str]) -> bool:
    for tag, wanted in filters.items():
        if tag == MODALITIES_IN_STUDY:
            values, vr = list(modalities), "CS"
        else:
            element = instance.attributes.get(tag) or {}
            vr = str(element.get("vr") or dictionary_VR(int(tag, 16)))
            values = [_as_text(value) for value in element.get("Value") or ()]
        if not _value_matches(values, wanted, vr):
            return False
    return True


def _as_text(value: object) -> str:
    return str(value.get("Alphabetic", "")) if isinstance(value, Mapping) else str(value)


def _value_matches(values: Sequence[str], wanted: str, vr: str) -> bool:
    """Whether one of the values of an attribute matches, PS3.4 C.2.2.2.1 to C.2.2.2.5."""
    if vr == "UI":
        return bool(set(values) & set(re.split(r"[,\\]", wanted)))
    if vr in _DATES and "-" in wanted:
        low, _, high = (part.strip() for part in wanted.partition("-"))
        return any((not low or value >= low) and (not high or value[: len(high)] <= high) for value in values)
    if not values:
        return set(wanted) == {"*"}
    flags = re.IGNORECASE if vr == "PN" else 0
    patterns = [fnmatch.translate(one.replace("[", "[[]")) for one in (wanted.split("\\") if vr == "CS" else [wanted])]
    return any(re.fullmatch(one, value, flags) for value in values for one in patterns)
