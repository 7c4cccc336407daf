"""How long a program that died waits for its next start."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
#: A program that lived this long had started well: its next death has another cause.
HEALTHY_AFTER_S: Final = 60.0


class Backoff:
    """Delays between the starts of one program: 1 s, then twice as long after each death, 30 s at most."""

    def __init__(self) -> None:
        self._delay_s = 0.0

    def after(self, lived_s: float) -> float:
        """Return the delay in seconds before the next start.

        Args:
            lived_s: How long the program ran; after a minute the delays begin anew.
        """
        anew = lived_s > HEALTHY_AFTER_S or not self._delay_s
        self._delay_s = FIRST_S if anew else min(2 * self._delay_s, LONGEST_S)
        return self._delay_s
