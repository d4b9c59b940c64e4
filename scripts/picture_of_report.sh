#!/usr/bin/env bash
# The top of a report as a picture, by headless Chromium: scripts/picture_of_report.sh runs/NAME/report.html PICTURE.png [HEIGHT]
set -euo pipefail
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --hide-scrollbars --user-data-dir="$profile" \
    --force-device-scale-factor=1.25 --window-size="780,${3:-1790}" --screenshot="$(realpath "$2")" "file://$(realpath "$1")"
