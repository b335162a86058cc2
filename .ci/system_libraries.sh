#!/bin/sh
# Installs what open3d and python's venv need from Debian or Ubuntu when root; otherwise says what to type.
# Usage: system_libraries.sh PYTHON
python="${1:-python3}"
packages=""
for pair in libEGL.so.1:libegl1 libGL.so.1:libgl1 libX11.so.6:libx11-6 libusb-1.0.so.0:libusb-1.0-0 libidn2.so.0:libidn2-0; do
    "$python" -c "import ctypes; ctypes.CDLL('${pair%%:*}')" 2>/dev/null || packages="$packages ${pair##*:}"
done
if ! "$python" -c "import ensurepip, venv" 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    packages="$packages python$version-venv"
fi
[ -z "$packages" ] && exit 0
command -v apt-get >/dev/null || { echo "missing system libraries:$packages"; exit 0; }
if [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
else
    echo "missing system libraries; type: sudo apt-get install -y$packages"
    case "$packages" in *-venv*) exit 1 ;; esac
fi
