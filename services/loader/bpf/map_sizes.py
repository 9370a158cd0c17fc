"""The sizes that an operator gave to maps while the loader ran: ``map-sizes.json`` in the state directory.

They win over those of the setting FIMBRIA_MAP_SIZES, and these over what the programs declare.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from services.loader.state_file import read_state, sync_state, write_state

_FILE = "map-sizes.json"


class MapSizes:
    """Sizes by map name. ``state_dir`` "" keeps them for as long as the process runs."""

    def __init__(self, state_dir: str = "", setting: Mapping[str, int] | None = None) -> None:
        self._path = Path(state_dir, _FILE) if state_dir else None
        self.setting = dict(setting or {})
        self.operator: dict[str, int] = {}
        if self._path:
            try:
                self.operator = {str(name): int(size) for name, size in read_state(self._path).items()}
            except (OSError, ValueError, TypeError):
                # None given yet. Of a damaged file nothing is known; the maps keep what they hold or say so.
                self.operator = {}

    def merged(self) -> dict[str, int]:
        """What maps are to be given instead of the declared sizes."""
        return {**self.setting, **self.operator}

    def save(self, operator: Mapping[str, int]) -> None:
        """Replaces the operator's sizes, in one step. Raises OSError."""
        if self._path:
            write_state(self._path, operator)
            sync_state(self._path)
        self.operator = dict(operator)
