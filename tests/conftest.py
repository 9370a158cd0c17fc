"""What holds for all tests, however they are started."""

from __future__ import annotations

import signal

# Whoever starts the suite in the background may have it ignore Ctrl-C; what it runs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
