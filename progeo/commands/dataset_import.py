"""Import a data set of another format: write its catalogues."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from progeo.printable import counted

_MAX_NAMED = 3
"""How many skipped images are named for each reason."""


def import_dataset(
    kind: Literal["table", "photos", "dbstruct", "arrays", "msls", "gsv-cities", "baidu"],
    source: Path,
    *,
    out: Path,
    images: str | None = None,
    query_images: Path | None = None,
    columns: dict[str, str] | None = None,
    path: str | None = None,
    name: str | None = None,
    cities: tuple[str, ...] | None = None,
    subtask: Literal["all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d", "any"] | None = None,
    positive_radius_m: NonNegativeFloat | None = None,
    min_images: PositiveInt | None = None,
    link: bool = False,
) -> Path:
    """Write the catalogues of a data set, which every command then accepts as image folders; returns `out`.

    Args:
        kind: Kind of source. table is a .csv, .tsv, .parquet or .geojson file, or a folder of .parquet files; photos is
            a folder of photos with GPS positions in their EXIF metadata; dbstruct is a .mat file such as
            pitts30k_test.mat or tokyo247.mat; arrays is a folder with the ground truth of OpenVPRLab, GSV-Cities,
            Patch-NetVLAD or VPR-Bench; msls is a folder of Mapillary Street-Level Sequences, gsv-cities one of
            GSV-Cities, and baidu one of Baidu Mall, all as downloaded.
        source: File or folder to import.
        out: Output name. table, photos and gsv-cities write <out>.arrow, and <out> then stands for an image folder; the
            others write database.arrow and queries.arrow into the folder <out>, for `progeo evaluate --folder`.
        images: Folder that the image names of a table, dbstruct or arrays are relative to; of a table also a URL, such
            as s3://bucket/city. null takes the folder of a table; for VPR-Bench it is the folder that holds query and
            ref.
        query_images: Folder that the query names of a dbstruct are relative to. null takes images.
        columns: Names of the columns of a table that are called differently than path, latitude and longitude (or UTM
            east and north) and heading, as in --columns path=photo latitude=y longitude=x.
        path: Template that builds each path of a table from columns, such as '{city}/{place_id:07d}.jpg'. null takes
            the column path.
        name: Prefix of the file names of arrays, such as pitts30k_val. Required if the folder holds several data sets.
        cities: Cities of msls to import, such as cph sf for the validation set, or of gsv-cities, such as London
            Boston. null imports all cities in the folder, of msls without those in its folder test.
        subtask: Subtask of the msls benchmark whose images are imported. s2w is summer to winter, o2n old to new, d2n
            day to night, and w2s, n2o and n2d are the reverse; any imports every image. null takes all.
        positive_radius_m: Queries of msls without a database image within this many meters are excluded, as in the
            benchmark. 0 keeps them; null takes 25.
        min_images: Places of gsv-cities with fewer images are excluded. null takes 4, as published trainings do.
        link: Also create folders of symbolic links with the standard file names, for other tools.

    Raises:
        FileNotFoundError: the source or one of its images does not exist.
        ValueError: the source cannot be read, or an option is not of this kind.
    """
    import inspect

    import numpy as np

    from progeo.datasets.output import write_catalogue
    from progeo.datasets.readers import READERS
    from progeo.engine.log import LOGGER
    from progeo.remote_files import RemotePath, path_of

    folder = None if images is None else path_of(str(images))
    if isinstance(folder, RemotePath) and kind != "table":
        raise ValueError(f"`images` of {kind} must be a folder, got {images}: only those of a table may be a URL.")
    given = {
        "images": folder,
        "query_images": query_images,
        "columns": columns,
        "path": path,
        "name": name,
        "cities": cities,
        "subtask": subtask,
        "positive_radius_m": positive_radius_m,
        "min_images": min_images,
    }
    options = {option: value for option, value in given.items() if value is not None}
    takes = inspect.signature(READERS[kind]).parameters
    for option in options:
        if option not in takes:
            raise ValueError(f"`{option}` is not for {kind}, which takes {_in_words(set(takes) & set(given))}.")
    for option, parameter in takes.items():
        if option != "source" and parameter.default is parameter.empty and option not in options:
            raise ValueError(f"{kind} needs `{option}`: the folder that the image names are relative to.")
    imported = READERS[kind](source, **options)
    for line in _skipped(imported.skipped):
        LOGGER.warning(line)
    for side, catalogue in imported.catalogues.items():
        write_catalogue(catalogue, out / side, link=link)
    if any(catalogue.positives is not None for catalogue in imported.catalogues.values()):
        LOGGER.info("the positives of each query are given: --positive_radius_m has no effect in an evaluation")
    elif not any(np.isfinite(catalogue.east).any() for catalogue in imported.catalogues.values()):
        LOGGER.info("neither positions nor positives are given: evaluate with --no_labels")
    return out


def _skipped(files: Mapping[Path, str]) -> Iterator[str]:
    """Say for each reason how many files are skipped, and name the first of them."""
    by_reason = defaultdict(list)
    for file, reason in files.items():
        by_reason[reason].append(str(file))
    for reason, names in by_reason.items():
        more = ", ..." if len(names) > _MAX_NAMED else ""
        yield f"skipped {counted(len(names), 'image')}, {reason}: {', '.join(names[:_MAX_NAMED])}{more}"


def _in_words(options: set[str]) -> str:
    return ", ".join(f"`{option}`" for option in sorted(options)) or "no options"
