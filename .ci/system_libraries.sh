#!/bin/sh
# Installs what open3d and python's venv need from Debian or Ubuntu when root; otherwise says what to type.
# Usage: system_libraries.sh PYTHON
python="${1:-python3}"
renderers="$(dirname "$0")/../renderers"
packages=$(cd "$renderers" && "$python" -c '
import system_libraries as s
print(*(" " + s.PACKAGE_OF[name] for name in s.missing_libraries()), sep="", end="")')
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
