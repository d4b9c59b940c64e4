#!/usr/bin/env bash
# One would guess: "mkdocs build --strict --quiet" fails where "mkdocs build --strict" does; quiet is about what is printed.
# What happens: strict mode counts the warnings that reach its log handler, and --quiet raises the level below which
# nothing reaches any. With both, a page with a broken link builds, with exit status 0.
# Whom it costs: who lets CI check links, and wants its log short.
# Versions: mkdocs 1.6.1. Date: 2026-11-28.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir mkdocs==1.6.1
mkdir "$folder/docs"
echo "site_name: one page" > "$folder/mkdocs.yml"
echo "[there](is-not.md)" > "$folder/docs/index.md"
cd "$folder"
"$folder/env/bin/mkdocs" --version
status() { "$folder/env/bin/mkdocs" build "$@" > "$folder/log" 2>&1 && echo 0 || echo "$?"; }
strict=$(status --strict) both=$(status --strict --quiet)
echo "a broken link: exit status $strict of --strict, $both of --strict --quiet (guess: the same)"
[ "$strict" = 1 ] || { echo "--strict lets a broken link pass"; exit 1; }
[ "$both" = 0 ] || { echo "the behaviour has changed"; exit 1; }
