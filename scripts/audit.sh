#!/bin/sh
# Known weaknesses of what is installed beside bissl-fast, by pip-audit, which asks a service on the network.
#   scripts/audit.sh [PYTHON]     of whose environment; by default .venv's. The tool gets an environment of its own.
# Ends with 1 where it finds one, with 0 and a sentence where the service cannot be asked.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$repository/.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/tool"
if ! "$folder/tool/bin/pip" install --quiet pip-audit; then
    echo "pip-audit cannot be installed here: nothing was audited."
    exit 0
fi
"$python" - >"$folder/installed.txt" <<'LIST'
from importlib.metadata import distributions

found = {d.metadata["Name"].lower(): d.version.partition("+")[0] for d in distributions() if d.metadata["Name"]}
print(*(f"{name}=={version}" for name, version in sorted(found.items()) if name != "bissl-fast"), sep="\n")
LIST
"$folder/tool/bin/pip-audit" --no-deps --disable-pip --progress-spinner off -r "$folder/installed.txt" \
    >"$folder/found" 2>"$folder/said" && code=0 || code=$?
unknown=$(grep -c "could not be audited" "$folder/found" || true)
all=$(wc -l <"$folder/installed.txt")
if [ "$unknown" -eq "$all" ]; then
    echo "The service that could be asked knows none of the $all packages: nothing was audited."
    exit 0
fi
grep -v "could not be audited" "$folder/found" || true
echo "$unknown of $all packages are unknown to the service that could be asked."
if [ "$code" -ne 0 ] && ! grep -q "Found [0-9]* known" "$folder/said"; then
    tail -n 1 "$folder/said" | cut -c 1-200
    echo "The service cannot be asked from here: nothing was audited."
    exit 0
fi
cat "$folder/said"
exit "$code"
