"""Shared libraries of the system that Open3D is linked to (`ldd` on its pybind module), and their Debian packages.

It imports nothing of ours: .ci/system_libraries.sh reads it before anything is installed.
"""

from __future__ import annotations

import ctypes

PACKAGE_OF = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11.so.6": "libx11-6",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libidn2.so.0": "libidn2-0",
    "libudev.so.1": "libudev1",
}


def missing_libraries() -> list[str]:
    """Those that this machine cannot load."""
    missing = []
    for name in PACKAGE_OF:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing
