"""Serve a place index that other commands may change: a new generation replaces the former one once it works."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.localization.index_folder import read_metadata
from progeo.localization.place_index import PlaceIndex
from progeo.places.catalogue import Catalogue
from progeo.remote_files import RemotePath

_WARM_UP = np.full((64, 64, 3), 128, np.uint8)
_LONGEST_PAUSE = 15
"""Maximum number of looks that are skipped after an index that cannot be opened, which may be large to read."""


class ServedIndex:
    """The newest generation of a place index that can be opened."""

    def __init__(
        self,
        folder: Path,
        open_index: Callable[[Path], PlaceIndex],
        *,
        on_reload: Callable[[str], object],
    ) -> None:
        """Open the index.

        Args:
            folder: of the index.
            open_index: opens it.
            on_reload: called with `opened` or `failed` after a change.

        Raises:
            FileNotFoundError, ValueError: as `open_index`.
        """
        self._folder = folder
        self._open_index = open_index
        self._on_reload = on_reload
        self._failures = self._to_skip = 0
        self._said = ""
        self.current = self._opened()
        self._former: Catalogue | None = None
        self._former_generation = -1

    def image_path(self, row: int, generation: int | None) -> Path | RemotePath | None:
        """Return the path of a row of the current generation, or of the one before it, whose rows answers may name.

        Returns:
            None if there is no such row, or it is removed in the current generation.
        """
        index, images = self.current, self._former
        if generation in (None, index.metadata.generation):
            images = None if row in index.removed else index.catalogue
        elif generation != self._former_generation:
            images = None
        return images.path(row) if images is not None and row < len(images) else None

    def look(self) -> None:
        """Replace the index if another command changed it; requests that use the former one keep it."""
        if self._to_skip:
            self._to_skip -= 1
            return
        try:
            if read_metadata(self._folder) == self.current.metadata:
                self._failures, self._said = 0, ""
                return
            former, self.current = self.current, self._opened()
            self._former, self._former_generation = former.catalogue, former.metadata.generation
        except Exception as error:  # whatever is wrong with the new one, the former one still answers
            self._to_skip = min(2**self._failures - 1, _LONGEST_PAUSE)
            self._failures += 1
            if str(error) != self._said:
                self._said = str(error)
                LOGGER.warning("the index was changed, and its former version still answers: %s", error)
                self._on_reload("failed")
            return
        self._failures, self._said = 0, ""
        metadata = self.current.metadata
        LOGGER.info("the index was changed: generation %d, %s", metadata.generation, metadata.rows)
        self._on_reload("opened")

    def _opened(self) -> PlaceIndex:
        """Open the index and localize a gray image, so that the first photo takes no longer than others."""
        index = self._open_index(self._folder)
        index.localize(_WARM_UP)
        return index
