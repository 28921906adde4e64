"""Cut panoramas into perspective views."""

from pathlib import Path

from progeo.data.options import ViewOptions


def cut_panoramas(panoramas: Path, *, out: Path, views: ViewOptions) -> Path:
    """Cut each panorama into views, skipping those that exist, and return their folder.

    Args:
        panoramas: Folder or catalogue of equirectangular panoramas with positions, twice as wide as high. The heading
            of a panorama is that of its center column.
        out: Output folder for the views, which get the standard file names. Views that exist already are skipped.
        views: The views of each panorama.

    Raises:
        ValueError: a panorama does not cover 360 degrees, panoramas have no position or none can be read, or the folder
            holds views with other options.
    """
    from progeo.data.views import cut_panoramas

    cut_panoramas(panoramas, out, views)
    return out
