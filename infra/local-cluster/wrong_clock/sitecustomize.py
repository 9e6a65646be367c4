"""Python imports this before all else where PYTHONPATH has its folder: `NODE_CLOCK` seconds are added to its clock.

(libfaketime breaks Ray: `time.sleep` fails under it.) Ray's servers, files and monotonic clocks keep the right time.
"""

import os
import time

_time, _time_ns, _ahead = time.time, time.time_ns, int(os.environ["NODE_CLOCK"])
time.time = lambda: _time() + _ahead
time.time_ns = lambda: _time_ns() + _ahead * 10**9
